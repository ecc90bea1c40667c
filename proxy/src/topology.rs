// SPDX-License-Identifier: Apache-2.0
//! Which endpoints of a Service this node uses (KEP-2433 topology hints, KEP-3015 same node and
//! zone, KEP-1669 terminating endpoints).

use crate::parse::EndpointInfo;
use crate::service::{Backend, Node};

/// An endpoint with one of its ports.
#[derive(Debug, Clone, Copy)]
pub struct Candidate<'a> {
    /// Address and port.
    pub backend: Backend,
    /// What its slice says about it.
    pub endpoint: &'a EndpointInfo,
}

/// Endpoints that take connections; when none does, those that still serve while they terminate.
pub fn usable(candidates: &[Candidate<'_>]) -> Vec<Backend> {
    let ready = pick(candidates, |e| e.ready);
    if ready.is_empty() {
        pick(candidates, |e| e.fallback)
    } else {
        ready
    }
}

/// The same, with hints: those for this node, else those for its zone, else all. Hints count only
/// when every ready endpoint has one and one of them means us: a controller that is about to change
/// them, or a node that nobody thought of, must not leave us without.
pub fn choose(candidates: &[Candidate<'_>], node: &Node) -> Vec<Backend> {
    let node_hint = |e: &EndpointInfo| e.nodes.iter().any(|n| **n == *node.name);
    let zone_hint =
        |e: &EndpointInfo| !node.zone.is_empty() && e.zones.iter().any(|zone| **zone == *node.zone);
    let ready = || candidates.iter().map(|c| c.endpoint).filter(|e| e.ready);
    if ready().all(|e| !e.nodes.is_empty()) && ready().any(node_hint) {
        return pick(candidates, |e| e.ready && node_hint(e));
    }
    if ready().all(|e| !e.zones.is_empty()) && ready().any(zone_hint) {
        return pick(candidates, |e| e.ready && zone_hint(e));
    }
    usable(candidates)
}

fn pick(candidates: &[Candidate<'_>], wanted: impl Fn(&EndpointInfo) -> bool) -> Vec<Backend> {
    candidates
        .iter()
        .filter(|c| wanted(c.endpoint))
        .map(|c| c.backend)
        .collect()
}
