// SPDX-License-Identifier: Apache-2.0
//! The root filesystem, and what is made in it: devices, links, hidden paths.

use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::mounts::{PreparedMount, clone_mount, prepare_mount, propagation_flag};
use super::{Prepare, open, text, texts};
use crate::launch::report::LaunchError;
use crate::plan::{LaunchPlan, MountAttrs, Propagation, RootFs};
use crate::sys::mounts;

/// Longest option string that mount(2) takes, less its terminator.
const MOUNT_OPTIONS_MAX: usize = 4095;

pub(in crate::launch) struct Root {
    pub source: RootSource,
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

pub(in crate::launch) enum RootSource {
    /// A detached mount.
    Detached(OwnedFd),
    /// An overlay to mount over `target`, with mount(2) options. The descriptors keep the layers
    /// that the options name by number.
    Overlay {
        target: CString,
        options: CString,
        _layers: Vec<OwnedFd>,
    },
}

/// A path in the container: whole, and step by step for making what is missing.
pub(in crate::launch) struct Target {
    pub full: CString,
    /// (path so far, last part of it).
    pub parts: Vec<(CString, CString)>,
    pub directory: bool,
}

pub(in crate::launch) struct PreparedDevice {
    pub parent: Target,
    pub name: CString,
    pub mode: u32,
    pub number: u64,
    pub uid: u32,
    pub gid: u32,
}

pub(super) fn root(plan: &LaunchPlan, sandbox: Option<BorrowedFd<'_>>) -> Prepare<Root> {
    let mounts = plan
        .mounts
        .iter()
        .map(|mount| prepare_mount(mount, sandbox))
        .collect::<Prepare<_>>()?;
    let devices = plan.devices.iter().map(device).collect::<Prepare<_>>()?;
    let link = |(path, to): &(String, String)| Ok((target(path, false)?, text(to)?));
    Ok(Root {
        source: root_source(&plan.rootfs)?,
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

fn root_source(rootfs: &RootFs) -> Prepare<RootSource> {
    match rootfs {
        RootFs::Empty => new_tmpfs().map(RootSource::Detached),
        RootFs::Dir(path) => clone_mount(path, true, MountAttrs::default(), Propagation::Private)
            .map(RootSource::Detached),
        RootFs::Overlay { lower, upper, work } => overlay(lower, upper, work),
    }
}

fn new_tmpfs() -> Prepare<OwnedFd> {
    let attempt = |errno| LaunchError::prepare("creating an empty root", errno);
    let context = mounts::fsopen(c"tmpfs").map_err(attempt)?;
    for (key, value) in [(c"mode", c"755"), (c"size", c"64k"), (c"nr_inodes", c"64")] {
        mounts::fsconfig(context.as_fd(), key, Some(value)).map_err(attempt)?;
    }
    let attributes = mounts::ATTR_NOSUID | mounts::ATTR_NODEV;
    mounts::fsmount(context.as_fd(), attributes).map_err(attempt)
}

/// The options of an overlay. Layers are named by path, or by descriptor when paths are too long
/// for mount(2). `volatile` (kernel 5.10) spares syncing a layer that no one reads after a crash.
fn overlay(lower: &[String], upper: &str, work: &str) -> Prepare<RootSource> {
    for path in lower.iter().map(String::as_str).chain([upper, work]) {
        if path.contains([',', ':', '\\']) {
            let what = format!("overlay directory {path:?} has a character of the option syntax");
            return Err(LaunchError::prepare(what, libc::EINVAL));
        }
    }
    let options =
        |layers: &str| format!("lowerdir={layers},upperdir={upper},workdir={work},volatile");
    let mut words = options(&lower.join(":"));
    let mut layers = Vec::new();
    if words.len() > MOUNT_OPTIONS_MAX {
        for path in lower {
            layers.push(open(path, libc::O_PATH | libc::O_DIRECTORY)?);
        }
        let names: Vec<String> = layers.iter().map(descriptor_path).collect();
        words = options(&names.join(":"));
    }
    if words.len() > MOUNT_OPTIONS_MAX {
        let what = format!("an overlay of {} layers", lower.len());
        return Err(LaunchError::prepare(what, libc::E2BIG));
    }
    Ok(RootSource::Overlay {
        target: text(upper)?,
        options: text(&words)?,
        _layers: layers,
    })
}

fn descriptor_path(fd: &OwnedFd) -> String {
    use std::os::fd::AsRawFd;
    format!("/proc/self/fd/{}", fd.as_raw_fd())
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

fn device(device: &crate::plan::Device) -> Prepare<PreparedDevice> {
    use crate::plan::DeviceKind;
    let (parent, name) = device.path.rsplit_once('/').unwrap_or(("", &device.path));
    let kind = match device.kind {
        DeviceKind::Char => libc::S_IFCHR,
        DeviceKind::Block => libc::S_IFBLK,
        DeviceKind::Fifo => libc::S_IFIFO,
    };
    Ok(PreparedDevice {
        parent: target(parent, true)?,
        name: text(name)?,
        mode: kind | (device.mode & 0o7777),
        number: libc::makedev(device.major, device.minor),
        uid: device.uid,
        gid: device.gid,
    })
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
