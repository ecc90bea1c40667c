// SPDX-License-Identifier: Apache-2.0
//! Mounts: detached copies of what is bound, and the options of new filesystems.

use std::cell::OnceCell;
use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::idmap::Idmaps;
use super::overlay::overlay;
use super::rootfs::target;
use super::{Prepare, elsewhere, text};
use crate::launch::report::LaunchError;
use crate::plan::{LaunchPlan, Mount, MountAttrs, MountKind, Propagation, PropagationChange};
use crate::sys::{self, Sys, mounts};

/// fsconfig(2) takes no longer values.
const OPTION_MAX: usize = 255;

pub(in crate::launch) struct PreparedMount {
    pub target: CString,
    pub source: MountSource,
    /// Made read-only after all mounts, so that mount points and files can be made in it.
    pub late_readonly: bool,
    /// proc and sysfs must be mounted on a real directory: what later steps read there has to be
    /// the kernel's.
    pub ordinary_directory: bool,
    /// The mount, put here by the child when it is needed later.
    pub made: OnceCell<OwnedFd>,
}

pub(in crate::launch) enum MountSource {
    Detached(OwnedFd),
    Own(OwnBind),
    New(NewFilesystem),
    Remount(Changes),
}

/// A bind whose source is in the container's root, with what was mounted there before.
pub(in crate::launch) struct OwnBind {
    pub source: CString,
    pub recursive: bool,
    pub changes: Changes,
    /// A user namespace with the maps, and whether they go for mounts below.
    pub idmap: Option<(OwnedFd, bool)>,
}

pub(in crate::launch) struct NewFilesystem {
    pub fstype: CString,
    pub source: CString,
    pub options: Vec<(CString, Option<CString>)>,
    pub changes: Changes,
    pub is_proc: bool,
    /// A tmpfs gets the mode of the directory that it covers, if no option says otherwise.
    pub inherit_mode: bool,
    pub copy_up: bool,
    pub fallback: Option<OwnedFd>,
}

/// What is changed about a mount, in the order of the fields.
#[derive(Default)]
pub(in crate::launch) struct Changes {
    /// (MS_ flag, recursive).
    pub propagation: Vec<(u64, bool)>,
    pub attrs: MountAttrs,
    pub recursive: MountAttrs,
}

impl Changes {
    /// Does not allocate.
    pub(in crate::launch) fn apply(&self, tree: BorrowedFd<'_>) -> Sys<()> {
        for (flag, recursive) in &self.propagation {
            mounts::set_attributes(tree, 0, 0, *flag, *recursive)?;
        }
        for (attrs, recursive) in [(self.attrs, false), (self.recursive, true)] {
            if attrs != MountAttrs::default() {
                mounts::set_attributes(tree, attrs.set, attrs.clear, 0, recursive)?;
            }
        }
        Ok(())
    }

    fn apply_to(&self, tree: &OwnedFd, path: &str) -> Prepare<()> {
        self.apply(tree.as_fd())
            .map_err(|errno| LaunchError::prepare(format!("setting attributes of {path:?}"), errno))
    }
}

/// What all mounts of a plan have in common.
pub(super) struct Common<'a> {
    pub plan: &'a LaunchPlan,
    pub sandbox: Option<BorrowedFd<'a>>,
    /// The mount namespace that the container joins.
    pub joined: Option<BorrowedFd<'a>>,
    pub idmaps: &'a mut Idmaps,
}

pub(super) fn prepare_mount(mount: &Mount, common: &mut Common<'_>) -> Prepare<PreparedMount> {
    let plain = |source: MountSource| -> Prepare<PreparedMount> {
        Ok(PreparedMount {
            target: target(&mount.destination)?,
            source,
            late_readonly: false,
            ordinary_directory: false,
            made: OnceCell::new(),
        })
    };
    match &mount.kind {
        MountKind::Bind { source, recursive } => bind(mount, source, *recursive, common)
            .map_err(|error| at_destination(error, mount))
            .and_then(|tree| plain(MountSource::Detached(tree))),
        MountKind::OwnBind { source, recursive } => plain(MountSource::Own(OwnBind {
            source: target(source)?,
            recursive: *recursive,
            changes: bind_changes(mount, common.plan),
            idmap: match &mount.idmap {
                Some(idmap) => Some((common.idmaps.copy(&idmap.mappings)?, idmap.recursive)),
                None => None,
            },
        })),
        MountKind::SandboxBind { source } => {
            let tree = sandbox_mount(source, common.sandbox)?;
            let mut changes = changes(mount);
            changes.propagation.insert(0, (libc::MS_PRIVATE, true));
            changes.apply_to(&tree, source)?;
            plain(MountSource::Detached(tree))
        }
        MountKind::Remount => plain(MountSource::Remount(changes(mount))),
        MountKind::Layers { lower } => layers(mount, lower, common)
            .map_err(|error| at_destination(error, mount))
            .and_then(|tree| plain(MountSource::Detached(tree))),
        MountKind::Filesystem { .. } => {
            new_filesystem(mount, common).map_err(|error| at_destination(error, mount))
        }
    }
}

