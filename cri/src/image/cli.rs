// SPDX-License-Identifier: Apache-2.0
//! `podwright image …`.

mod progress;
mod table;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use super::error::{ImageError, chain};
use super::store::ImageStore;
use super::types::{Auth, BuildOptions, RootfsSource};

/// Arguments of `podwright image`.
// Whoever flattens this may have arguments of the same type name, which would name the same group.
#[derive(Debug, clap::Args)]
#[group(skip)]
pub struct ImageArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Pull images from a registry
    Pull {
        /// References, such as busybox:1.36 or registry.example:5000/app@sha256:…
        #[arg(required = true)]
        references: Vec<String>,
        /// user:password for the registry; better given in the environment
        #[arg(long, env = "PODWRIGHT_REGISTRY_CREDENTIALS", hide_env_values = true)]
        creds: Option<String>,
    },
    /// List images
    #[command(visible_alias = "list")]
    Ls {
        /// Print full ids only
        #[arg(short, long)]
        quiet: bool,
    },
    /// Remove names, or images by id
    #[command(visible_alias = "remove")]
    Rm {
        #[arg(required = true)]
        images: Vec<String>,
    },
    /// Import an OCI layout directory, an OCI archive or the output of docker save
    #[command(visible_alias = "load")]
    Import {
        path: PathBuf,
        /// Name to give, when there is one image in it
        #[arg(long)]
        name: Option<String>,
    },
    /// Export an image as an OCI archive
    #[command(visible_alias = "save")]
    Export {
        image: String,
        /// File to write
        #[arg(short, long)]
        output: PathBuf,
    },
    /// Give an image one more name
    Tag { image: String, name: String },
    /// Build an image of one layer from a root filesystem
    Build(BuildArgs),
    /// Show an image as JSON
    Inspect { image: String },
}

#[derive(Debug, clap::Args)]
struct BuildArgs {
    /// Directory or tar file (plain, gzip or zstd) that becomes the root filesystem
    rootfs: PathBuf,
    /// Name of the image
    #[arg(short = 't', long = "name", visible_alias = "tag")]
    name: String,
    /// Entrypoint, one argument at a time: --entrypoint /bin/sh --entrypoint -c
    #[arg(long, allow_hyphen_values = true)]
    entrypoint: Vec<String>,
    /// Default arguments, one at a time
    #[arg(long, allow_hyphen_values = true)]
    cmd: Vec<String>,
    /// KEY=value
    #[arg(short, long)]
    env: Vec<String>,
    /// user[:group]
    #[arg(short, long)]
    user: Option<String>,
    #[arg(short, long)]
    workdir: Option<String>,
    /// 80, 80/tcp or 53/udp
    #[arg(short, long = "port", visible_alias = "expose")]
    ports: Vec<String>,
    /// key=value
    #[arg(short, long = "label", value_parser = label)]
    labels: Vec<(String, String)>,
}

fn label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("expected key=value".to_owned()),
    }
}

/// Runs the command on the store in `data_dir`. Works on a bare directory and beside a running
/// node. Data goes to stdout, progress and errors to stderr; the exit code is 0 or 1.
pub async fn run(args: ImageArgs, data_dir: &Path, registries_dir: &Path) -> ExitCode {
    match execute(args.command, data_dir, registries_dir).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(text) => {
            eprintln!("error: {text}");
            ExitCode::FAILURE
        }
    }
}

/// Writes data to stdout. A reader that went away (`… | head`) is no error.
fn print(text: &str) -> Result<(), String> {
    use std::io::Write as _;
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        result => result.map_err(|error| format!("writing to stdout: {error}")),
    }
}

async fn execute(command: Command, data_dir: &Path, registries: &Path) -> Result<(), String> {
    let dir = ImageStore::dir_in(data_dir);
    let registries = registries.to_owned();
    let store = tokio::task::spawn_blocking(move || ImageStore::open(dir, registries))
        .await
        .map_err(|error| chain(&error))?
        .map_err(|error| one_line(&error))?;
    let text = match command {
        Command::Pull { references, creds } => pull(&store, &references, creds).await?,
        Command::Ls { quiet } => ls(&store, quiet).await.map_err(|e| one_line(&e))?,
        Command::Rm { images } => rm(&store, &images).await?,
        Command::Import { path, name } => import(&store, &path, name).await?,
        Command::Export { image, output } => {
            let result = store.export(&image, &output).await;
            result.map_err(|error| one_line(&error))?;
            String::new()
        }
        Command::Tag { image, name } => {
            let result = store.tag(&image, &name).await;
            result.map_err(|error| one_line(&error))?;
            String::new()
        }
        Command::Build(args) => build(&store, args).await?,
        Command::Inspect { image } => inspect(&store, &image).await?,
    };
    print(&text)
}

