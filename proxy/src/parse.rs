// SPDX-License-Identifier: Apache-2.0
//! What the proxy keeps of Services, EndpointSlices and its Node. The objects of the API are some
//! kilobytes each; ten thousand of them would be most of the proxy's memory.

use std::net::IpAddr;
use std::sync::Arc;

use cni::cidr::Cidr;
use k8s_openapi::api::core::v1::{Node as ApiNode, Service, ServicePort, ServiceSpec};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};

use crate::service::{Node, Protocol};

/// Label of a slice that names its Service.
pub const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";
/// Label of a Service that another proxy serves.
const PROXY_NAME_LABEL: &str = "service.kubernetes.io/service-proxy-name";
const ZONE_LABEL: &str = "topology.kubernetes.io/zone";
/// What the cluster autoscaler marks a node with before it goes.
const TO_BE_DELETED_TAINT: &str = "ToBeDeletedByClusterAutoscaler";
/// What the API server fills in when a Service asks for affinity without saying how long.
const AFFINITY_SECONDS: u32 = 10_800;

/// A Service that is served here.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServiceInfo {
    /// Its ports.
    pub ports: Box<[PortInfo]>,
    /// At least one.
    pub cluster_ips: Box<[IpAddr]>,
    /// `externalIPs`.
    pub external_ips: Box<[IpAddr]>,
    /// Addresses of its load balancer that packets keep on their way to the node.
    pub balancer_ips: Box<[IpAddr]>,
    /// `loadBalancerSourceRanges`; `None`: everybody.
    pub sources: Option<Arc<[Cidr]>>,
    /// `sessionAffinity: ClientIP`, in seconds.
    pub affinity: Option<u32>,
    /// `internalTrafficPolicy: Local`.
    pub internal_local: bool,
    /// `externalTrafficPolicy: Local`.
    pub external_local: bool,
    /// `healthCheckNodePort`, where it has a meaning.
    pub health_port: Option<u16>,
    /// What is not served, in words.
    pub problems: Vec<String>,
}

/// One port of a Service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortInfo {
    /// Empty when it has none.
    pub name: Box<str>,
    /// Transport protocol.
    pub protocol: Protocol,
    /// On the Service's addresses.
    pub port: u16,
    /// On the node's addresses.
    pub node_port: Option<u16>,
}

/// Endpoints of a Service.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SliceInfo {
    /// Name of the Service, in the slice's namespace.
    pub service: Box<str>,
    /// Ports that every endpoint of the slice has: name, protocol, number.
    pub ports: Box<[(Box<str>, Protocol, u16)]>,
    /// Addresses of one family.
    pub endpoints: Box<[EndpointInfo]>,
}

/// One endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointInfo {
    /// Where it is.
    pub addr: IpAddr,
    /// Is it on this node?
    pub local: bool,
    /// Does it take connections?
    pub ready: bool,
    /// Still serving while it terminates: better than nothing.
    pub fallback: bool,
    /// Zones that should use it.
    pub zones: Box<[Box<str>]>,
    /// Nodes that should use it.
    pub nodes: Box<[Box<str>]>,
}

/// A Service as it is served; `None`: it is not (headless, an external name, another proxy's).
pub fn service(service: &Service) -> Option<ServiceInfo> {
    let spec = service.spec.as_ref()?;
    let labels = service.metadata.labels.as_ref();
    let elsewhere = labels.is_some_and(|l| l.contains_key(PROXY_NAME_LABEL));
    let cluster_ips = cluster_ips(spec);
    if elsewhere || spec.type_.as_deref() == Some("ExternalName") || cluster_ips.is_empty() {
        return None;
    }
    let is_local = |policy: &Option<String>| policy.as_deref() == Some("Local");
    let external_local = is_local(&spec.external_traffic_policy);
    let balanced = spec.type_.as_deref() == Some("LoadBalancer");
    let mut problems = Vec::new();
    let health_port = spec.health_check_node_port.and_then(valid_port);
    Some(ServiceInfo {
        ports: ports(spec, &mut problems),
        cluster_ips,
        external_ips: addresses(
            spec.external_ips.iter().flatten(),
            "externalIPs",
            &mut problems,
        ),
        balancer_ips: if balanced {
            balancer_ips(service, &mut problems)
        } else {
            Box::default()
        },
        sources: sources(spec, &mut problems),
        affinity: affinity(spec),
        internal_local: is_local(&spec.internal_traffic_policy),
        external_local,
        health_port: health_port.filter(|_| balanced && external_local),
        problems,
    })
}

