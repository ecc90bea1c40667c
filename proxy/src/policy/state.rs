// SPDX-License-Identifier: Apache-2.0
//! What the kernel's table holds, and which transaction leads from there to what is wanted.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use cni::nft::{Data, Element, Family, Interval, Transaction};

use super::classes::{Address, Classes, Tables};
use super::rules::{self, Entry, Set};
use super::world::{Change, World};

/// What the constant part of the table depends on, and who is on this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Name of this node.
    pub node: String,
    /// The bridge of its pods.
    pub bridge: String,
    /// Are pods known by their attachments to the network? Else by their status.
    pub attachments: bool,
}

/// How much there is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sizes {
    /// Policies of the cluster.
    pub policies: u64,
    /// Pods of this node.
    pub pods: u64,
    /// Those that policies select.
    pub restricted: u64,
    /// Elements, by the name of their set; none of sets that are empty.
    pub elements: Vec<(String, u64)>,
}

type Elements = BTreeMap<(Set, Vec<u8>), Option<Data>>;
type Intervals = BTreeMap<(Set, Vec<u8>), Interval>;

/// Everything that is known, and what the kernel has of it.
#[derive(Debug, Clone)]
pub struct State {
    table: String,
    bridge: String,
    world: World,
    classes: Classes,
    addresses: BTreeMap<IpAddr, Address>,
    local: BTreeSet<IpAddr>,
    elements: Elements,
    intervals: Intervals,
    /// How many elements each set has.
    counts: BTreeMap<Set, u64>,
}

impl State {
    /// Nothing is known, so no pod may send or be sent anything.
    pub fn new(table: &str, settings: &Settings) -> State {
        State {
            table: table.to_owned(),
            bridge: settings.bridge.clone(),
            world: World::new(&settings.node, settings.attachments),
            classes: Classes::default(),
            addresses: BTreeMap::new(),
            local: BTreeSet::new(),
            elements: Elements::new(),
            intervals: Intervals::new(),
            counts: BTreeMap::new(),
        }
    }

    /// Everything, from nothing: the table is replaced in one transaction.
    pub fn full(&mut self) -> Transaction {
        let mut transaction = rules::skeleton(&self.table, &self.bridge);
        let mut by_set: BTreeMap<Set, Vec<Element>> = BTreeMap::new();
        let of_addresses = self.addresses.iter();
        let of_addresses = of_addresses.flat_map(|(ip, address)| entries(*ip, address));
        let of_classes = self.elements.iter();
        let of_classes = of_classes.map(|((set, key), data)| (*set, key.clone(), data.clone()));
        for (set, element) in of_addresses.chain(of_classes).map(rules::element) {
            by_set.entry(set).or_default().push(element);
        }
        for (set, elements) in by_set {
            transaction.add(&set.to_string(), elements);
        }
        let mut by_set: BTreeMap<Set, Vec<Interval>> = BTreeMap::new();
        for ((set, _), interval) in &self.intervals {
            by_set.entry(*set).or_default().push(interval.clone());
        }
        for (set, intervals) in by_set {
            transaction.add_intervals(&set.to_string(), intervals);
        }
        transaction
    }

    /// Take in what has changed, and return what of the kernel's elements has to.
    pub fn update(&mut self, changes: impl IntoIterator<Item = Change>) -> Transaction {
        changes
            .into_iter()
            .for_each(|change| self.world.take(change));
        let mut transaction = Transaction::new(Family::Inet, &self.table);
        if !self.world.is_changed() {
            return transaction;
        }
        let dirty = self.world.settle();
        let (addresses, tables) = self.classes.update(&self.world, dirty);
        let mut difference = Difference::default();
        for (ip, new) in addresses {
            let old = self.addresses.remove(&ip).unwrap_or_default();
            if old != new {
                difference.elements(keyed(entries(ip, &old)), keyed(entries(ip, &new)));
            }
            match new.subject {
                Some(_) => self.local.insert(ip),
                None => self.local.remove(&ip),
            };
            if new != Address::default() {
                self.addresses.insert(ip, new);
            }
        }
        if let Some(tables) = tables {
            let (elements, intervals) = contents(&tables);
            let old = std::mem::replace(&mut self.elements, elements);
            difference.elements(old, self.elements.clone());
            let old = std::mem::replace(&mut self.intervals, intervals);
            difference.intervals(&old, &self.intervals);
        }
        difference.count(&mut self.counts);
        difference.write(&mut transaction);
        transaction
    }

    /// The addresses of pods of this node that the rules know.
    pub fn local(&self) -> &BTreeSet<IpAddr> {
        &self.local
    }

