// SPDX-License-Identifier: Apache-2.0
//! What policies mean for one pod, in words, and what the kernel knows of it.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use cni::nft::{Family, NftError, Socket};

use super::parse::{Namespaces, Peer, PodInfo, PolicyInfo, Port, Rule};
use super::rules;
use super::selector::{Labels, Requirement, Selector};
use super::world::Key;

/// So many pods of a peer are named.
const NAMED: usize = 8;

/// What policies are about.
#[derive(Debug, Default)]
pub struct Scene {
    /// All pods.
    pub pods: BTreeMap<Key, PodInfo>,
    /// Labels of all namespaces.
    pub namespaces: BTreeMap<String, Labels>,
    /// The policies of the pod's namespace, by name.
    pub policies: BTreeMap<String, PolicyInfo>,
}

/// The classes of an address for egress and ingress, 0: not restricted. `None`: the table is not
/// there, or does not know the address.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn classes(socket: &mut Socket, table: &str, ip: IpAddr) -> Result<Option<[u32; 2]>, NftError> {
    let (set, key, _) = rules::pod(ip, 0, 0);
    let data = socket.element(Family::Inet, table, &set.to_string(), &key)?;
    let word = |data: &[u8], at: usize| {
        let bytes = data.get(at * 4..at * 4 + 4)?;
        Some(u32::from_ne_bytes(bytes.try_into().ok()?))
    };
    // The first word is no class.
    Ok(data.and_then(|data| Some([word(&data, 1)?, word(&data, 2)?])))
}

impl Scene {
    /// Is the pod restricted: for egress, for ingress?
    pub fn restricted(&self, pod: &Key) -> [bool; 2] {
        [false, true].map(|ingress| self.selecting(pod, ingress).next().is_some())
    }

    /// The policies that select a pod for a direction, with their rules for it.
    fn selecting(&self, pod: &Key, ingress: bool) -> impl Iterator<Item = (&String, &[Rule])> {
        let labels = self.pods.get(pod).map(|pod| &pod.labels);
        self.policies.iter().filter_map(move |(name, policy)| {
            let selected = policy.pods.as_ref()?.matches(labels?);
            let rules = if ingress {
                &policy.ingress
            } else {
                &policy.egress
            };
            let rules = rules.as_deref().filter(|_| selected)?;
            Some((name, rules))
        })
    }

    /// A pod's policies, direction by direction.
    pub fn words(&self, pod: &Key) -> Vec<String> {
        let mut lines = Vec::new();
        for (direction, ingress) in [("ingress", true), ("egress", false)] {
            let names: Vec<&str> = self
                .selecting(pod, ingress)
                .map(|(n, _)| n.as_str())
                .collect();
            if names.is_empty() {
                lines.push(format!(
                    "{direction}: no policy selects the pod, all may pass"
                ));
                continue;
            }
            lines.push(format!(
                "{direction}: denied but for what is allowed by {}",
                names.join(", ")
            ));
            for (name, rules) in self.selecting(pod, ingress) {
                if rules.is_empty() {
                    lines.push(format!("  {name} allows nothing"));
                }
                for rule in rules {
                    self.rule(name, rule, ingress, &mut lines);
                }
                let problems = self.policies.get(name).map(|policy| &policy.problems);
                for problem in problems.into_iter().flatten() {
                    lines.push(format!("  {name} is not understood: {problem}"));
                }
            }
        }
        lines
    }

    fn rule(&self, name: &str, rule: &Rule, ingress: bool, lines: &mut Vec<String>) {
        let way = if ingress { "from" } else { "to" };
        let ports = ports(rule.ports.as_deref());
        for peer in &rule.peers {
            lines.push(format!("  {name} allows {way} {}{ports}", Words(peer)));
            let Peer::Pods(namespaces, selector) = peer else {
                continue;
            };
            let mut members: Vec<String> = self
                .pods
                .iter()
                .filter(|(key, pod)| {
                    self.is_in(&key.0, namespaces) && selector.matches(&pod.labels)
                })
                .map(|((namespace, name), pod)| {
                    let ips: Vec<String> = pod.ips.iter().map(IpAddr::to_string).collect();
                    format!("{namespace}/{name} {}", ips.join(" "))
                        .trim_end()
                        .to_owned()
                })
                .collect();
            let more = members.len().saturating_sub(NAMED);
            members.truncate(NAMED);
            if more > 0 {
                members.push(format!("{more} more"));
            }
            let now = if members.is_empty() {
                "nobody".to_owned()
            } else {
                members.join(", ")
            };
            lines.push(format!("    now {now}"));
        }
    }

    fn is_in(&self, namespace: &str, wanted: &Namespaces) -> bool {
        match wanted {
            Namespaces::One(name) => **name == *namespace,
            Namespaces::Selected(selector) => {
                let labels = self.namespaces.get(namespace);
                labels.is_some_and(|labels| selector.matches(labels))
            }
        }
    }
}

