// SPDX-License-Identifier: Apache-2.0
//! The service proxy of a node: Services and EndpointSlices become elements of nftables maps.
//!
//! [`run`] is one task. It watches Services, EndpointSlices and its own Node ([`objects`],
//! [`parse`]), compiles the Services that changed ([`compile`], [`topology`], [`service`]), computes
//! the elements that differ ([`state`], [`rules`]), and applies them in one netlink transaction
//! ([`apply`]). It reads nothing back from the kernel: it owns its table, replaces it as a whole
//! when it starts, when a transaction is refused and when somebody else has changed the table, and
//! otherwise touches only what changed.
//!
//! Beside it are small servers: `/healthz`, `/livez` and `/metrics` as kube-proxy has them, and the
//! `healthCheckNodePort` of Services.
//!
//! [`policy`] is a component of its own: NetworkPolicies, in a table of their own.
//!
//! At the end the rules stay, so that Services work while the proxy restarts. [`cleanup`] takes
//! them away.

pub mod apply;
pub mod compile;
mod config;
pub mod dns;
pub mod explain;
pub mod health;
pub mod health_ports;
mod histogram;
mod http;
pub mod metrics;
mod numbers;
pub mod objects;
pub mod overlay;
pub mod parse;
pub mod policy;
pub mod rules;
mod run;
mod servers;
pub mod service;
pub mod state;
mod sys;
pub mod topology;
mod upkeep;

use std::io;
use std::path::PathBuf;

use cni::cidr::ParseCidrError;
use cni::nft::{Family, NftError, Socket};
use kube::config::KubeconfigError;

pub use config::{Config, DetectLocal, NodePortAddresses, Options};
pub use run::run;

/// Why the proxy did not start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The cluster CIDR cannot be read.
    #[error("cluster CIDR")]
    ClusterCidr(#[source] ParseCidrError),
    /// The kubeconfig cannot be used.
    #[error("reading kubeconfig {path}")]
    Kubeconfig {
        /// Which file.
        path: PathBuf,
        #[source]
        source: Box<KubeconfigError>,
    },
    /// No client could be made of it.
    #[error("making a client from kubeconfig {path}")]
    Client {
        /// Which file.
        path: PathBuf,
        #[source]
        source: Box<kube::Error>,
    },
    /// The rules could not be removed.
    #[error("removing rules")]
    Cleanup(#[source] NftError),
    /// Nobody can tell which pods are attached to the network.
    #[error("watching the network's attachments in {path}")]
    Attachments {
        /// In which directory.
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// Which pods are attached cannot be read.
    #[error("reading the network's attachments")]
    Records(#[source] cni::Error),
    /// No netlink socket.
    #[error("opening a netlink socket")]
    Socket(#[source] io::Error),
    /// A watch ended, which it never does by itself.
    #[error("the watch of {0} ended")]
    WatchEnded(&'static str),
    /// The thread that applies rules died.
    #[error("the thread that applies rules died")]
    Died,
}

/// Remove every rule of the proxy from this network namespace. Idempotent. Blocks for milliseconds.
pub fn cleanup(config: &Config) -> Result<(), Error> {
    delete_table(&config.nft_table)
}

fn delete_table(table: &str) -> Result<(), Error> {
    let mut socket = Socket::open().map_err(Error::Socket)?;
    let deleted = socket.delete_table(Family::Inet, table);
    deleted.map_err(Error::Cleanup)
}
