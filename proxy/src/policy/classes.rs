// SPDX-License-Identifier: Apache-2.0
//! Who is restricted by what, and who is at the other end, as numbers.
//!
//! Pods of this node that the same policies select, and that have the same numbers for the ports
//! that these name, are one class: one for each direction. Addresses at the other end that are of
//! the same peers are one class too. What a class may reach is said once for each pair.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use super::blocks::{Block, Piece, pieces};
use super::numbers::{Numbers, Sweep};
use super::parse::{Namespaces, Peer, PodInfo, PolicyInfo, Port, Rule};
use super::ports::{Ports, Range};
use super::selector::Selector;
use super::world::{Dirty, Key, World};
use crate::service::Protocol;

/// Numbers of pieces of blocks begin here, so that no class of pods has one.
const BLOCKS: u32 = 1 << 31;

/// A port by its name.
type Name = (Protocol, Box<str>);
/// The numbers that a pod has for names.
type Resolved = Vec<(Name, Vec<u16>)>;

/// Pods of this node with the same restrictions in one direction.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Subject {
    ingress: bool,
    namespace: String,
    policies: Vec<String>,
    /// Of names in ingress rules.
    names: Resolved,
}

/// What is at the other end.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct PeerClass {
    /// Which peers of rules it is; at least one.
    groups: Vec<u32>,
    /// Of names in egress rules.
    names: Resolved,
}

/// What a class may reach of a peer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Allowed {
    ports: Option<Ports>,
    /// Ports that each peer has its own number for.
    names: BTreeSet<Name>,
}

type Allowances = BTreeMap<Peer, Allowed>;

/// What the rules need to know of an address.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Address {
    /// Of a pod of this node: its classes for egress and ingress, 0: not restricted.
    pub subject: Option<(u32, u32)>,
    /// Its class as a peer.
    pub peer: Option<u32>,
}

/// What the rules need to know of classes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tables {
    /// Class of the other end, class of the pod → number of a list of ports.
    pub pairs: BTreeMap<(u32, u32), u32>,
    /// The same whoever is at the other end.
    pub anyone: BTreeMap<u32, u32>,
    /// Lists of ports, by number.
    pub lists: BTreeMap<u32, Vec<Range>>,
    /// Intervals of addresses that are not of pods only, with their class.
    pub blocks: Vec<(IpAddr, IpAddr, u32)>,
}

/// The list that has all ports.
pub const ALL: u32 = 1;

#[derive(Debug, Clone)]
struct Group {
    id: u32,
    members: BTreeSet<Key>,
}

/// See the module.
#[derive(Debug, Clone)]
pub struct Classes {
    of_pod: HashMap<Key, [Option<Subject>; 2]>,
    subjects: Numbers<Subject>,
    allowances: BTreeMap<u32, Allowances>,
    groups: BTreeMap<Peer, Group>,
    next_group: u32,
    memberships: HashMap<Key, BTreeSet<u32>>,
    names: BTreeSet<Name>,
    of_address: HashMap<IpAddr, PeerClass>,
    peers: Numbers<PeerClass>,
    lists: Sweep<Vec<Range>>,
    blocks: Sweep<BTreeSet<u32>>,
}

impl Default for Classes {
    fn default() -> Classes {
        Classes {
            of_pod: HashMap::new(),
            subjects: Numbers::from(1),
            allowances: BTreeMap::new(),
            groups: BTreeMap::new(),
            next_group: 1,
            memberships: HashMap::new(),
            names: BTreeSet::new(),
            of_address: HashMap::new(),
            peers: Numbers::from(1),
            lists: Sweep::from(ALL + 1),
            blocks: Sweep::from(BLOCKS),
        }
    }
}

impl Classes {
    /// Take in what has changed in the world. Returns the addresses that mean something else now
    /// (`None`: nothing), and, if they have changed, all tables of classes.
    pub fn update(
        &mut self,
        world: &World,
        mut dirty: Dirty,
    ) -> (BTreeMap<IpAddr, Address>, Option<Tables>) {
        self.subjects.changed = false;
        self.peers.changed = false;
        self.update_subjects(world, &mut dirty);
        let mut changed = false;
        if dirty.policies || self.subjects.changed {
            changed = self.update_allowances(world);
        }
        if changed {
            self.update_groups(world, &mut dirty.addresses);
            self.update_names(world, &mut dirty.addresses);
        }
        for key in &dirty.pods {
            self.update_membership(world, key);
        }
        let addresses = dirty.addresses.iter();
        let addresses = addresses
            .map(|ip| (*ip, self.address(world, *ip)))
            .collect();
        let tables = changed || self.subjects.changed || self.peers.changed;
        (addresses, tables.then(|| self.tables()))
    }

