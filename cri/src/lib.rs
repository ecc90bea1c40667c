// SPDX-License-Identifier: Apache-2.0
//! The container runtime: OCI runtime, images, and the CRI v1 server over them.
//!
//! Callers: `podwright` starts the daemon with [`run`] and clears a node with [`purge`]. A kubelet
//! (ours or any other) speaks [`v1`] to the unix socket; nobody imports this crate to talk to it.
//!
//! Start and restart are one path: [`run`] reads the records on disk and asks every living shim
//! what it holds, then repairs what differs. Stopping the daemon, cleanly or not, never stops a container.

pub mod config;
pub mod image;
mod purge;

pub use config::Config;
pub use purge::{Report, purge};

pub mod cgroup;
pub mod oci;
pub mod shim_client;

/// The wire contract, generated from `proto/api.proto`.
pub mod v1 {
    #![allow(unreachable_pub, missing_docs, clippy::all)]
    tonic::include_proto!("runtime.v1");
}

/// Why the runtime could not start, or could not go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A directory or file of the node could not be made or read.
    #[error("{attempt} {path}")]
    Io {
        /// What was attempted, as in "creating".
        attempt: &'static str,
        /// On what.
        path: std::path::PathBuf,
        /// The lower error.
        #[source]
        source: std::io::Error,
    },
    /// The part does not exist yet.
    #[error("{0} is not implemented yet")]
    NotYet(&'static str),
}

/// Serves CRI v1 on `config.listen` until `stop` is cancelled.
///
/// `ready` is sent once the socket accepts requests and the state on disk was repaired. On `stop`
/// the server refuses new requests and drains the running ones with a deadline; containers keep running.
///
/// # Errors
/// When the directories, the socket or the streaming listener cannot be set up.
pub async fn run(
    config: Config,
    ready: tokio::sync::oneshot::Sender<()>,
    stop: tokio_util::sync::CancellationToken,
) -> Result<(), Error> {
    drop((config, ready, stop));
    Err(Error::NotYet("the CRI server"))
}
