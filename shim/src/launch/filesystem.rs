// SPDX-License-Identifier: Apache-2.0
//! The child's file system: root, mounts, devices, hidden paths, terminal, pivot_root.
//!
//! Every path of the container is resolved beneath its root descriptor (openat2, RESOLVE_IN_ROOT,
//! no magic links), before the root is changed, and then only the descriptor is used. So an image
//! or a volume with symbolic links in odd places cannot lead a mount or a device elsewhere.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::child::{Failed, at};
use super::prepare::{MountSource, Prepared, PreparedDevice, PreparedMount, Root, Target};
use super::report::Step;
use crate::sys::{self, Sys, mounts};

/// Both sides of a new terminal.
pub(super) struct Terminal {
    pub master: OwnedFd,
    pub slave: OwnedFd,
}

const BENEATH: u64 = mounts::RESOLVE_IN_ROOT | mounts::RESOLVE_NO_MAGICLINKS;
const DEVPTS_MAGIC: i64 = 0x1cd1;

/// Mounts everything and changes the root (or, in a running container's namespace, only opens the
/// terminal that is asked for). `hooks` is called once everything is mounted, while the host's
/// files can still be seen.
pub(super) fn set_up(
    prepared: &Prepared,
    terminal: bool,
    hooks: impl FnOnce() -> Result<(), Failed>,
) -> Result<Option<Terminal>, Failed> {
    let Some(root) = &prepared.root else {
        return match terminal {
            true => in_running_container().map(Some).map_err(at(Step::Terminal)),
            false => Ok(None),
        };
    };
    mounts::set_all_propagation(libc::MS_PRIVATE).map_err(at(Step::Propagation))?;
    let null = open_null().map_err(at(Step::MaskedPath))?;
    let top = root.tree.as_fd();
    attach_root(top, &root.attach_at).map_err(at(Step::RootFs))?;
    for (index, mount) in root.mounts.iter().enumerate() {
        make_mount(top, mount).map_err(|(step, errno)| (step, index, errno))?;
    }
    for (index, device) in root.devices.iter().enumerate() {
        make_device(top, device).map_err(|errno| (Step::Device, index, errno))?;
    }
    for (index, (link, to)) in root.symlinks.iter().enumerate() {
        make_symlink(top, link, to).map_err(|errno| (Step::Symlink, index, errno))?;
    }
    let pair = match terminal {
        true => Some(console(top, root).map_err(at(Step::Terminal))?),
        false => None,
    };
    if !root.readonly {
        // As runc does: a working directory that does not exist is made, empty, by root.
        make_target(top, &root.cwd).map_err(at(Step::Cwd))?;
    }
    hooks()?;
    hide(top, root, null.as_fd())?;
    late_readonly(top, root)?;
    pivot(top, root.no_pivot).map_err(at(Step::Pivot))?;
    finish_root(top, root).map_err(at(Step::RootFs))?;
    Ok(pair)
}

/// The host's /dev/null, opened before any path of the container is looked at.
fn open_null() -> Sys<OwnedFd> {
    let null = mounts::openat(mounts::cwd(), c"/dev/null", libc::O_PATH, 0)?;
    let stat = mounts::fstat(null.as_fd())?;
    let is_null =
        stat.st_mode & libc::S_IFMT == libc::S_IFCHR && stat.st_rdev == libc::makedev(1, 3);
    if is_null { Ok(null) } else { Err(libc::ENODEV) }
}

/// Attaches the root somewhere in this namespace, so that things can be mounted on it.
fn attach_root(tree: BorrowedFd<'_>, at: &CStr) -> Sys<()> {
    let place = mounts::openat(mounts::cwd(), at, libc::O_PATH, 0)?;
    mounts::attach(tree, place.as_fd())
}

fn resolve(top: BorrowedFd<'_>, path: &CStr) -> Sys<OwnedFd> {
    mounts::openat2(top, path, libc::O_PATH, BENEATH)
}

/// Opens a path beneath the root; makes what is missing of it.
fn make_target(top: BorrowedFd<'_>, target: &Target) -> Sys<OwnedFd> {
    match resolve(top, &target.full) {
        Err(libc::ENOENT) => {}
        other => return other,
    }
    let mut parent: Option<OwnedFd> = None;
    for (index, (so_far, name)) in target.parts.iter().enumerate() {
        let here = match resolve(top, so_far) {
            Err(libc::ENOENT) => {
                let dir = parent.as_ref().map_or(top, AsFd::as_fd);
                let last = index + 1 == target.parts.len();
                make_entry(dir, name, target.directory || !last)?;
                resolve(top, so_far)?
            }
            other => other?,
        };
        parent = Some(here);
    }
    parent.ok_or(libc::ENOENT)
}

