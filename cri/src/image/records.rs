// SPDX-License-Identifier: Apache-2.0
//! What the store remembers: images, names, layers, leases. One small JSON file each, with a version.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::Path;

use oci_spec::image::ImageConfiguration;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::digest::Digest;
use super::disk::{self, Disk};
use super::error::ImageError;
use super::layer::Unpacked;
use super::types::Image;

const VERSION: u32 = 1;

/// `images/<id>.json`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ImageRecord {
    pub(crate) version: u32,
    pub(crate) id: Digest,
    pub(crate) manifest: Digest,
    /// Bottom first, as in the manifest.
    pub(crate) layers: Vec<LayerOf>,
    pub(crate) size: u64,
    pub(crate) pinned: bool,
}

/// One layer as an image has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LayerOf {
    pub(crate) blob: Digest,
    /// Compressed bytes. Not known of images that were recorded before this was kept.
    #[serde(default)]
    pub(crate) size: Option<u64>,
    pub(crate) diff_id: Digest,
}

/// `refs/<digest of name>.json`
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct RefRecord {
    pub(crate) version: u32,
    /// Normalised `name:tag` or `name@sha256:…`.
    pub(crate) name: String,
    pub(crate) image: Digest,
}

/// `layers/<name>.json`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LayerRecord {
    pub(crate) version: u32,
    pub(crate) diff_id: Digest,
    pub(crate) bytes: u64,
    pub(crate) inodes: u64,
    /// Directories that wait for what lies below them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) implied: Vec<String>,
}

/// `leases/<digest of owner>.json`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LeaseRecord {
    pub(crate) version: u32,
    pub(crate) owner: String,
    /// The images, which stay in use while the lease does.
    #[serde(default)]
    pub(crate) images: Vec<Digest>,
    pub(crate) layers: Vec<Digest>,
}

impl ImageRecord {
    pub(crate) fn new(id: Digest, manifest: Digest, layers: Vec<LayerOf>, size: u64) -> Self {
        ImageRecord {
            version: VERSION,
            id,
            manifest,
            layers,
            size,
            pinned: false,
        }
    }
}

impl RefRecord {
    pub(crate) fn new(name: String, image: Digest) -> Self {
        RefRecord {
            version: VERSION,
            name,
            image,
        }
    }

    /// The part before tag or digest.
    pub(crate) fn repository(&self) -> &str {
        match self.name.split_once('@') {
            Some((repository, _)) => repository,
            None => self.name.rsplit_once(':').map_or(&self.name, |(r, _)| r),
        }
    }

    pub(crate) fn is_digest(&self) -> bool {
        self.name.contains('@')
    }
}

impl LayerRecord {
    pub(crate) fn new(diff_id: Digest, unpacked: Unpacked) -> Self {
        LayerRecord {
            version: VERSION,
            diff_id,
            bytes: unpacked.bytes,
            inodes: unpacked.inodes,
            implied: unpacked.implied,
        }
    }
}

impl LeaseRecord {
    pub(crate) fn new(owner: String, images: Vec<Digest>, layers: Vec<Digest>) -> Self {
        LeaseRecord {
            version: VERSION,
            owner,
            images,
            layers,
        }
    }
}

impl LeaseRecord {
    /// Whether the owner of this lease uses this image. Leases of old say only the layers.
    pub(crate) fn uses(&self, image: &ImageRecord) -> bool {
        let mut layers = image.layers.iter();
        match self.images.is_empty() {
            false => self.images.contains(&image.id),
            true => layers.all(|layer| self.layers.contains(&layer.diff_id)),
        }
    }
}

/// Reads a record; `None` when there is no such file.
pub(crate) fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, ImageError> {
    #[derive(Deserialize)]
    struct Versioned {
        version: u32,
    }
    let data = match fs::read(path) {
        Ok(data) => data,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(ImageError::storage("reading", path, source)),
    };
    let malformed = |source: serde_json::Error| ImageError::Malformed {
        what: format!("record {} is not valid", path.display()),
        source: Some(source.into()),
    };
    let Versioned { version } = serde_json::from_slice(&data).map_err(malformed)?;
    if version != VERSION {
        return Err(ImageError::Unsupported(format!(
            "record {} has version {version}, this program knows version {VERSION}",
            path.display()
        )));
    }
    serde_json::from_slice(&data).map(Some).map_err(malformed)
}

