// SPDX-License-Identifier: Apache-2.0
//! The store's directory: what lies where, locks between processes, and atomic files.
//!
//! ```text
//! lock            flock, for moments: shared to begin work or to claim content, exclusive to collect
//! records.lock    flock, exclusive: held for the moment in which names change
//! blobs/ALG/      compressed layers, configurations, manifests; complete and verified
//! layers/         NAME/ an unpacked layer, NAME.json what it is. The layer is there once both are
//! images/         one record per image id
//! refs/           one record per name, the file named by the name's digest
//! leases/         one record per container that needs layers
//! locks/          one per layer that is being made
//! partial/        beginnings of blobs whose transfer broke off; locked while they grow
//! tmp/            one directory per running operation: `alive`, which it holds locked, and `claims`,
//!                 the names of the content that it relies on
//! ```
//!
//! Nothing becomes visible before it is complete: files are written under `tmp/` or `partial/` and
//! renamed. Content is synced, all of it at once, before the image record that refers to it is
//! written. So after a power cut, what an image refers to is whole; what else there is may not be, and
//! is removed when the store is opened.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::digest::Digest;
use super::error::ImageError;
use super::rooted;

/// How often a taken lock is tried again. flock(2) has no deadline of its own.
const LOCK_POLL: Duration = Duration::from_millis(20);
/// How long to wait for a collection of garbage, which holds its lock for a moment.
const CLAIM_WAIT: Duration = Duration::from_secs(60);
/// Hex digits of a layer directory's name. Short, because overlay takes all lower directories in
/// one page of mount options (4096 bytes on Linux 6.1); the record beside it has the whole digest.
const LAYER_NAME: usize = 24;
const SUBDIRECTORIES: [&str; 9] = [
    "blobs/sha256",
    "blobs/sha512",
    "layers",
    "images",
    "refs",
    "leases",
    "locks",
    "partial",
    "tmp",
];
/// Within an operation's directory.
const ALIVE: &str = "alive";
const CLAIMS: &str = "claims";

/// Paths within the store.
#[derive(Debug, Clone)]
pub(crate) struct Disk {
    dir: PathBuf,
}

/// A held flock; released when dropped, or by the kernel when the process dies.
#[derive(Debug)]
pub(crate) struct Lock(#[expect(dead_code, reason = "held for its lock")] File);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    Shared,
    Exclusive,
}

impl Disk {
    /// Makes the directories. Idempotent.
    pub(crate) fn create(dir: PathBuf) -> Result<Disk, ImageError> {
        for sub in SUBDIRECTORIES {
            let path = dir.join(sub);
            fs::create_dir_all(&path)
                .map_err(|source| ImageError::storage("creating", &path, source))?;
        }
        // Content of images is nobody's business but root's: it holds set-id programs.
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o700);
        fs::set_permissions(&dir, mode)
            .map_err(|source| ImageError::storage("setting the mode of", &dir, source))?;
        let dir = fs::canonicalize(&dir)
            .map_err(|source| ImageError::storage("resolving", &dir, source))?;
        Ok(Disk { dir })
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(crate) fn sub(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    pub(crate) fn blob(&self, digest: &Digest) -> PathBuf {
        self.dir.join(blob_name(digest))
    }

    pub(crate) fn partial(&self, digest: &Digest) -> PathBuf {
        self.dir.join("partial").join(digest.hex())
    }

    pub(crate) fn layer(&self, diff_id: &Digest) -> PathBuf {
        self.dir.join(layer_name(diff_id))
    }

    pub(crate) fn layer_record(&self, diff_id: &Digest) -> PathBuf {
        self.dir.join(format!("{}.json", layer_name(diff_id)))
    }

    pub(crate) fn layer_lock(&self, diff_id: &Digest) -> PathBuf {
        self.dir.join("locks").join(diff_id.hex())
    }

    pub(crate) fn image(&self, id: &Digest) -> PathBuf {
        self.dir.join("images").join(format!("{}.json", id.hex()))
    }

    /// Names have slashes and colons, so files are named by their digest.
    pub(crate) fn reference(&self, name: &str) -> PathBuf {
        let file = format!("{}.json", Digest::of(name.as_bytes()).hex());
        self.dir.join("refs").join(file)
    }

    pub(crate) fn lease(&self, owner: &str) -> PathBuf {
        let file = format!("{}.json", Digest::of(owner.as_bytes()).hex());
        self.dir.join("leases").join(file)
    }

    pub(crate) fn content_lock(&self) -> PathBuf {
        self.dir.join("lock")
    }

    pub(crate) fn records_lock(&self) -> PathBuf {
        self.dir.join("records.lock")
    }

    /// Writes the store's filesystem out. One of these is cheaper than syncing each file of a layer,
    /// though it also waits for what other programs have written.
    pub(crate) fn sync(&self) -> Result<(), ImageError> {
        File::open(&self.dir)
            .and_then(|dir| Ok(nix::unistd::syncfs(dir)?))
            .map_err(|source| ImageError::storage("syncing", &self.dir, source))
    }
}

/// The name of a layer's directory within the store.
pub(crate) fn layer_name(diff_id: &Digest) -> String {
    format!("layers/{}", &diff_id.hex()[..LAYER_NAME])
}

/// The name of a blob within the store.
pub(crate) fn blob_name(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm().name(), digest.hex())
}

/// Takes a lock without waiting; `None` when somebody holds it.
pub(crate) fn try_lock(path: &Path, mode: Mode) -> Result<Option<Lock>, ImageError> {
    let open = || {
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(path)?;
        let tried = match mode {
            Mode::Shared => file.try_lock_shared(),
            Mode::Exclusive => file.try_lock(),
        };
        match tried {
            Ok(()) => Ok(Some(Lock(file))),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error),
        }
    };
    open().map_err(|source| ImageError::storage("locking", path, source))
}

