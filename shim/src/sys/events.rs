// SPDX-License-Identifier: Apache-2.0
//! What an event loop waits for: poll(2), signalfd(2), inotify(7).

use std::ffi::CStr;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use super::{Sys, check, fresh_fd};

/// Waits until one of `fds` is ready or `timeout_ms` (-1: for ever) has passed. An interrupting
/// signal counts as nothing being ready.
pub fn poll(fds: &mut [libc::pollfd], timeout_ms: i32) -> Sys<usize> {
    // SAFETY: pointer and length come from one exclusively borrowed slice.
    let result = unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, timeout_ms) };
    match check(i64::from(result)) {
        Ok(count) => Ok(count as usize),
        Err(libc::EINTR) => Ok(0),
        Err(errno) => Err(errno),
    }
}

/// One entry for [`poll`].
pub fn interest(fd: BorrowedFd<'_>, events: i16) -> libc::pollfd {
    libc::pollfd {
        fd: fd.as_raw_fd(),
        events,
        revents: 0,
    }
}

/// Waits for one descriptor to be readable (or closed by its peer).
pub fn wait_readable(fd: BorrowedFd<'_>, timeout_ms: i32) -> Sys<bool> {
    let mut fds = [interest(fd, libc::POLLIN)];
    Ok(poll(&mut fds, timeout_ms)? > 0)
}

/// Blocks these signals and returns a non-blocking descriptor that reports them.
pub fn signal_descriptor(signals: &[i32]) -> Sys<OwnedFd> {
    let mut mask: u64 = 0;
    for signal in signals {
        mask |= 1 << (signal - 1);
    }
    // SAFETY: the kernel reads an 8 byte mask and is told its size; no old mask is asked for.
    check(unsafe {
        libc::syscall(
            libc::SYS_rt_sigprocmask,
            libc::SIG_BLOCK,
            &raw const mask,
            std::ptr::null_mut::<u64>(),
            8usize,
        )
    })?;
    let flags = libc::SFD_CLOEXEC | libc::SFD_NONBLOCK;
    // SAFETY: as above; -1 asks for a new descriptor.
    fresh_fd(unsafe { libc::syscall(libc::SYS_signalfd4, -1, &raw const mask, 8usize, flags) })
}

/// A non-blocking descriptor that becomes readable when something in the directory is removed.
///
/// The directory's own removal (IN_DELETE_SELF) is not reported while a bound socket in it pins
/// its inode, even after the socket's name is gone; so its entries are watched instead.
pub fn watch_removal(directory: &CStr) -> Sys<OwnedFd> {
    // SAFETY: inotify_init1 takes a number.
    let watch = fresh_fd(i64::from(unsafe {
        libc::inotify_init1(libc::IN_CLOEXEC | libc::IN_NONBLOCK)
    }))?;
    let events = libc::IN_DELETE | libc::IN_MOVED_FROM | libc::IN_MOVE_SELF | libc::IN_ONLYDIR;
    // SAFETY: `directory` is a C string.
    check(i64::from(unsafe {
        libc::inotify_add_watch(watch.as_raw_fd(), directory.as_ptr(), events)
    }))?;
    Ok(watch)
}
