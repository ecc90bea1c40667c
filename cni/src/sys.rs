// SPDX-License-Identifier: Apache-2.0
//! What of netlink sockets has no safe wrapper: their own options, packet filters, and waiting for
//! them in an executor.

#![expect(
    unsafe_code,
    reason = "nix has no wrapper for SOL_NETLINK options and SO_ATTACH_FILTER; tokio wants a promise \
              about descriptors"
)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::netlink::Socket;

/// Wait for a socket in this executor.
pub(crate) fn register(socket: Socket) -> io::Result<AsyncFd<Socket>> {
    // SAFETY: a Socket owns its descriptor from its making to its end, always names the same one, and
    // neither gives it away nor lets it be replaced; so it stays open while it is registered.
    let registered = unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) };
    registered.map_err(Into::into)
}

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
