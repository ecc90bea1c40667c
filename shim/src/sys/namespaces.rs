// SPDX-License-Identifier: Apache-2.0
//! Questions to namespace files (ioctl_ns(2), kernel 4.11).

use std::os::fd::{AsRawFd, BorrowedFd};

use super::{Sys, check};

/// Not in libc for every target: the eighth namespace's flag (kernel 5.6).
pub const CLONE_NEWTIME: i32 = 0x80;

/// The CLONE_NEW* flag of a namespace file; ENOTTY when the file is no namespace.
pub fn kind(file: BorrowedFd<'_>) -> Sys<i32> {
    const NS_GET_NSTYPE: libc::Ioctl = 0xb703;
    // SAFETY: NS_GET_NSTYPE takes no argument and returns a number.
    check(i64::from(unsafe {
        libc::ioctl(file.as_raw_fd(), NS_GET_NSTYPE)
    }))
    .map(|kind| kind as i32)
}