fn make_entry(dir: BorrowedFd<'_>, name: &CStr, directory: bool) -> Sys<()> {
    if directory {
        return mounts::mkdirat(dir, name, 0o755);
    }
    let flags = libc::O_CREAT | libc::O_EXCL | libc::O_NOFOLLOW | libc::O_WRONLY;
    mounts::openat(dir, name, flags, 0o644).map(drop)
}

fn make_mount(top: BorrowedFd<'_>, mount: &PreparedMount) -> Result<(), (Step, sys::Errno)> {
    let mut target = make_target(top, &mount.target).map_err(|errno| (Step::MountTarget, errno))?;
    if mount.no_symlinks {
        let resolve = mounts::RESOLVE_IN_ROOT | mounts::RESOLVE_NO_SYMLINKS;
        let flags = libc::O_PATH | libc::O_DIRECTORY;
        target = mounts::openat2(top, &mount.target.full, flags, resolve)
            .map_err(|errno| (Step::MountTarget, errno))?;
    }
    let attach = |tree: BorrowedFd<'_>| mounts::attach(tree, target.as_fd());
    match &mount.source {
        MountSource::Detached(tree) => attach(tree.as_fd()),
        MountSource::New {
            fstype,
            options,
            attributes,
            propagation,
        } => new_filesystem(fstype, options, *attributes, *propagation)
            .and_then(|tree| attach(tree.as_fd())),
    }
    .map_err(|errno| (Step::Mount, errno))
}

fn new_filesystem(
    fstype: &CStr,
    options: &[(std::ffi::CString, Option<std::ffi::CString>)],
    attributes: u64,
    propagation: u64,
) -> Sys<OwnedFd> {
    let context = mounts::fsopen(fstype)?;
    for (key, value) in options {
        mounts::fsconfig(context.as_fd(), key, value.as_deref())?;
    }
    let tree = mounts::fsmount(context.as_fd(), attributes)?;
    if propagation != libc::MS_PRIVATE {
        mounts::set_attributes(tree.as_fd(), 0, 0, propagation, false)?;
    }
    Ok(tree)
}

/// A node that is there already is taken out of the way by nobody: an image that ships one where
/// the runtime makes one keeps it only if it is the same device.
fn make_device(top: BorrowedFd<'_>, device: &PreparedDevice) -> Sys<()> {
    if let Some(node) = &device.node {
        let target = make_target(top, &device.target)?;
        return mounts::attach(node.as_fd(), target.as_fd());
    }
    let parent = make_target(top, &device.parent)?;
    match mounts::mknodat(parent.as_fd(), &device.name, device.mode, device.number) {
        Err(libc::EEXIST) => return same_device(parent.as_fd(), device),
        other => other?,
    }
    // The umask is zero, so the mode is exact.
    mounts::chownat(parent.as_fd(), &device.name, device.uid, device.gid)
}

fn same_device(parent: BorrowedFd<'_>, device: &PreparedDevice) -> Sys<()> {
    let flags = libc::O_PATH | libc::O_NOFOLLOW;
    let there = mounts::openat(parent, &device.name, flags, 0)?;
    let stat = mounts::fstat(there.as_fd())?;
    let same =
        stat.st_mode & libc::S_IFMT == device.mode & libc::S_IFMT && stat.st_rdev == device.number;
    if same { Ok(()) } else { Err(libc::EEXIST) }
}

fn make_symlink(top: BorrowedFd<'_>, link: &Target, to: &CStr) -> Sys<()> {
    let Some(((_, name), above)) = link.parts.split_last() else {
        return Err(libc::EINVAL);
    };
    let parent = match above.last() {
        Some((so_far, _)) => resolve(top, so_far)?,
        None => resolve(top, c"/")?,
    };
    match mounts::symlinkat(to, parent.as_fd(), name) {
        Ok(()) | Err(libc::EEXIST) => Ok(()),
        Err(errno) => Err(errno),
    }
}

/// Opens a terminal of the container's own devpts and puts it on /dev/console.
fn console(top: BorrowedFd<'_>, root: &Root) -> Sys<Terminal> {
    let pair = open_terminal(top)?;
    if let Some(console) = &root.console {
        let target = make_target(top, console)?;
        let tree = mounts::open_tree(pair.slave.as_fd(), c"", false)?;
        mounts::attach(tree.as_fd(), target.as_fd())?;
    }
    Ok(pair)
}

fn in_running_container() -> Sys<Terminal> {
    let top = mounts::openat(mounts::cwd(), c"/", libc::O_PATH | libc::O_DIRECTORY, 0)?;
    open_terminal(top.as_fd())
}

