// SPDX-License-Identifier: Apache-2.0
//! The one system call of this crate that has no safe wrapper: netlink's own socket options.

#![expect(unsafe_code, reason = "nix has no wrapper for SOL_NETLINK options")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Switch on a boolean option of level `SOL_NETLINK` (netlink(7)).
pub(crate) fn set_netlink_option(fd: BorrowedFd<'_>, option: libc::c_int) -> io::Result<()> {
    let on: libc::c_int = 1;
    let length = libc::socklen_t::try_from(size_of::<libc::c_int>()).expect("4 fits");
    // SAFETY: the kernel reads `length` bytes from `&on`, which is a live c_int of exactly that
    // size, and keeps no pointer to it; the descriptor is borrowed, so it is open for this call.
    let status = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::SOL_NETLINK,
            option,
            (&raw const on).cast(),
            length,
        )
    };
    if status == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
