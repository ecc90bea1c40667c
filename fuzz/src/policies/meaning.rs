// SPDX-License-Identifier: Apache-2.0
//! What the API promises of NetworkPolicies, said as plainly as possible: the rules are held against
//! this.

use std::collections::BTreeMap;
use std::net::IpAddr;

use cni::attached::Attached;
use proxy::policy::parse::{Namespaces, Peer, PodInfo, PolicyInfo, Port, Rule};
use proxy::policy::selector::Labels;
use proxy::policy::state::Settings;
use proxy::policy::world::Key;

use super::super::services::ruleset::{Packet, Tracked};

/// A cluster, as one node knows it.
pub struct World {
    pub settings: Settings,
    pub pods: BTreeMap<Key, PodInfo>,
    pub namespaces: BTreeMap<String, Labels>,
    pub policies: BTreeMap<Key, PolicyInfo>,
    pub attached: BTreeMap<String, Attached>,
}

/// A pod that has an address; is it on this node?
#[derive(Clone, Copy)]
struct Found<'a> {
    key: &'a Key,
    pod: &'a PodInfo,
    local: bool,
}

impl World {
    /// Whose address is this? No two pods of these worlds have the same.
    fn find(&self, ip: IpAddr) -> Option<Found<'_>> {
        self.pods.iter().find_map(|(key, pod)| {
            let here = *pod.node == *self.settings.node;
            let mine = self.attached.values().filter(|a| {
                let same_name = (&a.pod_namespace, &a.pod_name) == (&key.0, &key.1);
                same_name && pod.uids.iter().any(|uid| **uid == *a.pod_uid)
            });
            let attached: Vec<IpAddr> = mine.flat_map(|a| a.ips.clone()).collect();
            let (ips, local) = if !self.settings.attachments {
                (pod.ips.to_vec(), here)
            } else if here || !attached.is_empty() {
                (attached, true)
            } else {
                (pod.ips.to_vec(), false)
            };
            ips.contains(&ip).then_some(Found { key, pod, local })
        })
    }

    fn is_restricted(&self, of: Found<'_>, ingress: bool) -> bool {
        self.selecting(of, ingress).next().is_some()
    }

    /// The rules of each policy that restricts a pod in a direction.
    fn selecting<'a>(
        &'a self,
        of: Found<'a>,
        ingress: bool,
    ) -> impl Iterator<Item = (&'a Key, &'a [Rule])> {
        let here = self
            .policies
            .iter()
            .filter(move |(key, _)| key.0 == of.key.0);
        here.filter_map(move |(key, policy)| {
            let rules = if ingress {
                &policy.ingress
            } else {
                &policy.egress
            };
            let selects = policy.pods.as_ref()?.matches(&of.pod.labels);
            Some((key, rules.as_deref()?)).filter(|_| selects)
        })
    }

    /// Does a packet pass this node?
    pub fn passes(&self, packet: &Packet) -> bool {
        let known = |ip| self.find(ip).is_some_and(|found| found.local);
        let bridge = &self.settings.bridge;
        if (packet.iif == *bridge && !known(packet.src))
            || (packet.oif == *bridge && !known(packet.dst))
        {
            return false;
        }
        let Tracked::Known { src, dst, dport } = packet.tracked else {
            let mut ends = [packet.src, packet.dst]
                .into_iter()
                .filter_map(|ip| self.find(ip));
            return !ends.any(|end| {
                end.local && (self.is_restricted(end, false) || self.is_restricted(end, true))
            });
        };
        let at = (packet.protocol, dport);
        src == dst
            || (self.allows(src, dst, dst, at, false) && self.allows(dst, src, dst, at, true))
    }

    fn allows(&self, who: IpAddr, peer: IpAddr, to: IpAddr, at: (u8, u16), ingress: bool) -> bool {
        let Some(found) = self.find(who).filter(|found| found.local) else {
            return true;
        };
        if !self.is_restricted(found, ingress) {
            return true;
        }
        self.selecting(found, ingress).any(|(_, rules)| {
            rules.iter().any(|rule| {
                rule.peers.iter().any(|p| self.is_peer(p, peer)) && self.has_port(rule, to, at)
            })
        })
    }

    fn is_peer(&self, peer: &Peer, ip: IpAddr) -> bool {
        match peer {
            Peer::Everyone => true,
            Peer::Block(block) => {
                block.cidr.contains(ip) && !block.except.iter().any(|e| e.contains(ip))
            }
            Peer::PodsInBlock(_) => unreachable!("no policy says so"),
            Peer::Pods(namespaces, selector) => self.find(ip).is_some_and(|found| {
                let chosen = match namespaces {
                    Namespaces::One(name) => **name == *found.key.0,
                    Namespaces::Selected(selector) => {
                        let labels = self.namespaces.get(&found.key.0);
                        labels.is_some_and(|labels| selector.matches(labels))
                    }
                };
                chosen && selector.matches(&found.pod.labels)
            }),
        }
    }

    fn has_port(&self, rule: &Rule, to: IpAddr, (protocol, number): (u8, u16)) -> bool {
        let Some(ports) = &rule.ports else {
            return true;
        };
        ports.iter().any(|port| match port {
            Port::Numbers(range) => {
                range.protocol.number() == protocol && (range.first..=range.last).contains(&number)
            }
            Port::Named(wanted, name) => self.find(to).is_some_and(|found| {
                let mut all = found.pod.ports.iter();
                wanted.number() == protocol
                    && all.any(|(p, n, port)| (p, n, *port) == (wanted, name, number))
            }),
        })
    }
}
