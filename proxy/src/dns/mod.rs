// SPDX-License-Identifier: Apache-2.0
//! Cluster DNS: names of Services, their endpoints and pods, and for other names the node's own
//! resolvers behind a cache. Served on the cluster DNS address of every node, so a pod's question
//! stays on its node.
//!
//! [`run`] is one component. Watches of Services, EndpointSlices and Namespaces fill the [`zone`]
//! ([`records`] is what is kept). A packet is read ([`message`]), looked up ([`answer`]), and
//! answered, on one thread that does nothing else (`serve`, `server`). What the zone does not have
//! is asked from the servers of resolv.conf (`forward`, `upstream`, [`resolv`]) and kept
//! ([`cache`], [`stored`]). `address` puts the address on `lo` and keeps it there.
//!
//! Reading, deciding and writing are pure; sockets, files and clocks are in `serve`, `upstream`,
//! `forward`, `resolv`, `address` and `run`.

pub mod address;
pub mod answer;
pub mod cache;
mod forward;
mod lookup;
pub mod message;
mod metrics;
pub mod records;
pub mod resolv;
mod run;
mod serve;
mod server;
#[cfg(test)]
mod spec_tests;
pub mod stored;
mod upstream;
pub mod zone;

use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use cni::cidr::ParseCidrError;

pub use address::AddressError;
pub use run::run;

/// What cluster DNS of one node must know.
#[derive(Debug, Clone)]
pub struct Config {
    /// Credentials for the API server.
    pub kubeconfig: PathBuf,
    /// Addresses that are served, which nobody else has on this node.
    pub addresses: Vec<IpAddr>,
    /// The cluster's domain, such as `cluster.local`.
    pub domain: String,
    /// Addresses of all pods, as CIDRs separated by commas. Their names lead nowhere else, and only
    /// for them and for the node others are asked; empty: both for everybody.
    pub cluster_cidr: String,
    /// Addresses of Services, likewise. Those that nobody has are denied here, not elsewhere.
    pub service_cidr: String,
    /// Names the servers for all other names.
    pub resolv_conf: PathBuf,
    /// Where it is kept which addresses are ours.
    pub state_file: PathBuf,
}

/// Why cluster DNS did not start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The domain is no name.
    #[error("the cluster's domain {0:?} is no DNS name")]
    Domain(String),
    /// A range of addresses cannot be read.
    #[error("a range of pods or Services")]
    Range(#[source] ParseCidrError),
    /// No client for the API, or no watch.
    #[error(transparent)]
    Proxy(#[from] crate::Error),
    /// The thread that answers could not be started, or failed.
    #[error("the thread that answers")]
    Thread(#[source] io::Error),
    /// It panicked.
    #[error("the thread that answers died")]
    Died,
}

/// Remove the addresses that a node had for cluster DNS. Idempotent. Blocks for a millisecond.
///
/// # Errors
/// When the kernel refuses, or the list of them cannot be read.
pub fn cleanup(state_file: &Path) -> Result<(), AddressError> {
    address::release(state_file)
}
