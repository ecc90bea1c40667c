// SPDX-License-Identifier: Apache-2.0
//! The store's directory: what lies where, locks between processes, and atomic files.
//!
//! ```text
//! lock            flock: shared by whoever adds or reads content, exclusive to delete content
//! records.lock    flock, exclusive: held for the moment in which names change
//! blobs/sha256/   compressed layers, configurations, manifests; complete and verified
//! layers/         NAME/ an unpacked layer, NAME.json what it is. The layer is there once both are
//! images/         one record per image id
//! refs/           one record per name, the file named by the name's digest
//! leases/         one record per container that needs layers
//! locks/          one per layer that is being made
//! tmp/            one directory per running operation, which holds `lock` shared
//! ```
//!
//! Nothing becomes visible before it is complete: files are written under `tmp/`, synced, renamed.
//! So whoever gets `lock` exclusively knows that all in `tmp/` and `locks/` is left over.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::Instant;

use super::digest::Digest;
use super::error::ImageError;
use super::rooted;

/// How often a taken lock is tried again. flock(2) has no deadline of its own.
const LOCK_POLL: Duration = Duration::from_millis(20);
/// Hex digits of a layer directory's name. Short, because overlay takes all lower directories in
/// one page of mount options (4096 bytes on Linux 6.1); the record beside it has the whole digest.
const LAYER_NAME: usize = 24;
const SUBDIRECTORIES: [&str; 7] = [
    "blobs/sha256",
    "layers",
    "images",
    "refs",
    "leases",
    "locks",
    "tmp",
];

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
        self.dir.join("blobs/sha256").join(digest.hex())
    }

    pub(crate) fn layer(&self, diff_id: &Digest) -> PathBuf {
        self.dir.join("layers").join(layer_name(diff_id))
    }

    pub(crate) fn layer_record(&self, diff_id: &Digest) -> PathBuf {
        let name = format!("{}.json", layer_name(diff_id));
        self.dir.join("layers").join(name)
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
}

/// The name under which a layer lies in `layers/`.
pub(crate) fn layer_name(diff_id: &Digest) -> &str {
    &diff_id.hex()[..LAYER_NAME]
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

/// A directory of one operation's own under `tmp/`, and the shared lock that protects it and all
/// content that the operation relies on. Both end when this is dropped.
#[derive(Debug)]
pub(crate) struct Session {
    dir: PathBuf,
    _content: Lock,
}

impl Session {
    /// Begins an operation; waits at most `limit` for a running collection of garbage.
    pub(crate) async fn begin(disk: &Disk, limit: Duration) -> Result<Session, ImageError> {
        let content = lock(&disk.content_lock(), Mode::Shared, limit).await?;
        let dir = disk
            .sub("tmp")
            .join(format!("{:032x}", rand::random::<u128>()));
        fs::create_dir(&dir).map_err(|source| ImageError::storage("creating", &dir, source))?;
        Ok(Session {
            dir,
            _content: content,
        })
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

/// Moves something complete and synced to its place.
pub(crate) fn rename_durably(from: &Path, to: &Path) -> Result<(), ImageError> {
    let rename = || {
        fs::rename(from, to)?;
        let parent = to.parent().ok_or(io::ErrorKind::InvalidInput)?;
        File::open(parent)?.sync_all()
    };
    rename().map_err(|source| ImageError::storage("renaming to", to, source))
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
