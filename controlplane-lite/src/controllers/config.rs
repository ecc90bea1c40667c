// SPDX-License-Identifier: Apache-2.0
//! What an operator may say about the controllers.

use std::collections::BTreeSet;
use std::time::Duration;

use super::machinery::cidr::CidrError;

/// Configuration of the controllers. Names follow kube-controller-manager's flags.
#[derive(Debug, Clone)]
pub struct Config {
    /// The range that pod addresses of all nodes come from, such as `10.42.0.0/16`. Each node gets
    /// a /24 of it (a /64 of an IPv6 range).
    pub cluster_cidr: String,
    /// Controllers that must not be started, by name: `deployment`, `replicaset`, `endpoints`,
    /// `endpointslice`, `namespace`, `serviceaccount`, `garbagecollector`, `nodelifecycle`,
    /// `tainteviction`, `nodeipam`, `podgc`, `service-lb`.
    pub disable: BTreeSet<String>,
    /// A node whose lease was not renewed for this long is not ready any more.
    pub node_monitor_grace_period: Duration,
    /// How often leases are looked at.
    pub node_monitor_period: Duration,
}

impl Config {
    /// Upstream's defaults for everything but the range.
    #[must_use]
    pub fn new(cluster_cidr: impl Into<String>) -> Self {
        Self {
            cluster_cidr: cluster_cidr.into(),
            disable: BTreeSet::new(),
            node_monitor_grace_period: Duration::from_secs(40),
            node_monitor_period: Duration::from_secs(5),
        }
    }
}

/// Why the controllers could not run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// `cluster_cidr` is not an address range.
    #[error("reading cluster_cidr")]
    ClusterCidr(#[source] CidrError),
    /// A task ended though nobody asked it to.
    #[error("{0} ended by itself")]
    Ended(&'static str),
    /// A task panicked.
    #[error("a controller failed")]
    Panicked(#[source] tokio::task::JoinError),
}
