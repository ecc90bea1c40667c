// SPDX-License-Identifier: Apache-2.0
//! The root filesystem, and what is made in it: devices, links, hidden paths.

use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use super::idmap::Idmaps;
use super::mounts::{
    Common, PreparedMount, prepare_mount, propagation_flag, root_changes, source_tree,
};
use super::overlay::overlay;
use super::{Prepare, Spaces, text, texts};
use crate::launch::report::LaunchError;
use crate::plan::{Hooks, IdMapping, LaunchPlan, RootFs, path_in_root};
use crate::sys::mounts;

pub(in crate::launch) struct Root {
    /// A detached mount.
    pub tree: OwnedFd,
    /// Where it is attached in the container's mount namespace before it becomes the root.
    pub attach_at: CString,
    pub readonly: bool,
    /// (MS_ flag, recursive), once everything is mounted.
    pub propagation: Option<(u64, bool)>,
    pub no_pivot: bool,
    pub mounts: Vec<PreparedMount>,
    pub devices: Vec<PreparedDevice>,
    pub symlinks: Vec<(CString, CString)>,
    pub masked: Vec<CString>,
    pub readonly_paths: Vec<CString>,
    pub cwd: CString,
    /// Whether /dev/console becomes the process's terminal.
    pub console: bool,
}

pub(in crate::launch) struct PreparedDevice {
    pub parent: CString,
    pub name: CString,
    pub mode: u32,
    pub number: u64,
    pub uid: u32,
    pub gid: u32,
    /// The host's node, to be bound: the kernel lets no user namespace make devices.
    pub node: Option<OwnedFd>,
    pub path: CString,
}

pub(super) fn root(
    plan: &LaunchPlan,
    spaces: &Spaces,
    sandbox: Option<BorrowedFd<'_>>,
) -> Prepare<Root> {
    let mut idmaps = Idmaps::new(spaces.user.as_ref())?;
    check_label(plan)?;
    let mut common = Common {
        plan,
        sandbox,
        joined: spaces.mount.as_ref().map(AsFd::as_fd),
        idmaps: &mut idmaps,
    };
    let mounts = plan
        .mounts
        .iter()
        .map(|mount| prepare_mount(mount, &mut common))
        .collect::<Prepare<_>>()?;
    let devices = plan
        .devices
        .iter()
        .map(|wanted| device(wanted, spaces.user.is_some()))
        .collect::<Prepare<_>>()?;
    let link = |(path, to): &(String, String)| Ok((target(path)?, text(to)?));
    // Where the kernel has none, the link would lead nowhere.
    let kcore = Path::new("/proc/kcore").exists();
    let links = plan
        .symlinks
        .iter()
        .filter(|(_, to)| kcore || to != "/proc/kcore");
    Ok(Root {
        tree: root_tree(plan, spaces, &mut idmaps)?,
        attach_at: attach_at(plan)?,
        readonly: plan.rootfs_readonly || plan.rootfs == RootFs::Empty,
        propagation: plan.rootfs_propagation.as_ref().map(propagation_flag),
        no_pivot: plan.no_pivot,
        mounts,
        devices,
        symlinks: links.map(link).collect::<Prepare<_>>()?,
        masked: texts(&plan.masked_paths)?,
        readonly_paths: texts(&plan.readonly_paths)?,
        cwd: target(&plan.process.cwd)?,
        console: plan.process.terminal,
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

/// A label means something to SELinux only; without it the kernel would refuse every mount with an
/// error that names nothing.
fn check_label(plan: &LaunchPlan) -> Prepare<()> {
    match plan.mount_label.is_some() && !Path::new("/sys/fs/selinux/enforce").exists() {
        true => Err(LaunchError::prepare(
            "linux.mountLabel: SELinux is not enabled on this machine",
            libc::EOPNOTSUPP,
        )),
        false => Ok(()),
    }
}

/// The root of a container that another runtime makes; none where it is in the bundle.
pub(super) fn external_root(plan: &LaunchPlan, idmaps: &mut Idmaps) -> Prepare<Option<OwnedFd>> {
    match &plan.rootfs {
        RootFs::Empty => Ok(None),
        _ => {
            let tree = made_tree(plan, None, idmaps)?;
            // The sandbox's own directory may be where nothing is executed, as in Debian's /run.
            mounts::set_attributes(tree.as_fd(), 0, mounts::ATTR_NOEXEC, 0, false)
                .map_err(|errno| LaunchError::prepare("letting a root's programs run", errno))?;
            Ok(Some(tree))
        }
    }
}

fn root_tree(plan: &LaunchPlan, spaces: &Spaces, idmaps: &mut Idmaps) -> Prepare<OwnedFd> {
    match &plan.rootfs {
        RootFs::Empty => new_tmpfs(spaces),
        _ => made_tree(plan, spaces.mount.as_ref().map(AsFd::as_fd), idmaps),
    }
}

/// A root from what is on disk. `joined` is the mount namespace that a directory is looked up in.
fn made_tree(
    plan: &LaunchPlan,
    joined: Option<BorrowedFd<'_>>,
    idmaps: &mut Idmaps,
) -> Prepare<OwnedFd> {
    let idmap = plan.rootfs_idmap.as_ref();
    match &plan.rootfs {
        RootFs::Empty => Err(LaunchError::prepare("a root filesystem", libc::ENOENT)),
        RootFs::Dir(path) => {
            let tree = source_tree(path, true, joined)?;
            if let Some(mappings) = idmap {
                idmaps.apply(&tree, path, mappings, false)?;
            }
            root_changes(plan).apply(tree.as_fd()).map_err(|errno| {
                LaunchError::prepare(format!("setting propagation of {path:?}"), errno)
            })?;
            Ok(tree)
        }
        RootFs::Overlay { lower, upper, work } => {
            let label = plan.mount_label.as_deref();
            overlay(lower, Some((upper, work)), label, idmap, idmaps)
        }
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

pub(super) fn target(path: &str) -> Prepare<CString> {
    text(&path_in_root(path))
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
        parent: target(parent)?,
        name: text(name)?,
        mode: kind | (device.mode & 0o7777),
        number: libc::makedev(device.major, device.minor),
        uid: device.uid,
        gid: device.gid,
        path: target(&device.path)?,
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

    #[test]
    fn targets_are_cleaned_and_stay_beneath_the_root() {
        for (path, cleaned) in [
            ("/a//b/./c", "/a/b/c"),
            ("/../../etc/../x", "/x"),
            ("relative", "/relative"),
            ("/", "/"),
        ] {
            assert_eq!(target(path).expect("no null byte").to_str(), Ok(cleaned));
        }
    }
}
