// SPDX-License-Identifier: Apache-2.0
//! The loop that every controller runs: take a key, reconcile it under a deadline, and forget,
//! repeat later, or retry with back-off.

use std::fmt::Display;
use std::hash::Hash;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::queue::Queue;

/// One reconcile of one key may take this long. It bounds a hung connection; the next attempt
/// starts from what the server then says, so an interrupted one loses nothing.
const RECONCILE_DEADLINE: Duration = Duration::from_secs(60);

/// Why a reconcile did not finish. The key is tried again.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SyncError {
    #[error("{action}")]
    Api {
        action: String,
        #[source]
        source: kube::Error,
    },
    #[error("{0}")]
    Later(String),
}

impl SyncError {
    /// A write conflict or a vanished object: the watch will show what happened, so this is no
    /// news for the log.
    fn is_expected(&self) -> bool {
        matches!(self, Self::Api { source: kube::Error::Api(status), .. }
            if status.code == 409 || status.code == 404)
    }
}

/// Adds what was attempted to an error of the API client.
pub(crate) trait Attempt<T> {
    fn attempt(self, action: impl FnOnce() -> String) -> Result<T, SyncError>;
}

impl<T> Attempt<T> for Result<T, kube::Error> {
    fn attempt(self, action: impl FnOnce() -> String) -> Result<T, SyncError> {
        self.map_err(|source| SyncError::Api {
            action: action(),
            source,
        })
    }
}

/// True for "there is no such object".
pub(crate) fn is_not_found(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 404)
}

/// True for "an object of that name exists".
pub(crate) fn is_already_exists(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 409 && status.reason == "AlreadyExists")
}

/// True when the namespace is going away, so that creating in it can never succeed.
pub(crate) fn is_namespace_terminating(error: &kube::Error) -> bool {
    let kube::Error::Api(status) = error else {
        return false;
    };
    status.code == 403
        && (status.message.contains("is being terminated")
            || status
                .details
                .as_ref()
                .is_some_and(|d| d.causes.iter().any(|c| c.reason == "NamespaceTerminating")))
}

/// Deleting or patching what is gone is success.
pub(crate) fn gone_is_fine<T>(result: Result<T, kube::Error>) -> Result<(), kube::Error> {
    match result {
        Err(error) if !is_not_found(&error) => Err(error),
        _ => Ok(()),
    }
}

/// When a key that reconciled well wants to be looked at again.
pub(crate) type Again = Option<Duration>;

/// Runs `workers` loops over the queue until `stop`. A reconcile that has begun is finished first.
pub(crate) async fn run<K, F, Fut>(
    controller: &'static str,
    queue: &Queue<K>,
    workers: usize,
    stop: &CancellationToken,
    reconcile: F,
) where
    K: Clone + Eq + Hash + Display,
    F: Fn(K) -> Fut,
    Fut: Future<Output = Result<Again, SyncError>>,
{
    let worker = || async {
        loop {
            let key = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                key = queue.next() => key,
            };
            let result = tokio::time::timeout(RECONCILE_DEADLINE, reconcile(key.clone())).await;
            settle(controller, queue, &key, result);
            queue.done(&key);
        }
    };
    futures::future::join_all((0..workers).map(|_| worker())).await;
}

fn settle<K: Clone + Eq + Hash + Display>(
    controller: &'static str,
    queue: &Queue<K>,
    key: &K,
    result: Result<Result<Again, SyncError>, tokio::time::error::Elapsed>,
) {
    match result {
        Ok(Ok(again)) => {
            queue.forget(key);
            if let Some(delay) = again {
                queue.add_after(key.clone(), delay);
            }
        }
        Ok(Err(error)) => {
            let delay = queue.retry(key.clone());
            let source = std::error::Error::source(&error).map(ToString::to_string);
            if error.is_expected() {
                tracing::debug!(controller, %key, ?delay, %error, source, "reconcile will be retried");
            } else {
                tracing::warn!(controller, %key, ?delay, %error, source, "reconcile failed");
            }
        }
        Err(_) => {
            let delay = queue.retry(key.clone());
            tracing::warn!(controller, %key, ?delay, "reconcile took longer than {RECONCILE_DEADLINE:?}");
        }
    }
}