fn ports(ports: Option<&[Port]>) -> String {
    let Some(ports) = ports else {
        return String::new();
    };
    let word = |port: &Port| match port {
        Port::Named(protocol, name) => format!("{protocol} {name}"),
        Port::Numbers(range) if (range.first, range.last) == (0, u16::MAX) => {
            format!("all ports of {}", range.protocol)
        }
        Port::Numbers(range) if range.first == range.last => {
            format!("{} {}", range.protocol, range.first)
        }
        Port::Numbers(range) => format!("{} {}-{}", range.protocol, range.first, range.last),
    };
    let words: Vec<String> = ports.iter().map(word).collect();
    match words.as_slice() {
        [] => ", at no port".to_owned(),
        some => format!(", at {}", some.join(", ")),
    }
}

/// A peer of a rule, for a person.
struct Words<'a>(&'a Peer);

impl fmt::Display for Words<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Peer::Everyone => f.write_str("everyone"),
            Peer::Block(block) | Peer::PodsInBlock(block) => {
                write!(f, "{}", block.cidr)?;
                if block.except.is_empty() {
                    return Ok(());
                }
                let except: Vec<String> = block.except.iter().map(ToString::to_string).collect();
                write!(f, " except {}", except.join(", "))
            }
            Peer::Pods(namespaces, selector) => {
                match is_all(selector) {
                    true => f.write_str("all pods")?,
                    false => write!(f, "pods with {selector}")?,
                }
                match namespaces {
                    Namespaces::One(name) => write!(f, " of namespace {name}"),
                    Namespaces::Selected(all) if is_all(all) => f.write_str(" of all namespaces"),
                    Namespaces::Selected(some) => write!(f, " of namespaces with {some}"),
                }
            }
        }
    }
}

fn is_all(selector: &Selector) -> bool {
    selector.equal.is_empty() && selector.rules.is_empty()
}

impl fmt::Display for Selector {
    /// As kubectl takes it with `-l`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let equal = self
            .equal
            .iter()
            .map(|(key, value)| format!("{key}={value}"));
        let rules = self
            .rules
            .iter()
            .map(|(key, requirement)| match requirement {
                Requirement::In(values) => format!("{key} in ({})", values.join(",")),
                Requirement::NotIn(values) => format!("{key} notin ({})", values.join(",")),
                Requirement::Exists => key.to_string(),
                Requirement::DoesNotExist => format!("!{key}"),
            });
        f.write_str(&equal.chain(rules).collect::<Vec<_>>().join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::parse;
    use serde_json::{Value, json};

    fn key(namespace: &str, name: &str) -> Key {
        (namespace.to_owned(), name.to_owned())
    }

    fn pod(labels: Value, ip: &str) -> PodInfo {
        let pod = json!({"metadata": {"labels": labels}, "spec": {"containers": []},
            "status": {"podIP": ip}});
        parse::pod(&serde_json::from_value(pod).expect("a Pod")).expect("with an address")
    }

    fn policy(spec: Value) -> PolicyInfo {
        let policy = json!({"metadata": {"namespace": "d"}, "spec": spec});
        let policy = serde_json::from_value(policy).expect("a NetworkPolicy");
        parse::policy(&policy).expect("with a spec")
    }

    #[test]
    fn a_pods_policies_are_told_with_who_is_meant_now() {
        let mut scene = Scene::default();
        scene
            .pods
            .insert(key("d", "web"), pod(json!({"app": "web"}), "10.42.0.2"));
        scene
            .pods
            .insert(key("f", "far"), pod(json!({"app": "far"}), "10.42.1.5"));
        let blue = Labels::from([("team".into(), "blue".into())]);
        scene.namespaces.insert("f".into(), blue);
        scene
            .policies
            .insert("deny".into(), policy(json!({"podSelector": {}})));
        let allow = json!({"podSelector": {"matchLabels": {"app": "web"}}, "ingress": [{
            "from": [
                {"namespaceSelector": {"matchLabels": {"team": "blue"}}},
                {"ipBlock": {"cidr": "192.0.2.0/24", "except": ["192.0.2.8/29"]}}],
            "ports": [{"port": "http"}, {"port": 1000, "endPort": 1010, "protocol": "UDP"}]}]});
        scene.policies.insert("allow".into(), policy(allow));
        let other =
            json!({"podSelector": {"matchLabels": {"app": "other"}}, "policyTypes": ["Egress"]});
        scene.policies.insert("other".into(), policy(other));
        assert_eq!(
            scene.words(&key("d", "web")),
            [
                "ingress: denied but for what is allowed by allow, deny",
                "  allow allows from all pods of namespaces with team=blue, at TCP http, UDP 1000-1010",
                "    now f/far 10.42.1.5",
                "  allow allows from 192.0.2.0/24 except 192.0.2.8/29, at TCP http, UDP 1000-1010",
                "  deny allows nothing",
                "egress: no policy selects the pod, all may pass",
            ]
        );
        assert_eq!(scene.restricted(&key("d", "web")), [false, true]);
    }
}
