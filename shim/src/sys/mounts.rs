// SPDX-License-Identifier: Apache-2.0
//! Mounts and paths: the new mount API (kernel 5.2, mount_setattr 5.12), openat2 (5.6), and the
//! file calls that work relative to a directory descriptor.

use std::ffi::CStr;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use super::{Sys, check, errno, fresh_fd, numbers};

pub const ATTR_RDONLY: u64 = 0x1;
pub const ATTR_NOSUID: u64 = 0x2;
pub const ATTR_NODEV: u64 = 0x4;
pub const ATTR_NOEXEC: u64 = 0x8;
pub const ATTR_ATIME: u64 = 0x70;
pub const ATTR_NOATIME: u64 = 0x10;
pub const ATTR_STRICTATIME: u64 = 0x20;
pub const ATTR_NODIRATIME: u64 = 0x80;
pub const ATTR_NOSYMFOLLOW: u64 = 0x20_0000;

pub const RESOLVE_NO_MAGICLINKS: u64 = 0x02;
pub const RESOLVE_NO_SYMLINKS: u64 = 0x04;
pub const RESOLVE_IN_ROOT: u64 = 0x10;

const OPEN_TREE_CLONE: i32 = 1;
const AT_RECURSIVE: i32 = 0x8000;

/// The current directory as a base for `*at` calls with absolute paths.
pub fn cwd() -> BorrowedFd<'static> {
    // SAFETY: AT_FDCWD is no descriptor but a constant that every `*at` call accepts; it is never
    // closed and cannot be confused with one.
    unsafe { BorrowedFd::borrow_raw(libc::AT_FDCWD) }
}

#[repr(C)]
struct OpenHow {
    flags: u64,
    mode: u64,
    resolve: u64,
}

/// openat2(2). `RESOLVE_IN_ROOT` can fail with EAGAIN when something is renamed at that moment:
/// tried again a few times.
pub fn openat2(dir: BorrowedFd<'_>, path: &CStr, flags: i32, resolve: u64) -> Sys<OwnedFd> {
    let how = OpenHow {
        flags: (flags | libc::O_CLOEXEC) as u64,
        mode: 0,
        resolve,
    };
    let mut tries = 0;
    loop {
        // SAFETY: `path` is a C string and `how` a live struct whose size is passed.
        let result = fresh_fd(unsafe {
            libc::syscall(
                libc::SYS_openat2,
                dir.as_raw_fd(),
                path.as_ptr(),
                &raw const how,
                std::mem::size_of::<OpenHow>(),
            )
        });
        tries += 1;
        match result {
            Err(libc::EAGAIN) if tries < 32 => {}
            other => return other,
        }
    }
}

/// openat(2), closed on exec.
pub fn openat(dir: BorrowedFd<'_>, path: &CStr, flags: i32, mode: u32) -> Sys<OwnedFd> {
    // SAFETY: `path` is a C string; the rest are numbers.
    fresh_fd(i64::from(unsafe {
        libc::openat(
            dir.as_raw_fd(),
            path.as_ptr(),
            flags | libc::O_CLOEXEC,
            mode,
        )
    }))
}

/// A detached copy of the mount at `path`, which is relative to `dir`; an empty path means `dir`.
pub fn open_tree(dir: BorrowedFd<'_>, path: &CStr, recursive: bool) -> Sys<OwnedFd> {
    let mut flags = OPEN_TREE_CLONE | libc::O_CLOEXEC | libc::AT_EMPTY_PATH;
    if recursive {
        flags |= AT_RECURSIVE;
    }
    // SAFETY: `path` is a C string; the rest are numbers.
    fresh_fd(unsafe { libc::syscall(libc::SYS_open_tree, dir.as_raw_fd(), path.as_ptr(), flags) })
}

/// Attaches a detached mount at `target`.
pub fn attach(mount: BorrowedFd<'_>, target: BorrowedFd<'_>) -> Sys<()> {
    const F_EMPTY_PATH: usize = 0x4;
    const T_EMPTY_PATH: usize = 0x40;
    // SAFETY: both paths are empty C strings; the rest are numbers.
    check(unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            mount.as_raw_fd(),
            c"".as_ptr(),
            target.as_raw_fd(),
            c"".as_ptr(),
            F_EMPTY_PATH | T_EMPTY_PATH,
        )
    })
    .map(drop)
}

