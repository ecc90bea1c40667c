// SPDX-License-Identifier: Apache-2.0
//! Takes images out of an OCI image layout (directory or tar archive, `image-layout.md`) or out of
//! the output of `docker save`.
//!
//! An archive is first unpacked like a layer, with the same bounds and the same refusal to leave
//! its directory; then both forms are a directory that is read beneath its root.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufReader};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;

use super::content;
use super::digest::{Algorithm, Digest, Hashing};
use super::disk::{self, Disk, Session, blob_name};
use super::error::ImageError;
use super::layer;
use super::manifest::{self, Choice, Descriptor, Document, Manifest, Step};
use super::platform::Platform;
use super::pull::SESSION_WAIT;
use super::records::{self, ImageRecord};
use super::reference::Reference;
use super::rooted::Root;
use super::tar_stream::Limits;
use super::types::{Image, Progress, ProgressFn};

/// The full name, as containerd and BuildKit write it.
pub(crate) const NAME_ANNOTATION: &str = "io.containerd.image.name";
/// Often the bare tag only.
pub(crate) const REF_ANNOTATION: &str = "org.opencontainers.image.ref.name";

/// What stands for standard input, and for standard output of an export.
pub(crate) const STDIO: &str = "-";

/// One image of an archive, its small parts read and verified.
struct Found {
    names: Vec<Reference>,
    manifest_digest: Digest,
    manifest_bytes: Vec<u8>,
    manifest: Manifest,
    config_bytes: Vec<u8>,
    /// Where each layer's blob lies within the root.
    layer_files: Vec<PathBuf>,
}

pub(crate) async fn import(
    disk: &Disk,
    path: &Path,
    platform: &Platform,
    progress: ProgressFn,
) -> Result<Vec<Image>, ImageError> {
    let session = Arc::new(Session::begin(disk, SESSION_WAIT).await?);
    let (root, found) = {
        let (session, path, platform) = (session.clone(), path.to_owned(), platform.clone());
        disk::blocking(move || {
            let root = open(&session, &path)?;
            let found = read(&root, &platform).map_err(|source| ImageError::Malformed {
                what: format!("importing {}", path.display()),
                source: Some(Box::new(source)),
            })?;
            Ok((Arc::new(root), found))
        })
        .await?
    };
    let mut images = Vec::new();
    for image in found {
        images.push(take(disk, &session, &root, image, platform, &progress).await?);
    }
    Ok(images)
}

fn open(session: &Session, path: &Path) -> Result<Root, ImageError> {
    let storage = |doing, path: &Path| {
        let path = path.to_owned();
        move |source| ImageError::storage(doing, &path, source)
    };
    let archive = if path == Path::new(STDIO) {
        let stdin = io::stdin().as_fd().try_clone_to_owned();
        File::from(stdin.map_err(storage("opening", path))?)
    } else {
        let metadata = fs::metadata(path).map_err(storage("reading", path))?;
        if metadata.is_dir() {
            return Root::open(path).map_err(storage("opening", path));
        }
        File::open(path).map_err(storage("opening", path))?
    };
    let directory = session.fresh();
    fs::create_dir(&directory).map_err(storage("creating", &directory))?;
    let archive = BufReader::with_capacity(1 << 17, archive);
    layer::unpack(archive, &directory, Limits::default(), Algorithm::Sha256).map_err(|source| {
        ImageError::Malformed {
            what: format!("reading archive {}", path.display()),
            source: Some(source.into()),
        }
    })?;
    Root::open(&directory).map_err(storage("opening", &directory))
}

fn exists(root: &Root, name: &str) -> bool {
    root.file(Path::new(name)).is_ok()
}

fn read(root: &Root, platform: &Platform) -> Result<Vec<Found>, ImageError> {
    // Newer Docker writes both; the layout says more.
    if exists(root, "oci-layout") && exists(root, "index.json") {
        return read_layout(root, platform);
    }
    if exists(root, "manifest.json") {
        return read_docker(root);
    }
    Err(ImageError::malformed(
        "neither an OCI image layout (oci-layout, index.json) nor a docker archive (manifest.json)",
    ))
}

