// SPDX-License-Identifier: Apache-2.0
//! The calls of this crate that the compiler cannot check.

#![expect(
    unsafe_code,
    reason = "tokio wants a promise about the descriptor; malloc_trim(3) has no safe wrapper"
)]

use std::io;

use cni::attached::Watch;
use cni::nft::Monitor;
use tokio::io::unix::AsyncFd;

/// Wait for a monitor in this runtime.
pub(crate) fn register(monitor: Monitor) -> io::Result<AsyncFd<Monitor>> {
    // SAFETY: a Monitor owns its descriptor from its making to its end, always names the same one,
    // and neither gives it away nor lets it be replaced; so it stays open while it is registered.
    let registered = unsafe { AsyncFd::register(monitor) };
    registered.map_err(Into::into)
}

/// Give free memory back to the kernel. A full table passes through tens of megabytes, which the
/// allocator would keep. Blocks for some milliseconds after that.
pub(crate) fn give_memory_back() {
    // SAFETY: malloc_trim(3) takes the allocator's own locks and touches only memory that is free.
    unsafe { libc::malloc_trim(0) };
}

/// Wait for changes of attachments in this runtime.
pub(crate) fn register_watch(watch: Watch) -> io::Result<AsyncFd<Watch>> {
    // SAFETY: a Watch owns its inotify descriptor from its making to its end, always names the same
    // one, and neither gives it away nor lets it be replaced; so it stays open while registered.
    let registered = unsafe { AsyncFd::register(watch) };
    registered.map_err(Into::into)
}
