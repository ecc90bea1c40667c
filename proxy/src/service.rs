// SPDX-License-Identifier: Apache-2.0
//! What a Service and its EndpointSlices ask for, decided without I/O: addresses and ports that
//! answer (frontends), and where each leads.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Service, ServicePort};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};

/// Transport protocols that are served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    Tcp,
    Udp,
}

impl Protocol {
    /// The number in an IP header.
    pub fn number(self) -> u8 {
        match self {
            Protocol::Tcp => 6,
            Protocol::Udp => 17,
        }
    }
}

/// An address and port that clients connect to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Frontend {
    /// A cluster IP, or an address of the node.
    pub addr: IpAddr,
    /// Transport protocol.
    pub protocol: Protocol,
    /// A Service's port, or its node port.
    pub port: u16,
}

/// An address and port that a connection is led to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Backend {
    /// Of the endpoint.
    pub addr: IpAddr,
    /// Of the endpoint, already resolved if it has a name.
    pub port: u16,
}

/// Whose source address is replaced by the node's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Masquerade {
    /// Everybody's: the answer must come back through this node.
    All,
    /// Those from outside the cluster's pod network.
    Outside,
    /// Nobody's (`externalTrafficPolicy: Local`).
    None,
}

/// Where a frontend leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// To one of these, drawn by lot. Never empty; sorted.
    Backends(Vec<Backend>, Masquerade),
    /// Nowhere, and the client is told (no endpoint is ready).
    Reject,
    /// Nowhere, silently: there are endpoints, but none on this node, and policy asks for one here.
    Drop,
}

/// What this node knows about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// Addresses that node ports answer on.
    pub ips: Vec<IpAddr>,
}

/// The rules of one Service.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServiceRules {
    /// Where each frontend leads.
    pub frontends: BTreeMap<Frontend, Target>,
    /// Its cluster IPs: what comes to another port of them is refused.
    pub cluster_ips: BTreeSet<IpAddr>,
    /// Endpoints on this node: one that connects to itself through the Service needs masquerade.
    pub local: BTreeSet<IpAddr>,
    /// What the Service asks for and does not get, in words for its owner.
    pub problems: Vec<String>,
}

/// Label of a slice that names its Service.
pub const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";
/// Label of a Service that another proxy serves.
const PROXY_NAME_LABEL: &str = "service.kubernetes.io/service-proxy-name";

/// The rules of a Service with the slices that belong to it (in any order).
pub fn compile<'a>(
    service: &Service,
    slices: impl IntoIterator<Item = &'a EndpointSlice>,
    node: &Node,
) -> ServiceRules {
    let mut rules = ServiceRules::default();
    let Some(spec) = &service.spec else {
        return rules;
    };
    let labels = service.metadata.labels.as_ref();
    let elsewhere = labels.is_some_and(|l| l.contains_key(PROXY_NAME_LABEL));
    if elsewhere || spec.type_.as_deref() == Some("ExternalName") {
        return rules;
    }
    rules.cluster_ips = cluster_ips(service);
    if rules.cluster_ips.is_empty() {
        return rules; // headless
    }
    note_problems(service, &mut rules.problems);
    let slices: Vec<&EndpointSlice> = slices.into_iter().collect();
    for port in spec.ports.iter().flatten() {
        let protocol = match port.protocol.as_deref() {
            None | Some("TCP") => Protocol::Tcp,
            Some("UDP") => Protocol::Udp,
            Some(other) => {
                rules.problems.push(format!(
                    "port {} has protocol {other}, which is not supported",
                    port.port
                ));
                continue;
            }
        };
        compile_port(&mut rules, service, port, protocol, &slices, node);
    }
    rules
}

fn cluster_ips(service: &Service) -> BTreeSet<IpAddr> {
    let spec = service.spec.as_ref();
    let several = spec
        .and_then(|s| s.cluster_ips.as_deref())
        .unwrap_or_default();
    let one = spec.and_then(|s| s.cluster_ip.as_ref());
    // "None" and "" are no addresses.
    several
        .iter()
        .chain(one)
        .filter_map(|ip| ip.parse().ok())
        .collect()
}

fn note_problems(service: &Service, problems: &mut Vec<String>) {
    let Some(spec) = &service.spec else { return };
    if spec.session_affinity.as_deref() == Some("ClientIP") {
        problems.push(
            "sessionAffinity ClientIP is not supported: connections are spread as with None"
                .to_owned(),
        );
    }
    if spec
        .external_ips
        .as_ref()
        .is_some_and(|ips| !ips.is_empty())
    {
        problems.push("externalIPs are not supported and not served".to_owned());
    }
    if spec.traffic_distribution.is_some() {
        problems.push(
            "trafficDistribution is not supported: endpoints are chosen without regard to zones"
                .to_owned(),
        );
    }
}

/// One endpoint, as far as it matters here.
struct Candidate {
    backend: Backend,
    local: bool,
    ready: bool,
    /// Still serving while it terminates: better than nothing.
    fallback: bool,
}