fn small(root: &Root, path: &Path) -> Result<Vec<u8>, ImageError> {
    root.read(path, manifest::MAX_DOCUMENT)
        .map_err(|source| ImageError::storage("reading", path, source))
}

fn blob_path(digest: &Digest) -> PathBuf {
    PathBuf::from(blob_name(digest))
}

fn small_blob(root: &Root, wanted: &Descriptor) -> Result<Vec<u8>, ImageError> {
    let bytes = small(root, &blob_path(&wanted.digest))?;
    content::check(wanted, &wanted.digest.like(&bytes), bytes.len() as u64)?;
    Ok(bytes)
}

fn read_layout(root: &Root, platform: &Platform) -> Result<Vec<Found>, ImageError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Layout {
        image_layout_version: String,
    }
    let json = |what: &str, source: serde_json::Error| ImageError::Malformed {
        what: format!("{what} is not valid"),
        source: Some(source.into()),
    };
    let layout: Layout = serde_json::from_slice(&small(root, Path::new("oci-layout"))?)
        .map_err(|source| json("oci-layout", source))?;
    if layout.image_layout_version != "1.0.0" {
        return Err(ImageError::Unsupported(format!(
            "image layout version {:?} is not supported",
            layout.image_layout_version
        )));
    }
    let Document::Index(entries) = manifest::parse(&small(root, Path::new("index.json"))?)? else {
        return Err(ImageError::malformed("index.json is not an index"));
    };
    // Entries of one name that differ by platform only are one image, for us the one that fits.
    let mut found: Vec<Found> = Vec::new();
    for entry in &entries {
        let other = |offered: &Platform| platform.rank(offered).is_none();
        if entry.platform.as_ref().is_some_and(other) {
            continue;
        }
        let image = read_entry(root, &entry.descriptor, platform)?;
        match found
            .iter_mut()
            .find(|known| known.manifest_bytes == image.manifest_bytes)
        {
            Some(known) => known.names.extend(image.names),
            None => found.push(image),
        }
    }
    if found.is_empty() {
        return Err(ImageError::Unsupported(format!("no image for {platform}")));
    }
    Ok(found)
}

fn read_entry(root: &Root, entry: &Descriptor, platform: &Platform) -> Result<Found, ImageError> {
    let mut bytes = small_blob(root, entry)?;
    let mut digest = entry.digest.clone();
    let mut choice = Choice::new(platform);
    let manifest = loop {
        match choice.document(&bytes)? {
            Step::Found(manifest) => break manifest,
            Step::Read(wanted) => {
                bytes = small_blob(root, &wanted)?;
                digest = wanted.digest;
            }
        }
    };
    let layers = manifest.layers.iter();
    Ok(Found {
        names: annotated_name(&entry.annotations).into_iter().collect(),
        config_bytes: small_blob(root, &manifest.config)?,
        layer_files: layers.map(|layer| blob_path(&layer.digest)).collect(),
        manifest_digest: digest,
        manifest_bytes: bytes,
        manifest,
    })
}

/// A name from annotations. A bare tag names no repository, so it doesn't count.
fn annotated_name(annotations: &BTreeMap<String, String>) -> Option<Reference> {
    let full = annotations.get(NAME_ANNOTATION);
    let short = annotations
        .get(REF_ANNOTATION)
        .filter(|name| name.contains(['/', ':']));
    full.or(short)?.parse().ok()
}

fn read_docker(root: &Root) -> Result<Vec<Found>, ImageError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Saved {
        config: String,
        repo_tags: Option<Vec<String>>,
        layers: Vec<String>,
    }
    let saved: Vec<Saved> = serde_json::from_slice(&small(root, Path::new("manifest.json"))?)
        .map_err(|source| ImageError::Malformed {
            what: "manifest.json is not valid".to_owned(),
            source: Some(source.into()),
        })?;
    let mut found = Vec::new();
    for image in saved {
        let config_bytes = small(root, Path::new(&image.config))?;
        let mut names = Vec::new();
        for tag in image.repo_tags.unwrap_or_default() {
            names.push(tag.parse::<Reference>()?);
        }
        let layer_files: Vec<PathBuf> = image.layers.iter().map(PathBuf::from).collect();
        let layers = layer_files
            .iter()
            .map(|path| describe(root, path))
            .collect::<Result<Vec<_>, _>>()?;
        let config = Descriptor::of(Digest::of(&config_bytes), config_bytes.len() as u64);
        let manifest = Manifest { config, layers };
        let manifest_bytes = render(&manifest);
        found.push(Found {
            names,
            manifest_digest: Digest::of(&manifest_bytes),
            manifest_bytes,
            manifest,
            config_bytes,
            layer_files,
        });
    }
    Ok(found)
}

