// SPDX-License-Identifier: Apache-2.0
//! The controllers: each watches the API, compares what is wanted with what is there, and writes
//! the difference back. They are clients of the API and never see the store.

pub(crate) mod machinery;

use kube::Client;
use tokio_util::sync::CancellationToken;

pub use config::{Config, Error};

mod config;

/// Runs every controller until `stop` is cancelled.
///
/// # Errors
/// [`Error::ClusterCidr`] if the configured range is not one.
pub async fn run(client: Client, config: Config, stop: CancellationToken) -> Result<(), Error> {
    let _ = (client, config, stop);
    Err(Error::NotImplemented)
}
