// SPDX-License-Identifier: Apache-2.0
//! Paths that the container may not see, or not write.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::paths;
use crate::launch::child::Failed;
use crate::launch::prepare::Root;
use crate::launch::report::Step;
use crate::sys::{Sys, mounts};

/// The host's /dev/null, opened before any path of the container is looked at.
pub(super) fn open_null() -> Sys<OwnedFd> {
    let null = mounts::openat(mounts::cwd(), c"/dev/null", libc::O_PATH, 0)?;
    if is_null(null.as_fd())? {
        Ok(null)
    } else {
        Err(libc::ENODEV)
    }
}

/// The container's own /dev/null, for streams. Whoever is root there could change the mode of the
/// host's. Nothing, if the container has none.
pub(in crate::launch) fn own_null() -> Option<OwnedFd> {
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_NONBLOCK;
    let links = mounts::RESOLVE_NO_SYMLINKS;
    let null = mounts::openat2(mounts::cwd(), c"/dev/null", flags, links).ok()?;
    is_null(null.as_fd()).ok()?.then_some(null)
}

pub(in crate::launch) fn is_null(file: BorrowedFd<'_>) -> Sys<bool> {
    let stat = mounts::fstat(file)?;
    Ok(stat.st_mode & libc::S_IFMT == libc::S_IFCHR && stat.st_rdev == libc::makedev(1, 3))
}

/// Masks and write-protects paths. What does not exist needs neither.
pub(super) fn hide(top: BorrowedFd<'_>, root: &Root, null: BorrowedFd<'_>) -> Result<(), Failed> {
    for (index, path) in root.readonly_paths.iter().enumerate() {
        let done = paths::existing(top, path).and_then(|there| match there {
            Some(target) => make_readonly(target.as_fd()),
            None => Ok(()),
        });
        done.map_err(|errno| (Step::ReadonlyPath, index, errno))?;
    }
    // One empty directory serves for all masked directories.
    let mut empty: Option<OwnedFd> = None;
    for (index, path) in root.masked.iter().enumerate() {
        let done = paths::existing(top, path).and_then(|there| match there {
            Some(target) => mask(target.as_fd(), null, &mut empty),
            None => Ok(()),
        });
        done.map_err(|errno| (Step::MaskedPath, index, errno))?;
    }
    Ok(())
}

fn make_readonly(target: BorrowedFd<'_>) -> Sys<()> {
    let tree = mounts::open_tree(target, c"", true)?;
    mounts::set_attributes(tree.as_fd(), mounts::ATTR_RDONLY, 0, 0, true)?;
    mounts::attach(tree.as_fd(), target)
}

fn mask(target: BorrowedFd<'_>, null: BorrowedFd<'_>, empty: &mut Option<OwnedFd>) -> Sys<()> {
    let stat = mounts::fstat(target)?;
    if stat.st_mode & libc::S_IFMT != libc::S_IFDIR {
        let tree = mounts::open_tree(null, c"", false)?;
        return mounts::attach(tree.as_fd(), target);
    }
    if let Some(first) = empty {
        let tree = mounts::open_tree(first.as_fd(), c"", false)?;
        return mounts::attach(tree.as_fd(), target);
    }
    let context = mounts::fsopen(c"tmpfs")?;
    mounts::fsconfig(context.as_fd(), c"size", Some(c"4k"))?;
    mounts::fsconfig(context.as_fd(), c"nr_inodes", Some(c"2"))?;
    let attributes =
        mounts::ATTR_RDONLY | mounts::ATTR_NOSUID | mounts::ATTR_NODEV | mounts::ATTR_NOEXEC;
    let tree = mounts::fsmount(context.as_fd(), attributes)?;
    mounts::attach(tree.as_fd(), target)?;
    *empty = Some(tree);
    Ok(())
}