fn describe(root: &Root, path: &Path) -> Result<Descriptor, ImageError> {
    let hash = || {
        let mut hashing = Hashing::new(root.file(path)?);
        io::copy(&mut hashing, &mut io::sink())?;
        Ok(hashing.finish())
    };
    let (digest, size, _) =
        hash().map_err(|source| ImageError::storage("reading", path, source))?;
    Ok(Descriptor::of(digest, size))
}

/// A manifest for content that came without one. Equal input gives equal bytes.
pub(crate) fn render(manifest: &Manifest) -> Vec<u8> {
    let descriptor = |media_type: &str, descriptor: &Descriptor| {
        serde_json::json!({
            "mediaType": media_type,
            "digest": descriptor.digest,
            "size": descriptor.size,
        })
    };
    let layers: Vec<_> = manifest
        .layers
        .iter()
        .map(|layer| descriptor(manifest::OCI_LAYER, layer))
        .collect();
    serde_json::json!({
        "schemaVersion": 2,
        "mediaType": manifest::OCI_MANIFEST,
        "config": descriptor(manifest::OCI_CONFIG, &manifest.config),
        "layers": layers,
    })
    .to_string()
    .into_bytes()
}

async fn take(
    disk: &Disk,
    session: &Arc<Session>,
    root: &Arc<Root>,
    image: Found,
    platform: &Platform,
    progress: &ProgressFn,
) -> Result<Image, ImageError> {
    let id = image.manifest.config.digest.clone();
    let config = records::parse_config(&id, &image.config_bytes)?;
    let layers = manifest::layers(&image.manifest, &config, platform)?;
    let claims = content::claims([&id, &image.manifest_digest], &layers);
    session.claim(claims).await?;
    let blobs = image.manifest.layers.clone();
    progress(Progress::Resolved {
        manifest: image.manifest_digest.clone(),
        layers: blobs.iter().map(|b| (b.digest.clone(), b.size)).collect(),
    });
    let size = image.manifest_bytes.len() as u64
        + image.manifest.config.size
        + blobs.iter().map(|blob| blob.size).sum::<u64>();
    for ((blob, of), file) in blobs.into_iter().zip(&layers).zip(image.layer_files) {
        let lock = content::lock_layer(disk, &of.diff_id).await?;
        let fetched = !content::has_blob(disk, &blob);
        let layer = blob.digest.clone();
        if fetched {
            let (disk, session, root) = (disk.clone(), session.clone(), root.clone());
            disk::blocking(move || {
                let source = root
                    .file(&file)
                    .map_err(|source| ImageError::storage("reading", &file, source))?;
                content::put_reader(&disk, &session, source, &blob)
            })
            .await?;
        }
        progress(Progress::Unpacking {
            layer: layer.clone(),
        });
        let unpacked = content::ensure_unpacked(disk, session, &lock, &layer, &of.diff_id).await?;
        progress(Progress::Ready {
            layer,
            cached: !fetched && !unpacked,
        });
    }
    let manifest_digest = image.manifest_digest.clone();
    {
        let (disk, session, id) = (disk.clone(), session.clone(), id.clone());
        disk::blocking(move || {
            content::put_bytes(&disk, &session, &image.config_bytes, &id)?;
            content::put_bytes(
                &disk,
                &session,
                &image.manifest_bytes,
                &image.manifest_digest,
            )
        })
        .await?;
    }
    let mut names = Vec::new();
    for name in image.names {
        names.push(name.with_digest(manifest_digest.clone()).to_string());
        names.push(name.to_string());
    }
    let record = ImageRecord::new(id, manifest_digest, layers, size);
    content::commit(disk, record, names).await
}