    /// How many pods of this node are restricted.
    pub fn restricted(&self) -> usize {
        self.of_pod.len()
    }

    fn update_subjects(&mut self, world: &World, dirty: &mut Dirty) {
        for key in std::mem::take(&mut dirty.subjects) {
            let new = world.local_pod(&key).map(|pod| subjects(world, &key, pod));
            let new = new.filter(|pair| pair.iter().any(Option::is_some));
            let old = self.of_pod.remove(&key);
            if old != new {
                dirty.addresses.extend(world.addresses(&key));
            }
            for subject in new.iter().flatten().flatten() {
                self.subjects.take(subject);
            }
            for subject in old.iter().flatten().flatten() {
                self.subjects.leave(subject);
            }
            if let Some(new) = new {
                self.of_pod.insert(key, new);
            }
        }
    }

    fn update_allowances(&mut self, world: &World) -> bool {
        let all = self.subjects.iter();
        let new = all.map(|(subject, number)| (number, allowances(world, subject)));
        let new = new.collect();
        let changed = self.allowances != new;
        self.allowances = new;
        changed
    }

    /// Peers that no rule names any more are forgotten; pods are found for new ones.
    fn update_groups(&mut self, world: &World, dirty: &mut BTreeSet<IpAddr>) {
        let named = self.allowances.values().flat_map(BTreeMap::keys);
        let wanted: BTreeSet<Peer> = named.filter(|p| **p != Peer::Everyone).cloned().collect();
        let mut touched = |block: &Block| {
            dirty.extend(world.owned().filter(|ip| block.contains(*ip)));
        };
        let gone: Vec<Peer> = self
            .groups
            .keys()
            .filter(|p| !wanted.contains(*p))
            .cloned()
            .collect();
        let mut pods = BTreeSet::new();
        for peer in gone {
            let Some(group) = self.groups.remove(&peer) else {
                continue;
            };
            for key in group.members {
                self.leave_group(&key, group.id);
                pods.insert(key);
            }
            if let Peer::PodsInBlock(block) = &peer {
                touched(block);
            }
        }
        for peer in wanted {
            if self.groups.contains_key(&peer) {
                continue;
            }
            let id = self.next_group;
            self.next_group += 1;
            let members = world.members(&peer);
            for key in &members {
                self.memberships.entry(key.clone()).or_default().insert(id);
                pods.insert(key.clone());
            }
            if let Peer::PodsInBlock(block) = &peer {
                touched(block);
            }
            self.groups.insert(peer, Group { id, members });
        }
        dirty.extend(pods.iter().flat_map(|key| world.addresses(key)));
    }

    fn leave_group(&mut self, key: &Key, id: u32) {
        if let Some(groups) = self.memberships.get_mut(key) {
            groups.remove(&id);
            if groups.is_empty() {
                self.memberships.remove(key);
            }
        }
    }

    /// Names of ports that egress rules use: what pods have for them tells pods apart.
    fn update_names(&mut self, world: &World, dirty: &mut BTreeSet<IpAddr>) {
        let allowed = self.allowances.values().flat_map(BTreeMap::values);
        let names: BTreeSet<Name> = allowed.flat_map(|a| a.names.iter().cloned()).collect();
        let differ: BTreeSet<&Name> = names.symmetric_difference(&self.names).collect();
        if !differ.is_empty() {
            let has = |key: &&Key| {
                let pod = world.pod(key);
                let ports = pod.into_iter().flat_map(|pod| pod.ports.iter());
                let mut names = ports.map(|(protocol, name, _)| (*protocol, name.clone()));
                names.any(|name| differ.contains(&name))
            };
            let keys = world.pods().filter(has);
            dirty.extend(keys.flat_map(|key| world.addresses(key)));
        }
        self.names = names;
    }

    fn update_membership(&mut self, world: &World, key: &Key) {
        let mut groups = BTreeSet::new();
        for (peer, group) in &mut self.groups {
            if world.is_peer(key, peer) {
                group.members.insert(key.clone());
                groups.insert(group.id);
            } else {
                group.members.remove(key);
            }
        }
        if groups.is_empty() {
            self.memberships.remove(key);
        } else {
            self.memberships.insert(key.clone(), groups);
        }
    }

