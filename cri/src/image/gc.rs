// SPDX-License-Identifier: Apache-2.0
//! Removes content that nothing refers to: neither an image nor a lease.
//!
//! It needs the content lock exclusively and never waits for it: while a pull runs there is
//! nothing to collect safely, and the pull collects when it is done. What goes is moved to `tmp/`
//! under the lock and deleted after it, so nobody waits for the deletion of a large layer.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Path, PathBuf};

use super::digest::Digest;
use super::disk::{self, Disk, Mode, layer_name};
use super::error::ImageError;
use super::records::{self, ImageRecord, LeaseRecord};
use super::rooted;

/// What must stay, by file name in each directory.
#[derive(Debug, Default, PartialEq, Eq)]
struct Live {
    blobs: BTreeSet<OsString>,
    layers: BTreeSet<OsString>,
}

/// The graph: images refer to manifest, configuration, blobs and layers; leases to layers.
fn live(images: &[ImageRecord], leases: &[LeaseRecord]) -> Live {
    let mut live = Live::default();
    let layer = |live: &mut Live, diff_id: &Digest| {
        let name = layer_name(diff_id);
        live.layers.insert(name.into());
        live.layers.insert(format!("{name}.json").into());
    };
    for image in images {
        live.blobs.insert(image.id.hex().into());
        live.blobs.insert(image.manifest.hex().into());
        for of in &image.layers {
            live.blobs.insert(of.blob.hex().into());
            layer(&mut live, &of.diff_id);
        }
    }
    for diff_id in leases.iter().flat_map(|lease| &lease.layers) {
        layer(&mut live, diff_id);
    }
    live
}

/// Collects now, if nobody uses the store's content. Blocks. Idempotent; true when it ran.
pub(crate) fn collect(disk: &Disk) -> Result<bool, ImageError> {
    let Some(lock) = disk::try_lock(&disk.content_lock(), Mode::Exclusive)? else {
        return Ok(false);
    };
    let images: Vec<ImageRecord> = records::read_all(&disk.sub("images"))?;
    let leases = records::read_leases(disk)?;
    let live = live(&images, &leases);
    // What was in tmp/ and locks/ before belongs to nobody: we hold the lock exclusively.
    let mut trash = children(&disk.sub("tmp"))?;
    let bin = disk
        .sub("tmp")
        .join(format!("trash-{:032x}", rand::random::<u128>()));
    let mut moved = 0u64;
    let mut discard = |path: &Path| {
        if moved == 0 {
            fs::create_dir(&bin).map_err(|source| ImageError::storage("creating", &bin, source))?;
        }
        moved += 1;
        fs::rename(path, bin.join(moved.to_string()))
            .map_err(|source| ImageError::storage("removing", path, source))
    };
    for (directory, keep) in [("blobs/sha256", &live.blobs), ("layers", &live.layers)] {
        for path in dead(&disk.sub(directory), keep)? {
            discard(&path)?;
        }
    }
    for path in children(&disk.sub("locks"))? {
        discard(&path)?;
    }
    for directory in ["images", "refs", "leases"] {
        for path in children(&disk.sub(directory))? {
            if name_of(&path).as_encoded_bytes().starts_with(b".new-") && is_stale(&path) {
                discard(&path)?;
            }
        }
    }
    if moved > 0 {
        trash.push(bin);
    }
    drop(lock);
    for path in trash {
        match rooted::remove_path(&path) {
            // Another collection is at it as well. What both leave, the next one takes.
            Err(source) if source.kind() == std::io::ErrorKind::NotFound => {}
            outcome => {
                outcome.map_err(|source| ImageError::storage("removing", &path, source))?;
            }
        }
    }
    Ok(true)
}

/// Entries not to keep. Records go before the layers they describe (`.json` sorts after the bare
/// name, hence reversed): a directory without record is not a layer, a record without directory
/// would be worse.
fn dead(directory: &Path, keep: &BTreeSet<OsString>) -> Result<Vec<PathBuf>, ImageError> {
    let mut dead: Vec<PathBuf> = children(directory)?
        .into_iter()
        .filter(|path| !keep.contains(name_of(path)))
        .collect();
    dead.sort();
    dead.reverse();
    Ok(dead)
}

fn name_of(path: &Path) -> &OsStr {
    path.file_name().unwrap_or_default()
}

/// Records are written without the content lock, so a temporary file may be somebody's right now.
fn is_stale(path: &Path) -> bool {
    const AGE: std::time::Duration = std::time::Duration::from_secs(3600);
    path.metadata()
        .and_then(|metadata| metadata.modified())
        .is_ok_and(|modified| modified.elapsed().is_ok_and(|age| age > AGE))
}

fn children(directory: &Path) -> Result<Vec<PathBuf>, ImageError> {
    let fail = |source| ImageError::storage("listing", directory, source);
    fs::read_dir(directory)
        .map_err(fail)?
        .map(|entry| Ok(entry.map_err(fail)?.path()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::records::LayerOf;
    use super::*;

    #[test]
    fn a_lease_keeps_layers_but_not_blobs() {
        let digest = |text: &str| Digest::of(text.as_bytes());
        let of = |blob: &str, diff_id: &str| LayerOf {
            blob: digest(blob),
            diff_id: digest(diff_id),
        };
        let image = ImageRecord::new(digest("i"), digest("m"), vec![of("b1", "l1")], 1);
        let lease = LeaseRecord::new("container".into(), vec![digest("l2")]);
        let live = live(&[image], &[lease]);
        let has = |set: &BTreeSet<OsString>, name: &str| set.contains(OsStr::new(name));
        for blob in ["i", "m", "b1"] {
            assert!(has(&live.blobs, digest(blob).hex()), "{blob}");
        }
        assert_eq!(live.blobs.len(), 3);
        for layer in ["l1", "l2"] {
            assert!(has(&live.layers, layer_name(&digest(layer))), "{layer}");
        }
        assert_eq!(live.layers.len(), 4);
    }
}
