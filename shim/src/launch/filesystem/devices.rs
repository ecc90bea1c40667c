// SPDX-License-Identifier: Apache-2.0
//! Device nodes and links of the container's /dev.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd};

use super::paths::{self, Links};
use crate::launch::prepare::PreparedDevice;
use crate::sys::{Sys, mounts};

/// A node that is there already is taken out of the way by nobody: an image that ships one where
/// the runtime makes one keeps it only if it is the same device.
pub(super) fn make(top: BorrowedFd<'_>, device: &PreparedDevice) -> Sys<()> {
    if let Some(node) = &device.node {
        let place = paths::make(top, &device.path, false, Links::Refuse)?;
        return mounts::attach(node.as_fd(), place.file.as_fd());
    }
    let parent = paths::make(top, &device.parent, true, Links::Follow)?.file;
    match mounts::mknodat(parent.as_fd(), &device.name, device.mode, device.number) {
        Err(libc::EEXIST) => return same(parent.as_fd(), device),
        other => other?,
    }
    // The umask is zero, so the mode is exact.
    mounts::chownat(parent.as_fd(), &device.name, device.uid, device.gid)
}

fn same(parent: BorrowedFd<'_>, device: &PreparedDevice) -> Sys<()> {
    let flags = libc::O_PATH | libc::O_NOFOLLOW;
    let there = mounts::openat(parent, &device.name, flags, 0)?;
    let stat = mounts::fstat(there.as_fd())?;
    let same =
        stat.st_mode & libc::S_IFMT == device.mode & libc::S_IFMT && stat.st_rdev == device.number;
    if same { Ok(()) } else { Err(libc::EEXIST) }
}

/// What is there stays, except for /dev/ptmx: the image's would open terminals of the host.
pub(super) fn link(top: BorrowedFd<'_>, link: &CStr, to: &CStr) -> Sys<()> {
    let path = link.to_bytes_with_nul();
    let slash = path.iter().rposition(|byte| *byte == b'/');
    let (above, name) = path.split_at(slash.ok_or(libc::EINVAL)? + 1);
    let name = CStr::from_bytes_with_nul(name).map_err(|_| libc::EINVAL)?;
    let parent = parent(top, above)?;
    match mounts::symlinkat(to, parent.as_fd(), name) {
        Err(libc::EEXIST) if path == c"/dev/ptmx".to_bytes_with_nul() => {
            mounts::unlinkat(parent.as_fd(), name)?;
            mounts::symlinkat(to, parent.as_fd(), name)
        }
        Ok(()) | Err(libc::EEXIST) => Ok(()),
        Err(errno) => Err(errno),
    }
}

/// `above` ends with a slash and has no null byte.
fn parent(top: BorrowedFd<'_>, above: &[u8]) -> Sys<std::os::fd::OwnedFd> {
    let mut buffer = [0; libc::PATH_MAX as usize];
    let free = buffer.get_mut(..above.len());
    free.ok_or(libc::ENAMETOOLONG)?.copy_from_slice(above);
    let above = CStr::from_bytes_until_nul(&buffer).map_err(|_| libc::ENAMETOOLONG)?;
    Ok(paths::make(top, above, true, Links::Follow)?.file)
}
