// SPDX-License-Identifier: Apache-2.0
//! One mount of the plan: where it goes, whether it may, and what it is.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::paths::{self, Links};
use super::{Copied, copyup};
use crate::launch::prepare::{MountSource, NewFilesystem, OwnBind, PreparedMount};
use crate::launch::report::Step;
use crate::sys::{Errno, Sys, mounts};

type Failed = (Step, Errno);

type Idmap<'a> = dyn Fn(Copied<'_>) -> Sys<()> + 'a;

const PROC_SUPER_MAGIC: i64 = 0x9fa0;

/// What may be mounted on inside /proc: files that lxcfs emulates, as runc has it.
const PROC_FILES: [&CStr; 10] = [
    c"/proc/cpuinfo",
    c"/proc/diskstats",
    c"/proc/meminfo",
    c"/proc/stat",
    c"/proc/swaps",
    c"/proc/uptime",
    c"/proc/loadavg",
    c"/proc/slabinfo",
    c"/proc/sys/kernel/ns_last_pid",
    c"/proc/sys/crypto/fips_enabled",
];

/// Makes one mount. What has to become read-only later is kept in it.
pub(super) fn make(
    top: BorrowedFd<'_>,
    mount: &PreparedMount,
    idmap: &Idmap<'_>,
) -> Result<(), Failed> {
    let own = match &mount.source {
        MountSource::Own(bind) => Some(own_tree(top, bind, idmap).map_err(|e| (Step::Mount, e))?),
        _ => None,
    };
    let source = match &mount.source {
        MountSource::Detached(tree) => Some(tree.as_fd()),
        _ => own.as_ref().map(AsFd::as_fd),
    };
    let directory = match source {
        Some(tree) => is_directory(tree).map_err(|e| (Step::Mount, e))?,
        None => true,
    };
    let links = match mount.ordinary_directory {
        true => Links::Refuse,
        false => Links::Follow,
    };
    let place = paths::make(top, &mount.target, directory, links).map_err(|errno| match errno {
        libc::ELOOP if links == Links::Refuse => (Step::OrdinaryDirectory, libc::ENOTDIR),
        errno => (Step::MountTarget, errno),
    })?;
    let target = place.file.as_fd();
    let proc_mount = match (source, &mount.source) {
        (Some(tree), _) => on_proc(tree).map_err(|e| (Step::Mount, e))?,
        (None, MountSource::New(new)) => new.is_proc,
        (None, _) => true,
    };
    check_place(top, target, proc_mount)?;
    // The kernel only says that something is invalid.
    if is_directory(target).map_err(|e| (Step::Mount, e))? != directory
        && !matches!(mount.source, MountSource::Remount(_))
    {
        return Err((Step::Mount, libc::ENOTDIR));
    }
    let attached = match (&mount.source, source) {
        (_, Some(tree)) => mounts::attach(tree, target).map(|()| None),
        (MountSource::New(new), None) => new_filesystem(new, &place).and_then(|tree| {
            mounts::attach(tree.as_fd(), target)?;
            Ok(Some(tree))
        }),
        (MountSource::Remount(changes), None) => changes.apply(target).map(|()| None),
        (MountSource::Detached(_) | MountSource::Own(_), None) => Err(libc::EINVAL),
    };
    let made = attached.map_err(|errno| (Step::Mount, errno))?;
    if let (true, Some(made)) = (mount.late_readonly, made) {
        // A mount is made once, so the cell is empty.
        let _ = mount.made.set(made);
    }
    Ok(())
}

fn is_directory(file: BorrowedFd<'_>) -> Sys<bool> {
    let stat = mounts::fstat(file)?;
    Ok(stat.st_mode & libc::S_IFMT == libc::S_IFDIR)
}

/// Whether a file is the kernel's: nothing but a proc is of that type.
pub(in crate::launch) fn on_proc(file: BorrowedFd<'_>) -> Sys<bool> {
    Ok(mounts::filesystem_type(file)? == PROC_SUPER_MAGIC)
}

/// Nothing goes over the root itself, nothing but a proc over /proc, and nothing into a proc but
/// the files that lxcfs emulates: what later steps, and other programs, read there is the kernel's.
/// The place is known by descriptor, so no symbolic link leads around this.
fn check_place(
    top: BorrowedFd<'_>,
    target: BorrowedFd<'_>,
    proc_mount: bool,
) -> Result<(), Failed> {
    let failed = |errno| (Step::MountTarget, errno);
    let place = mounts::location(target).map_err(failed)?;
    if place == mounts::location(top).map_err(failed)? {
        return Err((Step::MountOverRoot, libc::EBUSY));
    }
    let is = |path: &CStr| match paths::existing(top, path)? {
        Some(file) => Ok(mounts::location(file.as_fd())? == place),
        None => Ok(false),
    };
    if is(c"/proc").map_err(failed)? {
        return match proc_mount {
            true => Ok(()),
            false => Err((Step::MountOverProc, libc::EPERM)),
        };
    }
    if !on_proc(target).map_err(failed)? {
        return Ok(());
    }
    for path in PROC_FILES {
        if is(path).map_err(failed)? {
            return Ok(());
        }
    }
    Err((Step::MountInProc, libc::EPERM))
}

/// A copy of what the container has at `source` by now.
fn own_tree(top: BorrowedFd<'_>, bind: &OwnBind, idmap: &Idmap<'_>) -> Sys<OwnedFd> {
    let source = paths::resolve(top, &bind.source)?;
    let tree = mounts::open_tree(source.as_fd(), c"", bind.recursive)?;
    if let Some((userns, recursive)) = &bind.idmap {
        idmap((tree.as_fd(), userns.as_fd(), *recursive))?;
    }
    bind.changes.apply(tree.as_fd())?;
    Ok(tree)
}

fn new_filesystem(new: &NewFilesystem, place: &paths::Place) -> Sys<OwnedFd> {
    let tree = match create(new, place) {
        Err(errno @ (libc::EPERM | libc::EBUSY)) => match &new.fallback {
            Some(tree) => mounts::open_tree(tree.as_fd(), c"", true)?,
            None => return Err(errno),
        },
        tree => tree?,
    };
    new.changes.apply(tree.as_fd())?;
    if new.copy_up && place.was_there {
        copyup::directory(place.file.as_fd(), tree.as_fd())?;
    }
    Ok(tree)
}

fn create(new: &NewFilesystem, place: &paths::Place) -> Sys<OwnedFd> {
    let context = mounts::fsopen(&new.fstype)?;
    let set = |key: &CStr, value: Option<&CStr>| mounts::fsconfig(context.as_fd(), key, value);
    set(c"source", Some(&new.source))?;
    if new.inherit_mode && place.was_there {
        let mode = mounts::fstat(place.file.as_fd())?.st_mode & 0o7777;
        let digit = |shift: u32| b'0' + (mode >> shift & 7) as u8;
        let octal = [digit(9), digit(6), digit(3), digit(0), 0];
        let octal = CStr::from_bytes_until_nul(&octal).map_err(|_| libc::EINVAL)?;
        set(c"mode", Some(octal))?;
    }
    for (key, value) in &new.options {
        set(key, value.as_deref())?;
    }
    mounts::fsmount(context.as_fd(), new.changes.attrs.set)
}