fn one_line(error: &ImageError) -> String {
    chain(error).replace('\n', " ")
}

async fn pull(
    store: &ImageStore,
    references: &[String],
    creds: Option<String>,
) -> Result<String, String> {
    let auth = match creds {
        None => Auth::Anonymous,
        Some(pair) => match pair.split_once(':') {
            Some((username, password)) => Auth::Basic {
                username: username.to_owned(),
                password: password.to_owned(),
            },
            None => return Err("--creds must be of the form user:password".to_owned()),
        },
    };
    let mut text = String::new();
    for reference in references {
        let bars = progress::Bars::new();
        let result = store.pull(reference, auth.clone(), bars.callback()).await;
        bars.finish();
        let image = result.map_err(|error| one_line(&error))?;
        text.push_str(&format!("{}\n", image.id));
    }
    Ok(text)
}

async fn ls(store: &ImageStore, quiet: bool) -> Result<String, ImageError> {
    let images = store.list().await?;
    if quiet {
        return Ok(images.iter().map(|i| format!("{}\n", i.id)).collect());
    }
    Ok(table::images(&images))
}

async fn rm(store: &ImageStore, images: &[String]) -> Result<String, String> {
    let mut text = String::new();
    let mut missing = None;
    for image in images {
        let removed = store
            .remove(image)
            .await
            .map_err(|error| one_line(&error))?;
        if removed == super::types::Removed::default() {
            missing.get_or_insert(image);
        }
        for name in removed.untagged {
            text.push_str(&format!("untagged {name}\n"));
        }
        if let Some(id) = removed.deleted {
            text.push_str(&format!("deleted {id}\n"));
        }
    }
    match missing {
        None => Ok(text),
        Some(image) => {
            // What was done is said before what was not.
            print(&text)?;
            Err(format!("image {image:?} not found"))
        }
    }
}

async fn import(store: &ImageStore, path: &Path, name: Option<String>) -> Result<String, String> {
    let bars = progress::Bars::new();
    let result = store.import(path, bars.callback()).await;
    bars.finish();
    let mut images = result.map_err(|error| one_line(&error))?;
    if let Some(name) = name {
        let [image] = images.as_mut_slice() else {
            return Err(format!(
                "--name is for one image, the archive has {}",
                images.len()
            ));
        };
        let named = store.tag(&image.id.to_string(), &name).await;
        *image = named.map_err(|error| one_line(&error))?;
    }
    Ok(images
        .iter()
        .map(|image| match image.repo_tags.as_slice() {
            [] => format!("{}\n", image.id),
            tags => format!("{} {}\n", image.id, tags.join(" ")),
        })
        .collect())
}

async fn build(store: &ImageStore, args: BuildArgs) -> Result<String, String> {
    let rootfs = if args.rootfs.is_dir() {
        RootfsSource::Dir(args.rootfs)
    } else {
        RootfsSource::Tar(args.rootfs)
    };
    let options = BuildOptions {
        rootfs,
        name: args.name,
        entrypoint: args.entrypoint,
        cmd: args.cmd,
        env: args.env,
        user: args.user,
        workdir: args.workdir,
        ports: args.ports,
        labels: args.labels.into_iter().collect::<BTreeMap<_, _>>(),
    };
    let result = store.build(options).await;
    let image = result.map_err(|error| one_line(&error))?;
    Ok(format!("{}\n", image.id))
}

async fn inspect(store: &ImageStore, wanted: &str) -> Result<String, String> {
    let image = store.get(wanted).await.map_err(|error| one_line(&error))?;
    let image = image.ok_or_else(|| format!("image {wanted:?} not found"))?;
    let value = serde_json::json!({
        "id": image.id,
        "repoTags": image.repo_tags,
        "repoDigests": image.repo_digests,
        "size": image.size,
        "pinned": image.pinned,
        "layers": image.layers,
        "config": image.config,
    });
    serde_json::to_string_pretty(&value)
        .map(|text| text + "\n")
        .map_err(|error| chain(&error))
}
