// SPDX-License-Identifier: Apache-2.0
//! Mounts: detached copies of what is bound, and the options of new filesystems.

use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::idmap::Idmaps;
use super::rootfs::{Target, target};
use super::{Prepare, elsewhere, text};
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
    idmaps: &mut Idmaps,
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
            bind(mount, source, *recursive, propagation, idmaps)
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

fn bind(
    mount: &Mount,
    source: &str,
    recursive: bool,
    propagation: Propagation,
    idmaps: &mut Idmaps,
) -> Prepare<OwnedFd> {
    let tree = clone_mount(source, recursive)?;
    if let Some(idmap) = &mount.idmap {
        idmaps.apply(&tree, source, &idmap.mappings, idmap.recursive)?;
    }
    set_up(&tree, source, recursive, mount.attrs, propagation)?;
    Ok(tree)
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
/// this process goes there and comes back.
fn sandbox_mount(
    source: &str,
    attrs: MountAttrs,
    propagation: Propagation,
    sandbox: Option<BorrowedFd<'_>>,
) -> Prepare<OwnedFd> {
    let attempt = |errno| LaunchError::prepare(format!("binding the sandbox's {source:?}"), errno);
    let sandbox = sandbox.ok_or_else(|| attempt(libc::ESRCH))?;
    let path = text(source)?;
    let tree = elsewhere::visit(
        || sys::setns(sandbox, libc::CLONE_NEWNS),
        || mounts::open_tree(mounts::cwd(), &path, true),
    )?;
    let tree = tree.map_err(attempt)?;
    set_up(&tree, source, true, attrs, propagation)?;
    Ok(tree)
}

/// A detached copy of a host mount.
pub(super) fn clone_mount(path: &str, recursive: bool) -> Prepare<OwnedFd> {
    mounts::open_tree(mounts::cwd(), text(path)?.as_c_str(), recursive)
        .map_err(|errno| LaunchError::prepare(format!("binding {path:?}"), errno))
}

/// Sets attributes and propagation of a detached copy.
pub(super) fn set_up(
    tree: &OwnedFd,
    path: &str,
    recursive: bool,
    attrs: MountAttrs,
    propagation: Propagation,
) -> Prepare<()> {
    let attempt = |errno| LaunchError::prepare(format!("setting attributes of {path:?}"), errno);
    let flag = propagation_flag(propagation);
    let change = |set, clear, flag, recursive| {
        mounts::set_attributes(tree.as_fd(), set, clear, flag, recursive).map_err(attempt)
    };
    change(0, 0, flag, recursive)?;
    let set = attributes(attrs);
    if set != 0 {
        change(set, atime_mask(attrs), 0, false)?;
    }
    if attrs.recursive_readonly {
        change(mounts::ATTR_RDONLY, 0, 0, true)?;
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
