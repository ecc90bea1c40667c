// SPDX-License-Identifier: Apache-2.0
//! The scheduler: binds pods to nodes. A client of the API.

use kube::Client;
use tokio_util::sync::CancellationToken;

/// Configuration of the scheduler.
#[derive(Debug, Clone)]
pub struct Config {
    /// Pods with this `spec.schedulerName` are ours.
    pub scheduler_name: String,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            scheduler_name: "default-scheduler".into(),
        }
    }
}

/// Why the scheduler could not run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not there yet.
    #[error("the scheduler is not implemented yet")]
    NotImplemented,
}

/// Schedules pods until `stop` is cancelled.
///
/// # Errors
/// None that a caller could act on: failures are retried and shown as events.
pub async fn run(client: Client, config: Config, stop: CancellationToken) -> Result<(), Error> {
    let _ = (client, config, stop);
    Err(Error::NotImplemented)
}
