// SPDX-License-Identifier: Apache-2.0
//! What the API promises of Services, said as plainly as possible: the rules are held against this.

use std::net::IpAddr;

use proxy::parse::{EndpointInfo, PortInfo, ServiceInfo, SliceInfo};
use proxy::rules::{LocalDetect, Settings};
use proxy::service::Node;

use super::ruleset::{Fate, Packet};

type Backend = (IpAddr, u16);

/// Services with their slices, and the node that serves them.
pub struct World {
    pub node: Node,
    pub settings: Settings,
    pub services: Vec<Option<(ServiceInfo, Vec<SliceInfo>)>>,
}

/// What may become of a packet: one of these.
pub type Fates = Vec<Fate>;

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Internal,
    External,
    Balancer,
}

fn is_loopback(packet: &Packet) -> bool {
    packet.src.is_loopback() || packet.dst.is_loopback()
}

impl World {
    fn living(&self) -> impl Iterator<Item = &(ServiceInfo, Vec<SliceInfo>)> {
        self.services.iter().flatten()
    }

    fn is_cluster_ip(&self, ip: IpAddr) -> bool {
        self.living()
            .any(|(service, _)| service.cluster_ips.contains(&ip))
    }

    /// Can pods of this family be told from others at all, and is this from one?
    fn comes_from_pod(&self, packet: &Packet) -> (bool, bool) {
        match &self.settings.local {
            LocalDetect::Cidrs(cidrs) => (
                cidrs.iter().any(|c| c.is_ipv4() == packet.src.is_ipv4()),
                cidrs.iter().any(|c| c.contains(packet.src)),
            ),
            LocalDetect::Interface(name) => (true, packet.iif == *name),
            LocalDetect::InterfacePrefix(prefix) => (true, packet.iif.starts_with(prefix)),
        }
    }

    fn answers_node_ports(&self, packet: &Packet) -> bool {
        let host = |c: &cni::cidr::Cidr| *c == cni::cidr::Cidr::host(c.addr);
        !packet.dst.is_loopback()
            && self
                .settings
                .node_ports
                .iter()
                .any(|c| c.contains(packet.dst) && (host(c) || packet.to_local))
    }

    /// What may become of a packet.
    pub fn fates(&self, packet: &Packet) -> Fates {
        let incoming = !packet.iif.is_empty();
        if incoming && (is_loopback(packet) || self.is_cluster_ip(packet.src)) {
            return vec![Fate::Dropped];
        }
        let (detectable, pod) = self.comes_from_pod(packet);
        let to_cluster_ip = self.is_cluster_ip(packet.dst);
        if incoming && self.settings.strict && to_cluster_ip && detectable && !pod {
            return vec![Fate::Dropped];
        }
        for (service, slices) in self.living() {
            for port in &service.ports {
                if let Some(kind) = self.matches(service, port, packet) {
                    return self.led(service, slices, port, kind, packet);
                }
            }
        }
        vec![if to_cluster_ip {
            Fate::Refused
        } else {
            Fate::Passed
        }]
    }

    fn matches(&self, service: &ServiceInfo, port: &PortInfo, packet: &Packet) -> Option<Kind> {
        if port.protocol.number() != packet.protocol {
            return None;
        }
        let has_family = service
            .cluster_ips
            .iter()
            .any(|ip| ip.is_ipv4() == packet.dst.is_ipv4());
        if port.port == packet.dport {
            if service.cluster_ips.contains(&packet.dst) {
                return Some(Kind::Internal);
            }
            if has_family && service.balancer_ips.contains(&packet.dst) {
                return Some(Kind::Balancer);
            }
            if has_family && service.external_ips.contains(&packet.dst) {
                return Some(Kind::External);
            }
        }
        let node_port = port.node_port == Some(packet.dport) && self.answers_node_ports(packet);
        (node_port && has_family).then_some(Kind::External)
    }