pub(crate) fn cluster_ips(spec: &ServiceSpec) -> Box<[IpAddr]> {
    let several = spec.cluster_ips.as_deref().unwrap_or_default();
    let one = spec.cluster_ip.as_ref().filter(|_| several.is_empty());
    // "None" and "" are no addresses.
    let mut ips: Vec<IpAddr> = several
        .iter()
        .chain(one)
        .filter_map(|ip| ip.parse().ok())
        .filter(|ip| usable(*ip))
        .collect();
    ips.sort_unstable();
    ips.dedup();
    ips.into()
}

/// An address that can be a frontend: whoever could name the host's own loopback or everything
/// would take connections that are not theirs.
fn usable(ip: IpAddr) -> bool {
    !(ip.is_loopback() || ip.is_unspecified() || ip.is_multicast() || is_link_local(ip))
}

fn is_link_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    }
}

fn addresses<'a>(
    texts: impl Iterator<Item = &'a String>,
    field: &str,
    problems: &mut Vec<String>,
) -> Box<[IpAddr]> {
    let mut found = Vec::new();
    for text in texts {
        match text.parse() {
            Ok(ip) if usable(ip) => found.push(ip),
            _ => problems.push(format!(
                "{field} has {text:?}, which is no address of a host"
            )),
        }
    }
    found.into()
}

fn balancer_ips(service: &Service, problems: &mut Vec<String>) -> Box<[IpAddr]> {
    let status = service
        .status
        .as_ref()
        .and_then(|s| s.load_balancer.as_ref());
    let ingress = status.and_then(|s| s.ingress.as_deref());
    let texts = ingress
        .unwrap_or_default()
        .iter()
        .filter(|i| i.ip_mode.as_deref() != Some("Proxy"))
        .filter_map(|i| i.ip.as_ref().filter(|ip| !ip.is_empty()));
    addresses(texts, "status.loadBalancer", problems)
}

fn sources(spec: &ServiceSpec, problems: &mut Vec<String>) -> Option<Arc<[Cidr]>> {
    let texts = spec.load_balancer_source_ranges.as_deref()?;
    if texts.is_empty() {
        return None;
    }
    let mut ranges: Vec<Cidr> = Vec::new();
    for text in texts {
        match text.trim().parse::<Cidr>() {
            Ok(cidr) => ranges.push(cidr.network()),
            Err(error) => problems.push(format!("loadBalancerSourceRanges: {error}")),
        }
    }
    ranges.sort_unstable();
    ranges.dedup();
    Some(ranges.into())
}

fn affinity(spec: &ServiceSpec) -> Option<u32> {
    if spec.session_affinity.as_deref() != Some("ClientIP") {
        return None;
    }
    let config = spec.session_affinity_config.as_ref();
    let seconds = config.and_then(|c| c.client_ip.as_ref()?.timeout_seconds);
    let seconds = seconds.and_then(|s| u32::try_from(s).ok());
    Some(seconds.filter(|s| *s > 0).unwrap_or(AFFINITY_SECONDS))
}

pub(crate) fn ports(spec: &ServiceSpec, problems: &mut Vec<String>) -> Box<[PortInfo]> {
    let one = |port: &ServicePort| {
        let protocol = Protocol::parse(port.protocol.as_deref());
        if protocol.is_none() {
            problems.push(format!(
                "port {} has protocol {}, which is not supported",
                port.port,
                port.protocol.as_deref().unwrap_or_default()
            ));
        }
        Some(PortInfo {
            name: port.name.as_deref().unwrap_or_default().into(),
            protocol: protocol?,
            port: valid_port(port.port)?,
            node_port: port.node_port.and_then(valid_port),
        })
    };
    spec.ports.iter().flatten().filter_map(one).collect()
}

fn valid_port(port: i32) -> Option<u16> {
    u16::try_from(port).ok().filter(|p| *p != 0)
}