/// Replaces a record, durably.
pub(crate) fn write<T: Serialize>(path: &Path, record: &T) -> Result<(), ImageError> {
    let data = serde_json::to_vec(record).expect("records are plain data with string keys");
    disk::write_atomic(path, &data)
}

/// Replaces a record. It outlives this process; a power cut may leave the old one or an empty file.
/// Right for leases, whose owners a power cut ends too, and where the caller syncs afterwards.
pub(crate) fn write_unsynced<T: Serialize>(path: &Path, record: &T) -> Result<(), ImageError> {
    let data = serde_json::to_vec(record).expect("records are plain data with string keys");
    disk::write_whole(path, &data)
}

/// Reads a lease; `None` when there is none, or an empty file that a power cut left.
pub(crate) fn read_lease(path: &Path) -> Result<Option<LeaseRecord>, ImageError> {
    match fs::metadata(path) {
        Ok(metadata) if metadata.len() == 0 => Ok(None),
        _ => read(path),
    }
}

/// All leases, but for what a power cut left.
pub(crate) fn read_leases(disk: &Disk) -> Result<Vec<LeaseRecord>, ImageError> {
    read_each(&disk.sub("leases"), read_lease)
}

/// All records of a directory. One that vanishes meanwhile is left out.
pub(crate) fn read_all<T: DeserializeOwned>(dir: &Path) -> Result<Vec<T>, ImageError> {
    read_each(dir, read)
}

fn read_each<T>(
    dir: &Path,
    read: impl Fn(&Path) -> Result<Option<T>, ImageError>,
) -> Result<Vec<T>, ImageError> {
    let fail = |source| ImageError::storage("listing", dir, source);
    let mut records = Vec::new();
    for entry in fs::read_dir(dir).map_err(fail)? {
        let path = entry.map_err(fail)?.path();
        if path.extension() == Some(OsStr::new("json")) {
            records.extend(read(&path)?);
        }
    }
    Ok(records)
}

/// Blob content of at most `limit` bytes.
pub(crate) fn read_blob(disk: &Disk, digest: &Digest, limit: u64) -> Result<Vec<u8>, ImageError> {
    let path = disk.blob(digest);
    fs::File::open(&path)
        .and_then(|file| super::rooted::read_bounded(file, limit))
        .map_err(|source| ImageError::storage("reading blob", &path, source))
}

pub(crate) fn parse_config(id: &Digest, data: &[u8]) -> Result<ImageConfiguration, ImageError> {
    ImageConfiguration::from_reader(data).map_err(|source| ImageError::Malformed {
        what: format!("image configuration {id} is not valid"),
        source: Some(source.into()),
    })
}

/// An image as callers see it.
pub(crate) fn view(
    disk: &Disk,
    record: &ImageRecord,
    refs: &[RefRecord],
) -> Result<Image, ImageError> {
    let data = read_blob(disk, &record.id, super::manifest::MAX_DOCUMENT)?;
    let names = |digests: bool| {
        let names: BTreeSet<&String> = refs
            .iter()
            .filter(|r| r.image == record.id && r.is_digest() == digests)
            .map(|r| &r.name)
            .collect();
        names.into_iter().cloned().collect()
    };
    // Overlay refuses the same lower directory twice. The upper one hides all of the lower one.
    let mut seen = BTreeSet::new();
    let layers = record
        .layers
        .iter()
        .rev()
        .filter(|layer| seen.insert(&layer.diff_id))
        .map(|layer| disk.layer(&layer.diff_id))
        .collect();
    Ok(Image {
        id: record.id.clone(),
        repo_tags: names(false),
        repo_digests: names(true),
        size: record.size,
        config: parse_config(&record.id, &data)?,
        layers,
        pinned: record.pinned,
    })
}
