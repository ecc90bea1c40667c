// SPDX-License-Identifier: Apache-2.0
//! Network namespaces kept alive by a file: made, entered, removed.
//!
//! A namespace belongs to a thread. Everything here that needs another namespace does so on a
//! thread of its own that ends with the call, so no pooled thread ever changes namespace.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};

/// What went wrong with a namespace.
#[derive(Debug, thiserror::Error)]
pub enum NetnsError {
    /// Making the file or the namespace failed.
    #[error("creating network namespace {path}")]
    Create {
        /// The file that should hold the namespace.
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// The file could not be opened, or is no network namespace.
    #[error("entering network namespace {path}")]
    Enter {
        /// The file that was opened.
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// Unmounting or unlinking failed.
    #[error("removing network namespace {path}")]
    Remove {
        /// The file that was to go.
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

impl NetnsError {
    /// Is the namespace simply not there (any more)? A file that is not a namespace counts: it is
    /// what a lost mount leaves behind.
    pub fn is_gone(&self) -> bool {
        match self {
            NetnsError::Enter { source, .. } => matches!(
                source.raw_os_error(),
                Some(libc::ENOENT | libc::ENOTDIR | libc::EINVAL)
            ),
            _ => false,
        }
    }
}

/// Make a new network namespace, with its loopback interface up, held by a bind mount on `path`.
///
/// Parent directories are made. Idempotent only in this sense: an existing namespace at `path` is
/// an error (`EEXIST`), a plain file left by a crash is reused. On error nothing is left behind.
/// Blocks for about a millisecond.
pub fn create(path: &Path) -> Result<(), NetnsError> {
    let failed = |source| NetnsError::Create {
        path: path.to_owned(),
        source,
    };
    holder(path).map_err(failed)?;
    let made = on_thread(|| {
        unshare(CloneFlags::CLONE_NEWNET)?;
        crate::link::loopback_up()?;
        let own = Path::new("/proc/thread-self/ns/net");
        mount(
            Some(own),
            path,
            None::<&str>,
            MsFlags::MS_BIND,
            None::<&str>,
        )?;
        Ok(())
    });
    made.map_err(|source| {
        // The clean-up's own failure would hide why the namespace could not be made.
        let _ = fs::remove_file(path);
        failed(source)
    })
}

/// Keep a network namespace that was made elsewhere, with its loopback interface up, by a bind mount
/// on `path`. As [`create`] otherwise.
pub fn hold(namespace: &File, path: &Path) -> Result<(), NetnsError> {
    let failed = |source| NetnsError::Create {
        path: path.to_owned(),
        source,
    };
    holder(path).map_err(failed)?;
    let held = mount(
        Some(Path::new(&format!(
            "/proc/self/fd/{}",
            namespace.as_raw_fd()
        ))),
        path,
        None::<&str>,
        MsFlags::MS_BIND,
        None::<&str>,
    );
    let made = held.map_err(io::Error::from).and_then(|()| {
        on_thread(|| {
            setns(namespace, CloneFlags::CLONE_NEWNET)?;
            crate::link::loopback_up()
        })
    });
    made.map_err(|source| {
        // The clean-up's own failure would hide why the namespace could not be held.
        let _ = remove(path);
        failed(source)
    })
}

/// The file that a namespace is bound on, which is none yet.
fn holder(path: &Path) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    if is_netns(path) {
        return Err(io::Error::from_raw_os_error(libc::EEXIST));
    }
    File::create(path).map(drop)
}

/// Drop the file that holds a namespace. The kernel takes the namespace and its links apart once
/// no process is left in it. Succeeds when there is nothing (any more).
pub fn remove(path: &Path) -> Result<(), NetnsError> {
    let failed = |source| NetnsError::Remove {
        path: path.to_owned(),
        source,
    };
    loop {
        match umount2(path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            Ok(()) => continue, // one more may lie below
            Err(nix::Error::EINVAL | nix::Error::ENOENT) => break,
            Err(errno) => return Err(failed(errno.into())),
        }
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(error)),
        _ => Ok(()),
    }
}

/// Does this file hold a network namespace now?
pub fn is_netns(path: &Path) -> bool {
    nix::sys::statfs::statfs(path)
        .is_ok_and(|s| s.filesystem_type() == nix::sys::statfs::NSFS_MAGIC)
}

/// Run `work` in the namespace held by `path`, on a thread of its own, and return what it returns.
///
/// The thread has ended when this returns. A panic of `work` is passed on.
pub fn run<T: Send>(path: &Path, work: impl FnOnce() -> T + Send) -> Result<T, NetnsError> {
    let failed = |source| NetnsError::Enter {
        path: path.to_owned(),
        source,
    };
    let file = File::open(path).map_err(failed)?;
    on_thread(|| {
        setns(&file, CloneFlags::CLONE_NEWNET)?;
        Ok(work())
    })
    .map_err(failed)
}

/// Run `work` in a new network namespace without anything up, on a thread of its own. The namespace
/// ends with the call.
pub(crate) fn in_new<T: Send>(work: impl FnOnce() -> T + Send) -> io::Result<T> {
    on_thread(|| {
        unshare(CloneFlags::CLONE_NEWNET)?;
        Ok(work())
    })
}

fn on_thread<T: Send>(work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .name("netns".into())
            .spawn_scoped(scope, work)?;
        match thread.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}