    /// How much there is.
    pub fn sizes(&self) -> Sizes {
        let number = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
        Sizes {
            policies: number(self.world.policy_count()),
            pods: number(self.world.local_pods()),
            restricted: number(self.classes.restricted()),
            elements: self
                .counts
                .iter()
                .filter(|(_, n)| **n > 0)
                .map(|(set, n)| (set.to_string(), *n))
                .collect(),
        }
    }
}

/// The elements of an address.
fn entries(ip: IpAddr, address: &Address) -> Vec<Entry> {
    let mut entries = Vec::new();
    if let Some((egress, ingress)) = address.subject {
        entries.push(rules::pod(ip, egress, ingress));
        if (egress, ingress) != (0, 0) {
            entries.push(rules::itself(ip));
        }
    }
    entries.extend(address.peer.map(|class| rules::peer(ip, class)));
    entries
}

fn keyed(entries: Vec<Entry>) -> Elements {
    let pair = |(set, key, data): Entry| ((set, key), data);
    entries.into_iter().map(pair).collect()
}

fn contents(tables: &Tables) -> (Elements, Intervals) {
    let pairs = tables.pairs.iter();
    let mut entries: Vec<Entry> = pairs
        .map(|((peer, class), list)| rules::pair(*peer, *class, *list))
        .collect();
    let anyone = tables.anyone.iter();
    entries.extend(anyone.map(|(class, list)| rules::anyone(*class, *list)));
    let mut intervals = Intervals::new();
    let mut add = |(set, interval): (Set, Interval)| {
        let key = [interval.first.as_slice(), &interval.last].concat();
        intervals.insert((set, key), interval);
    };
    for (list, ranges) in &tables.lists {
        for range in ranges {
            if range.first == range.last {
                entries.push(rules::port(*list, range));
            } else {
                add(rules::range(*list, range));
            }
        }
    }
    for (first, last, class) in &tables.blocks {
        add(rules::block(*first, *last, *class));
    }
    (keyed(entries), intervals)
}

/// Elements that go and elements that come. One with new data does both.
#[derive(Default)]
struct Difference {
    gone: BTreeMap<Set, Vec<Vec<u8>>>,
    added: BTreeMap<Set, Vec<Element>>,
    gone_intervals: BTreeMap<Set, Vec<Interval>>,
    added_intervals: BTreeMap<Set, Vec<Interval>>,
}

impl Difference {
    fn elements(&mut self, mut old: Elements, new: Elements) {
        for ((set, key), data) in new {
            let place = (set, key);
            match old.remove(&place) {
                Some(before) if before == data => continue,
                Some(_) => self.gone.entry(set).or_default().push(place.1.clone()),
                None => {}
            }
            let element = Element { key: place.1, data };
            self.added.entry(set).or_default().push(element);
        }
        for (set, key) in old.into_keys() {
            self.gone.entry(set).or_default().push(key);
        }
    }

    fn intervals(&mut self, old: &Intervals, new: &Intervals) {
        let differ = |a: &Intervals, b: &Intervals| -> Vec<(Set, Interval)> {
            let differing = a
                .iter()
                .filter(|(key, interval)| b.get(*key) != Some(*interval));
            differing.map(|((set, _), i)| (*set, i.clone())).collect()
        };
        for (set, interval) in differ(old, new) {
            self.gone_intervals.entry(set).or_default().push(interval);
        }
        for (set, interval) in differ(new, old) {
            self.added_intervals.entry(set).or_default().push(interval);
        }
    }

    /// What there is afterwards, set by set.
    fn count(&self, counts: &mut BTreeMap<Set, u64>) {
        let number = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
        let mut add = |set: &Set, n: usize| *counts.entry(*set).or_default() += number(n);
        self.added.iter().for_each(|(set, all)| add(set, all.len()));
        let intervals = self.added_intervals.iter();
        intervals.for_each(|(set, all)| add(set, all.len()));
        let mut remove = |set: &Set, n: usize| *counts.entry(*set).or_default() -= number(n);
        self.gone
            .iter()
            .for_each(|(set, all)| remove(set, all.len()));
        let intervals = self.gone_intervals.iter();
        intervals.for_each(|(set, all)| remove(set, all.len()));
    }

    fn write(self, transaction: &mut Transaction) {
        for (set, keys) in self.gone {
            transaction.delete(&set.to_string(), keys);
        }
        for (set, intervals) in self.gone_intervals {
            transaction.delete_intervals(&set.to_string(), intervals);
        }
        for (set, elements) in self.added {
            transaction.add(&set.to_string(), elements);
        }
        for (set, intervals) in self.added_intervals {
            transaction.add_intervals(&set.to_string(), intervals);
        }
    }
}
