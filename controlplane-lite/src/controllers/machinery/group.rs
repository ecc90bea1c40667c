// SPDX-License-Identifier: Apache-2.0
//! Tasks that live and end together.

use std::time::Duration;

use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

/// A write that has begun may finish within this time after `stop`.
const DRAIN: Duration = Duration::from_secs(10);

/// The tasks of a group, each of which returns its name.
pub(crate) type Group = JoinSet<&'static str>;

/// Why a group ended before it was told to.
#[derive(Debug, thiserror::Error)]
pub enum Early {
    /// A task ended though nobody asked it to.
    #[error("{0} ended by itself")]
    Ended(&'static str),
    /// A task panicked.
    #[error("a task failed")]
    Panicked(#[source] JoinError),
}

/// Waits for `stop`, or for the first task that ends without it; then ends the others.
pub(crate) async fn supervise(mut group: Group, stop: CancellationToken) -> Result<(), Early> {
    let early = tokio::select! {
        () = stop.cancelled() => None,
        ended = group.join_next() => ended,
    };
    let result = match early {
        None => Ok(()),
        Some(Ok(_)) if stop.is_cancelled() => Ok(()),
        Some(Ok(name)) => Err(Early::Ended(name)),
        Some(Err(error)) => Err(Early::Panicked(error)),
    };
    stop.cancel();
    let drained = tokio::time::timeout(DRAIN, async { while group.join_next().await.is_some() {} });
    if drained.await.is_err() {
        tracing::warn!("tasks did not end within {DRAIN:?} and are cut off");
        group.shutdown().await;
    }
    result
}