/// A mount that exists without a place in a container: a bind, the sandbox's, or layers.
pub(super) fn detached(
    mount: &Mount,
    plan: &LaunchPlan,
    sandbox: Option<BorrowedFd<'_>>,
    idmaps: &mut Idmaps,
) -> Prepare<OwnedFd> {
    let mut common = Common {
        plan,
        sandbox,
        joined: None,
        idmaps,
    };
    match prepare_mount(mount, &mut common)?.source {
        MountSource::Detached(tree) => Ok(tree),
        _ => Err(LaunchError::prepare(
            format!("showing {:?} to another runtime", mount.destination),
            libc::EINVAL,
        )),
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

fn bind(mount: &Mount, source: &str, recursive: bool, common: &mut Common<'_>) -> Prepare<OwnedFd> {
    let tree = source_tree(source, recursive, common.joined)?;
    if let Some(idmap) = &mount.idmap {
        common
            .idmaps
            .apply(&tree, source, &idmap.mappings, idmap.recursive)?;
    }
    bind_changes(mount, common.plan).apply_to(&tree, source)?;
    Ok(tree)
}

/// For example an image as a volume.
fn layers(mount: &Mount, lower: &[String], common: &mut Common<'_>) -> Prepare<OwnedFd> {
    let label = common.plan.mount_label.as_deref();
    let idmap = mount.idmap.as_ref().map(|idmap| &idmap.mappings);
    let tree = overlay(lower, None, label, idmap, common.idmaps)?;
    changes(mount).apply_to(&tree, "overlay")?;
    Ok(tree)
}

fn changes(mount: &Mount) -> Changes {
    Changes {
        propagation: mount.propagation.iter().map(propagation_flag).collect(),
        attrs: mount.attrs,
        recursive: mount.recursive_attrs,
    }
}

/// A bind starts from the propagation that runc gives all the host's mounts first.
fn bind_changes(mount: &Mount, plan: &LaunchPlan) -> Changes {
    let mut changes = changes(mount);
    if let Some(start) = propagation_of_binds(plan.rootfs_propagation) {
        changes.propagation.insert(0, (start, true));
    }
    changes
}

fn propagation_of_binds(root: Option<PropagationChange>) -> Option<u64> {
    match root.map(|change| change.to) {
        None | Some(Propagation::Slave) => Some(libc::MS_SLAVE),
        Some(Propagation::Private | Propagation::Unbindable) => Some(libc::MS_PRIVATE),
        Some(Propagation::Shared) => None,
    }
}

/// The tree of a root directory, of which nothing that is mounted in it may reach the host.
pub(super) fn root_changes(plan: &LaunchPlan) -> Changes {
    let root = plan.rootfs_propagation;
    let mut propagation: Vec<_> = propagation_of_binds(root)
        .map(|flag| (flag, true))
        .into_iter()
        .collect();
    if root.map(|change| change.to) != Some(Propagation::Slave) {
        propagation.push((libc::MS_PRIVATE, false));
    }
    Changes {
        propagation,
        ..Changes::default()
    }
}

fn new_filesystem(mount: &Mount, common: &mut Common<'_>) -> Prepare<PreparedMount> {
    let MountKind::Filesystem {
        fstype,
        source,
        options,
        copy_up,
        fallback,
    } = &mount.kind
    else {
        return Err(LaunchError::prepare("mounting a filesystem", libc::EINVAL));
    };
    let place = target(&mount.destination)?;
    let mut changes = changes(mount);
    let writable_first = fstype == "tmpfs" || place.as_bytes() == b"/dev";
    let late_readonly = writable_first && changes.attrs.set & mounts::ATTR_RDONLY != 0;
    if late_readonly {
        changes.attrs.set &= !mounts::ATTR_RDONLY;
    }
    let labelled = !matches!(fstype.as_str(), "proc" | "sysfs" | "mqueue" | "cgroup2");
    let label = common.plan.mount_label.as_ref().filter(|_| labelled);
    let label = label.map(|label| format!("context={label}"));
    let options: Vec<&String> = options.iter().chain(&label).collect();
    let source = match options.iter().any(|option| option.len() > OPTION_MAX) {
        true => {
            let tree = mount_with_long_options(fstype, source, &options)?;
            changes.apply_to(&tree, fstype)?;
            MountSource::Detached(tree)
        }
        false => MountSource::New(NewFilesystem {
            fstype: text(fstype)?,
            source: text(source)?,
            inherit_mode: fstype == "tmpfs" && !options.iter().any(|o| o.starts_with("mode=")),
            options: split(&options)?,
            changes,
            is_proc: fstype == "proc",
            copy_up: *copy_up,
            fallback: match fallback {
                Some(path) => Some(fallback_tree(path, mount)?),
                None => None,
            },
        }),
    };
    Ok(PreparedMount {
        target: place,
        source,
        late_readonly,
        ordinary_directory: matches!(fstype.as_str(), "proc" | "sysfs"),
        made: OnceCell::new(),
    })
}

fn fallback_tree(path: &str, mount: &Mount) -> Prepare<OwnedFd> {
    let tree = clone_mount(path, true)?;
    let mut changes = changes(mount);
    changes.propagation.insert(0, (libc::MS_PRIVATE, true));
    changes.apply_to(&tree, path)?;
    Ok(tree)
}

/// `key=value`, or a flag.
fn split(options: &[&String]) -> Prepare<Vec<(CString, Option<CString>)>> {
    options
        .iter()
        .map(|option| match option.split_once('=') {
            Some((key, value)) => Ok((text(key)?, Some(text(value)?))),
            None => Ok((text(option)?, None)),
        })
        .collect()
}

/// For example an overlay with many layers. Mounted beforehand, over a directory that always exists.
fn mount_with_long_options(fstype: &str, source: &str, options: &[&String]) -> Prepare<OwnedFd> {
    let all: Vec<&str> = options.iter().map(|option| option.as_str()).collect();
    let (source, options) = (text(source)?, text(&all.join(","))?);
    let what = (source.as_c_str(), &*text(fstype)?);
    elsewhere::mount(what, c"/proc", || Ok((options, ())))?
        .map_err(|errno| LaunchError::prepare(format!("mounting {fstype:?}"), errno))
}

/// A mount of the sandbox process's namespace. Only a member of a namespace may copy its mounts, so
/// this process goes there and comes back.
fn sandbox_mount(source: &str, sandbox: Option<BorrowedFd<'_>>) -> Prepare<OwnedFd> {
    let attempt = |errno| LaunchError::prepare(format!("binding the sandbox's {source:?}"), errno);
    let sandbox = sandbox.ok_or_else(|| attempt(libc::ESRCH))?;
    let path = text(source)?;
    let tree = elsewhere::visit(
        || sys::setns(sandbox, libc::CLONE_NEWNS),
        || mounts::open_tree(mounts::cwd(), &path, true),
    )?;
    tree.map_err(attempt)
}

/// A detached copy of a host mount, or of one in the mount namespace that the container joins. Whoever
/// is there may have changed the path: it leads through no link of a proc, which could point elsewhere.
pub(super) fn source_tree(
    path: &str,
    recursive: bool,
    joined: Option<BorrowedFd<'_>>,
) -> Prepare<OwnedFd> {
    let Some(joined) = joined else {
        return clone_mount(path, recursive);
    };
    let name = text(path)?;
    let copy = || {
        let resolve = mounts::RESOLVE_NO_MAGICLINKS;
        let found = mounts::openat2(mounts::cwd(), &name, libc::O_PATH, resolve)?;
        mounts::open_tree(found.as_fd(), c"", recursive)
    };
    let enter = || sys::setns(joined, libc::CLONE_NEWNS);
    elsewhere::visit(enter, copy)?.map_err(|errno| {
        let what = format!("binding {path:?} of the joined mount namespace");
        LaunchError::prepare(what, errno)
    })
}

/// A detached copy of a host mount.
fn clone_mount(path: &str, recursive: bool) -> Prepare<OwnedFd> {
    mounts::open_tree(mounts::cwd(), text(path)?.as_c_str(), recursive)
        .map_err(|errno| LaunchError::prepare(format!("binding {path:?}"), errno))
}

pub(super) fn propagation_flag(change: &PropagationChange) -> (u64, bool) {
    let flag = match change.to {
        Propagation::Private => libc::MS_PRIVATE,
        Propagation::Slave => libc::MS_SLAVE,
        Propagation::Shared => libc::MS_SHARED,
        Propagation::Unbindable => libc::MS_UNBINDABLE,
    };
    (flag, change.recursive)
}
