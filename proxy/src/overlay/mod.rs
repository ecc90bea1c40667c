// SPDX-License-Identifier: Apache-2.0
//! Keeps this node connected with the pods of the others.
//!
//! [`run`] is one task. It watches Nodes, says in an annotation of its own Node how it is reached,
//! reads what the others say, and lets [`cni::overlay`] bring the kernel in line: at each change,
//! and every few seconds in case somebody else changed something. While the API server cannot be
//! reached, everything stays as it is and is still repaired.
//!
//! At the end everything stays, so that pods reach each other while the node restarts.
//! [`cni::overlay::cleanup`] takes it away.

mod nodes;
mod run;

use std::net::IpAddr;
use std::path::PathBuf;

pub use run::run;

/// Annotation of a Node in which its part of the overlay is announced.
pub const ANNOTATION: &str = "podwright.io/overlay";

/// What the overlay of one node must know.
#[derive(Debug, Clone)]
pub struct Config {
    /// Credentials for the API server, which may change this node's Node.
    pub kubeconfig: PathBuf,
    /// Name of this node.
    pub node_name: String,
    /// Addresses of this node. The first is the one that encapsulated packets come to.
    pub node_ips: Vec<IpAddr>,
    /// The same on every node.
    pub settings: cni::overlay::Settings,
}
