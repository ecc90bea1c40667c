// SPDX-License-Identifier: Apache-2.0
//! Mounts: detached copies of what is bound, and the options of new filesystems.

use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::rootfs::{Target, target};
use super::{Prepare, open, text};
use crate::launch::report::LaunchError;
use crate::plan::{Mount, MountAttrs, MountKind, Propagation};
use crate::sys::{self, mounts};

pub(in crate::launch) struct PreparedMount {
    pub target: Target,
    pub source: MountSource,
    /// Made read-only after all mounts, so that mount points can be made in it.
    pub late_readonly: bool,
    /// proc and sysfs must be mounted on a real directory: what later steps read there has to be
    /// the kernel's.
    pub no_symlinks: bool,
}

pub(in crate::launch) enum MountSource {
    Detached(OwnedFd),
    New {
        fstype: CString,
        options: Vec<(CString, Option<CString>)>,
        attributes: u64,
        propagation: u64,
    },
}

pub(super) fn prepare_mount(
    mount: &Mount,
    sandbox: Option<BorrowedFd<'_>>,
) -> Prepare<PreparedMount> {
    let propagation = mount.propagation.unwrap_or(Propagation::Private);
    let bound = |tree: OwnedFd| -> Prepare<PreparedMount> {
        let stat = mounts::fstat(tree.as_fd())
            .map_err(|errno| LaunchError::prepare("looking at a bind source", errno))?;
        Ok(PreparedMount {
            target: target(
                &mount.destination,
                stat.st_mode & libc::S_IFMT == libc::S_IFDIR,
            )?,
            source: MountSource::Detached(tree),
            late_readonly: false,
            no_symlinks: false,
        })
    };
    match &mount.kind {
        MountKind::Bind { source, recursive } => {
            clone_mount(source, *recursive, mount.attrs, propagation)
                .map_err(|error| at_destination(error, mount))
                .and_then(bound)
        }
        MountKind::SandboxBind { source } => {
            bound(sandbox_mount(source, mount.attrs, propagation, sandbox)?)
        }
        MountKind::Filesystem {
            fstype,
            source,
            options,
        } => new_filesystem(mount, (fstype, source), options, propagation),
    }
}

fn at_destination(error: LaunchError, mount: &Mount) -> LaunchError {
    LaunchError {
        message: format!(
            "error mounting to rootfs at {:?}: {}",
            mount.destination, error.message
        ),
        ..error
    }
}

fn new_filesystem(
    mount: &Mount,
    (fstype, source): (&str, &str),
    options: &[String],
    propagation: Propagation,
) -> Prepare<PreparedMount> {
    let late_readonly = fstype == "tmpfs" && mount.attrs.readonly;
    let attrs = MountAttrs {
        readonly: mount.attrs.readonly && !late_readonly,
        ..mount.attrs
    };
    let source = format!("source={source}");
    let options = [source]
        .iter()
        .chain(options)
        .map(|option| match option.split_once('=') {
            Some((key, value)) => Ok((text(key)?, Some(text(value)?))),
            None => Ok((text(option)?, None)),
        })
        .collect::<Prepare<_>>()?;
    Ok(PreparedMount {
        target: target(&mount.destination, true)?,
        source: MountSource::New {
            fstype: text(fstype)?,
            options,
            attributes: attributes(attrs),
            propagation: propagation_flag(propagation),
        },
        late_readonly,
        no_symlinks: matches!(fstype, "proc" | "sysfs"),
    })
}

/// A mount of the sandbox process's namespace. Only a member of a namespace may copy its mounts, so
/// this process goes there and comes back; it has one thread, and restores its root and directory.
fn sandbox_mount(
    source: &str,
    attrs: MountAttrs,
    propagation: Propagation,
    sandbox: Option<BorrowedFd<'_>>,
) -> Prepare<OwnedFd> {
    let attempt = |errno| LaunchError::prepare(format!("binding the sandbox's {source:?}"), errno);
    let sandbox = sandbox.ok_or_else(|| attempt(libc::ESRCH))?;
    let path = text(source)?;
    let own = open("/proc/self/ns/mnt", libc::O_RDONLY)?;
    let root = open("/", libc::O_PATH | libc::O_DIRECTORY)?;
    let here = open(".", libc::O_PATH | libc::O_DIRECTORY)?;
    sys::setns(sandbox, libc::CLONE_NEWNS).map_err(attempt)?;
    let tree = mounts::open_tree(mounts::cwd(), &path, true);
    let back = sys::setns(own.as_fd(), libc::CLONE_NEWNS)
        .and_then(|()| mounts::fchdir(root.as_fd()))
        .and_then(|()| mounts::chroot(c"."))
        .and_then(|()| mounts::fchdir(here.as_fd()));
    back.map_err(|errno| LaunchError::prepare("returning to the own mount namespace", errno))?;
    let tree = tree.map_err(attempt)?;
    set_up(&tree, true, attrs, propagation).map_err(attempt)?;
    Ok(tree)
}

/// A detached copy of a host mount, with its attributes and propagation set.
pub(super) fn clone_mount(
    path: &str,
    recursive: bool,
    attrs: MountAttrs,
    propagation: Propagation,
) -> Prepare<OwnedFd> {
    let tree = mounts::open_tree(mounts::cwd(), text(path)?.as_c_str(), recursive)
        .map_err(|errno| LaunchError::prepare(format!("binding {path:?}"), errno))?;
    set_up(&tree, recursive, attrs, propagation)
        .map_err(|errno| LaunchError::prepare(format!("setting attributes of {path:?}"), errno))?;
    Ok(tree)
}

fn set_up(
    tree: &OwnedFd,
    recursive: bool,
    attrs: MountAttrs,
    propagation: Propagation,
) -> sys::Sys<()> {
    let flag = propagation_flag(propagation);
    mounts::set_attributes(tree.as_fd(), 0, 0, flag, recursive)?;
    let set = attributes(attrs);
    if set != 0 {
        mounts::set_attributes(tree.as_fd(), set, atime_mask(attrs), 0, false)?;
    }
    if attrs.recursive_readonly {
        mounts::set_attributes(tree.as_fd(), mounts::ATTR_RDONLY, 0, 0, true)?;
    }
    Ok(())
}

fn attributes(attrs: MountAttrs) -> u64 {
    [
        (attrs.readonly, mounts::ATTR_RDONLY),
        (attrs.nosuid, mounts::ATTR_NOSUID),
        (attrs.nodev, mounts::ATTR_NODEV),
        (attrs.noexec, mounts::ATTR_NOEXEC),
        (attrs.nosymfollow, mounts::ATTR_NOSYMFOLLOW),
        (attrs.noatime, mounts::ATTR_NOATIME),
        (attrs.strictatime, mounts::ATTR_STRICTATIME),
        (attrs.nodiratime, mounts::ATTR_NODIRATIME),
    ]
    .into_iter()
    .filter(|(wanted, _)| *wanted)
    .fold(0, |all, (_, bit)| all | bit)
}

/// mount_setattr(2) wants the whole access-time field cleared before one of its values is set.
fn atime_mask(attrs: MountAttrs) -> u64 {
    if attrs.noatime || attrs.strictatime {
        mounts::ATTR_ATIME
    } else {
        0
    }
}

pub(super) fn propagation_flag(propagation: Propagation) -> u64 {
    match propagation {
        Propagation::Private => libc::MS_PRIVATE,
        Propagation::Slave => libc::MS_SLAVE,
        Propagation::Shared => libc::MS_SHARED,
        Propagation::Unbindable => libc::MS_UNBINDABLE,
    }
}
