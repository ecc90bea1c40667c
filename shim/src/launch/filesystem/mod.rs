// SPDX-License-Identifier: Apache-2.0
//! The child's file system: root, mounts, devices, hidden paths, terminal, pivot_root.
//!
//! Every path of the container is resolved beneath its root descriptor (openat2, RESOLVE_IN_ROOT,
//! no magic links), before the root is changed, and then only the descriptor is used. So an image
//! or a volume with symbolic links in odd places cannot lead a mount or a device elsewhere.

mod copyup;
mod devices;
mod hide;
mod mount;
mod paths;
mod pivot;
mod terminal;

use std::os::fd::{AsFd, BorrowedFd};

use super::child::{Failed, at};
use super::prepare::{MountSource, Prepared, Root};
use super::report::Step;
use crate::sys::{self, Sys, mounts};
use paths::Links;

pub(super) use hide::{is_null, own_null};
pub(super) use mount::on_proc;
pub(super) use terminal::Terminal;

/// A copy of a mount, the user namespace that it is to be id-mapped by, and whether the mounts below
/// are mapped too.
pub(super) type Copied<'a> = (BorrowedFd<'a>, BorrowedFd<'a>, bool);

/// What a container's set-up leaves to its caller.
pub(super) struct Callbacks<'a> {
    /// Called once everything is mounted, while the host's files can still be seen.
    pub hooks: &'a dyn Fn() -> Result<(), Failed>,
    /// Id-maps a copy that is of the mount with this index.
    pub idmap: &'a dyn Fn(usize, Copied<'_>) -> Sys<()>,
}

/// Mounts everything and changes the root (or, in a running container's namespace, only opens the
/// terminal that is asked for).
pub(super) fn set_up(
    prepared: &Prepared,
    terminal: bool,
    callbacks: &Callbacks<'_>,
) -> Result<Option<Terminal>, Failed> {
    let Some(root) = &prepared.root else {
        return match terminal {
            true => terminal::in_running_container()
                .map(Some)
                .map_err(at(Step::Terminal)),
            false => Ok(None),
        };
    };
    let joined = prepared.spaces.mount.as_ref();
    if let Some(namespace) = joined {
        sys::setns(namespace.as_fd(), libc::CLONE_NEWNS).map_err(at(Step::MountNamespace))?;
    }
    mounts::set_all_propagation(libc::MS_PRIVATE).map_err(at(Step::Propagation))?;
    let null = hide::open_null().map_err(at(Step::MaskedPath))?;
    let top = root.tree.as_fd();
    pivot::attach_root(top, &root.attach_at).map_err(at(Step::RootFs))?;
    let pair = match fill(root, terminal, callbacks, null.as_fd()) {
        Err(failed) if joined.is_some() => {
            // What was tried is not the others' to keep. There is nothing to do if that fails too.
            let _ = pivot::take_back(top);
            return Err(failed);
        }
        filled => filled?,
    };
    pivot::pivot(top, root.no_pivot).map_err(at(Step::Pivot))?;
    finish_root(root).map_err(at(Step::RootFs))?;
    Ok(pair)
}

/// All that is in the root, before it becomes the process's.
fn fill(
    root: &Root,
    terminal: bool,
    callbacks: &Callbacks<'_>,
    null: BorrowedFd<'_>,
) -> Result<Option<Terminal>, Failed> {
    let top = root.tree.as_fd();
    for (index, mount) in root.mounts.iter().enumerate() {
        let idmap = |copied: Copied<'_>| (callbacks.idmap)(index, copied);
        mount::make(top, mount, &idmap).map_err(|(step, errno)| (step, index, errno))?;
    }
    for (index, device) in root.devices.iter().enumerate() {
        devices::make(top, device).map_err(|errno| (Step::Device, index, errno))?;
    }
    for (index, (link, to)) in root.symlinks.iter().enumerate() {
        devices::link(top, link, to).map_err(|errno| (Step::Symlink, index, errno))?;
    }
    let pair = match terminal {
        true => Some(terminal::console(top, root).map_err(at(Step::Terminal))?),
        false => None,
    };
    // As runc does: a working directory that does not exist is made, empty, by root. The root becomes
    // read-only later.
    paths::make(top, &root.cwd, true, Links::Follow).map_err(at(Step::Cwd))?;
    (callbacks.hooks)()?;
    hide::hide(top, root, null)?;
    late_readonly(root)?;
    Ok(pair)
}

fn late_readonly(root: &Root) -> Result<(), Failed> {
    for (index, mount) in root.mounts.iter().enumerate() {
        let made = match &mount.source {
            MountSource::Detached(tree) => Some(tree),
            _ => mount.made.get(),
        };
        if let (true, Some(made)) = (mount.late_readonly, made) {
            mounts::set_attributes(made.as_fd(), mounts::ATTR_RDONLY, 0, 0, false)
                .map_err(|errno| (Step::Mount, index, errno))?;
        }
    }
    Ok(())
}

fn finish_root(root: &Root) -> Sys<()> {
    let top = root.tree.as_fd();
    if root.readonly {
        mounts::set_attributes(top, mounts::ATTR_RDONLY, 0, 0, false)?;
    }
    match root.propagation {
        // What is private or a slave has been so from the start.
        None => Ok(()),
        Some((libc::MS_PRIVATE | libc::MS_SLAVE, _)) => Ok(()),
        Some((flag, recursive)) => mounts::set_attributes(top, 0, 0, flag, recursive),
    }
}
