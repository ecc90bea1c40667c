// SPDX-License-Identifier: Apache-2.0
//! How content gets in: verified blobs, layers unpacked once, and the commit that makes an image
//! visible. Pull, import and build differ only in where the bytes come from.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::digest::{Digest, Hashing};
use super::disk::{self, Disk, Lock, Mode, Session, blocking};
use super::error::{ContentError, ImageError};
use super::layer;
use super::manifest::Descriptor;
use super::records::{self, ImageRecord, LayerRecord, RefRecord};
use super::rooted;
use super::tar_stream::Limits;
use super::types::Image;

/// How long to wait for somebody who unpacks the same layer: as long as a large layer may take.
const LAYER_WAIT: Duration = Duration::from_secs(600);
/// How long to wait for others who change names: they hold the lock for milliseconds.
pub(crate) const RECORDS_WAIT: Duration = Duration::from_secs(30);

fn content(what: &'static str, digest: &Digest, source: ContentError) -> ImageError {
    ImageError::Content {
        what,
        digest: digest.clone(),
        source,
    }
}

/// Whether the blob is here. A blob has its name only once it was verified.
pub(crate) fn has_blob(disk: &Disk, digest: &Digest) -> bool {
    disk.blob(digest).is_file()
}

/// Takes in a small blob from memory; its digest is computed, so it always fits.
pub(crate) fn put_bytes(
    disk: &Disk,
    session: &Session,
    bytes: &[u8],
) -> Result<Digest, ImageError> {
    let digest = Digest::of(bytes);
    if !has_blob(disk, &digest) {
        let path = session.fresh();
        write_synced(&path, bytes)
            .map_err(|source| ImageError::storage("writing", &path, source))?;
        disk::rename_durably(&path, &disk.blob(&digest))?;
    }
    Ok(digest)
}

fn write_synced(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::create_new(path)?;
    file.write_all(bytes)?;
    file.sync_all()
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
    let mut source = Hashing::new(source.take(wanted.size.saturating_add(1)));
    let copied = File::create_new(&path).and_then(|mut file| {
        io::copy(&mut source, &mut file)?;
        file.sync_all()
    });
    copied.map_err(|error| ImageError::storage("writing", &path, error))?;
    let (actual, size, _) = source.finish();
    check(wanted, &actual, size)?;
    disk::rename_durably(&path, &disk.blob(&wanted.digest))
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
pub(crate) async fn lock_layer(disk: &Disk, diff_id: &Digest) -> Result<Lock, ImageError> {
    disk::lock(&disk.layer_lock(diff_id), Mode::Exclusive, LAYER_WAIT).await
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

/// Unpacks a blob that is here, unless the layer is here too. True when it had to be done. The
/// caller holds the layer's lock.
pub(crate) async fn ensure_unpacked(
    disk: &Disk,
    session: &Session,
    blob: &Digest,
    diff_id: &Digest,
) -> Result<bool, ImageError> {
    if has_layer(disk, diff_id)? {
        return Ok(false);
    }
    let work = Unpack {
        disk: disk.clone(),
        temporary: session.fresh(),
        blob: blob.clone(),
        diff_id: diff_id.clone(),
    };
    blocking(move || work.run()).await?;
    Ok(true)
}

struct Unpack {
    disk: Disk,
    temporary: PathBuf,
    blob: Digest,
    diff_id: Digest,
}

impl Unpack {
    fn run(&self) -> Result<(), ImageError> {
        let result = self.attempt();
        if result.is_err() {
            // The first error is the one to tell; the session removes what this leaves.
            drop(rooted::remove_path(&self.temporary));
        }
        result
    }

    fn attempt(&self) -> Result<(), ImageError> {
        let storage = |doing, path: &Path| {
            let path = path.to_owned();
            move |source| ImageError::storage(doing, &path, source)
        };
        let blob_path = self.disk.blob(&self.blob);
        let blob = File::open(&blob_path).map_err(storage("opening blob", &blob_path))?;
        fs::create_dir(&self.temporary).map_err(storage("creating", &self.temporary))?;
        let unpacked = layer::unpack(blob, &self.temporary, Limits::default(), true)
            .map_err(|source| content("unpacking layer", &self.blob, source))?;
        if unpacked.diff_id != self.diff_id {
            let actual = unpacked.diff_id;
            let source = ContentError::Digest { actual };
            return Err(content("unpacking layer of diff id", &self.diff_id, source));
        }
        let target = self.disk.layer(&self.diff_id);
        // A directory without its record is what a crash left between these two steps.
        rooted::remove_path(&target).map_err(storage("removing", &target))?;
        disk::rename_durably(&self.temporary, &target)?;
        let record = LayerRecord::new(self.diff_id.clone(), unpacked.bytes, unpacked.inodes);
        records::write(&self.disk.layer_record(&self.diff_id), &record)
    }
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
        if known.as_ref() != Some(&record) {
            records::write(&path, &record)?;
        }
        for name in names {
            let path = disk.reference(&name);
            let wanted = RefRecord::new(name, record.id.clone());
            if records::read(&path)?.as_ref() != Some(&wanted) {
                records::write(&path, &wanted)?;
            }
        }
        let refs = records::read_all(&disk.sub("refs"))?;
        drop(lock);
        records::view(&disk, &record, &refs)
    })
    .await
}
