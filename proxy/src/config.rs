// SPDX-License-Identifier: Apache-2.0
//! What the proxy is told, in kube-proxy's words where it has them.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

pub(crate) use cni::cidr::list as cidrs;
use cni::cidr::{Cidr, ParseCidrError};

use crate::parse::NodeInfo;
use crate::rules::{LocalDetect, Settings};

/// What the proxy of one node must know.
#[derive(Debug, Clone)]
pub struct Config {
    /// Credentials for the API server.
    pub kubeconfig: PathBuf,
    /// Name of this node.
    pub node_name: String,
    /// Addresses of this node.
    pub node_ips: Vec<IpAddr>,
    /// Addresses of all pods, as CIDRs separated by commas.
    pub cluster_cidr: String,
    /// Name of the nftables table; the proxy owns it alone.
    pub nft_table: String,
    /// Bridge of this node's pods.
    pub bridge: String,
    /// What has a default.
    pub options: Options,
    /// Counters of NetworkPolicies, which `/metrics` shows as well.
    pub policies: Option<Arc<crate::policy::Metrics>>,
}

/// What a cluster may want otherwise.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Options {
    /// Who counts as a pod of this cluster (`--detect-local-mode`).
    pub detect_local: DetectLocal,
    /// Addresses that node ports answer on (`--nodeport-addresses`).
    pub node_port_addresses: NodePortAddresses,
    /// Replace the source of everything that goes to a cluster IP (`--masquerade-all`).
    pub masquerade_all: bool,
    /// Drop what comes to a cluster IP from outside the cluster. kube-proxy lets it pass.
    pub strict_cluster_ips: bool,
    /// Where `/healthz` and `/livez` are served (`--healthz-bind-address`).
    pub healthz: Option<SocketAddr>,
    /// Where `/metrics` and `/proxyMode` are served (`--metrics-bind-address`).
    pub metrics: Option<SocketAddr>,
}

/// `--detect-local-mode`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum DetectLocal {
    /// Those with a source in the cluster CIDR.
    #[default]
    ClusterCidr,
    /// Those with a source in this node's pod CIDRs, which its Node object names.
    NodeCidr,
    /// Those that come in by this bridge.
    BridgeInterface(String),
    /// Those that come in by a link with this prefix.
    InterfaceNamePrefix(String),
}

/// Addresses that node ports answer on. Never loopback addresses.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum NodePortAddresses {
    /// Those of the Node object.
    #[default]
    Primary,
    /// All of the node's.
    All,
    /// Those of the node's that are in one of these.
    Cidrs(Vec<Cidr>),
}

impl FromStr for NodePortAddresses {
    type Err = ParseCidrError;

    /// `primary`, `all`, or CIDRs separated by commas.
    fn from_str(text: &str) -> Result<NodePortAddresses, ParseCidrError> {
        match text {
            "" | "primary" => Ok(NodePortAddresses::Primary),
            "all" => Ok(NodePortAddresses::All),
            list => Ok(NodePortAddresses::Cidrs(cidrs(list)?)),
        }
    }
}

fn everything() -> Vec<Cidr> {
    ["0.0.0.0/0", "::/0"]
        .map(|text| text.parse().expect("a CIDR"))
        .to_vec()
}

impl Config {
    /// What the constant part of the table depends on, with what the Node object says.
    pub fn settings(&self, node: &NodeInfo) -> Result<Settings, ParseCidrError> {
        let local = match &self.options.detect_local {
            DetectLocal::ClusterCidr => LocalDetect::Cidrs(cidrs(&self.cluster_cidr)?),
            DetectLocal::NodeCidr => LocalDetect::Cidrs(node.pod_cidrs.clone()),
            DetectLocal::BridgeInterface(name) => LocalDetect::Interface(name.clone()),
            DetectLocal::InterfaceNamePrefix(name) => LocalDetect::InterfacePrefix(name.clone()),
        };
        let node_ports = match &self.options.node_port_addresses {
            NodePortAddresses::Primary => self.node_ips.iter().map(|ip| Cidr::host(*ip)).collect(),
            NodePortAddresses::All => everything(),
            NodePortAddresses::Cidrs(cidrs) => cidrs.clone(),
        };
        Ok(Settings {
            local,
            node_ports,
            masquerade_all: self.options.masquerade_all,
            strict: self.options.strict_cluster_ips,
        })
    }

    /// Addresses that health check ports listen on: those of node ports.
    pub(crate) fn health_addresses(&self) -> Vec<IpAddr> {
        match &self.options.node_port_addresses {
            NodePortAddresses::Primary => self.node_ips.clone(),
            NodePortAddresses::All => vec![std::net::Ipv6Addr::UNSPECIFIED.into()],
            NodePortAddresses::Cidrs(cidrs) => own_addresses()
                .into_iter()
                .filter(|ip| !ip.is_loopback() && cidrs.iter().any(|cidr| cidr.contains(*ip)))
                .collect(),
        }
    }
}

/// The addresses that this network namespace has now.
fn own_addresses() -> Vec<IpAddr> {
    let Ok(links) = nix::ifaddrs::getifaddrs() else {
        return Vec::new();
    };
    let address = |link: nix::ifaddrs::InterfaceAddress| {
        let address = link.address?;
        let v4 = address.as_sockaddr_in().map(|a| IpAddr::V4(a.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|a| IpAddr::V6(a.ip())))
    };
    links.filter_map(address).collect()
}
