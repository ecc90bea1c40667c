// SPDX-License-Identifier: Apache-2.0
//! Work that blocks on disk or kernel, moved off the executor. It finishes even when its caller goes away.

use crate::fault::{Fault, Result};

/// Runs `work` on the blocking pool.
///
/// # Errors
/// Only when the work panicked.
pub(crate) async fn run<T: Send + 'static>(
    attempt: &'static str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|e| Fault::internal(attempt, e))
}
