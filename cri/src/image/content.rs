// SPDX-License-Identifier: Apache-2.0
//! How content gets in: verified blobs, layers unpacked once, and the commit that makes an image
//! visible. Pull, import and build differ only in where the bytes come from.

use std::fs::{self, File};
use std::io::{self, BufReader, Read};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::digest::{Digest, Hashing};
use super::disk::{self, Disk, Lock, Mode, Session, blob_name, blocking, layer_name};
use super::error::{ContentError, ImageError};
use super::implied;
use super::layer::{self, Unpacked};
use super::manifest::Descriptor;
use super::records::{self, ImageRecord, LayerOf, LayerRecord, RefRecord};
use super::rooted;
use super::tar_stream::Limits;
use super::types::Image;

/// How long to wait for somebody who takes in the same layer. That one gives up by itself when no
/// byte arrives, so this ends waiting only for a process that is stopped.
const LAYER_WAIT: Duration = Duration::from_secs(24 * 3600);
/// How long to wait for others who change names: they hold the lock for milliseconds.
pub(crate) const RECORDS_WAIT: Duration = Duration::from_secs(30);
/// Bytes of a blob read at a time.
const READ: usize = 128 << 10;

fn content(what: &'static str, digest: &Digest, source: ContentError) -> ImageError {
    ImageError::Content {
        what,
        digest: digest.clone(),
        source,
    }
}

pub(crate) fn layer_error(blob: &Digest, source: ContentError) -> ImageError {
    content("unpacking layer", blob, source)
}

/// Held while a layer is made; shared by all that work on it.
pub(crate) type LayerLock = Arc<Lock>;

/// The names of an image's content in the store, for a session to claim.
pub(crate) fn claims<'a>(
    documents: impl IntoIterator<Item = &'a Digest>,
    layers: &'a [LayerOf],
) -> Vec<String> {
    let blobs = layers.iter().map(|layer| &layer.blob);
    let mut names: Vec<String> = documents.into_iter().chain(blobs).map(blob_name).collect();
    names.extend(layers.iter().map(|layer| layer_name(&layer.diff_id)));
    names
}

/// Whether the blob is here. A blob has its name only once it was verified; one of another size was
/// damaged since, and does not count.
pub(crate) fn has_blob(disk: &Disk, wanted: &Descriptor) -> bool {
    fs::metadata(disk.blob(&wanted.digest))
        .is_ok_and(|found| found.is_file() && found.len() == wanted.size)
}

/// Takes in a small blob from memory, which the caller has verified.
pub(crate) fn put_bytes(
    disk: &Disk,
    session: &Session,
    bytes: &[u8],
    digest: &Digest,
) -> Result<(), ImageError> {
    let wanted = Descriptor::of(digest.clone(), bytes.len() as u64);
    if has_blob(disk, &wanted) {
        return Ok(());
    }
    let path = session.fresh();
    fs::write(&path, bytes).map_err(|source| ImageError::storage("writing", &path, source))?;
    disk::rename(&path, &disk.blob(digest))
}

/// Copies a blob out of a file and verifies it on the way.
pub(crate) fn put_reader(
    disk: &Disk,
    session: &Session,
    source: impl Read,
    wanted: &Descriptor,
) -> Result<(), ImageError> {
    let path = session.fresh();
    // One byte more than promised is enough to know that the promise is broken.
    let source = source.take(wanted.size.saturating_add(1));
    let mut source = Hashing::with(wanted.digest.algorithm(), source);
    let copied = File::create_new(&path).and_then(|mut file| io::copy(&mut source, &mut file));
    copied.map_err(|error| ImageError::storage("writing", &path, error))?;
    let (actual, size, _) = source.finish();
    check(wanted, &actual, size)?;
    disk::rename(&path, &disk.blob(&wanted.digest))
}

/// Whether content is what its descriptor promises. The size first: it explains more.
pub(crate) fn check(wanted: &Descriptor, actual: &Digest, size: u64) -> Result<(), ImageError> {
    let bad = |source| Err(content("refused content", &wanted.digest, source));
    if size != wanted.size {
        return bad(ContentError::Size {
            expected: wanted.size,
            actual: size,
        });
    }
    if *actual != wanted.digest {
        return bad(ContentError::Digest {
            actual: actual.clone(),
        });
    }
    Ok(())
}

/// Waits for whoever makes the same layer, here or in another process.
pub(crate) async fn lock_layer(disk: &Disk, diff_id: &Digest) -> Result<LayerLock, ImageError> {
    let path = disk.layer_lock(diff_id);
    let lock = disk::lock(&path, Mode::Exclusive, LAYER_WAIT).await?;
    Ok(Arc::new(lock))
}

