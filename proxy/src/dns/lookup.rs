// SPDX-License-Identifier: Apache-2.0
//! What the zone has at a name. Names are compared without regard to case; `*` is a name like any
//! other, so nothing answers to it.

use std::collections::BTreeSet;
use std::net::IpAddr;

use hickory_proto::rr::Name;

use super::records::{self, Kind, ServiceRecord};
use super::zone::{Port, Zone};
use crate::service::Protocol;
use crate::state::ServiceKey;

/// What is at a name.
#[derive(Debug)]
pub(crate) enum Node<'z> {
    /// No such name, and none below it.
    Missing,
    /// Only names below it.
    Empty,
    /// The domain itself.
    Apex,
    /// `dns-version`.
    Version,
    /// `ns.dns`, whom the SOA record names.
    NameServer,
    /// `10-42-0-5.<namespace>.pod`.
    Pod(IpAddr),
    /// `<service>.<namespace>.svc`, with addresses of its own or its endpoints'.
    Service(ServiceKey, &'z ServiceRecord),
    /// `<hostname>.<service>.<namespace>.svc`.
    Endpoint(Vec<IpAddr>),
    /// `_<port>._<protocol>.<service>.<namespace>.svc`.
    Ports(ServiceKey, &'z ServiceRecord, String, Protocol),
    /// Another name.
    Alias(&'z Name),
}

/// A port, who has it, and at which addresses.
pub(crate) type Target = (u16, Name, Vec<IpAddr>);

/// Find what is at a name of the domain.
pub(crate) fn find<'z>(zone: &'z Zone, name: &Name) -> Node<'z> {
    let lower = name.to_lowercase();
    let labels: Vec<&[u8]> = lower.iter().collect();
    let above = usize::from(zone.place().domain.num_labels());
    let Some(below) = labels.len().checked_sub(above) else {
        return Node::Missing;
    };
    match &labels[..below] {
        [] => Node::Apex,
        [b"dns-version"] => Node::Version,
        [b"dns"] => Node::Empty,
        [b"ns", b"dns"] => Node::NameServer,
        [b"svc"] | [b"pod"] => Node::Empty,
        [inner @ .., b"svc"] => below_svc(zone, inner),
        [inner @ .., b"pod"] => below_pod(zone, inner),
        _ => Node::Missing,
    }
}

fn text(label: &[u8]) -> &str {
    // Nothing in the cluster is called by what is not UTF-8; the empty name neither.
    std::str::from_utf8(label).unwrap_or_default()
}

fn below_svc<'z>(zone: &'z Zone, labels: &[&[u8]]) -> Node<'z> {
    let key = |service: &[u8], namespace: &[u8]| {
        let key: ServiceKey = (text(namespace).to_owned(), text(service).to_owned());
        let record = zone.service(&key)?;
        Some((key, record))
    };
    let found = match labels {
        [namespace] if zone.has_namespace(text(namespace)) => Some(Node::Empty),
        [service, namespace] => {
            key(service, namespace).map(|(key, record)| service_node(zone, key, record))
        }
        [label, service, namespace] => {
            key(service, namespace).map(|(key, record)| below_service(zone, &key, record, label))
        }
        [port, protocol, service, namespace] => key(service, namespace)
            .and_then(|(key, record)| port_node(zone, key, record, port, protocol)),
        _ => None,
    };
    found.unwrap_or(Node::Missing)
}

fn service_node<'z>(zone: &'z Zone, key: ServiceKey, record: &'z ServiceRecord) -> Node<'z> {
    match &record.kind {
        Kind::External(target) => Node::Alias(target),
        // Section 2.4.1: without a ready endpoint the name does not exist.
        Kind::Headless if zone.endpoints(&key, record).next().is_none() => Node::Missing,
        _ => Node::Service(key, record),
    }
}

fn below_service<'z>(
    zone: &'z Zone,
    key: &ServiceKey,
    record: &'z ServiceRecord,
    label: &[u8],
) -> Node<'z> {
    if let Kind::External(_) = record.kind {
        return Node::Missing;
    }
    let endpoints = zone.endpoints(key, record);
    let ips: BTreeSet<IpAddr> = endpoints
        .filter(|(endpoint, _)| endpoint.label.as_bytes() == label)
        .map(|(endpoint, _)| endpoint.addr)
        .collect();
    if !ips.is_empty() {
        return Node::Endpoint(ips.into_iter().collect());
    }
    // The name above those of its ports.
    let asked = protocol(label);
    let ports = ports(zone, key, record);
    match ports
        .iter()
        .any(|(name, p, _)| !name.is_empty() && asked == Some(*p))
    {
        true => Node::Empty,
        false => Node::Missing,
    }
}

fn protocol(label: &[u8]) -> Option<Protocol> {
    match label {
        b"_tcp" => Some(Protocol::Tcp),
        b"_udp" => Some(Protocol::Udp),
        b"_sctp" => Some(Protocol::Sctp),
        _ => None,
    }
}

