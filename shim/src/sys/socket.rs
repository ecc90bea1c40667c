// SPDX-License-Identifier: Apache-2.0
//! Sequenced-packet sockets that carry descriptors.

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use super::{Sys, check, errno, fresh_fd};

/// The most descriptors that one message carries: three streams and a payload.
pub const MAX_FDS: usize = 4;

/// Room for one SCM_RIGHTS header and [`MAX_FDS`] descriptors, aligned as cmsghdr wants it.
#[repr(C, align(8))]
struct Control([u8; 64]);

/// A connected pair, closed on exec.
pub fn pair() -> Sys<(OwnedFd, OwnedFd)> {
    let mut ends = [-1; 2];
    let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC;
    // SAFETY: the kernel writes two descriptors into an array of two.
    check(i64::from(unsafe {
        libc::socketpair(libc::AF_UNIX, kind, 0, ends.as_mut_ptr())
    }))?;
    Ok((fresh_fd(i64::from(ends[0]))?, fresh_fd(i64::from(ends[1]))?))
}

/// An unconnected socket; non-blocking when asked for.
pub fn socket(nonblocking: bool) -> Sys<OwnedFd> {
    let mut kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC;
    if nonblocking {
        kind |= libc::SOCK_NONBLOCK;
    }
    // SAFETY: socket takes numbers only.
    fresh_fd(i64::from(unsafe { libc::socket(libc::AF_UNIX, kind, 0) }))
}

/// A connection to a stream socket, non-blocking; the address is as for [`connect`].
pub fn connect_stream(path: &[u8]) -> Sys<OwnedFd> {
    let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: socket takes numbers only.
    let socket = fresh_fd(i64::from(unsafe { libc::socket(libc::AF_UNIX, kind, 0) }))?;
    connect(std::os::fd::AsFd::as_fd(&socket), path)?;
    Ok(socket)
}

fn address(path: &[u8]) -> Sys<libc::sockaddr_un> {
    let mut address = libc::sockaddr_un {
        sun_family: libc::AF_UNIX as libc::sa_family_t,
        sun_path: [0; 108],
    };
    if path.len() >= address.sun_path.len() {
        return Err(libc::ENAMETOOLONG);
    }
    for (slot, byte) in address.sun_path.iter_mut().zip(path) {
        *slot = *byte as libc::c_char;
    }
    Ok(address)
}

const ADDRESS_SIZE: libc::socklen_t = std::mem::size_of::<libc::sockaddr_un>() as libc::socklen_t;

/// Binds to a path and listens. The path is at most 107 bytes: callers go through
/// `/proc/self/fd/<dir>/name` so that a deep directory does not matter.
pub fn listen(socket: BorrowedFd<'_>, path: &[u8]) -> Sys<()> {
    let address = address(path)?;
    // SAFETY: the address is a live sockaddr_un whose size is passed.
    check(i64::from(unsafe {
        libc::bind(
            socket.as_raw_fd(),
            (&raw const address).cast(),
            ADDRESS_SIZE,
        )
    }))?;
    // SAFETY: listen takes numbers only.
    check(i64::from(unsafe { libc::listen(socket.as_raw_fd(), 64) })).map(drop)
}

/// Connects; local sockets connect at once or not at all.
pub fn connect(socket: BorrowedFd<'_>, path: &[u8]) -> Sys<()> {
    let address = address(path)?;
    // SAFETY: the address is a live sockaddr_un whose size is passed.
    check(i64::from(unsafe {
        libc::connect(
            socket.as_raw_fd(),
            (&raw const address).cast(),
            ADDRESS_SIZE,
        )
    }))
    .map(drop)
}

/// Accepts one connection, non-blocking.
pub fn accept(socket: BorrowedFd<'_>) -> Sys<OwnedFd> {
    let flags = libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: no address is asked for, so both pointers may be null.
    fresh_fd(i64::from(unsafe {
        libc::accept4(
            socket.as_raw_fd(),
            std::ptr::null_mut(),
            std::ptr::null_mut(),
            flags,
        )
    }))
}

/// Sends one packet with up to [`MAX_FDS`] descriptors. Does not allocate. No SIGPIPE.
pub fn send(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Sys<()> {
    if fds.len() > MAX_FDS {
        return Err(libc::E2BIG);
    }
    let mut control = Control([0; 64]);
    let mut part = libc::iovec {
        iov_base: bytes.as_ptr().cast_mut().cast(),
        iov_len: bytes.len(),
    };
    let mut message = empty_message(&mut part);
    if !fds.is_empty() {
        let payload = std::mem::size_of_val(fds);
        message.msg_control = control.0.as_mut_ptr().cast();
        message.msg_controllen = CONTROL_HEADER + payload.next_multiple_of(8);
        let header = libc::cmsghdr {
            cmsg_len: CONTROL_HEADER + payload,
            cmsg_level: libc::SOL_SOCKET,
            cmsg_type: libc::SCM_RIGHTS,
        };
        write_control(&mut control, header, fds);
    }
    // SAFETY: `message` points to `part` and `control`, which live across the call; `bytes` is only
    // read by the kernel although iovec is declared mutable.
    let result =
        unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, libc::MSG_NOSIGNAL) };
    check(result as i64).map(drop)
}

