// SPDX-License-Identifier: Apache-2.0
//! A visit to another mount namespace, and back.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, OwnedFd};

use super::{Prepare, open};
use crate::launch::report::LaunchError;
use crate::sys::{self, Sys, mounts};

/// Changes the mount namespace by `enter`, does `work` there, and returns. This process has one
/// thread, so nobody else sees the detour; its root and directory are restored.
///
/// The outer error is a failure to leave or to return, after which nothing here can go on.
pub(super) fn visit<T>(
    enter: impl FnOnce() -> Sys<()>,
    work: impl FnOnce() -> Sys<T>,
) -> Prepare<Sys<T>> {
    let own = open("/proc/thread-self/ns/mnt", libc::O_RDONLY)?;
    let root = open("/", libc::O_PATH | libc::O_DIRECTORY)?;
    let here = open(".", libc::O_PATH | libc::O_DIRECTORY)?;
    let done = enter().and_then(|()| work());
    sys::setns(own.as_fd(), libc::CLONE_NEWNS)
        .and_then(|()| mounts::fchdir(root.as_fd()))
        .and_then(|()| mounts::chroot(c"."))
        .and_then(|()| mounts::fchdir(here.as_fd()))
        .map_err(|errno| LaunchError::prepare("returning to the own mount namespace", errno))?;
    Ok(done)
}

/// A detached mount by mount(2), for what fsconfig(2) cannot say: (source, type), mounted over
/// `target` in a passing mount namespace. `options` is called there, and returns them with what has
/// to stay open.
pub(super) fn mount<T>(
    (source, fstype): (&CStr, &CStr),
    target: &CStr,
    options: impl FnOnce() -> Sys<(CString, T)>,
) -> Prepare<Sys<OwnedFd>> {
    let enter = || {
        sys::unshare(libc::CLONE_NEWNS)?;
        mounts::set_all_propagation(libc::MS_PRIVATE)
    };
    visit(enter, || {
        let (options, _open) = options()?;
        mounts::mount(source, target, fstype, &options)?;
        mounts::open_tree(mounts::cwd(), target, false)
    })
}
