// SPDX-License-Identifier: Apache-2.0
//! `tmpcopyup`: what lies at a mount point is copied into the tmpfs that will cover it.
//!
//! Owners, modes, times, extended attributes, links and special files are kept. Nothing allocates;
//! the depth is bound by the descriptors and the stack that a level takes.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::sys::{Sys, files, mounts};

/// Deeper trees are refused (ELOOP): every level holds two descriptors and a few pages of stack.
const DEPTH_MAX: usize = 128;
const READ: i32 = libc::O_RDONLY | libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY;

/// Copies the directory `from`, itself and what is in it. Mounts below are not entered.
pub(super) fn directory(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Sys<()> {
    let from = mounts::openat(from, c".", READ | libc::O_DIRECTORY, 0)?;
    let to = mounts::openat(to, c".", READ | libc::O_DIRECTORY, 0)?;
    let device = mounts::fstat(from.as_fd())?.st_dev;
    children(&from, &to, device, 0)
}

fn children(from: &OwnedFd, to: &OwnedFd, device: u64, depth: usize) -> Sys<()> {
    if depth >= DEPTH_MAX {
        return Err(libc::ELOOP);
    }
    let mut buffer = files::Entries::new();
    while buffer.fill(from.as_fd())? {
        while let Some(name) = buffer.name() {
            if name != c"." && name != c".." {
                entry(from, to, name, device, depth)?;
            }
        }
    }
    Ok(())
}

fn entry(from: &OwnedFd, to: &OwnedFd, name: &CStr, device: u64, depth: usize) -> Sys<()> {
    let node = mounts::openat(from.as_fd(), name, libc::O_PATH | libc::O_NOFOLLOW, 0)?;
    let stat = mounts::fstat(node.as_fd())?;
    let mode = stat.st_mode & 0o7777;
    match stat.st_mode & libc::S_IFMT {
        libc::S_IFDIR => {
            mounts::mkdirat(to.as_fd(), name, 0o700)?;
            let inner = mounts::openat(to.as_fd(), name, READ | libc::O_DIRECTORY, 0)?;
            let source = mounts::openat(from.as_fd(), name, READ | libc::O_DIRECTORY, 0)?;
            if stat.st_dev == device {
                children(&source, &inner, device, depth + 1)?;
            }
            files::copy_attributes(source.as_fd(), inner.as_fd())?;
            mounts::fchown(inner.as_fd(), stat.st_uid, stat.st_gid)?;
            files::fchmod(inner.as_fd(), mode)?;
        }
        libc::S_IFREG => {
            let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL | libc::O_NOFOLLOW;
            let copy = mounts::openat(to.as_fd(), name, flags, 0o600)?;
            let source = mounts::openat(from.as_fd(), name, READ, 0)?;
            files::copy_content(source.as_fd(), copy.as_fd())?;
            mounts::fchown(copy.as_fd(), stat.st_uid, stat.st_gid)?;
            // After the owner: changing that clears set-id bits and capabilities.
            files::fchmod(copy.as_fd(), mode)?;
            files::copy_attributes(source.as_fd(), copy.as_fd())?;
        }
        libc::S_IFLNK => {
            let mut target = [0; libc::PATH_MAX as usize];
            let length = mounts::readlinkat(node.as_fd(), c"", &mut target)?;
            *target.get_mut(length).ok_or(libc::ENAMETOOLONG)? = 0;
            let target = CStr::from_bytes_until_nul(&target).map_err(|_| libc::EINVAL)?;
            mounts::symlinkat(target, to.as_fd(), name)?;
            mounts::chownat(to.as_fd(), name, stat.st_uid, stat.st_gid)?;
        }
        kind => {
            mounts::mknodat(to.as_fd(), name, kind | mode, stat.st_rdev)?;
            mounts::chownat(to.as_fd(), name, stat.st_uid, stat.st_gid)?;
        }
    }
    files::set_times(to.as_fd(), name, &stat)
}
