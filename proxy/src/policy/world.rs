// SPDX-License-Identifier: Apache-2.0
//! What is known of the cluster: pods with their addresses, namespaces, policies; and what a change
//! of it touches.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use cni::attached::Attached;

use super::parse::{Namespaces, Peer, PodInfo, PolicyInfo};
use super::selector::Labels;

/// Namespace and name.
pub type Key = (String, String);

/// Something that is known now; `None`: it is gone.
#[derive(Debug, Clone)]
pub enum Change {
    /// A Pod.
    Pod(Key, Option<PodInfo>),
    /// A Namespace.
    Namespace(String, Option<Labels>),
    /// A NetworkPolicy.
    Policy(Key, Option<PolicyInfo>),
    /// A pod of this node is attached to the network, by the attachment's name.
    Attachment(String, Option<Attached>),
}

/// What has to be looked at again.
#[derive(Debug, Default)]
pub struct Dirty {
    /// Pods.
    pub pods: BTreeSet<Key>,
    /// Pods of this node whose policies may be others now.
    pub subjects: BTreeSet<Key>,
    /// Addresses.
    pub addresses: BTreeSet<IpAddr>,
    /// Has a policy changed?
    pub policies: bool,
}

/// Who has an address; and is the pod on this node?
type Claim = (Key, bool);

/// See the module.
#[derive(Debug, Clone)]
pub struct World {
    node: Box<str>,
    /// Whose word counts for the addresses of this node's pods: the attachments', or their status.
    attachments: bool,
    pods: HashMap<Key, PodInfo>,
    by_namespace: HashMap<String, BTreeSet<String>>,
    namespaces: HashMap<String, Labels>,
    policies: HashMap<String, BTreeMap<String, PolicyInfo>>,
    attached: HashMap<String, Attached>,
    attached_of: HashMap<Key, BTreeSet<String>>,
    /// In the order in which they were claimed.
    claims: HashMap<IpAddr, Vec<Claim>>,
    addresses: HashMap<Key, Vec<(IpAddr, bool)>>,
    changed: BTreeSet<Key>,
    changed_policies: BTreeSet<String>,
}

fn key_of(attached: &Attached) -> Key {
    (attached.pod_namespace.clone(), attached.pod_name.clone())
}

impl World {
    /// Nothing is known. With `attachments` a pod of this node has an address when it is attached
    /// with it, before anybody reports that.
    pub fn new(node: &str, attachments: bool) -> World {
        World {
            node: node.into(),
            attachments,
            pods: HashMap::new(),
            by_namespace: HashMap::new(),
            namespaces: HashMap::new(),
            policies: HashMap::new(),
            attached: HashMap::new(),
            attached_of: HashMap::new(),
            claims: HashMap::new(),
            addresses: HashMap::new(),
            changed: BTreeSet::new(),
            changed_policies: BTreeSet::new(),
        }
    }

    /// Take in what has changed.
    pub fn take(&mut self, change: Change) {
        match change {
            Change::Pod(key, pod) => {
                match pod {
                    Some(pod) => {
                        let names = self.by_namespace.entry(key.0.clone()).or_default();
                        names.insert(key.1.clone());
                        self.pods.insert(key.clone(), pod);
                    }
                    None => {
                        self.pods.remove(&key);
                        if let Some(names) = self.by_namespace.get_mut(&key.0) {
                            names.remove(&key.1);
                            if names.is_empty() {
                                self.by_namespace.remove(&key.0);
                            }
                        }
                    }
                }
                self.changed.insert(key);
            }
            Change::Namespace(name, labels) => {
                let pods: Vec<Key> = self.pods_in(&name).cloned_keys(&name).collect();
                self.changed.extend(pods);
                match labels {
                    Some(labels) => drop(self.namespaces.insert(name, labels)),
                    None => drop(self.namespaces.remove(&name)),
                }
            }
            Change::Policy((namespace, name), policy) => {
                let policies = self.policies.entry(namespace.clone()).or_default();
                match policy {
                    Some(policy) => drop(policies.insert(name, policy)),
                    None => drop(policies.remove(&name)),
                }
                if policies.is_empty() {
                    self.policies.remove(&namespace);
                }
                self.changed_policies.insert(namespace);
            }
            Change::Attachment(name, attached) => self.attach(name, attached),
        }
    }

