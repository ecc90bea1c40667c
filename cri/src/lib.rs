// SPDX-License-Identifier: Apache-2.0
//! The container runtime: OCI runtime, images, and the CRI v1 server over them.
//!
//! Callers: `podwright` starts the daemon with [`run`] and clears a node with [`purge`]. A kubelet
//! (ours or any other) speaks [`v1`] to the unix socket; nobody imports this crate to talk to it.
//!
//! Start and restart are one path: [`run`] reads the records on disk and asks every living shim
//! what it holds, then repairs what differs. Stopping the daemon, cleanly or not, never stops a container.

mod blocking;
pub mod cdi;
pub mod config;
mod container;
mod daemon;
mod disk_usage;
mod durable;
mod events;
mod exec;
mod external;
mod fault;
mod filter;
mod ids;
pub mod image;
mod lifecycle;
mod metrics;
mod names;
pub mod nri;
mod oom_score;
mod paths;
mod purge;
mod record;
mod recover;
mod runtime;
mod sandbox;
mod server;
pub mod settings;
mod signal;
mod spec_edit;
pub mod streaming;
mod sweep;
mod table;
mod trim;
mod watcher;

pub use config::Config;
pub use fault::Fault;
pub use purge::{Report, purge};
pub use settings::{Live, Settings};

pub mod cgroup;
pub mod oci;
pub mod shim_client;

/// Where the runtime of this configuration keeps the state of its network: leases and attachments.
pub fn network_state(config: &Config) -> std::path::PathBuf {
    paths::Paths::new(config).network()
}

/// The wire contract, generated from `proto/api.proto`.
pub mod v1 {
    #![allow(unreachable_pub, missing_docs, clippy::all)]
    tonic::include_proto!("runtime.v1");
}

/// Why the runtime could not start, or could not go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file of the node could not be made or removed.
    #[error("{attempt} {}", path.display())]
    Io {
        /// What was attempted, as in "creating".
        attempt: &'static str,
        /// On what.
        path: std::path::PathBuf,
        /// The lower error.
        #[source]
        source: std::io::Error,
    },
    /// Another process runs on these directories.
    #[error("another podwright holds {}", path.display())]
    Locked {
        /// The lock file.
        path: std::path::PathBuf,
        /// The lower error.
        #[source]
        source: std::io::Error,
    },
    /// An address cannot be served.
    #[error("listening on {address}")]
    Listen {
        /// Socket path or TCP address.
        address: String,
        /// The lower error.
        #[source]
        source: std::io::Error,
    },
    /// Streams cannot be served: an address that is taken, or a certificate that is wrong.
    #[error("{}", .0.chain())]
    Streaming(Fault),
    /// A part cannot be opened, or the state on disk cannot be repaired.
    #[error("{}", .0.chain())]
    Repair(Fault),
    /// The gRPC server failed.
    #[error("serving CRI")]
    Serve(#[source] std::io::Error),
    /// The gRPC server's task panicked.
    #[error("the CRI server's task died")]
    Died,
}

/// Serves CRI v1 on `config.listen` until `stop` is cancelled.
///
/// `ready` is sent once the socket accepts requests and the state on disk was repaired. On `stop`
/// the server refuses new requests and drains the running ones with a deadline; containers keep
/// running. Dropping the future is like killing the daemon: nothing is lost, the next start repairs.
///
/// # Errors
/// When the directories, the socket or the streaming listener cannot be set up, or another daemon has them.
pub async fn run(
    config: Config,
    ready: tokio::sync::oneshot::Sender<()>,
    stop: tokio_util::sync::CancellationToken,
) -> Result<(), Error> {
    daemon::run(config, ready, stop).await
}
