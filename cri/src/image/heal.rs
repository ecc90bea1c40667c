// SPDX-License-Identifier: Apache-2.0
//! What is looked at when a store is opened: whether images have all that they refer to.
//!
//! Sizes and records are compared, which costs a few system calls per layer. Digests are not computed
//! again: that would read every byte of every image at each start.

use std::ffi::OsStr;
use std::path::Path;

use super::content;
use super::disk::{self, Disk};
use super::error::{ErrorKind, ImageError};
use super::gc::children;
use super::manifest::{self, Descriptor, Document, Manifest};
use super::records::{self, ImageRecord, LayerRecord, LeaseRecord, RefRecord};

/// Removes what cannot be used: records that a power cut left half written, images without their
/// layers, names of no image, damaged blobs. What is removed can be pulled again. The caller holds the
/// content lock exclusively.
pub(crate) fn heal(disk: &Disk) -> Result<(), ImageError> {
    drop_unreadable::<ImageRecord>(&disk.sub("images"))?;
    drop_unreadable::<RefRecord>(&disk.sub("refs"))?;
    drop_unreadable::<LayerRecord>(&disk.sub("layers"))?;
    drop_unreadable::<LeaseRecord>(&disk.sub("leases"))?;
    for image in records::read_all::<ImageRecord>(&disk.sub("images"))? {
        if let Some(lacks) = lacks(disk, &image)? {
            tracing::warn!(image = %image.id, lacks, "image is damaged and removed; pull it again");
            disk::remove_file(&disk.image(&image.id))?;
        }
    }
    for name in records::read_all::<RefRecord>(&disk.sub("refs"))? {
        if !disk.image(&name.image).is_file() {
            disk::remove_file(&disk.reference(&name.name))?;
        }
    }
    Ok(())
}

fn drop_unreadable<T: serde::de::DeserializeOwned>(dir: &Path) -> Result<(), ImageError> {
    for path in children(dir)? {
        if path.extension() != Some(OsStr::new("json")) {
            continue;
        }
        match records::read::<T>(&path) {
            Err(error) if error.kind() == ErrorKind::BadContent => {
                tracing::warn!(error = %error.message(), "record is damaged and removed");
                disk::remove_file(&path)?;
            }
            // A record of a later version is somebody's, who would miss it.
            result => drop(result?),
        }
    }
    Ok(())
}

/// What an image needs and does not have. A layer's blob is needed by exports only, as long as the
/// layer is unpacked: if damaged, it goes alone.
fn lacks(disk: &Disk, image: &ImageRecord) -> Result<Option<String>, ImageError> {
    let Some(manifest) = manifest_of(disk, image) else {
        return Ok(Some(format!("manifest {}", image.manifest)));
    };
    if manifest.config.digest != image.id || !content::has_blob(disk, &manifest.config) {
        return Ok(Some(format!("configuration {}", image.id)));
    }
    for layer in &image.layers {
        if !content::has_layer(disk, &layer.diff_id)? {
            return Ok(Some(format!("layer {}", layer.diff_id)));
        }
    }
    for blob in manifest.layers {
        drop_damaged(disk, &blob)?;
    }
    Ok(None)
}

fn manifest_of(disk: &Disk, image: &ImageRecord) -> Option<Manifest> {
    let bytes = records::read_blob(disk, &image.manifest, manifest::MAX_DOCUMENT).ok()?;
    // Small, and everything else depends on it.
    if image.manifest.like(&bytes) != image.manifest {
        return None;
    }
    match manifest::parse(&bytes).ok()? {
        Document::Manifest(manifest) => Some(manifest),
        Document::Index(_) => None,
    }
}

fn drop_damaged(disk: &Disk, blob: &Descriptor) -> Result<(), ImageError> {
    let path = disk.blob(&blob.digest);
    if path.exists() && !content::has_blob(disk, blob) {
        tracing::warn!(blob = %blob.digest, "blob is damaged and removed; a pull brings it back");
        disk::remove_file(&path)?;
    }
    Ok(())
}
