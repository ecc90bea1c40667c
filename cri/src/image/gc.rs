// SPDX-License-Identifier: Apache-2.0
//! Removes content that nothing refers to: neither an image, nor a lease, nor the claims of an
//! operation that runs.
//!
//! It needs the content lock exclusively, which everybody else holds for moments only, so it works
//! beside pulls of any length. What goes is moved to `tmp/` under the lock and deleted after it, so
//! nobody waits for the deletion of a large layer.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::digest::{Algorithm, Digest};
use super::disk::{self, Disk, Lock, Mode, blob_name, layer_name};
use super::error::ImageError;
use super::heal;
use super::records::{self, ImageRecord, LeaseRecord};
use super::rooted;

/// How long to try for the lock. Whoever is in the way then collects later.
const PATIENCE: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(2);
/// The beginning of a blob that nobody went on with for so long goes; containerd keeps them as long.
const PARTIAL_AGE: Duration = Duration::from_secs(24 * 3600);
/// Records are written without the content lock, so a temporary file may be somebody's right now.
const RECORD_AGE: Duration = Duration::from_secs(3600);

/// What must stay, by name within the store.
fn live(images: &[ImageRecord], leases: &[LeaseRecord]) -> BTreeSet<String> {
    let mut live = BTreeSet::new();
    for image in images {
        live.insert(blob_name(&image.id));
        live.insert(blob_name(&image.manifest));
        for of in &image.layers {
            live.insert(blob_name(&of.blob));
            live.insert(layer_name(&of.diff_id));
        }
    }
    let leased = leases.iter().flat_map(|lease| &lease.layers);
    live.extend(leased.map(|diff_id: &Digest| layer_name(diff_id)));
    live
}

/// Collects now. Blocks, for as long as deleting takes. Idempotent; true when it ran.
pub(crate) fn collect(disk: &Disk) -> Result<bool, ImageError> {
    let Some(lock) = exclusive(disk)? else {
        return Ok(false);
    };
    sweep(disk, lock)?;
    Ok(true)
}

/// Collects, and mends what a power cut or a damaged disk left. Does nothing when the store is busy:
/// then somebody else has opened it, and has done this.
pub(crate) fn open(disk: &Disk) -> Result<(), ImageError> {
    let Some(lock) = exclusive(disk)? else {
        return Ok(());
    };
    heal::heal(disk)?;
    sweep(disk, lock)
}

fn exclusive(disk: &Disk) -> Result<Option<Lock>, ImageError> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(lock) = disk::try_lock(&disk.content_lock(), Mode::Exclusive)? {
            return Ok(Some(lock));
        }
        if Instant::now() >= deadline {
            return Ok(None);
        }
        std::thread::sleep(POLL);
    }
}

fn sweep(disk: &Disk, lock: Lock) -> Result<(), ImageError> {
    let images: Vec<ImageRecord> = records::read_all(&disk.sub("images"))?;
    let leases = records::read_leases(disk)?;
    let mut live = live(&images, &leases);
    // What operations that are over left behind, and what those that run rely on.
    let (mut trash, mut alone) = (Vec::new(), true);
    for path in children(&disk.sub("tmp"))? {
        match disk::claims_of(&path)? {
            Some(claims) => {
                alone = false;
                live.extend(claims);
            }
            None => trash.push(path),
        }
    }
    let mut bin = Bin {
        disk,
        made: None,
        moved: 0,
    };
    for algorithm in Algorithm::ALL {
        let directory = format!("blobs/{}", algorithm.name());
        for path in dead(disk, &directory, &live)? {
            bin.take(&path)?;
        }
    }
    for path in dead(disk, "layers", &live)? {
        bin.take(&path)?;
    }
    // Somebody may wait for a lock whose file must not be replaced meanwhile.
    if alone {
        for path in children(&disk.sub("locks"))? {
            bin.take(&path)?;
        }
    }
    for path in children(&disk.sub("partial"))? {
        if is_older(&path, PARTIAL_AGE) && disk::try_lock(&path, Mode::Exclusive)?.is_some() {
            bin.take(&path)?;
        }
    }
    for directory in ["images", "refs", "leases"] {
        for path in children(&disk.sub(directory))? {
            let temporary = name_of(&path).as_encoded_bytes().starts_with(b".new-");
            if temporary && is_older(&path, RECORD_AGE) {
                bin.take(&path)?;
            }
        }
    }
    let bin = bin.made;
    drop(lock);
    trash.extend(bin.as_ref().map(|(path, _)| path.clone()));
    for path in trash {
        match rooted::remove_path(&path) {
            // Another collection is at it as well. What both leave, the next one takes.
            Err(source) if source.kind() == std::io::ErrorKind::NotFound => {}
            outcome => {
                outcome.map_err(|source| ImageError::storage("removing", &path, source))?;
            }
        }
    }
    Ok(())
}

/// A directory for what goes. It is locked like an operation's, so that nobody else removes it too.
struct Bin<'a> {
    disk: &'a Disk,
    made: Option<(PathBuf, Lock)>,
    moved: u64,
}

impl Bin<'_> {
    fn take(&mut self, path: &Path) -> Result<(), ImageError> {
        let bin = match &self.made {
            Some((bin, _)) => bin,
            None => &self.made.insert(disk::make_alive(self.disk, "bin")?).0,
        };
        self.moved += 1;
        match fs::rename(path, bin.join(self.moved.to_string())) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result.map_err(|source| ImageError::storage("removing", path, source)),
        }
    }
}

/// Entries not to keep. Records go before the layers they describe (`.json` sorts after the bare
/// name, hence reversed): a directory without record is not a layer, a record without directory
/// would be worse.
fn dead(disk: &Disk, directory: &str, live: &BTreeSet<String>) -> Result<Vec<PathBuf>, ImageError> {
    let keep = |path: &PathBuf| {
        let name = name_of(path).to_string_lossy();
        let of = name.strip_suffix(".json").unwrap_or(&name);
        live.contains(&format!("{directory}/{of}"))
    };
    let mut dead = children(&disk.sub(directory))?;
    dead.retain(|path| !keep(path));
    dead.sort();
    dead.reverse();
    Ok(dead)
}

fn name_of(path: &Path) -> &OsStr {
    path.file_name().unwrap_or_default()
}

fn is_older(path: &Path, limit: Duration) -> bool {
    path.metadata()
        .and_then(|metadata| metadata.modified())
        .is_ok_and(|modified| modified.elapsed().is_ok_and(|age| age > limit))
}

pub(crate) fn children(directory: &Path) -> Result<Vec<PathBuf>, ImageError> {
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
            size: None,
            diff_id: digest(diff_id),
        };
        let image = ImageRecord::new(digest("i"), digest("m"), vec![of("b1", "l1")], 1);
        let lease = LeaseRecord::new("container".into(), vec![digest("gone")], vec![digest("l2")]);
        let live = live(&[image], &[lease]);
        let blobs = ["i", "m", "b1"].map(|blob| blob_name(&digest(blob)));
        let layers = ["l1", "l2"].map(|layer| layer_name(&digest(layer)));
        let wanted: BTreeSet<String> = blobs.into_iter().chain(layers).collect();
        assert_eq!(live, wanted);
    }
}
