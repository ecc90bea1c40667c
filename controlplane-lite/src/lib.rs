// SPDX-License-Identifier: Apache-2.0
//! A small Kubernetes control plane: store, API server, scheduler and controllers.
//!
//! [`run`] opens the store, makes the certificates, serves the API over HTTPS, and then starts
//! the scheduler and the controllers as ordinary clients of that API. Only the API server uses
//! the store. Read the modules in this order: `config`, `pki`, `store`, `apiserver`, and then
//! `scheduler` and `controllers`, which could as well live in another process.

mod config;
pub mod controllers;
mod pki;
pub mod scheduler;

pub use config::{CONTROLLERS, Config, SCHEDULER};
pub use pki::{AgentFiles, PkiError, agent_credentials};

use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

/// Why the control plane could not start, or stopped by itself.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Certificates or kubeconfigs could not be made.
    #[error("preparing certificates")]
    Pki(#[from] PkiError),
    /// A part of the server is missing from this build.
    #[error("{0} is not implemented yet")]
    Missing(&'static str),
}

/// Runs the control plane until `stop` is cancelled.
///
/// `ready` is sent when the API server answers `/readyz` with ok.
///
/// # Errors
/// When the server cannot start, or the store fails while it runs.
pub async fn run(
    config: Config,
    ready: oneshot::Sender<()>,
    stop: CancellationToken,
) -> Result<(), Error> {
    let _ = (config, ready, stop);
    Err(Error::Missing("the API server"))
}
