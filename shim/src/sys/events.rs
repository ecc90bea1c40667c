// SPDX-License-Identifier: Apache-2.0
//! What an event loop waits for: poll(2), signalfd(2), dnotify (fcntl(2)).

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

/// Has the kernel send SIGIO when an entry of the directory is removed, as long as `directory` is open
/// (fcntl(2), F_NOTIFY).
///
/// inotify(7) would need an instance for each shim, and a user has 128 of them: with 128 pods nobody
/// else on the machine could watch a file.
///
/// # Errors
/// EINVAL where the kernel has no dnotify.
pub fn notify_of_removal(directory: BorrowedFd<'_>) -> Sys<()> {
    // From <linux/fcntl.h>; the libc crate lacks them.
    const DN_DELETE: u64 = 0x8;
    const DN_MULTISHOT: u64 = 0x8000_0000;
    // SAFETY: fcntl with F_NOTIFY takes a descriptor and a number.
    check(i64::from(unsafe {
        libc::fcntl(
            directory.as_raw_fd(),
            libc::F_NOTIFY,
            DN_DELETE | DN_MULTISHOT,
        )
    }))
    .map(drop)
}