#[repr(C)]
struct MountAttr {
    set: u64,
    clear: u64,
    propagation: u64,
    userns: u64,
}

/// Changes attributes and propagation (an MS_* flag, or zero) of a mount.
pub fn set_attributes(
    mount: BorrowedFd<'_>,
    set: u64,
    clear: u64,
    propagation: u64,
    recursive: bool,
) -> Sys<()> {
    let attributes = MountAttr {
        set,
        clear,
        propagation,
        userns: 0,
    };
    mount_setattr(mount, &attributes, recursive)
}

/// Id-maps a detached mount by the maps of a user namespace (kernel 5.12).
pub fn set_idmap(mount: BorrowedFd<'_>, userns: BorrowedFd<'_>, recursive: bool) -> Sys<()> {
    const ATTR_IDMAP: u64 = 0x10_0000;
    let attributes = MountAttr {
        set: ATTR_IDMAP,
        clear: 0,
        propagation: 0,
        userns: userns.as_raw_fd() as u64,
    };
    mount_setattr(mount, &attributes, recursive)
}

fn mount_setattr(mount: BorrowedFd<'_>, attributes: &MountAttr, recursive: bool) -> Sys<()> {
    let flags = libc::AT_EMPTY_PATH | if recursive { AT_RECURSIVE } else { 0 };
    // SAFETY: the path is an empty C string, `attributes` a live struct whose size is passed.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            std::ptr::from_ref(attributes),
            std::mem::size_of::<MountAttr>(),
        )
    })
    .map(drop)
}

pub fn fsopen(fstype: &CStr) -> Sys<OwnedFd> {
    const FSOPEN_CLOEXEC: usize = 1;
    // SAFETY: `fstype` is a C string.
    fresh_fd(unsafe { libc::syscall(libc::SYS_fsopen, fstype.as_ptr(), FSOPEN_CLOEXEC) })
}

/// Sets an option of a filesystem context: with a value, or as a flag.
pub fn fsconfig(context: BorrowedFd<'_>, key: &CStr, value: Option<&CStr>) -> Sys<()> {
    const SET_FLAG: usize = 0;
    const SET_STRING: usize = 1;
    let (command, value) = match value {
        Some(value) => (SET_STRING, value.as_ptr()),
        None => (SET_FLAG, std::ptr::null()),
    };
    // SAFETY: `key` is a C string; `value` is one too, or null as SET_FLAG wants it.
    check(unsafe {
        libc::syscall(
            libc::SYS_fsconfig,
            context.as_raw_fd(),
            command,
            key.as_ptr(),
            value,
            0usize,
        )
    })
    .map(drop)
}

/// Creates the filesystem and returns a detached mount of it.
pub fn fsmount(context: BorrowedFd<'_>, attributes: u64) -> Sys<OwnedFd> {
    const CMD_CREATE: usize = 6;
    const FSMOUNT_CLOEXEC: usize = 1;
    let raw = context.as_raw_fd() as usize;
    numbers(libc::SYS_fsconfig, raw, CMD_CREATE, 0, 0, 0)?;
    fresh_fd(numbers(
        libc::SYS_fsmount,
        raw,
        FSMOUNT_CLOEXEC,
        attributes as usize,
        0,
        0,
    )?)
}

/// mount(2), for filesystems whose options are too long for fsconfig(2) (256 bytes each).
pub fn mount(source: &CStr, target: &CStr, fstype: &CStr, options: &CStr) -> Sys<()> {
    // SAFETY: all four are C strings.
    check(i64::from(unsafe {
        libc::mount(
            source.as_ptr(),
            target.as_ptr(),
            fstype.as_ptr(),
            0,
            options.as_ptr().cast(),
        )
    }))
    .map(drop)
}

