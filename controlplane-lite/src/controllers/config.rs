// SPDX-License-Identifier: Apache-2.0
//! What an operator may say about the controllers.

use std::collections::BTreeSet;
use std::time::Duration;

use super::machinery::cidr::CidrError;
use super::machinery::group::Early;

/// Configuration of the controllers. Names follow kube-controller-manager's flags.
#[derive(Debug, Clone)]
pub struct Config {
    /// The ranges that pod addresses of all nodes come from: one, or one of each family separated
    /// by a comma, such as `10.42.0.0/16,fd42::/48`.
    pub cluster_cidr: String,
    /// How much of them each node gets.
    pub node_prefixes: NodePrefixes,
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
            node_prefixes: NodePrefixes::default(),
            disable: BTreeSet::new(),
            node_monitor_grace_period: Duration::from_secs(40),
            node_monitor_period: Duration::from_secs(5),
        }
    }
}

/// Prefix lengths of the ranges of one node (`--node-cidr-mask-size-ipv4` and `-ipv6`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NodePrefixes {
    /// Of IPv4; 24 leaves room for 253 pods.
    pub ipv4: u8,
    /// Of IPv6.
    pub ipv6: u8,
}

impl Default for NodePrefixes {
    fn default() -> Self {
        Self { ipv4: 24, ipv6: 64 }
    }
}

/// Why the controllers could not run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// `cluster_cidr` is not an address range.
    #[error("reading cluster_cidr")]
    ClusterCidr(#[source] CidrError),
    /// A controller ended though nobody asked it to.
    #[error("a controller has ended")]
    Early(#[from] Early),
}
