// SPDX-License-Identifier: Apache-2.0
//! From the host's root to the container's.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd};

use crate::sys::{Sys, mounts};

/// Attaches the root somewhere in this namespace, so that things can be mounted on it.
pub(super) fn attach_root(tree: BorrowedFd<'_>, at: &CStr) -> Sys<()> {
    let place = mounts::openat(mounts::cwd(), at, libc::O_PATH, 0)?;
    mounts::attach(tree, place.as_fd())
}

/// Undoes `attach_root`, with all that was mounted on it since.
pub(super) fn take_back(top: BorrowedFd<'_>) -> Sys<()> {
    mounts::fchdir(top)?;
    mounts::detach(c".")
}

/// Makes `top` the root, and lets go of the old one.
///
/// The kernel refuses pivot_root on the first root file system (an initramfs): then the new root
/// is moved over the old and entered by chroot, which leaves the old one unreachable by any path.
/// `refused` does so without asking the kernel.
pub(super) fn pivot(top: BorrowedFd<'_>, refused: bool) -> Sys<()> {
    mounts::fchdir(top)?;
    let pivoted = match refused {
        true => Err(libc::EINVAL),
        false => mounts::pivot_here(),
    };
    match pivoted {
        Ok(()) => mounts::detach(c".")?,
        Err(libc::EINVAL) => {
            let host = [c"/proc", c"/sys"];
            host.into_iter().try_for_each(let_go)?;
            move_over_root(top)?;
            mounts::fchdir(top)?;
            mounts::chroot(c".")?;
        }
        Err(errno) => return Err(errno),
    }
    mounts::chdir(c"/")
}

fn move_over_root(top: BorrowedFd<'_>) -> Sys<()> {
    let slash = mounts::openat(mounts::cwd(), c"/", libc::O_PATH, 0)?;
    match mounts::attach(top, slash.as_fd()) {
        // A detached root was attached there to begin with.
        Err(libc::EINVAL | libc::ELOOP | libc::EBUSY) | Ok(()) => Ok(()),
        Err(errno) => Err(errno),
    }
}

/// A whole proc or sysfs of the host that stays in the namespace, though no path leads to it, would
/// let the container mount new ones without what hides parts of its own.
fn let_go(path: &CStr) -> Sys<()> {
    match mounts::detach(path) {
        // Nothing is mounted there, or it is locked, being the host's in a user namespace.
        Ok(()) | Err(libc::EINVAL | libc::ENOENT | libc::EPERM) => Ok(()),
        Err(errno) => Err(errno),
    }
}