/// Sets the propagation of every mount of this namespace.
pub fn set_all_propagation(flag: u64) -> Sys<()> {
    // SAFETY: a propagation change reads the target only; the other pointers may be null.
    check(i64::from(unsafe {
        libc::mount(
            std::ptr::null(),
            c"/".as_ptr(),
            std::ptr::null(),
            flag | libc::MS_REC,
            std::ptr::null(),
        )
    }))
    .map(drop)
}

/// Where an open file is: (mount, device, inode). statx(2), mount id since kernel 5.8.
pub fn location(file: BorrowedFd<'_>) -> Sys<(u64, u64, u64)> {
    let mut stat = std::mem::MaybeUninit::<libc::statx>::zeroed();
    let mask = libc::STATX_INO | libc::STATX_MNT_ID;
    // SAFETY: the path is an empty C string; the kernel fills a buffer of the right size.
    check(i64::from(unsafe {
        libc::statx(
            file.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            mask,
            stat.as_mut_ptr(),
        )
    }))?;
    // SAFETY: it was zeroed, and any bits are a valid statx: it consists of integers.
    let stat = unsafe { stat.assume_init() };
    let device = libc::makedev(stat.stx_dev_major, stat.stx_dev_minor);
    Ok((stat.stx_mnt_id, device, stat.stx_ino))
}

/// pivot_root(2) onto the current directory, stacking the old root on it (see its man page).
pub fn pivot_here() -> Sys<()> {
    // SAFETY: both paths are C strings.
    check(unsafe { libc::syscall(libc::SYS_pivot_root, c".".as_ptr(), c".".as_ptr()) }).map(drop)
}

pub fn detach(path: &CStr) -> Sys<()> {
    // SAFETY: `path` is a C string.
    check(i64::from(unsafe {
        libc::umount2(path.as_ptr(), libc::MNT_DETACH)
    }))
    .map(drop)
}

pub fn fchdir(dir: BorrowedFd<'_>) -> Sys<()> {
    numbers(libc::SYS_fchdir, dir.as_raw_fd() as usize, 0, 0, 0, 0).map(drop)
}

pub fn chdir(path: &CStr) -> Sys<()> {
    // SAFETY: `path` is a C string.
    check(i64::from(unsafe { libc::chdir(path.as_ptr()) })).map(drop)
}

pub fn chroot(path: &CStr) -> Sys<()> {
    // SAFETY: `path` is a C string.
    check(i64::from(unsafe { libc::chroot(path.as_ptr()) })).map(drop)
}

/// Whether the current directory lies within the root: getcwd(2) says "(unreachable)" otherwise.
pub fn cwd_is_reachable() -> Sys<bool> {
    let mut buffer = [0u8; libc::PATH_MAX as usize];
    // SAFETY: pointer and length come from one exclusively borrowed array.
    check(unsafe { libc::syscall(libc::SYS_getcwd, buffer.as_mut_ptr(), buffer.len()) })?;
    Ok(buffer[0] == b'/')
}

pub fn mkdirat(dir: BorrowedFd<'_>, name: &CStr, mode: u32) -> Sys<()> {
    // SAFETY: `name` is a C string.
    check(i64::from(unsafe {
        libc::mkdirat(dir.as_raw_fd(), name.as_ptr(), mode)
    }))
    .map(drop)
}

/// mknodat(2); `mode` includes the type.
pub fn mknodat(dir: BorrowedFd<'_>, name: &CStr, mode: u32, device: u64) -> Sys<()> {
    // SAFETY: `name` is a C string; the rest are numbers.
    check(i64::from(unsafe {
        libc::mknodat(dir.as_raw_fd(), name.as_ptr(), mode, device)
    }))
    .map(drop)
}

pub fn symlinkat(target: &CStr, dir: BorrowedFd<'_>, name: &CStr) -> Sys<()> {
    // SAFETY: both are C strings.
    check(i64::from(unsafe {
        libc::symlinkat(target.as_ptr(), dir.as_raw_fd(), name.as_ptr())
    }))
    .map(drop)
}

pub fn unlinkat(dir: BorrowedFd<'_>, name: &CStr) -> Sys<()> {
    // SAFETY: `name` is a C string.
    check(i64::from(unsafe {
        libc::unlinkat(dir.as_raw_fd(), name.as_ptr(), 0)
    }))
    .map(drop)
}

