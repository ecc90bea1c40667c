// SPDX-License-Identifier: Apache-2.0
//! What is kept of Pods, Namespaces and NetworkPolicies.

use std::collections::BTreeMap;
use std::net::IpAddr;

use cni::cidr::Cidr;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use k8s_openapi::api::networking::v1::{
    IPBlock, NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort, NetworkPolicySpec,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::blocks::Block;
use super::ports::Range;
use super::selector::{Labels, Selector};
use crate::service::Protocol;

/// Names the static pod that a Pod of the API is the mirror of.
const CONFIG_MIRROR: &str = "kubernetes.io/config.mirror";

/// A pod with addresses of its own. One with the node's, and one that has finished, is none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PodInfo {
    /// Its uid; and for a mirror that of the static pod.
    pub uids: Box<[Box<str>]>,
    /// Where it runs; empty: nowhere yet.
    pub node: Box<str>,
    /// Its labels.
    pub labels: Labels,
    /// Its addresses, as its node has told.
    pub ips: Box<[IpAddr]>,
    /// Ports with names: protocol, name, number.
    pub ports: Box<[(Protocol, Box<str>, u16)]>,
}

/// What a policy says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PolicyInfo {
    /// Pods of its namespace that it is about; `None`: nobody can say which.
    pub pods: Option<Selector>,
    /// What may reach them, if it restricts that.
    pub ingress: Option<Box<[Rule]>>,
    /// What they may reach, if it restricts that.
    pub egress: Option<Box<[Rule]>>,
    /// What could not be understood and allows nothing, in words.
    pub problems: Vec<String>,
}

/// What a rule allows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Who is at the other end.
    pub peers: Box<[Peer]>,
    /// At which ports; `None`: whatever.
    pub ports: Option<Box<[Port]>>,
}

/// Who is at the other end.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Peer {
    /// Whoever.
    Everyone,
    /// Pods with some labels.
    Pods(Namespaces, Selector),
    /// Whoever has an address of the block.
    Block(Block),
    /// Pods with an address of the block: only pods have ports with names.
    PodsInBlock(Block),
}

/// Which namespaces.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Namespaces {
    /// That of the policy.
    One(Box<str>),
    /// Those with some labels.
    Selected(Selector),
}

/// A port of a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Port {
    /// Some numbers.
    Numbers(Range),
    /// What a pod calls so.
    Named(Protocol, Box<str>),
}

fn labels(map: Option<&BTreeMap<String, String>>) -> Labels {
    let pairs = map.into_iter().flatten();
    pairs
        .map(|(key, value)| (key.as_str().into(), value.as_str().into()))
        .collect()
}

/// Of a Pod; `None`: policies are not about it.
pub fn pod(pod: &Pod) -> Option<PodInfo> {
    let (spec, status) = (pod.spec.as_ref()?, pod.status.as_ref());
    let phase = status.and_then(|s| s.phase.as_deref());
    if spec.host_network == Some(true) || matches!(phase, Some("Succeeded" | "Failed")) {
        return None;
    }
    let mirror = pod.metadata.annotations.as_ref();
    let mirror = mirror.and_then(|a| a.get(CONFIG_MIRROR));
    let uids = pod.metadata.uid.iter().chain(mirror);
    let several = status
        .and_then(|s| s.pod_ips.as_deref())
        .unwrap_or_default();
    let one = status.and_then(|s| s.pod_ip.as_ref());
    let mut ips: Vec<IpAddr> = several
        .iter()
        .map(|ip| &ip.ip)
        .chain(one)
        .filter_map(|ip| ip.parse().ok())
        .collect();
    ips.sort_unstable();
    ips.dedup();
    Some(PodInfo {
        uids: uids.map(|uid| uid.as_str().into()).collect(),
        node: spec.node_name.as_deref().unwrap_or_default().into(),
        labels: labels(pod.metadata.labels.as_ref()),
        ips: ips.into(),
        ports: named_ports(pod),
    })
}

/// Ports of init containers count as well: one that is restarted always is a sidecar.
fn named_ports(pod: &Pod) -> Box<[(Protocol, Box<str>, u16)]> {
    let Some(spec) = &pod.spec else {
        return Box::default();
    };
    let sidecars = spec.init_containers.iter().flatten();
    let sidecars = sidecars.filter(|c| c.restart_policy.as_deref() == Some("Always"));
    let containers = spec.containers.iter().chain(sidecars);
    let mut found: Vec<_> = containers
        .flat_map(|container| container.ports.iter().flatten())
        .filter_map(|port| {
            let name = port.name.as_deref()?.into();
            let protocol = Protocol::parse(port.protocol.as_deref())?;
            Some((protocol, name, number(port.container_port)?))
        })
        .collect();
    found.sort_unstable();
    found.dedup();
    found.into()
}

fn number(port: i32) -> Option<u16> {
    u16::try_from(port).ok().filter(|p| *p != 0)
}

/// The labels of a Namespace.
pub fn namespace(namespace: &Namespace) -> Labels {
    labels(namespace.metadata.labels.as_ref())
}