    fn address(&mut self, world: &World, ip: IpAddr) -> Address {
        let owner = world.owner(ip);
        let new = owner.and_then(|(key, _)| self.peer_class(world, key, ip));
        let number = new.as_ref().map(|class| self.peers.take(class));
        let old = match new {
            Some(class) => self.of_address.insert(ip, class),
            None => self.of_address.remove(&ip),
        };
        if let Some(old) = old {
            self.peers.leave(&old);
        }
        let local = owner.filter(|(_, local)| *local);
        Address {
            subject: local.map(|(key, _)| {
                let pair = self.of_pod.get(key);
                let number = |at: usize| {
                    let subject = pair.and_then(|pair| pair[at].as_ref());
                    subject.and_then(|s| self.subjects.of(s)).unwrap_or(0)
                };
                (number(0), number(1))
            }),
            peer: number,
        }
    }

    fn peer_class(&self, world: &World, key: &Key, ip: IpAddr) -> Option<PeerClass> {
        let by_labels = self.memberships.get(key).into_iter().flatten().copied();
        let mut groups: Vec<u32> = by_labels.collect();
        let by_block = self.groups.iter().filter_map(|(peer, group)| match peer {
            Peer::PodsInBlock(block) if block.contains(ip) => Some(group.id),
            _ => None,
        });
        groups.extend(by_block);
        groups.sort_unstable();
        let pod = world.pod(key).filter(|_| !groups.is_empty())?;
        Some(PeerClass {
            groups,
            names: resolve(pod, &self.names),
        })
    }

    fn tables(&mut self) -> Tables {
        let mut tables = Tables::default();
        let (found, numbered) = self.pieces();
        let mut by_group: BTreeMap<u32, Vec<(u32, &Resolved)>> = BTreeMap::new();
        for (class, number) in self.peers.iter() {
            for group in &class.groups {
                by_group
                    .entry(*group)
                    .or_default()
                    .push((number, &class.names));
            }
        }
        for (number, groups) in &numbered {
            for group in groups {
                by_group
                    .entry(*group)
                    .or_default()
                    .push((*number, &NO_NAMES));
            }
        }
        tables.blocks = found;
        let mut anyone: BTreeMap<u32, Ports> = BTreeMap::new();
        let mut pairs: BTreeMap<(u32, u32), Ports> = BTreeMap::new();
        for (subject, allowances) in &self.allowances {
            for (peer, allowed) in allowances {
                if *peer == Peer::Everyone {
                    anyone.insert(*subject, allowed.of(&NO_NAMES));
                    continue;
                }
                let group = self.groups.get(peer).map(|group| group.id);
                for (class, names) in group.and_then(|id| by_group.get(&id)).into_iter().flatten() {
                    let ports = pairs.entry((*class, *subject)).or_insert_with(Ports::none);
                    ports.add(&allowed.of(names));
                }
            }
        }
        pairs.retain(|_, ports| !ports.is_empty());
        anyone.retain(|_, ports| !ports.is_empty());
        let used = pairs
            .values()
            .chain(anyone.values())
            .filter_map(|p| match p {
                Ports::All => None,
                Ports::Some(ranges) => Some(ranges.clone()),
            });
        self.lists.hold(used.collect());
        let number = |ports: &Ports| match ports {
            Ports::All => ALL,
            Ports::Some(ranges) => self.lists.of(ranges).unwrap_or(0),
        };
        tables.pairs = pairs
            .iter()
            .map(|(key, ports)| (*key, number(ports)))
            .collect();
        tables.anyone = anyone
            .iter()
            .map(|(key, ports)| (*key, number(ports)))
            .collect();
        let lists = self.lists.iter();
        tables.lists = lists
            .map(|(ranges, number)| (number, ranges.clone()))
            .collect();
        tables
    }

    /// Intervals of blocks with their classes, and what the classes are.
    #[expect(clippy::type_complexity, reason = "two lists that are made together")]
    fn pieces(&mut self) -> (Vec<(IpAddr, IpAddr, u32)>, Vec<(u32, Vec<u32>)>) {
        let blocks = self.groups.iter().filter_map(|(peer, group)| match peer {
            Peer::Block(block) => Some((group.id, block)),
            _ => None,
        });
        let blocks: Vec<(u32, &Block)> = blocks.collect();
        let both = [true, false].map(|ipv4| pieces(ipv4, &blocks));
        let all: Vec<Piece> = both.into_iter().flatten().collect();
        self.blocks
            .hold(all.iter().map(|p| p.blocks.clone()).collect());
        let number = |piece: &Piece| self.blocks.of(&piece.blocks).unwrap_or(BLOCKS);
        let found = all.iter().map(|p| (p.first, p.last, number(p))).collect();
        let numbered = self.blocks.iter();
        let numbered = numbered.map(|(set, number)| (number, set.iter().copied().collect()));
        (found, numbered.collect())
    }
}