/// Reads a symbolic link into `buffer`; an empty name means that `dir` is the link, opened O_PATH.
pub fn readlinkat(dir: BorrowedFd<'_>, name: &CStr, buffer: &mut [u8]) -> Sys<usize> {
    // SAFETY: `name` is a C string; pointer and length come from one exclusively borrowed slice.
    let read = unsafe {
        libc::readlinkat(
            dir.as_raw_fd(),
            name.as_ptr(),
            buffer.as_mut_ptr().cast(),
            buffer.len(),
        )
    };
    check(read as i64).map(|length| length as usize)
}

/// Owner of `name` in `dir`, never through a symbolic link.
pub fn chownat(dir: BorrowedFd<'_>, name: &CStr, uid: u32, gid: u32) -> Sys<()> {
    // SAFETY: `name` is a C string.
    check(i64::from(unsafe {
        libc::fchownat(
            dir.as_raw_fd(),
            name.as_ptr(),
            uid,
            gid,
            libc::AT_SYMLINK_NOFOLLOW,
        )
    }))
    .map(drop)
}

/// Owner of an open file; `u32::MAX` leaves the group.
pub fn fchown(file: BorrowedFd<'_>, uid: u32, gid: u32) -> Sys<()> {
    numbers(
        libc::SYS_fchown,
        file.as_raw_fd() as usize,
        uid as usize,
        gid as usize,
        0,
        0,
    )
    .map(drop)
}

pub fn fchmodat(dir: BorrowedFd<'_>, name: &CStr, mode: u32) -> Sys<()> {
    // SAFETY: `name` is a C string.
    check(unsafe { libc::syscall(libc::SYS_fchmodat, dir.as_raw_fd(), name.as_ptr(), mode) })
        .map(drop)
}

pub fn fstat(file: BorrowedFd<'_>) -> Sys<libc::stat> {
    let mut stat = std::mem::MaybeUninit::<libc::stat>::uninit();
    // SAFETY: the kernel fills a buffer of the right size.
    let result = unsafe { libc::fstat(file.as_raw_fd(), stat.as_mut_ptr()) };
    if result < 0 {
        return Err(errno());
    }
    // SAFETY: fstat succeeded, so every field was written.
    Ok(unsafe { stat.assume_init() })
}

/// The type of the filesystem that an open file lies on (statfs(2) f_type).
pub fn filesystem_type(file: BorrowedFd<'_>) -> Sys<i64> {
    let mut stat = std::mem::MaybeUninit::<libc::statfs>::uninit();
    // SAFETY: the kernel fills a buffer of the right size.
    let result = unsafe { libc::fstatfs(file.as_raw_fd(), stat.as_mut_ptr()) };
    if result < 0 {
        return Err(errno());
    }
    // SAFETY: fstatfs succeeded, so every field was written.
    Ok(unsafe { stat.assume_init() }.f_type)
}

/// Whether an open file lies on a read-only mount.
pub fn is_readonly(file: BorrowedFd<'_>) -> Sys<bool> {
    let mut stat = std::mem::MaybeUninit::<libc::statvfs>::uninit();
    // SAFETY: the call fills a buffer of the right size.
    let result = unsafe { libc::fstatvfs(file.as_raw_fd(), stat.as_mut_ptr()) };
    if result < 0 {
        return Err(errno());
    }
    // SAFETY: fstatvfs succeeded, so every field was written.
    let flags = unsafe { stat.assume_init() }.f_flag;
    Ok(flags & libc::ST_RDONLY != 0)
}

/// Whether the effective user may execute `path`.
pub fn may_execute(path: &CStr) -> Sys<()> {
    // SAFETY: `path` is a C string; faccessat2 (kernel 5.8) takes flags in the call itself.
    check(unsafe {
        libc::syscall(
            libc::SYS_faccessat2,
            libc::AT_FDCWD,
            path.as_ptr(),
            libc::X_OK,
            libc::AT_EACCESS,
        )
    })
    .map(drop)
}
