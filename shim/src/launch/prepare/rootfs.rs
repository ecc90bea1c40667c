// SPDX-License-Identifier: Apache-2.0
//! The root filesystem, and what is made in it: devices, links, hidden paths.

use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::idmap::Idmaps;
use super::mounts::{PreparedMount, clone_mount, prepare_mount, propagation_flag, set_up};
use super::overlay::overlay;
use super::{Prepare, Spaces, text, texts};
use crate::launch::report::LaunchError;
use crate::plan::{Hooks, IdMapping, LaunchPlan, MountAttrs, Propagation, RootFs};
use crate::sys::mounts;

pub(in crate::launch) struct Root {
    /// A detached mount.
    pub tree: OwnedFd,
    /// Where it is attached in the container's mount namespace before it becomes the root.
    pub attach_at: CString,
    pub readonly: bool,
    pub propagation: u64,
    pub no_pivot: bool,
    pub mounts: Vec<PreparedMount>,
    pub devices: Vec<PreparedDevice>,
    pub symlinks: Vec<(Target, CString)>,
    pub masked: Vec<CString>,
    pub readonly_paths: Vec<CString>,
    pub cwd: Target,
    pub console: Option<Target>,
}

/// A path in the container: whole, and step by step for making what is missing.
pub(in crate::launch) struct Target {
    pub full: CString,
    /// (path so far, last part of it).
    pub parts: Vec<(CString, CString)>,
    pub directory: bool,
}

pub(in crate::launch) struct PreparedDevice {
    /// The host's node, to be bound: the kernel lets no user namespace make devices.
    pub node: Option<OwnedFd>,
    pub target: Target,
    pub parent: Target,
    pub name: CString,
    pub mode: u32,
    pub number: u64,
    pub uid: u32,
    pub gid: u32,
}

pub(super) fn root(
    plan: &LaunchPlan,
    spaces: &Spaces,
    sandbox: Option<BorrowedFd<'_>>,
) -> Prepare<Root> {
    let mut idmaps = Idmaps::default();
    let mounts = plan
        .mounts
        .iter()
        .map(|mount| prepare_mount(mount, sandbox, &mut idmaps))
        .collect::<Prepare<_>>()?;
    let devices = plan
        .devices
        .iter()
        .map(|wanted| device(wanted, spaces.user.is_some()))
        .collect::<Prepare<_>>()?;
    let link = |(path, to): &(String, String)| Ok((target(path, false)?, text(to)?));
    Ok(Root {
        tree: root_tree(plan, spaces, &mut idmaps)?,
        attach_at: attach_at(plan)?,
        readonly: plan.rootfs_readonly || plan.rootfs == RootFs::Empty,
        propagation: plan.rootfs_propagation.map_or(0, propagation_flag),
        no_pivot: plan.no_pivot,
        mounts,
        devices,
        symlinks: plan.symlinks.iter().map(link).collect::<Prepare<_>>()?,
        masked: texts(&plan.masked_paths)?,
        readonly_paths: texts(&plan.readonly_paths)?,
        cwd: target(&plan.process.cwd, true)?,
        console: plan
            .process
            .terminal
            .then(|| target("/dev/console", false))
            .transpose()?,
    })
}

/// Hooks look for the root at its path. Without hooks it need not be reachable by any.
fn attach_at(plan: &LaunchPlan) -> Prepare<CString> {
    let path = match &plan.rootfs {
        _ if plan.hooks == Hooks::default() => "/",
        RootFs::Empty => "/",
        RootFs::Dir(path) | RootFs::Overlay { upper: path, .. } => path,
    };
    text(path)
}

fn root_tree(plan: &LaunchPlan, spaces: &Spaces, idmaps: &mut Idmaps) -> Prepare<OwnedFd> {
    let idmap = plan.rootfs_idmap.as_ref();
    match &plan.rootfs {
        RootFs::Empty => new_tmpfs(spaces),
        RootFs::Dir(path) => {
            let tree = clone_mount(path, true)?;
            if let Some(mappings) = idmap {
                idmaps.apply(&tree, path, mappings, false)?;
            }
            set_up(
                &tree,
                path,
                true,
                MountAttrs::default(),
                Propagation::Private,
            )?;
            Ok(tree)
        }
        RootFs::Overlay { lower, upper, work } => overlay(lower, upper, work, idmap, idmaps),
    }
}