    fn led(
        &self,
        service: &ServiceInfo,
        slices: &[SliceInfo],
        port: &PortInfo,
        kind: Kind,
        packet: &Packet,
    ) -> Fates {
        if kind == Kind::Balancer && !self.may(service, packet.src) {
            return vec![Fate::Dropped];
        }
        let ipv4 = packet.dst.is_ipv4();
        let all: Vec<(Backend, &EndpointInfo)> = endpoints(slices, port)
            .into_iter()
            .filter(|((ip, _), _)| ip.is_ipv4() == ipv4)
            .collect();
        let here: Vec<_> = all.iter().filter(|(_, e)| e.local).copied().collect();
        let (detectable, pod) = self.comes_from_pod(packet);
        let pod = detectable && pod;
        let local_policy = match kind {
            Kind::Internal => service.internal_local,
            // Pods and the node are led as if they came from a balancer outside.
            _ => service.external_local && !pod && !packet.from_local,
        };
        let everywhere = self.by_topology(&all);
        let chosen = if local_policy {
            serving(&here)
        } else {
            everywhere.clone()
        };
        if chosen.is_empty() {
            let silent = local_policy && !(everywhere.is_empty() && serving(&here).is_empty());
            return vec![if silent { Fate::Dropped } else { Fate::Refused }];
        }
        let masquerade = match kind {
            Kind::Internal => self.settings.masquerade_all || (detectable && !pod),
            _ if service.external_local => packet.from_local,
            _ => true,
        };
        let fate = |to: Backend| Fate::Led {
            to,
            masqueraded: masquerade || (packet.src == to.0 && self.is_local_endpoint(to.0)),
        };
        chosen.into_iter().map(fate).collect()
    }

    fn may(&self, service: &ServiceInfo, source: IpAddr) -> bool {
        let Some(ranges) = &service.sources else {
            return true;
        };
        let listed = |ip: IpAddr| ranges.iter().any(|range| range.contains(ip));
        let node_may = self.node.ips.iter().any(|ip| listed(*ip));
        listed(source) || (node_may && service.balancer_ips.contains(&source))
    }

    fn is_local_endpoint(&self, ip: IpAddr) -> bool {
        self.living().any(|(service, slices)| {
            let ports = service.ports.iter();
            ports
                .flat_map(|port| endpoints(slices, port))
                .any(|((addr, _), e)| addr == ip && e.local)
        })
    }

    fn by_topology(&self, all: &[(Backend, &EndpointInfo)]) -> Vec<Backend> {
        let ready: Vec<_> = all.iter().filter(|(_, e)| e.ready).copied().collect();
        let pick = |hints: fn(&EndpointInfo) -> &[Box<str>], mine: &str| {
            let hinted = ready.iter().all(|(_, e)| !hints(e).is_empty());
            let for_us = |e: &EndpointInfo| hints(e).iter().any(|hint| **hint == *mine);
            let found = ready.iter().filter(|(_, e)| for_us(e)).map(|(b, _)| *b);
            let found: Vec<Backend> = found.collect();
            (hinted && !mine.is_empty() && !found.is_empty()).then_some(found)
        };
        pick(|e| &e.nodes, &self.node.name)
            .or_else(|| pick(|e| &e.zones, &self.node.zone))
            .unwrap_or_else(|| serving(all))
    }
}

fn endpoints<'a>(slices: &'a [SliceInfo], port: &PortInfo) -> Vec<(Backend, &'a EndpointInfo)> {
    let mut found = Vec::new();
    for slice in slices {
        for (name, protocol, number) in &slice.ports {
            if *name == port.name && *protocol == port.protocol {
                found.extend(slice.endpoints.iter().map(|e| ((e.addr, *number), e)));
            }
        }
    }
    found
}

fn serving(endpoints: &[(Backend, &EndpointInfo)]) -> Vec<Backend> {
    let of = |wanted: fn(&EndpointInfo) -> bool| -> Vec<Backend> {
        let picked = endpoints.iter().filter(|(_, e)| wanted(e));
        picked.map(|(backend, _)| *backend).collect()
    };
    let ready = of(|e| e.ready);
    if ready.is_empty() {
        of(|e| e.fallback)
    } else {
        ready
    }
}
