// SPDX-License-Identifier: Apache-2.0
//! Reading directories and copying files, without allocation.

use std::ffi::CStr;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::{Sys, check, numbers};

/// Names in a directory, read a piece at a time (getdents64(2)).
pub struct Entries {
    buffer: [u8; 4096],
    length: usize,
    next: usize,
}

impl Entries {
    #[expect(clippy::new_without_default, reason = "a buffer has no default state")]
    pub fn new() -> Entries {
        Entries {
            buffer: [0; 4096],
            length: 0,
            next: 0,
        }
    }

    /// Reads the next piece; false at the end of the directory.
    pub fn fill(&mut self, dir: BorrowedFd<'_>) -> Sys<bool> {
        // SAFETY: pointer and length are those of an array that is borrowed exclusively.
        let read = unsafe {
            libc::syscall(
                libc::SYS_getdents64,
                dir.as_raw_fd(),
                self.buffer.as_mut_ptr(),
                self.buffer.len(),
            )
        };
        self.length = check(read)? as usize;
        self.next = 0;
        Ok(self.length > 0)
    }

    /// The next name of the piece, until there is none.
    pub fn name(&mut self) -> Option<&CStr> {
        // struct linux_dirent64: inode (8), offset (8), length of the record (2), type (1), name.
        const LENGTH: usize = 16;
        const NAME: usize = 19;
        let record = self.buffer.get(self.next..self.length)?;
        let length = record.get(LENGTH..LENGTH + 2)?.try_into().ok()?;
        let length = usize::from(u16::from_ne_bytes(length));
        self.next += length.max(1);
        CStr::from_bytes_until_nul(record.get(NAME..length)?).ok()
    }
}

/// Copies from where `from` is to its end.
pub fn copy_content(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Sys<()> {
    const PIECE: usize = 1 << 20;
    loop {
        let (to, from) = (to.as_raw_fd() as usize, from.as_raw_fd() as usize);
        // A null offset: the position of `from` moves along.
        if numbers(libc::SYS_sendfile, to, from, 0, PIECE, 0)? == 0 {
            return Ok(());
        }
    }
}

pub fn fchmod(file: BorrowedFd<'_>, mode: u32) -> Sys<()> {
    let file = file.as_raw_fd() as usize;
    numbers(libc::SYS_fchmod, file, mode as usize, 0, 0, 0).map(drop)
}

/// Copies the extended attributes that the other filesystem takes.
pub fn copy_attributes(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Sys<()> {
    let mut names = [0u8; 4096];
    // SAFETY: pointer and length are those of one exclusively borrowed array.
    let length =
        unsafe { libc::flistxattr(from.as_raw_fd(), names.as_mut_ptr().cast(), names.len()) };
    let length = match check(length as i64) {
        Err(libc::EOPNOTSUPP) => return Ok(()),
        length => length? as usize,
    };
    let mut names = names.get(..length).unwrap_or_default();
    while let Ok(name) = CStr::from_bytes_until_nul(names) {
        copy_attribute(from, to, name)?;
        names = names.get(name.count_bytes() + 1..).unwrap_or_default();
    }
    Ok(())
}

fn copy_attribute(from: BorrowedFd<'_>, to: BorrowedFd<'_>, name: &CStr) -> Sys<()> {
    let mut value = [0u8; 4096];
    // SAFETY: `name` is a C string; pointer and length are those of an array borrowed exclusively.
    let length = check(unsafe {
        libc::fgetxattr(
            from.as_raw_fd(),
            name.as_ptr(),
            value.as_mut_ptr().cast(),
            value.len(),
        )
    } as i64)?;
    // SAFETY: as above; the kernel said that it filled `length` bytes.
    let set = check(i64::from(unsafe {
        libc::fsetxattr(
            to.as_raw_fd(),
            name.as_ptr(),
            value.as_ptr().cast(),
            length as usize,
            0,
        )
    }));
    match set {
        // A tmpfs takes user attributes since 6.6 only; overlay's own are not for copies.
        Ok(_) | Err(libc::EOPNOTSUPP | libc::EPERM) => Ok(()),
        Err(errno) => Err(errno),
    }
}

/// Sets the times of `name` in `dir` to those of `stat`, never through a symbolic link.
pub fn set_times(dir: BorrowedFd<'_>, name: &CStr, stat: &libc::stat) -> Sys<()> {
    let time = |tv_sec, tv_nsec| libc::timespec { tv_sec, tv_nsec };
    let times = [
        time(stat.st_atime, stat.st_atime_nsec),
        time(stat.st_mtime, stat.st_mtime_nsec),
    ];
    // SAFETY: `name` is a C string, `times` an array of the two that the call reads.
    check(i64::from(unsafe {
        libc::utimensat(
            dir.as_raw_fd(),
            name.as_ptr(),
            times.as_ptr(),
            libc::AT_SYMLINK_NOFOLLOW,
        )
    }))
    .map(drop)
}
