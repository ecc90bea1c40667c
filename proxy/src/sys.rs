// SPDX-License-Identifier: Apache-2.0
//! The one call of this crate that the compiler cannot check.

#![expect(unsafe_code, reason = "tokio wants a promise about the descriptor")]

use std::io;

use cni::nft::Monitor;
use tokio::io::unix::AsyncFd;

/// Wait for a monitor in this runtime.
pub(crate) fn register(monitor: Monitor) -> io::Result<AsyncFd<Monitor>> {
    // SAFETY: a Monitor owns its descriptor from its making to its end, always names the same one,
    // and neither gives it away nor lets it be replaced; so it stays open while it is registered.
    let registered = unsafe { AsyncFd::register(monitor) };
    registered.map_err(Into::into)
}