static NO_NAMES: Resolved = Vec::new();

impl Allowed {
    fn add(&mut self, ports: &Ports) {
        if ports.is_empty() {
            return;
        }
        self.ports.get_or_insert_with(Ports::none).add(ports);
    }

    /// All that is allowed where names have these numbers.
    fn of(&self, resolved: &Resolved) -> Ports {
        let mut ports = self.ports.clone().unwrap_or_else(Ports::none);
        let mine = resolved
            .iter()
            .filter(|(name, _)| self.names.contains(name));
        let ranges = mine.flat_map(|((protocol, _), numbers)| numbers_of(*protocol, numbers));
        ports.add(&Ports::of(ranges.collect()));
        ports
    }
}

fn numbers_of(protocol: Protocol, numbers: &[u16]) -> impl Iterator<Item = Range> {
    numbers.iter().map(move |number| Range {
        protocol,
        first: *number,
        last: *number,
    })
}

/// The numbers that a pod has for some names.
fn resolve(pod: &PodInfo, names: &BTreeSet<Name>) -> Resolved {
    let mut resolved: BTreeMap<Name, Vec<u16>> = BTreeMap::new();
    for (protocol, name, number) in &pod.ports {
        let name = (*protocol, name.clone());
        if names.contains(&name) {
            resolved.entry(name).or_default().push(*number);
        }
    }
    resolved.into_iter().collect()
}

fn rules(policy: &PolicyInfo, ingress: bool) -> Option<&[Rule]> {
    let rules = if ingress {
        &policy.ingress
    } else {
        &policy.egress
    };
    rules.as_deref()
}

/// The classes of a pod for egress and ingress.
fn subjects(world: &World, key: &Key, pod: &PodInfo) -> [Option<Subject>; 2] {
    [false, true].map(|ingress| {
        let mut names = BTreeSet::new();
        let mut policies = Vec::new();
        for (name, policy) in world.policies(&key.0) {
            let selects = |s: &Selector| s.matches(&pod.labels);
            let Some(rules) = rules(policy, ingress) else {
                continue;
            };
            if !policy.pods.as_ref().is_some_and(selects) {
                continue;
            }
            policies.push(name.clone());
            let ports = rules.iter().flat_map(|rule| rule.ports.iter().flatten());
            names.extend(ports.filter_map(|port| match port {
                Port::Named(protocol, name) if ingress => Some((*protocol, name.clone())),
                _ => None,
            }));
        }
        (!policies.is_empty()).then(|| Subject {
            ingress,
            namespace: key.0.clone(),
            policies,
            names: resolve(pod, &names),
        })
    })
}

/// What all policies of a class allow together.
fn allowances(world: &World, subject: &Subject) -> Allowances {
    let mut allowances = Allowances::new();
    for name in &subject.policies {
        let policy = world.policy(&subject.namespace, name);
        let rules = policy.and_then(|p| rules(p, subject.ingress));
        for rule in rules.unwrap_or_default() {
            allow(&mut allowances, rule, subject);
        }
    }
    allowances
}

fn allow(allowances: &mut Allowances, rule: &Rule, subject: &Subject) {
    let (mut ranges, mut names) = (Vec::new(), BTreeSet::new());
    for port in rule.ports.iter().flatten() {
        match port {
            Port::Numbers(range) => ranges.push(*range),
            Port::Named(protocol, name) if subject.ingress => {
                let wanted = (*protocol, name.clone());
                let mine = subject.names.iter().filter(|(name, _)| *name == wanted);
                ranges.extend(mine.flat_map(|(_, numbers)| numbers_of(*protocol, numbers)));
            }
            Port::Named(protocol, name) => {
                names.insert((*protocol, name.clone()));
            }
        }
    }
    let ports = match rule.ports {
        None => Ports::All,
        Some(_) => Ports::of(ranges),
    };
    for peer in &rule.peers {
        if !ports.is_empty() {
            allowances.entry(peer.clone()).or_default().add(&ports);
        }
        if !names.is_empty() {
            let pods = allowances.entry(with_names(peer)).or_default();
            pods.names.extend(names.iter().cloned());
        }
    }
}

/// The pods among a peer.
fn with_names(peer: &Peer) -> Peer {
    match peer {
        Peer::Everyone => Peer::Pods(
            Namespaces::Selected(Selector::default()),
            Selector::default(),
        ),
        Peer::Block(block) => Peer::PodsInBlock(block.clone()),
        pods => pods.clone(),
    }
}
