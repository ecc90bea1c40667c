// SPDX-License-Identifier: Apache-2.0
//! What a Service means on one node: addresses and ports that answer (frontends), and where each
//! leads.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use cni::cidr::Cidr;

/// Transport protocols that are served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

impl Protocol {
    /// The number in an IP header.
    pub fn number(self) -> u8 {
        match self {
            Protocol::Tcp => 6,
            Protocol::Udp => 17,
            Protocol::Sctp => 132,
        }
    }

    /// As the API writes it; `None` in an object means TCP. Another name: `None`.
    pub fn parse(name: Option<&str>) -> Option<Protocol> {
        match name {
            None | Some("TCP") => Some(Protocol::Tcp),
            Some("UDP") => Some(Protocol::Udp),
            Some("SCTP") => Some(Protocol::Sctp),
            Some(_) => None,
        }
    }
}

impl std::fmt::Display for Protocol {
    /// As the API writes it.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Protocol::Tcp => "TCP",
            Protocol::Udp => "UDP",
            Protocol::Sctp => "SCTP",
        })
    }
}

/// An address and port that clients connect to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Frontend {
    /// A cluster IP, an external IP, a load balancer's address; unspecified for a node port.
    pub addr: IpAddr,
    /// Transport protocol.
    pub protocol: Protocol,
    /// A Service's port, or its node port.
    pub port: u16,
}

impl Frontend {
    /// A port of every address that node ports answer on.
    pub fn node_port(ipv4: bool, protocol: Protocol, port: u16) -> Frontend {
        let addr = if ipv4 {
            Ipv4Addr::UNSPECIFIED.into()
        } else {
            Ipv6Addr::UNSPECIFIED.into()
        };
        Frontend {
            addr,
            protocol,
            port,
        }
    }

    /// Is it a port of the node's addresses?
    pub fn is_node_port(&self) -> bool {
        self.addr.is_unspecified()
    }

    /// Is it of IPv4?
    pub fn is_ipv4(&self) -> bool {
        self.addr.is_ipv4()
    }
}

/// An address and port that a connection is led to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Backend {
    /// Of the endpoint.
    pub addr: IpAddr,
    /// Of the endpoint, already resolved if it has a name.
    pub port: u16,
}

/// Endpoints that one is drawn from, sorted.
pub type Pool = Arc<[Backend]>;

/// Whose source address is replaced by the node's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Masquerade {
    /// Everybody's: the answer must come back through this node.
    All,
    /// Of those that are no pods of this node or cluster, as local detection says.
    Outside,
    /// Of this node's own programs, which may have the frontend's address as their source.
    Host,
}

/// What becomes of a packet that no endpoint gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refuse {
    /// The client is told: no endpoint serves anywhere.
    Reject,
    /// Silence: there are endpoints, but none on this node, and policy asks for one here.
    Drop,
}

/// Where a frontend leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Endpoints for everybody; with `local`, for pods and for the node itself.
    pub cluster: Pool,
    /// Endpoints for those from outside (`externalTrafficPolicy: Local`).
    pub local: Option<Pool>,
    /// Whose source is replaced.
    pub masquerade: Masquerade,
    /// What becomes of packets that find no endpoint.
    pub refuse: Option<Refuse>,
    /// For how many seconds a client keeps its endpoint.
    pub affinity: Option<u32>,
    /// Who may send to it; `None`: everybody.
    pub sources: Option<Arc<[Cidr]>>,
}

impl Target {
    /// Every endpoint that it leads to, some of them twice.
    pub fn backends(&self) -> impl Iterator<Item = Backend> {
        let local = self.local.iter().flat_map(|pool| pool.iter());
        self.cluster.iter().chain(local).copied()
    }
}

/// What this node knows about itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// Its zone (label `topology.kubernetes.io/zone`); empty when it has none.
    pub zone: String,
    /// Its addresses.
    pub ips: Vec<IpAddr>,
}

/// The port that a load balancer asks whether this node has endpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HealthCheck {
    /// `healthCheckNodePort`.
    pub port: u16,
    /// Ready endpoints on this node.
    pub endpoints: usize,
}

/// The rules of one Service.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServiceRules {
    /// Where each frontend leads, sorted by frontend.
    pub frontends: Box<[(Frontend, Target)]>,
    /// Its cluster IPs: what comes to another port of them is refused.
    pub cluster_ips: Box<[IpAddr]>,
    /// Endpoints on this node: one that connects to itself through the Service needs masquerade.
    pub loops: Box<[IpAddr]>,
    /// Asked for with `externalTrafficPolicy: Local`.
    pub health: Option<HealthCheck>,
    /// What the Service asks for and does not get, in words for its owner.
    pub problems: Vec<String>,
}

impl ServiceRules {
    /// Where a frontend leads.
    pub fn target(&self, frontend: &Frontend) -> Option<&Target> {
        let at = self.frontends.binary_search_by_key(frontend, |(f, _)| *f);
        at.ok().map(|index| &self.frontends[index].1)
    }
}
