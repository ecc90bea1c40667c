// SPDX-License-Identifier: Apache-2.0
//! `podwright image …`.

mod progress;
mod table;

use std::collections::BTreeMap;
use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use super::credentials;
use super::error::{ImageError, chain};
use super::import::STDIO;
use super::platform::Platform;
use super::store::ImageStore;
use super::types::{Auth, BuildOptions, ExportFormat, PullOptions, Removed, RootfsSource};

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
        /// File of credentials such as docker's config.json [default: $REGISTRY_AUTH_FILE,
        /// $XDG_RUNTIME_DIR/containers/auth.json, $DOCKER_CONFIG/config.json, ~/.docker/config.json]
        #[arg(long, value_name = "FILE")]
        authfile: Option<PathBuf>,
        /// Platform to take of an index, such as linux/arm64 [default: this machine's]
        #[arg(long)]
        platform: Option<Platform>,
        /// Seconds without a byte after which a transfer has failed
        #[arg(long, value_name = "SECONDS", default_value_t = 60,
            value_parser = clap::value_parser!(u64).range(1..))]
        progress_timeout: u64,
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
    /// Remove images without a name, and content that nothing needs
    Prune {
        /// Every image that no container uses and that is not pinned
        #[arg(short, long)]
        all: bool,
    },
    /// Keep images from being pruned, and from the kubelet's garbage collection
    Pin {
        #[arg(required = true)]
        images: Vec<String>,
        /// Let them go again
        #[arg(long)]
        off: bool,
    },
    /// Import an OCI layout directory, an OCI archive or the output of docker save
    #[command(visible_alias = "load")]
    Import {
        /// Directory or file; - for standard input
        path: PathBuf,
        /// Name to give, when there is one image in it
        #[arg(long)]
        name: Option<String>,
        /// Platform to take of an index, such as linux/arm64 [default: this machine's]
        #[arg(long)]
        platform: Option<Platform>,
    },
    /// Export an image as an OCI archive, an OCI layout directory or a docker archive
    #[command(visible_alias = "save")]
    Export {
        image: String,
        /// File or directory to write; - for standard output
        #[arg(short, long)]
        output: PathBuf,
        #[arg(long, value_enum, default_value_t)]
        format: ExportFormat,
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
        Command::Pull {
            references,
            creds,
            authfile,
            platform,
            progress_timeout,
        } => {
            let options = PullOptions {
                platform,
                progress_timeout: Duration::from_secs(progress_timeout),
                credentials: match authfile {
                    Some(path) => vec![path],
                    None => credentials::search_paths(|name| std::env::var(name).ok()),
                },
                ..PullOptions::default()
            };
            pull(&store, &references, creds, &options).await?
        }
        Command::Ls { quiet } => ls(&store, quiet).await.map_err(|e| one_line(&e))?,
        Command::Rm { images } => rm(&store, &images).await?,
        Command::Prune { all } => prune(&store, all).await?,
        Command::Pin { images, off } => {
            for image in &images {
                let result = store.pin(image, !off).await;
                result.map_err(|error| one_line(&error))?;
            }
            String::new()
        }
        Command::Import {
            path,
            name,
            platform,
        } => import(&store, &path, name, platform).await?,
        Command::Export {
            image,
            output,
            format,
        } => {
            check_output(&output, format)?;
            let result = store.export(&image, &output, format).await;
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

/// Standard output takes an archive, unless it is a terminal.
fn check_output(output: &Path, format: ExportFormat) -> Result<(), String> {
    if output != Path::new(STDIO) {
        return Ok(());
    }
    if format == ExportFormat::OciDir {
        return Err("oci-dir is a directory, which standard output is not: name one".to_owned());
    }
    if std::io::stdout().is_terminal() {
        return Err("an archive is not for a terminal: redirect it, or name a file".to_owned());
    }
    Ok(())
}

async fn prune(store: &ImageStore, all: bool) -> Result<String, String> {
    let (removed, freed) = store.prune(all).await.map_err(|error| one_line(&error))?;
    let mut text: String = removed.iter().map(told).collect();
    text.push_str(&format!("freed {}\n", indicatif::HumanBytes(freed)));
    Ok(text)
}

fn told(removed: &Removed) -> String {
    let names = removed.untagged.iter();
    let mut text: String = names.map(|name| format!("untagged {name}\n")).collect();
    if let Some(id) = &removed.deleted {
        text.push_str(&format!("deleted {id}\n"));
    }
    text
}

fn one_line(error: &ImageError) -> String {
    chain(error).replace('\n', " ")
}

async fn pull(
    store: &ImageStore,
    references: &[String],
    creds: Option<String>,
    options: &PullOptions,
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
        let pull = store.pull_with(reference, auth.clone(), options, bars.callback());
        let result = pull.await;
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

/// Removes what can be removed, and then says what could not.
async fn rm(store: &ImageStore, images: &[String]) -> Result<String, String> {
    let mut text = String::new();
    let mut problems = Vec::new();
    for image in images {
        match store.remove(image).await {
            Ok(removed) if removed == Removed::default() => {
                problems.push(format!("image {image:?} not found"));
            }
            Ok(removed) => text.push_str(&told(&removed)),
            Err(error) => problems.push(one_line(&error)),
        }
    }
    if problems.is_empty() {
        return Ok(text);
    }
    print(&text)?;
    Err(problems.join("; "))
}

async fn import(
    store: &ImageStore,
    path: &Path,
    name: Option<String>,
    platform: Option<Platform>,
) -> Result<String, String> {
    let bars = progress::Bars::new();
    let platform = platform.unwrap_or_else(Platform::host);
    let result = store.import_for(&platform, path, bars.callback()).await;
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
    let id = image.id.to_string();
    let disk = store.disk_usage(&id).await;
    let value = serde_json::json!({
        "disk": disk.map_err(|error| one_line(&error))?,
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