    fn attach(&mut self, name: String, attached: Option<Attached>) {
        if let Some(old) = self.attached.remove(&name) {
            let key = key_of(&old);
            if let Some(names) = self.attached_of.get_mut(&key) {
                names.remove(&name);
                if names.is_empty() {
                    self.attached_of.remove(&key);
                }
            }
            self.changed.insert(key);
        }
        let Some(attached) = attached else { return };
        let key = key_of(&attached);
        let names = self.attached_of.entry(key.clone()).or_default();
        names.insert(name.clone());
        self.attached.insert(name, attached);
        self.changed.insert(key);
    }

    fn pods_in(&self, namespace: &str) -> Names<'_> {
        Names(self.by_namespace.get(namespace))
    }

    /// Has anything changed since [`World::settle`]?
    pub fn is_changed(&self) -> bool {
        !(self.changed.is_empty() && self.changed_policies.is_empty())
    }

    /// Work out who has which address now, and what has to be looked at.
    pub fn settle(&mut self) -> Dirty {
        let mut dirty = Dirty {
            pods: std::mem::take(&mut self.changed),
            policies: !self.changed_policies.is_empty(),
            ..Dirty::default()
        };
        for key in &dirty.pods {
            let new = self.wanted(key);
            let old = self.addresses.remove(key).unwrap_or_default();
            for (ip, _) in &old {
                dirty.addresses.insert(*ip);
                if let Some(claims) = self.claims.get_mut(ip) {
                    claims.retain(|(who, local)| who != key || new.contains(&(*ip, *local)));
                    if claims.is_empty() {
                        self.claims.remove(ip);
                    }
                }
            }
            for claim in &new {
                dirty.addresses.insert(claim.0);
                if !old.contains(claim) {
                    let claims = self.claims.entry(claim.0).or_default();
                    claims.push((key.clone(), claim.1));
                }
            }
            if new.iter().chain(&old).any(|(_, local)| *local) {
                dirty.subjects.insert(key.clone());
            }
            if !new.is_empty() {
                self.addresses.insert(key.clone(), new);
            }
        }
        for namespace in std::mem::take(&mut self.changed_policies) {
            let pods = self.pods_in(&namespace).cloned_keys(&namespace);
            dirty.subjects.extend(pods.filter(|key| self.is_local(key)));
        }
        dirty
    }

    /// The addresses that a pod has.
    fn wanted(&self, key: &Key) -> Vec<(IpAddr, bool)> {
        let Some(pod) = self.pods.get(key) else {
            return Vec::new();
        };
        let here = pod.node == self.node;
        if !self.attachments {
            return pod.ips.iter().map(|ip| (*ip, here)).collect();
        }
        let names = self.attached_of.get(key).into_iter().flatten();
        // One of the pod that had the name before is none of this one.
        let mine = names
            .filter_map(|name| self.attached.get(name))
            .filter(|a| pod.uids.iter().any(|uid| **uid == *a.pod_uid));
        let mut found: Vec<(IpAddr, bool)> = mine
            .flat_map(|a| a.ips.iter().map(|ip| (*ip, true)))
            .collect();
        if found.is_empty() && !here {
            found.extend(pod.ips.iter().map(|ip| (*ip, false)));
        }
        found.sort_unstable();
        found.dedup();
        found
    }

    fn is_local(&self, key: &Key) -> bool {
        let addresses = self.addresses.get(key).into_iter().flatten();
        addresses.into_iter().any(|(_, local)| *local)
    }

    /// Who has an address, and whether on this node. Of several claims the last counts, but nobody
    /// elsewhere takes the address of a pod of this node.
    pub fn owner(&self, ip: IpAddr) -> Option<(&Key, bool)> {
        let claims = self.claims.get(&ip)?;
        let owner = claims.iter().rfind(|c| c.1).or(claims.last())?;
        Some((&owner.0, owner.1))
    }

    /// All addresses that somebody has.
    pub fn owned(&self) -> impl Iterator<Item = IpAddr> {
        self.claims.keys().copied()
    }

    /// The addresses of a pod.
    pub fn addresses(&self, key: &Key) -> impl Iterator<Item = IpAddr> {
        let found = self.addresses.get(key).into_iter().flatten();
        found.map(|(ip, _)| *ip)
    }

    /// A pod on this node.
    pub fn local_pod(&self, key: &Key) -> Option<&PodInfo> {
        self.pods.get(key).filter(|_| self.is_local(key))
    }

    /// A pod.
    pub fn pod(&self, key: &Key) -> Option<&PodInfo> {
        self.pods.get(key)
    }

    /// All pods with an address.
    pub fn pods(&self) -> impl Iterator<Item = &Key> {
        self.addresses.keys()
    }

    /// The policies of a namespace.
    pub fn policies(&self, namespace: &str) -> impl Iterator<Item = (&String, &PolicyInfo)> {
        self.policies.get(namespace).into_iter().flatten()
    }

    /// How many policies there are.
    pub fn policy_count(&self) -> usize {
        self.policies.values().map(BTreeMap::len).sum()
    }

    /// How many pods on this node have an address.
    pub fn local_pods(&self) -> usize {
        let local = |addresses: &&Vec<(IpAddr, bool)>| addresses.iter().any(|(_, local)| *local);
        self.addresses.values().filter(local).count()
    }

    /// A policy.
    pub fn policy(&self, namespace: &str, name: &str) -> Option<&PolicyInfo> {
        self.policies.get(namespace)?.get(name)
    }

    /// Is a pod with an address one of these peers, as far as labels go?
    pub fn is_peer(&self, key: &Key, peer: &Peer) -> bool {
        let Peer::Pods(namespaces, selector) = peer else {
            return false;
        };
        let in_namespace = match namespaces {
            Namespaces::One(name) => **name == *key.0,
            // Nothing is said of a namespace that has not been heard of.
            Namespaces::Selected(selector) => {
                let labels = self.namespaces.get(&key.0);
                labels.is_some_and(|labels| selector.matches(labels))
            }
        };
        in_namespace
            && self.addresses.contains_key(key)
            && self
                .pods
                .get(key)
                .is_some_and(|p| selector.matches(&p.labels))
    }

    /// Every pod that is one of these peers.
    pub fn members(&self, peer: &Peer) -> BTreeSet<Key> {
        let chosen = |name: &str| {
            let all: Vec<Key> = self.pods_in(name).cloned_keys(name).collect();
            all.into_iter().filter(|key| self.is_peer(key, peer))
        };
        match peer {
            Peer::Pods(Namespaces::One(name), _) => chosen(name).collect(),
            Peer::Pods(Namespaces::Selected(selector), _) => self
                .namespaces
                .iter()
                .filter(|(_, labels)| selector.matches(labels))
                .flat_map(|(name, _)| chosen(name))
                .collect(),
            _ => BTreeSet::new(),
        }
    }
}

/// Names of the pods of a namespace.
struct Names<'a>(Option<&'a BTreeSet<String>>);

impl<'a> Names<'a> {
    fn cloned_keys(self, namespace: &str) -> impl Iterator<Item = Key> + use<'a> {
        let namespace = namespace.to_owned();
        let names = self.0.into_iter().flatten();
        names.map(move |name| (namespace.clone(), name.clone()))
    }
}