/// No symbolic link may lead to the multiplexer, and it has to be devpts' own.
fn open_terminal(top: BorrowedFd<'_>) -> Sys<Terminal> {
    let resolve = mounts::RESOLVE_IN_ROOT | mounts::RESOLVE_NO_SYMLINKS;
    let flags = libc::O_RDWR | libc::O_NOCTTY;
    let master = mounts::openat2(top, c"/dev/pts/ptmx", flags, resolve)?;
    if mounts::filesystem_type(master.as_fd())? != DEVPTS_MAGIC {
        return Err(libc::ENOTTY);
    }
    let slave = sys::terminal_peer(master.as_fd())?;
    Ok(Terminal { master, slave })
}

/// Masks and write-protects paths. What does not exist needs neither.
fn hide(top: BorrowedFd<'_>, root: &Root, null: BorrowedFd<'_>) -> Result<(), Failed> {
    for (index, path) in root.readonly_paths.iter().enumerate() {
        let done = existing(top, path).and_then(|there| match there {
            Some(target) => make_readonly(target.as_fd()),
            None => Ok(()),
        });
        done.map_err(|errno| (Step::ReadonlyPath, index, errno))?;
    }
    // One empty directory serves for all masked directories.
    let mut empty: Option<OwnedFd> = None;
    for (index, path) in root.masked.iter().enumerate() {
        let done = existing(top, path).and_then(|there| match there {
            Some(target) => mask(target.as_fd(), null, &mut empty),
            None => Ok(()),
        });
        done.map_err(|errno| (Step::MaskedPath, index, errno))?;
    }
    Ok(())
}

fn existing(top: BorrowedFd<'_>, path: &CStr) -> Sys<Option<OwnedFd>> {
    match resolve(top, path) {
        Ok(target) => Ok(Some(target)),
        Err(libc::ENOENT | libc::ENOTDIR) => Ok(None),
        Err(errno) => Err(errno),
    }
}

fn make_readonly(target: BorrowedFd<'_>) -> Sys<()> {
    let tree = mounts::open_tree(target, c"", true)?;
    mounts::set_attributes(tree.as_fd(), mounts::ATTR_RDONLY, 0, 0, true)?;
    mounts::attach(tree.as_fd(), target)
}

fn mask(target: BorrowedFd<'_>, null: BorrowedFd<'_>, empty: &mut Option<OwnedFd>) -> Sys<()> {
    let stat = mounts::fstat(target)?;
    if stat.st_mode & libc::S_IFMT != libc::S_IFDIR {
        let tree = mounts::open_tree(null, c"", false)?;
        return mounts::attach(tree.as_fd(), target);
    }
    if let Some(first) = empty {
        let tree = mounts::open_tree(first.as_fd(), c"", false)?;
        return mounts::attach(tree.as_fd(), target);
    }
    let context = mounts::fsopen(c"tmpfs")?;
    mounts::fsconfig(context.as_fd(), c"size", Some(c"4k"))?;
    mounts::fsconfig(context.as_fd(), c"nr_inodes", Some(c"2"))?;
    let attributes =
        mounts::ATTR_RDONLY | mounts::ATTR_NOSUID | mounts::ATTR_NODEV | mounts::ATTR_NOEXEC;
    let tree = mounts::fsmount(context.as_fd(), attributes)?;
    mounts::attach(tree.as_fd(), target)?;
    *empty = Some(tree);
    Ok(())
}

fn late_readonly(top: BorrowedFd<'_>, root: &Root) -> Result<(), Failed> {
    for (index, mount) in root.mounts.iter().enumerate() {
        if mount.late_readonly {
            resolve(top, &mount.target.full)
                .and_then(|target| {
                    mounts::set_attributes(target.as_fd(), mounts::ATTR_RDONLY, 0, 0, false)
                })
                .map_err(|errno| (Step::Mount, index, errno))?;
        }
    }
    Ok(())
}

/// Makes `top` the root, and lets go of the old one.
///
/// The kernel refuses pivot_root on the first root file system (an initramfs): then the new root
/// is moved over the old and entered by chroot, which leaves the old one unreachable by any path.
/// `refused` does so without asking the kernel.
fn pivot(top: BorrowedFd<'_>, refused: bool) -> Sys<()> {
    mounts::fchdir(top)?;
    let pivoted = match refused {
        true => Err(libc::EINVAL),
        false => mounts::pivot_here(),
    };
    match pivoted {
        Ok(()) => mounts::detach(c".")?,
        Err(libc::EINVAL) => {
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

fn finish_root(top: BorrowedFd<'_>, root: &Root) -> Sys<()> {
    if root.readonly {
        mounts::set_attributes(top, mounts::ATTR_RDONLY, 0, 0, false)?;
    }
    if root.propagation != 0 {
        mounts::set_attributes(top, 0, 0, root.propagation, false)?;
    }
    Ok(())
}