/// Takes a lock, waiting at most `limit`. Safe to drop.
pub(crate) async fn lock(path: &Path, mode: Mode, limit: Duration) -> Result<Lock, ImageError> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(lock) = try_lock(path, mode)? {
            return Ok(lock);
        }
        if Instant::now() >= deadline {
            return Err(ImageError::Busy {
                path: path.to_owned(),
                waited: limit,
            });
        }
        tokio::time::sleep(LOCK_POLL).await;
    }
}

/// A directory of one operation's own under `tmp/`, and what keeps the content that the operation
/// relies on from being collected. Both end when this is dropped.
#[derive(Debug)]
pub(crate) struct Session {
    disk: Disk,
    dir: PathBuf,
    claims: Mutex<BTreeSet<String>>,
    _alive: Lock,
}

impl Session {
    /// Begins an operation; waits at most `limit` for a running collection of garbage.
    pub(crate) async fn begin(disk: &Disk, limit: Duration) -> Result<Session, ImageError> {
        let _moment = lock(&disk.content_lock(), Mode::Shared, limit).await?;
        let (dir, alive) = make_alive(disk, "work")?;
        Ok(Session {
            disk: disk.clone(),
            dir,
            claims: Mutex::default(),
            _alive: alive,
        })
    }

    /// Keeps content of these names (see [`blob_name`], [`layer_name`]) from now on, whether it is
    /// there or will be. What is found there after this stays.
    pub(crate) async fn claim(&self, names: Vec<String>) -> Result<(), ImageError> {
        let _moment = lock(&self.disk.content_lock(), Mode::Shared, CLAIM_WAIT).await?;
        let data = {
            let mut claims = self.claims.lock().unwrap_or_else(PoisonError::into_inner);
            claims.extend(names);
            serde_json::to_vec(&*claims).expect("strings are JSON")
        };
        write_whole(&self.dir.join(CLAIMS), &data)
    }

    /// A path for a new file or directory of this operation.
    pub(crate) fn fresh(&self) -> PathBuf {
        self.dir.join(format!("{:032x}", rand::random::<u128>()))
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // What stays behind is removed by the next collection of garbage.
        if let Err(error) = rooted::remove_path(&self.dir) {
            tracing::debug!(dir = %self.dir.display(), %error, "removing temporary files");
        }
    }
}

/// A new directory under `tmp/` that counts as alive while the lock is held. The caller holds the
/// content lock, so nobody looks at it half made.
pub(crate) fn make_alive(disk: &Disk, kind: &str) -> Result<(PathBuf, Lock), ImageError> {
    let dir = disk
        .sub("tmp")
        .join(format!("{kind}-{:032x}", rand::random::<u128>()));
    fs::create_dir(&dir).map_err(|source| ImageError::storage("creating", &dir, source))?;
    match try_lock(&dir.join(ALIVE), Mode::Exclusive)? {
        Some(alive) => Ok((dir, alive)),
        None => Err(ImageError::malformed(format!(
            "{} is new and locked by somebody else",
            dir.display()
        ))),
    }
}

/// What the operation that works in a directory of `tmp/` has claimed; `None` when it is over.
pub(crate) fn claims_of(dir: &Path) -> Result<Option<BTreeSet<String>>, ImageError> {
    let alive = match File::open(dir.join(ALIVE)) {
        Ok(file) => matches!(file.try_lock(), Err(TryLockError::WouldBlock)),
        Err(_) => false,
    };
    if !alive {
        return Ok(None);
    }
    let path = dir.join(CLAIMS);
    match fs::read(&path) {
        Ok(data) => {
            serde_json::from_slice(&data)
                .map(Some)
                .map_err(|source| ImageError::Malformed {
                    what: format!("{} is not valid", path.display()),
                    source: Some(source.into()),
                })
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Some(BTreeSet::new())),
        Err(source) => Err(ImageError::storage("reading", &path, source)),
    }
}

/// Replaces a small file so that readers and power cuts see the old content or the new.
pub(crate) fn write_atomic(path: &Path, content: &[u8]) -> Result<(), ImageError> {
    replace(path, content, true)
}

/// Replaces a small file so that readers see the old content or the new. After a power cut it may
/// be the old one, or empty.
pub(crate) fn write_whole(path: &Path, content: &[u8]) -> Result<(), ImageError> {
    replace(path, content, false)
}

fn replace(path: &Path, content: &[u8], sync: bool) -> Result<(), ImageError> {
    let write = || {
        let parent = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
        let mut file = tempfile::NamedTempFile::with_prefix_in(".new-", parent)?;
        file.write_all(content)?;
        if sync {
            file.as_file().sync_all()?;
        }
        file.persist(path).map_err(|error| error.error)?;
        match sync {
            true => File::open(parent)?.sync_all(),
            false => Ok(()),
        }
    };
    write().map_err(|source| ImageError::storage("writing", path, source))
}

/// Moves something complete to its place.
pub(crate) fn rename(from: &Path, to: &Path) -> Result<(), ImageError> {
    fs::rename(from, to).map_err(|source| ImageError::storage("renaming to", to, source))
}

/// Removes a file that need not exist. True when it existed.
pub(crate) fn remove_file(path: &Path) -> Result<bool, ImageError> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(source) => Err(ImageError::storage("removing", path, source)),
    }
}

/// Runs work that blocks on the blocking pool. It runs to its end even if the caller goes away.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ImageError> + Send + 'static,
) -> Result<T, ImageError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(error) => Err(ImageError::Malformed {
                what: "the runtime is shutting down".to_owned(),
                source: Some(error.into()),
            }),
        },
    }
}