fn port_node<'z>(
    zone: &'z Zone,
    key: ServiceKey,
    record: &'z ServiceRecord,
    port: &[u8],
    label: &[u8],
) -> Option<Node<'z>> {
    let protocol = protocol(label)?;
    let port = text(port.strip_prefix(b"_")?);
    let mut ports = ports(zone, &key, record).into_iter();
    // An unnamed port has no record, and `_` does not ask for one.
    ports.find(|(name, p, _)| *p == protocol && !name.is_empty() && *name == port)?;
    Some(Node::Ports(key, record, port.to_owned(), protocol))
}

/// The ports that have records: a headless Service's are those of its endpoints.
fn ports<'z>(zone: &'z Zone, key: &ServiceKey, record: &'z ServiceRecord) -> Vec<Port<'z>> {
    match record.kind {
        Kind::External(_) => Vec::new(),
        Kind::Cluster(_) => own_ports(record).collect(),
        Kind::Headless => {
            let slices = zone
                .endpoints(key, record)
                .flat_map(|(_, slice)| &slice.ports);
            let ports: BTreeSet<Port<'z>> =
                slices.map(|(n, p, number)| (&**n, *p, *number)).collect();
            ports.into_iter().collect()
        }
    }
}

fn own_ports(record: &ServiceRecord) -> impl Iterator<Item = Port<'_>> {
    let ports = record.ports.iter();
    ports.map(|port| (&*port.name, port.protocol, port.port))
}

fn below_pod<'z>(zone: &'z Zone, labels: &[&[u8]]) -> Node<'z> {
    let known = |namespace: &[u8]| zone.has_namespace(text(namespace));
    match labels {
        [namespace] if known(namespace) => Node::Empty,
        [label, namespace] if known(namespace) => match records::undashed(label) {
            Some(ip) if zone.is_pod(ip) => Node::Pod(ip),
            _ => Node::Missing,
        },
        _ => Node::Missing,
    }
}

impl Node<'_> {
    /// The addresses that the name stands for, of both families.
    pub(crate) fn addresses(&self, zone: &Zone) -> Vec<IpAddr> {
        match self {
            Node::NameServer => zone.place().servers.clone(),
            Node::Pod(ip) => vec![*ip],
            Node::Endpoint(ips) => ips.clone(),
            Node::Service(key, record) => match &record.kind {
                Kind::Cluster(ips) => ips.to_vec(),
                Kind::Headless => {
                    let endpoints = zone.endpoints(key, record);
                    let mut ips: Vec<IpAddr> = endpoints.map(|(e, _)| e.addr).collect();
                    ips.sort_unstable();
                    ips.dedup();
                    ips
                }
                Kind::External(_) => Vec::new(),
            },
            _ => Vec::new(),
        }
    }

    /// What SRV records at this name point to. The name of a Service has those of all its ports,
    /// as CoreDNS does it; the specification asks for those of named ports below it.
    pub(crate) fn targets(&self, zone: &Zone) -> Vec<Target> {
        match self {
            Node::Service(key, record) => targets(zone, key, record, |_, _| true),
            Node::Ports(key, record, port, protocol) => {
                targets(zone, key, record, |n, p| n == port && p == *protocol)
            }
            _ => Vec::new(),
        }
    }
}

fn targets(
    zone: &Zone,
    key: &ServiceKey,
    record: &ServiceRecord,
    wanted: impl Fn(&str, Protocol) -> bool,
) -> Vec<Target> {
    let (namespace, service) = (&key.0, &key.1);
    match &record.kind {
        Kind::External(_) => Vec::new(),
        Kind::Cluster(ips) => {
            let ports = own_ports(record).filter(|(n, p, _)| wanted(n, *p));
            let target =
                |(_, _, port)| Some((port, name(zone, namespace, service, None)?, ips.to_vec()));
            ports.filter_map(target).collect()
        }
        Kind::Headless => {
            let mut found = BTreeSet::new();
            for (endpoint, slice) in zone.endpoints(key, record) {
                let ports = slice.ports.iter().filter(|(n, p, _)| wanted(n, *p));
                found.extend(ports.map(|port| (port.2, &endpoint.label, endpoint.addr)));
            }
            let mut targets: Vec<Target> = Vec::new();
            let mut last = None;
            for (port, label, ip) in found {
                // One record for a name, whatever the number of its addresses.
                if last == Some((port, label)) {
                    targets.last_mut().into_iter().for_each(|t| t.2.push(ip));
                } else if let Some(name) = name(zone, namespace, service, Some(label)) {
                    targets.push((port, name, vec![ip]));
                    last = Some((port, label));
                }
            }
            targets
        }
    }
}

/// The name of a Service, or of one of its endpoints; `None`: it is too long to be one.
pub(crate) fn name(
    zone: &Zone,
    namespace: &str,
    service: &str,
    label: Option<&str>,
) -> Option<Name> {
    let labels = label.into_iter().chain([service, namespace, "svc"]);
    let name = Name::from_labels(labels.map(str::as_bytes)).ok()?;
    name.append_domain(&zone.place().domain).ok()
}
