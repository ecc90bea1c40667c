// SPDX-License-Identifier: Apache-2.0
//! The socket options of this crate that have no safe wrapper: netlink's own, and packet filters.

#![expect(
    unsafe_code,
    reason = "nix has no wrapper for SOL_NETLINK options and SO_ATTACH_FILTER"
)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Set an option of level `SOL_NETLINK` (netlink(7)); 1 switches a boolean one on.
pub(crate) fn set_netlink_option(
    fd: BorrowedFd<'_>,
    option: libc::c_int,
    value: libc::c_int,
) -> io::Result<()> {
    let length = libc::socklen_t::try_from(size_of::<libc::c_int>()).expect("4 fits");
    // SAFETY: the kernel reads `length` bytes from `&value`, which is a live c_int of exactly that
    // size, and keeps no pointer to it; the descriptor is borrowed, so it is open for this call.
    let status = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::SOL_NETLINK,
            option,
            (&raw const value).cast(),
            length,
        )
    };
    if status == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Let a socket queue only what a classic BPF program (socket(7), `SO_ATTACH_FILTER`) passes.
pub(crate) fn attach_filter(
    fd: BorrowedFd<'_>,
    program: &mut [libc::sock_filter],
) -> io::Result<()> {
    let program = libc::sock_fprog {
        len: libc::c_ushort::try_from(program.len()).map_err(io::Error::other)?,
        filter: program.as_mut_ptr(),
    };
    let length = libc::socklen_t::try_from(size_of_val(&program)).expect("16 fits");
    // SAFETY: the kernel copies a sock_fprog of `length` bytes and the `len` instructions that it
    // points to, which the exclusive borrow of the slice keeps alive, and keeps no pointer to
    // them; the descriptor is borrowed, so it is open for this call.
    let status = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const program).cast(),
            length,
        )
    };
    if status == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