/// Whether the layer is unpacked. Two layers whose short names collide are refused.
pub(crate) fn has_layer(disk: &Disk, diff_id: &Digest) -> Result<bool, ImageError> {
    match records::read::<LayerRecord>(&disk.layer_record(diff_id))? {
        None => Ok(false),
        Some(record) if record.diff_id == *diff_id => Ok(disk.layer(diff_id).is_dir()),
        Some(record) => Err(ImageError::malformed(format!(
            "layers {diff_id} and {} have the same short name",
            record.diff_id
        ))),
    }
}

/// Unpacks a blob that is here, unless the layer is here too. True when it had to be done.
pub(crate) async fn ensure_unpacked(
    disk: &Disk,
    session: &Arc<Session>,
    lock: &LayerLock,
    blob: &Digest,
    diff_id: &Digest,
) -> Result<bool, ImageError> {
    if has_layer(disk, diff_id)? {
        return Ok(false);
    }
    let (disk, blob, diff_id) = (disk.clone(), blob.clone(), diff_id.clone());
    // Both are held until the work is over, even if nobody waits for it any more.
    let (session, lock) = (session.clone(), lock.clone());
    blocking(move || {
        let temporary = session.fresh();
        let result = unpack(&disk, &temporary, &blob, &diff_id);
        if result.is_err() {
            // The first error is the one to tell; the session removes what this leaves.
            drop(rooted::remove_path(&temporary));
        }
        drop(lock);
        result
    })
    .await?;
    Ok(true)
}

fn unpack(
    disk: &Disk,
    temporary: &Path,
    blob: &Digest,
    diff_id: &Digest,
) -> Result<(), ImageError> {
    let path = disk.blob(blob);
    let file = File::open(&path).map_err(|e| ImageError::storage("opening blob", &path, e))?;
    fs::create_dir(temporary).map_err(|e| ImageError::storage("creating", temporary, e))?;
    let reader = BufReader::with_capacity(READ, file);
    let unpacked = layer::unpack(reader, temporary, Limits::default(), diff_id.algorithm())
        .map_err(|source| layer_error(blob, source))?;
    if unpacked.diff_id != *diff_id {
        let source = ContentError::DiffId {
            expected: diff_id.clone(),
            actual: unpacked.diff_id,
        };
        return Err(layer_error(blob, source));
    }
    place_layer(disk, diff_id, temporary, unpacked)
}

/// Gives an unpacked layer its name. The record comes last: with it the layer is there.
pub(crate) fn place_layer(
    disk: &Disk,
    diff_id: &Digest,
    temporary: &Path,
    unpacked: Unpacked,
) -> Result<(), ImageError> {
    let target = disk.layer(diff_id);
    // A directory without its record is what a crash left between these two steps.
    rooted::remove_path(&target).map_err(|e| ImageError::storage("removing", &target, e))?;
    disk::rename(temporary, &target)?;
    let record = LayerRecord::new(diff_id.clone(), unpacked);
    records::write_unsynced(&disk.layer_record(diff_id), &record)
}

/// Makes a complete image visible under these names. Names that pointed elsewhere move over.
pub(crate) async fn commit(
    disk: &Disk,
    record: ImageRecord,
    names: Vec<String>,
) -> Result<Image, ImageError> {
    let lock = disk::lock(&disk.records_lock(), Mode::Exclusive, RECORDS_WAIT).await?;
    let disk = disk.clone();
    blocking(move || {
        let path = disk.image(&record.id);
        let known: Option<ImageRecord> = records::read(&path)?;
        let record = ImageRecord {
            pinned: known.as_ref().is_some_and(|known| known.pinned),
            ..record
        };
        let mut changed = implied::complete(&disk, &record.layers)?;
        if known.as_ref() != Some(&record) {
            // All that the record refers to must outlive a power cut if the record does.
            disk.sync()?;
            records::write_unsynced(&path, &record)?;
            changed = true;
        }
        for name in names {
            let path = disk.reference(&name);
            let wanted = RefRecord::new(name, record.id.clone());
            if records::read(&path)?.as_ref() != Some(&wanted) {
                records::write_unsynced(&path, &wanted)?;
                changed = true;
            }
        }
        if changed {
            disk.sync()?;
        }
        let refs = records::read_all(&disk.sub("refs"))?;
        drop(lock);
        records::view(&disk, &record, &refs)
    })
    .await
}