/// It belongs to the container's root.
fn new_tmpfs(spaces: &Spaces) -> Prepare<OwnedFd> {
    let attempt = |errno| LaunchError::prepare("creating an empty root", errno);
    let context = mounts::fsopen(c"tmpfs").map_err(attempt)?;
    for (key, value) in [(c"mode", c"755"), (c"size", c"64k"), (c"nr_inodes", c"64")] {
        mounts::fsconfig(context.as_fd(), key, Some(value)).map_err(attempt)?;
    }
    if let Some(users) = &spaces.user {
        for (key, map) in [(c"uid", &users.ids.uid), (c"gid", &users.ids.gid)] {
            let root = IdMapping::host_id(map, 0).ok_or_else(|| attempt(libc::EINVAL))?;
            let root = text(&root.to_string())?;
            mounts::fsconfig(context.as_fd(), key, Some(&root)).map_err(attempt)?;
        }
    }
    let attributes = mounts::ATTR_NOSUID | mounts::ATTR_NODEV;
    mounts::fsmount(context.as_fd(), attributes).map_err(attempt)
}

/// Splits a path of the container. `.` and empty parts vanish, `..` goes up but never above `/`.
pub(in crate::launch) fn target(path: &str, directory: bool) -> Prepare<Target> {
    let mut names: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(names.pop()),
            name => names.push(name),
        }
    }
    let mut so_far = String::new();
    let mut parts = Vec::with_capacity(names.len());
    for name in names {
        so_far.push('/');
        so_far.push_str(name);
        parts.push((text(&so_far)?, text(name)?));
    }
    let full = if so_far.is_empty() { "/" } else { &so_far };
    Ok(Target {
        full: text(full)?,
        parts,
        directory,
    })
}

fn device(device: &crate::plan::Device, bound: bool) -> Prepare<PreparedDevice> {
    use crate::plan::DeviceKind;
    let (parent, name) = device.path.rsplit_once('/').unwrap_or(("", &device.path));
    let kind = match device.kind {
        DeviceKind::Char => libc::S_IFCHR,
        DeviceKind::Block => libc::S_IFBLK,
        DeviceKind::Fifo => libc::S_IFIFO,
    };
    let bound = bound && device.kind != DeviceKind::Fifo;
    Ok(PreparedDevice {
        node: bound.then(|| host_node(device, kind)).transpose()?,
        target: target(&device.path, false)?,
        parent: target(parent, true)?,
        name: text(name)?,
        mode: kind | (device.mode & 0o7777),
        number: libc::makedev(device.major, device.minor),
        uid: device.uid,
        gid: device.gid,
    })
}

/// A detached mount of the host's node at the same path, if it is the same device.
fn host_node(device: &crate::plan::Device, kind: u32) -> Prepare<OwnedFd> {
    let path = &device.path;
    let attempt = |errno| {
        let what = format!("linux.devices[{path}]: binding the host's node");
        LaunchError::prepare(what, errno)
    };
    let tree = mounts::open_tree(mounts::cwd(), &text(path)?, false).map_err(attempt)?;
    let stat = mounts::fstat(tree.as_fd()).map_err(attempt)?;
    let same = stat.st_mode & libc::S_IFMT == kind
        && stat.st_rdev == libc::makedev(device.major, device.minor);
    if !same {
        return Err(attempt(libc::ENODEV));
    }
    mounts::set_attributes(tree.as_fd(), 0, 0, libc::MS_PRIVATE, false).map_err(attempt)?;
    Ok(tree)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(path: &str) -> Vec<String> {
        let target = target(path, true).expect("no null byte");
        let mut all = vec![target.full.into_string().expect("utf-8")];
        all.extend(
            target
                .parts
                .into_iter()
                .map(|(_, name)| name.into_string().expect("utf-8")),
        );
        all
    }

    #[test]
    fn targets_are_cleaned_and_stay_beneath_the_root() {
        assert_eq!(parts("/a//b/./c"), ["/a/b/c", "a", "b", "c"]);
        assert_eq!(parts("/../../etc/../x"), ["/x", "x"]);
        assert_eq!(parts("/"), ["/"]);
    }
}
