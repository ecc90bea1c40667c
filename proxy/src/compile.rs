// SPDX-License-Identifier: Apache-2.0
//! From a Service and its EndpointSlices to its rules, decided without I/O.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use cni::cidr::Cidr;

use crate::parse::{PortInfo, ServiceInfo, SliceInfo};
use crate::service::{
    Backend, Frontend, HealthCheck, Masquerade, Node, Pool, Refuse, ServiceRules, Target,
};
use crate::topology::{self, Candidate};

/// The rules of a Service with the slices that belong to it (in any order).
pub fn compile<'a>(
    service: &ServiceInfo,
    slices: impl IntoIterator<Item = &'a SliceInfo>,
    node: &Node,
) -> ServiceRules {
    let slices: Vec<&SliceInfo> = slices.into_iter().collect();
    let mut frontends = BTreeMap::new();
    let (mut loops, mut ready) = (BTreeSet::new(), BTreeSet::<IpAddr>::new());
    let sources = allowed_sources(service, node);
    for port in &service.ports {
        let candidates = candidates(port, &slices);
        for candidate in candidates.iter().filter(|c| c.endpoint.local) {
            loops.insert(candidate.backend.addr);
            if candidate.endpoint.ready {
                ready.insert(candidate.backend.addr);
            }
        }
        for ipv4 in [true, false] {
            if service.cluster_ips.iter().any(|ip| ip.is_ipv4() == ipv4) {
                let choice = Choice::of(&candidates, ipv4, node);
                port_frontends(
                    &mut frontends,
                    service,
                    port,
                    ipv4,
                    &choice,
                    sources.as_ref(),
                );
            }
        }
    }
    // A pod with both families is one.
    let ready_of = |ipv4: bool| ready.iter().filter(|ip| ip.is_ipv4() == ipv4).count();
    ServiceRules {
        frontends: frontends.into_iter().collect(),
        cluster_ips: service.cluster_ips.clone(),
        loops: loops.into_iter().collect(),
        health: service.health_port.map(|port| HealthCheck {
            port,
            endpoints: ready_of(true).max(ready_of(false)),
        }),
        problems: service.problems.clone(),
    }
}

/// A program of this node that connects to the balancer's address may have that very address as its
/// source, where the address is also the node's. So where the node may, its balancer's addresses may.
fn allowed_sources(service: &ServiceInfo, node: &Node) -> Option<Arc<[Cidr]>> {
    let ranges = service.sources.as_ref()?;
    let node_may = |ip: &IpAddr| ranges.iter().any(|range| range.contains(*ip));
    if !node.ips.iter().any(node_may) {
        return Some(ranges.clone());
    }
    let mut all: Vec<Cidr> = ranges.to_vec();
    all.extend(service.balancer_ips.iter().map(|ip| Cidr::host(*ip)));
    all.sort_unstable();
    all.dedup();
    Some(all.into())
}

/// Endpoints of a Service's port, from all its slices. The same one may stand in two slices.
fn candidates<'a>(port: &PortInfo, slices: &[&'a SliceInfo]) -> Vec<Candidate<'a>> {
    let mut found: BTreeMap<Backend, Candidate<'a>> = BTreeMap::new();
    for slice in slices {
        // Ports are matched by name; the number is already that of the target.
        let same = slice
            .ports
            .iter()
            .filter(|(name, protocol, _)| *name == port.name && *protocol == port.protocol);
        for (_, _, number) in same {
            for endpoint in &slice.endpoints {
                let backend = Backend {
                    addr: endpoint.addr,
                    port: *number,
                };
                let new = Candidate { backend, endpoint };
                let known = found.entry(backend).or_insert(new);
                // One that moves between slices is in both for a while: the better word counts.
                if rank(&new) > rank(known) {
                    *known = new;
                }
            }
        }
    }
    found.into_values().collect()
}

fn rank(candidate: &Candidate<'_>) -> (bool, bool, bool) {
    let endpoint = candidate.endpoint;
    (endpoint.ready, endpoint.fallback, endpoint.local)
}

/// The endpoints of one family that the two traffic policies lead to.
struct Choice {
    cluster: Pool,
    local: Pool,
    /// Does an endpoint serve, wherever?
    any: bool,
}

impl Choice {
    fn of(candidates: &[Candidate<'_>], ipv4: bool, node: &Node) -> Choice {
        let family: Vec<Candidate<'_>> = candidates
            .iter()
            .filter(|c| c.backend.addr.is_ipv4() == ipv4)
            .copied()
            .collect();
        let here: Vec<Candidate<'_>> = family
            .iter()
            .filter(|c| c.endpoint.local)
            .copied()
            .collect();
        let cluster: Pool = topology::choose(&family, node).into();
        let local: Pool = topology::usable(&here).into();
        Choice {
            any: !(cluster.is_empty() && local.is_empty()),
            // Most often both are the same, and so is the memory.
            local: if local == cluster {
                cluster.clone()
            } else {
                local
            },
            cluster,
        }
    }

    fn internal(&self, only_local: bool, affinity: Option<u32>) -> Target {
        let pool = if only_local {
            &self.local
        } else {
            &self.cluster
        };
        let refuse = match (pool.is_empty(), self.any) {
            (false, _) => None,
            (true, true) => Some(Refuse::Drop),
            (true, false) => Some(Refuse::Reject),
        };
        Target {
            cluster: pool.clone(),
            local: None,
            masquerade: Masquerade::Outside,
            refuse,
            affinity,
            sources: None,
        }
    }

    fn external(&self, only_local: bool, affinity: Option<u32>) -> Target {
        if !self.any {
            return self.internal(false, affinity);
        }
        let (local, masquerade) = match (only_local, self.local == self.cluster) {
            (false, _) => (None, Masquerade::All),
            (true, true) => (None, Masquerade::Host),
            (true, false) => (Some(self.local.clone()), Masquerade::Host),
        };
        let nobody = only_local && self.local.is_empty();
        Target {
            cluster: self.cluster.clone(),
            local,
            masquerade,
            refuse: nobody.then_some(Refuse::Drop),
            affinity,
            sources: None,
        }
    }
}

fn port_frontends(
    frontends: &mut BTreeMap<Frontend, Target>,
    service: &ServiceInfo,
    port: &PortInfo,
    ipv4: bool,
    choice: &Choice,
    sources: Option<&Arc<[Cidr]>>,
) {
    let at = |addr: IpAddr| Frontend {
        addr,
        protocol: port.protocol,
        port: port.port,
    };
    let of_family = |ips: &[IpAddr]| -> Vec<IpAddr> {
        ips.iter()
            .filter(|ip| ip.is_ipv4() == ipv4)
            .copied()
            .collect()
    };
    let internal = choice.internal(service.internal_local, service.affinity);
    for ip in of_family(&service.cluster_ips) {
        frontends.insert(at(ip), internal.clone());
    }
    let external = choice.external(service.external_local, service.affinity);
    for ip in of_family(&service.external_ips) {
        frontends.entry(at(ip)).or_insert_with(|| external.clone());
    }
    for ip in of_family(&service.balancer_ips) {
        let target = frontends.entry(at(ip)).or_insert_with(|| external.clone());
        target.sources = sources.cloned();
    }
    if let Some(number) = port.node_port {
        let frontend = Frontend::node_port(ipv4, port.protocol, number);
        frontends.entry(frontend).or_insert(external);
    }
}
