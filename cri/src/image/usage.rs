// SPDX-License-Identifier: Apache-2.0
//! What the store and its images occupy. Unpacked layers count as measured when they were unpacked,
//! so no trees are walked.

use std::collections::BTreeSet;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt as _;

use super::digest::{Algorithm, Digest};
use super::disk::{Disk, blob_name};
use super::error::ImageError;
use super::records::{self, ImageRecord, LayerRecord};
use super::types::{DiskUsage, FsInfo};

/// Bytes and inodes of all blobs, layers, and beginnings of blobs.
pub(crate) fn of_store(disk: &Disk) -> Result<FsInfo, ImageError> {
    let (mut used_bytes, mut inodes_used) = (0, 0);
    let blobs = Algorithm::ALL.map(|algorithm| format!("blobs/{}", algorithm.name()));
    for directory in blobs.iter().map(String::as_str).chain(["partial"]) {
        let directory = disk.sub(directory);
        let fail = |source| ImageError::storage("listing", &directory, source);
        for entry in std::fs::read_dir(&directory).map_err(fail)? {
            // One that vanishes meanwhile occupies nothing.
            if let Ok(metadata) = entry.map_err(fail)?.metadata() {
                used_bytes += occupied(&metadata);
                inodes_used += 1;
            }
        }
    }
    for layer in records::read_all::<LayerRecord>(&disk.sub("layers"))? {
        used_bytes += layer.bytes;
        inodes_used += layer.inodes;
    }
    Ok(FsInfo {
        mountpoint: disk.dir().to_owned(),
        used_bytes,
        inodes_used,
    })
}

fn occupied(metadata: &Metadata) -> u64 {
    metadata.blocks() * 512
}

/// One image's part, and what of it others have too.
pub(crate) fn of(
    disk: &Disk,
    image: &ImageRecord,
    all: &[ImageRecord],
) -> Result<DiskUsage, ImageError> {
    let others = || all.iter().filter(|other| other.id != image.id);
    let layers = || others().flat_map(|other| &other.layers);
    let other_blobs: BTreeSet<&Digest> = layers().map(|layer| &layer.blob).collect();
    let other_layers: BTreeSet<&Digest> = layers().map(|layer| &layer.diff_id).collect();
    let mut usage = DiskUsage::default();
    let documents = [&image.id, &image.manifest];
    let blobs = image.layers.iter().map(|layer| &layer.blob);
    // The same layer twice is there once.
    for blob in documents.into_iter().chain(blobs).collect::<BTreeSet<_>>() {
        let bytes = std::fs::metadata(disk.sub(&blob_name(blob)));
        let bytes = bytes.map_or(0, |metadata| occupied(&metadata));
        usage.blobs += bytes;
        if other_blobs.contains(blob) {
            usage.shared += bytes;
        }
    }
    let layers = image.layers.iter().map(|layer| &layer.diff_id);
    for diff_id in layers.collect::<BTreeSet<_>>() {
        let record: Option<LayerRecord> = records::read(&disk.layer_record(diff_id))?;
        let Some(record) = record else { continue };
        usage.layers += record.bytes;
        usage.inodes += record.inodes;
        if other_layers.contains(diff_id) {
            usage.shared += record.bytes;
        }
    }
    Ok(usage)
}