/// Of a NetworkPolicy. What cannot be understood allows nothing.
pub fn policy(policy: &NetworkPolicy) -> Option<PolicyInfo> {
    let spec = policy.spec.as_ref()?;
    let own = policy.metadata.namespace.as_deref().unwrap_or_default();
    let mut problems = Vec::new();
    let mut parser = Parser {
        own,
        problems: &mut problems,
    };
    let pods = match &spec.pod_selector {
        None => Some(Selector::default()),
        Some(selector) => parser.selector("podSelector", selector),
    };
    let ingress = spec.ingress.iter().flatten();
    let ingress: Box<[Rule]> = ingress
        .map(|rule| parser.rule("ingress.from", rule.from.as_deref(), rule.ports.as_deref()))
        .collect();
    let egress = spec.egress.iter().flatten();
    let egress: Box<[Rule]> = egress
        .map(|rule| parser.rule("egress.to", rule.to.as_deref(), rule.ports.as_deref()))
        .collect();
    let (restricts_ingress, restricts_egress) = restricted(spec);
    Some(PolicyInfo {
        pods,
        ingress: restricts_ingress.then_some(ingress),
        egress: restricts_egress.then_some(egress),
        problems,
    })
}

/// `policyTypes`, and what an API server fills in where there are none.
fn restricted(spec: &NetworkPolicySpec) -> (bool, bool) {
    let types = spec.policy_types.as_deref().unwrap_or_default();
    if types.is_empty() {
        let egress = spec.egress.as_ref().is_some_and(|rules| !rules.is_empty());
        return (true, egress);
    }
    let has = |name: &str| types.iter().any(|t| t == name);
    (has("Ingress"), has("Egress"))
}

struct Parser<'a> {
    own: &'a str,
    problems: &'a mut Vec<String>,
}

impl Parser<'_> {
    fn selector(&mut self, field: &str, selector: &LabelSelector) -> Option<Selector> {
        Selector::parse(selector)
            .map_err(|why| self.problems.push(format!("{field}: {why}")))
            .ok()
    }

    /// An empty list of peers or ports means the same as none.
    fn rule(
        &mut self,
        field: &str,
        peers: Option<&[NetworkPolicyPeer]>,
        ports: Option<&[NetworkPolicyPort]>,
    ) -> Rule {
        let peers = match peers.unwrap_or_default() {
            [] => [Peer::Everyone].into(),
            some => some.iter().filter_map(|p| self.peer(field, p)).collect(),
        };
        let ports = match ports.unwrap_or_default() {
            [] => None,
            some => Some(some.iter().filter_map(|port| self.port(port)).collect()),
        };
        Rule { peers, ports }
    }

    fn peer(&mut self, field: &str, peer: &NetworkPolicyPeer) -> Option<Peer> {
        if let Some(block) = &peer.ip_block {
            return self.block(field, block).map(Peer::Block);
        }
        let namespaces = match &peer.namespace_selector {
            None => Namespaces::One(self.own.into()),
            Some(selector) => Namespaces::Selected(self.selector(field, selector)?),
        };
        let pods = match (&peer.pod_selector, &peer.namespace_selector) {
            (None, None) => {
                self.problems.push(format!("{field}: a peer is empty"));
                return None;
            }
            (None, Some(_)) => Selector::default(),
            (Some(selector), _) => self.selector(field, selector)?,
        };
        Some(Peer::Pods(namespaces, pods))
    }

    /// One exception that cannot be read makes the whole block count for nothing: without it the
    /// policy would allow more than its author wanted.
    fn block(&mut self, field: &str, block: &IPBlock) -> Option<Block> {
        let mut parse = |text: &str| match text.parse::<Cidr>() {
            Ok(cidr) => Some(cidr.network()),
            Err(error) => {
                self.problems.push(format!("{field}.ipBlock: {error}"));
                None
            }
        };
        let cidr = parse(&block.cidr)?;
        let except = block.except.iter().flatten().map(|e| parse(e));
        let mut except: Vec<Cidr> = except.collect::<Option<_>>()?;
        except.sort_unstable();
        except.dedup();
        Some(Block {
            cidr,
            except: except.into(),
        })
    }

    fn port(&mut self, port: &NetworkPolicyPort) -> Option<Port> {
        let Some(protocol) = Protocol::parse(port.protocol.as_deref()) else {
            let name = port.protocol.as_deref().unwrap_or_default();
            self.problems
                .push(format!("ports: protocol {name} is not supported"));
            return None;
        };
        let (first, last) = match &port.port {
            None => (0, u16::MAX),
            Some(IntOrString::String(name)) => {
                return Some(Port::Named(protocol, name.as_str().into()));
            }
            Some(IntOrString::Int(first)) => {
                let last = port.end_port.unwrap_or(*first);
                match (number(*first), number(last)) {
                    (Some(first), Some(last)) if first <= last => (first, last),
                    _ => {
                        let text = format!("ports: {first} to {last} are no ports");
                        self.problems.push(text);
                        return None;
                    }
                }
            }
        };
        Some(Port::Numbers(Range {
            protocol,
            first,
            last,
        }))
    }
}