const CONTROL_HEADER: usize = std::mem::size_of::<libc::cmsghdr>();

fn write_control(control: &mut Control, header: libc::cmsghdr, fds: &[BorrowedFd<'_>]) {
    let parts: [&[u8]; 3] = [
        &header.cmsg_len.to_ne_bytes(),
        &header.cmsg_level.to_ne_bytes(),
        &header.cmsg_type.to_ne_bytes(),
    ];
    let mut slots = control.0.iter_mut();
    for byte in parts.into_iter().flatten() {
        if let Some(slot) = slots.next() {
            *slot = *byte;
        }
    }
    for byte in fds.iter().flat_map(|fd| fd.as_raw_fd().to_ne_bytes()) {
        if let Some(slot) = slots.next() {
            *slot = byte;
        }
    }
}

fn empty_message(part: &mut libc::iovec) -> libc::msghdr {
    libc::msghdr {
        msg_name: std::ptr::null_mut(),
        msg_namelen: 0,
        msg_iov: part,
        msg_iovlen: 1,
        msg_control: std::ptr::null_mut(),
        msg_controllen: 0,
        msg_flags: 0,
    }
}

/// The size of the next packet, without taking it.
pub fn next_size(socket: BorrowedFd<'_>) -> Sys<usize> {
    let flags = libc::MSG_PEEK | libc::MSG_TRUNC;
    // SAFETY: a buffer of length zero is never written to.
    let result = unsafe { libc::recv(socket.as_raw_fd(), std::ptr::null_mut(), 0, flags) };
    check(result as i64).map(|size| size as usize)
}

/// Receives one packet. Returns its length (0: the peer is gone) and the descriptors with it.
///
/// A packet or a set of descriptors that does not fit is an error (EMSGSIZE), never cut silently.
pub fn receive(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
) -> Sys<(usize, [Option<OwnedFd>; MAX_FDS])> {
    let mut control = Control([0; 64]);
    let mut part = libc::iovec {
        iov_base: buffer.as_mut_ptr().cast(),
        iov_len: buffer.len(),
    };
    let mut message = empty_message(&mut part);
    message.msg_control = control.0.as_mut_ptr().cast();
    message.msg_controllen = CONTROL_HEADER + MAX_FDS * std::mem::size_of::<RawFd>();
    // SAFETY: `message` points to `part` (which is `buffer`) and `control`, exclusively borrowed.
    let result =
        unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_CMSG_CLOEXEC) };
    if result < 0 {
        return Err(errno());
    }
    let fds = take_fds(&control, message.msg_controllen);
    if message.msg_flags & (libc::MSG_TRUNC | libc::MSG_CTRUNC) != 0 {
        return Err(libc::EMSGSIZE);
    }
    Ok((result as usize, fds))
}

/// Only SCM_RIGHTS can arrive: the socket asks for no other control messages.
fn take_fds(control: &Control, length: usize) -> [Option<OwnedFd>; MAX_FDS] {
    let mut fds = [const { None }; MAX_FDS];
    let Some(header) = control.0.get(..8).and_then(|bytes| bytes.try_into().ok()) else {
        return fds;
    };
    let end = usize::from_ne_bytes(header).min(length);
    let numbers = control.0.get(CONTROL_HEADER..end).unwrap_or_default();
    for (slot, number) in fds.iter_mut().zip(numbers.chunks_exact(4)) {
        if let Ok(number) = <[u8; 4]>::try_from(number) {
            // SAFETY: the kernel has just installed this descriptor for us, as the control message
            // of this very call says; nobody else knows it.
            *slot = Some(unsafe { OwnedFd::from_raw_fd(RawFd::from_ne_bytes(number)) });
        }
    }
    fds
}

/// A file in memory with these bytes, for messages too large for a packet.
pub fn memory_file(bytes: &[u8]) -> Sys<OwnedFd> {
    // SAFETY: the name is a C string.
    let file = fresh_fd(i64::from(unsafe {
        libc::memfd_create(c"message".as_ptr(), libc::MFD_CLOEXEC)
    }))?;
    let mut rest = bytes;
    while !rest.is_empty() {
        // Takes the borrow from the owned descriptor, so it stays open.
        let count = super::write(std::os::fd::AsFd::as_fd(&file), rest)?;
        rest = rest.get(count..).unwrap_or_default();
    }
    Ok(file)
}
