// SPDX-License-Identifier: Apache-2.0
//! The proxy's table: constant chains, a few maps, and how a Service becomes elements of them.
//!
//! Services are never rules. A packet's cost is a fixed number of hash lookups, and a change of one
//! Service is a change of its own elements. No map of Services holds verdicts: the kernel walks all
//! of a verdict map whenever something is added to it. Numbers stand there instead, and the small
//! map `entries` says which chain a number is.

mod chains;
mod elements;
mod layout;
mod skeleton;

pub use chains::{Pick, add_pick_chain, add_sources_chain, pick_chain};
pub(crate) use elements::with as slot_key;
pub use elements::{Elements, Numbers, SPLIT, address_element, target_elements};
pub use layout::{Map, SetName};
pub(crate) use layout::{backend_of, frontend_key};
pub use skeleton::skeleton;

use cni::cidr::Cidr;

/// Whose packets count as coming from a pod of this cluster (kube-proxy's `detectLocalMode`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LocalDetect {
    /// Those with a source in one of these. None for a family: nobody is known, and nothing
    /// depends on it.
    Cidrs(Vec<Cidr>),
    /// Those that come in by this link.
    Interface(String),
    /// Those that come in by a link whose name begins so.
    InterfacePrefix(String),
}

/// What the constant part of the table depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Who is a pod.
    pub local: LocalDetect,
    /// Addresses of the node that node ports answer on. A shorter prefix means those of the node's
    /// own addresses that are in it. Never loopback.
    pub node_ports: Vec<Cidr>,
    /// Replace the source of everything that goes to a cluster IP.
    pub masquerade_all: bool,
    /// Drop what comes to a cluster IP from outside the cluster.
    pub strict: bool,
}