fn compile_port(
    rules: &mut ServiceRules,
    service: &Service,
    port: &ServicePort,
    protocol: Protocol,
    slices: &[&EndpointSlice],
    node: &Node,
) {
    let Some(spec) = &service.spec else { return };
    let candidates = candidates(port, protocol, slices, node);
    rules.local.extend(
        candidates
            .iter()
            .filter(|c| c.local)
            .map(|c| c.backend.addr),
    );
    let is_local = |policy: &Option<String>| policy.as_deref() == Some("Local");
    if let Some(number) = valid_port(port.port) {
        let only_local = is_local(&spec.internal_traffic_policy);
        for addr in rules.cluster_ips.clone() {
            let target = target(&candidates, addr.is_ipv4(), only_local, Masquerade::Outside);
            rules.frontends.insert(
                Frontend {
                    addr,
                    protocol,
                    port: number,
                },
                target,
            );
        }
    }
    let Some(number) = port.node_port.and_then(valid_port) else {
        return;
    };
    let only_local = is_local(&spec.external_traffic_policy);
    let masquerade = if only_local {
        Masquerade::None
    } else {
        Masquerade::All
    };
    let families: BTreeSet<bool> = rules.cluster_ips.iter().map(IpAddr::is_ipv4).collect();
    for addr in node
        .ips
        .iter()
        .filter(|ip| families.contains(&ip.is_ipv4()) && !ip.is_loopback())
    {
        let target = target(&candidates, addr.is_ipv4(), only_local, masquerade);
        rules.frontends.insert(
            Frontend {
                addr: *addr,
                protocol,
                port: number,
            },
            target,
        );
    }
}

fn valid_port(port: i32) -> Option<u16> {
    u16::try_from(port).ok().filter(|p| *p != 0)
}

/// Endpoints of a Service's port, from all its slices. The same one may stand in two slices.
fn candidates(
    port: &ServicePort,
    protocol: Protocol,
    slices: &[&EndpointSlice],
    node: &Node,
) -> Vec<Candidate> {
    let mut found: BTreeMap<Backend, Candidate> = BTreeMap::new();
    for slice in slices {
        for number in slice_ports(slice, port, protocol) {
            for endpoint in slice.endpoints.iter().flatten() {
                let Some(candidate) = candidate(endpoint, &slice.address_type, number, node) else {
                    continue;
                };
                let merged = found.entry(candidate.backend).or_insert(Candidate {
                    backend: candidate.backend,
                    local: false,
                    ready: false,
                    fallback: false,
                });
                merged.local |= candidate.local;
                merged.ready |= candidate.ready;
                merged.fallback |= candidate.fallback;
            }
        }
    }
    found.into_values().collect()
}

/// A slice's ports are matched to the Service's by name; the number is already that of the target.
fn slice_ports(slice: &EndpointSlice, port: &ServicePort, protocol: Protocol) -> Vec<u16> {
    let wanted = port.name.as_deref().unwrap_or_default();
    let same_protocol = |p: &Option<String>| match p.as_deref() {
        None | Some("TCP") => protocol == Protocol::Tcp,
        Some("UDP") => protocol == Protocol::Udp,
        Some(_) => false,
    };
    let ports = slice.ports.iter().flatten();
    ports
        .filter(|p| p.name.as_deref().unwrap_or_default() == wanted && same_protocol(&p.protocol))
        .filter_map(|p| p.port.and_then(valid_port))
        .collect()
}

fn candidate(endpoint: &Endpoint, address_type: &str, port: u16, node: &Node) -> Option<Candidate> {
    // Only the first address counts, as the API says.
    let addr: IpAddr = endpoint.addresses.first()?.parse().ok()?;
    let expected = if addr.is_ipv4() { "IPv4" } else { "IPv6" };
    // An endpoint must not lead to this host's own services (CVE-2021-25737).
    let forbidden =
        addr.is_loopback() || addr.is_unspecified() || addr.is_multicast() || is_link_local(addr);
    if address_type != expected || forbidden {
        return None;
    }
    let conditions = endpoint.conditions.as_ref();
    let ready = conditions.and_then(|c| c.ready).unwrap_or(true);
    let serving = conditions.and_then(|c| c.serving).unwrap_or(ready);
    let terminating = conditions.and_then(|c| c.terminating).unwrap_or(false);
    Some(Candidate {
        backend: Backend { addr, port },
        local: endpoint
            .node_name
            .as_ref()
            .is_none_or(|name| *name == node.name),
        ready,
        fallback: serving && terminating,
    })
}

fn is_link_local(addr: IpAddr) -> bool {
    match addr {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    }
}

fn target(
    candidates: &[Candidate],
    ipv4: bool,
    only_local: bool,
    masquerade: Masquerade,
) -> Target {
    let pick = |wanted: fn(&Candidate) -> bool, local: bool| -> Vec<Backend> {
        candidates
            .iter()
            .filter(|c| c.backend.addr.is_ipv4() == ipv4 && wanted(c) && (c.local || !local))
            .map(|c| c.backend)
            .collect()
    };
    let usable = |local| {
        let ready = pick(|c| c.ready, local);
        if ready.is_empty() {
            pick(|c| c.fallback, local)
        } else {
            ready
        }
    };
    let chosen = usable(only_local);
    if !chosen.is_empty() {
        return Target::Backends(chosen, masquerade);
    }
    if only_local && !usable(false).is_empty() {
        Target::Drop
    } else {
        Target::Reject
    }
}