/// A slice as it looks from the node `here`; `None`: it is nobody's.
pub fn slice(slice: &EndpointSlice, here: &str) -> Option<SliceInfo> {
    let labels = slice.metadata.labels.as_ref()?;
    let service = labels.get(SERVICE_NAME_LABEL)?.as_str().into();
    let endpoints = slice.endpoints.iter().flatten();
    Some(SliceInfo {
        service,
        ports: slice_ports(slice),
        endpoints: endpoints
            .filter_map(|e| endpoint(e, &slice.address_type, here))
            .collect(),
    })
}

/// Ports that every endpoint of a slice has: name, protocol, number.
pub(crate) fn slice_ports(slice: &EndpointSlice) -> Box<[(Box<str>, Protocol, u16)]> {
    let ports = slice.ports.iter().flatten().filter_map(|port| {
        let name = port.name.as_deref().unwrap_or_default().into();
        let protocol = Protocol::parse(port.protocol.as_deref())?;
        Some((name, protocol, port.port.and_then(valid_port)?))
    });
    ports.collect()
}

fn endpoint(endpoint: &Endpoint, address_type: &str, here: &str) -> Option<EndpointInfo> {
    // Only the first address counts, as the API says.
    let addr: IpAddr = endpoint.addresses.first()?.parse().ok()?;
    let expected = if addr.is_ipv4() { "IPv4" } else { "IPv6" };
    // An endpoint must not lead to this host's own services (CVE-2021-25737).
    if address_type != expected || !usable(addr) {
        return None;
    }
    let conditions = endpoint.conditions.as_ref();
    let ready = conditions.and_then(|c| c.ready).unwrap_or(true);
    let serving = conditions.and_then(|c| c.serving).unwrap_or(ready);
    let terminating = conditions.and_then(|c| c.terminating).unwrap_or(false);
    let hints = endpoint.hints.as_ref();
    let zones = hints
        .and_then(|h| h.for_zones.as_deref())
        .unwrap_or_default();
    let nodes = hints
        .and_then(|h| h.for_nodes.as_deref())
        .unwrap_or_default();
    Some(EndpointInfo {
        addr,
        local: endpoint.node_name.as_deref() == Some(here),
        ready,
        fallback: !ready && serving && terminating,
        zones: zones.iter().map(|z| z.name.as_str().into()).collect(),
        nodes: nodes.iter().map(|n| n.name.as_str().into()).collect(),
    })
}

/// What the Node object says about a node that is to be told.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeInfo {
    /// Its zone; empty when it has none.
    pub zone: String,
    /// Addresses of its pods.
    pub pod_cidrs: Vec<Cidr>,
    /// Is it going to stay? Load balancers should not send to one that goes.
    pub eligible: bool,
}

/// The ranges of a node's pods, in its order.
pub fn pod_cidrs(node: &ApiNode) -> Vec<Cidr> {
    let spec = node.spec.as_ref();
    let several = spec
        .and_then(|s| s.pod_cidrs.as_deref())
        .unwrap_or_default();
    let one = spec.and_then(|s| s.pod_cidr.as_ref());
    let mut found: Vec<Cidr> = Vec::new();
    for cidr in several
        .iter()
        .chain(one)
        .filter_map(|text| text.parse().ok())
    {
        if !found.contains(&cidr) {
            found.push(cidr);
        }
    }
    found
}

/// Of the Node object.
pub fn node(node: &ApiNode) -> NodeInfo {
    let labels = node.metadata.labels.as_ref();
    let spec = node.spec.as_ref();
    let mut pod_cidrs = pod_cidrs(node);
    pod_cidrs.sort_unstable();
    let mut taints = spec
        .and_then(|s| s.taints.as_deref())
        .unwrap_or_default()
        .iter();
    NodeInfo {
        zone: labels
            .and_then(|l| l.get(ZONE_LABEL).cloned())
            .unwrap_or_default(),
        pod_cidrs,
        eligible: node.metadata.deletion_timestamp.is_none()
            && !taints.any(|t| t.key == TO_BE_DELETED_TAINT),
    }
}

impl Node {
    /// What is known before the Node object has been seen.
    pub fn named(name: &str, ips: &[IpAddr]) -> Node {
        Node {
            name: name.to_owned(),
            zone: String::new(),
            ips: ips.to_vec(),
        }
    }
}
