// SPDX-License-Identifier: Apache-2.0
//! What the kernel's table holds, and which transaction leads from there to what is wanted.

use std::collections::{BTreeMap, BTreeSet};

use cni::cidr::Cidr;
use cni::nft::{Data, Element, Family, Transaction};

use crate::rules::{self, Elements};
use crate::service::{Frontend, Protocol, ServiceRules, Target};

/// Namespace and name of a Service.
pub type ServiceKey = (String, String);

/// The rules of every Service, and what the kernel has of them.
#[derive(Debug, Clone, Default)]
pub struct State {
    table: String,
    cluster: Vec<Cidr>,
    services: BTreeMap<ServiceKey, (ServiceRules, Elements)>,
    /// Who wants an element, in order: two Services may lead to one pod, and by mistake two may have
    /// one address. The first has it in the kernel.
    owners: BTreeMap<(String, Vec<u8>), BTreeMap<ServiceKey, Option<Data>>>,
    /// Chains that draw: family and number of endpoints. They stay; there are few.
    picks: BTreeSet<(bool, u32)>,
}

/// What a change asks of the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// To be applied as a whole.
    pub transaction: Transaction,
    /// Afterwards: UDP frontends whose flows may go astray.
    pub udp: BTreeSet<Frontend>,
}

type Key = (String, Vec<u8>);

impl State {
    /// Nothing is served yet. `cluster`: the addresses of all pods.
    pub fn new(table: &str, cluster: &[Cidr]) -> State {
        State {
            table: table.to_owned(),
            cluster: cluster.to_vec(),
            ..State::default()
        }
    }

    /// The backends that a frontend leads to now; `None`: the frontend is not served.
    pub fn backends(&self, frontend: &Frontend) -> Option<&Target> {
        self.services
            .values()
            .find_map(|(rules, _)| rules.frontends.get(frontend))
    }

    /// Everything, from nothing: the table is replaced in one transaction.
    pub fn full(&mut self) -> Step {
        let mut transaction = rules::skeleton(&self.table, &self.cluster);
        for (ipv4, count) in &self.picks {
            rules::add_pick_chain(&mut transaction, *ipv4, *count);
        }
        let wanted: Vec<(&Key, &Option<Data>)> = self
            .owners
            .iter()
            .filter_map(|(key, owners)| Some((key, owners.values().next()?)))
            .collect();
        add_elements(&mut transaction, wanted.into_iter());
        let frontends = self
            .services
            .values()
            .flat_map(|(rules, _)| rules.frontends.keys());
        let udp = frontends
            .filter(|f| f.protocol == Protocol::Udp)
            .copied()
            .collect();
        Step { transaction, udp }
    }

    /// Give Services new rules (`None`: the Service is gone), and return what has to change.
    pub fn update(&mut self, changes: Vec<(ServiceKey, Option<ServiceRules>)>) -> Step {
        let mut transaction = Transaction::new(Family::Inet, &self.table);
        let mut before: BTreeMap<Key, Option<Option<Data>>> = BTreeMap::new();
        let mut udp = BTreeSet::new();
        for (service, rules) in changes {
            let old = self.services.remove(&service);
            changed_udp(old.as_ref().map(|o| &o.0), rules.as_ref(), &mut udp);
            for (key, _) in old.map(|o| o.1).unwrap_or_default() {
                before
                    .entry(key.clone())
                    .or_insert_with(|| self.in_kernel(&key));
                if let Some(owners) = self.owners.get_mut(&key) {
                    owners.remove(&service);
                }
            }
            let Some(rules) = rules else { continue };
            let elements = rules::elements(&rules);
            for (key, data) in &elements {
                before
                    .entry(key.clone())
                    .or_insert_with(|| self.in_kernel(key));
                self.owners
                    .entry(key.clone())
                    .or_default()
                    .insert(service.clone(), data.clone());
            }
            self.add_picks(&rules, &mut transaction);
            self.services.insert(service, (rules, elements));
        }
        self.diff(before, &mut transaction);
        Step { transaction, udp }
    }

    fn in_kernel(&self, key: &Key) -> Option<Option<Data>> {
        self.owners
            .get(key)
            .and_then(|owners| owners.values().next())
            .cloned()
    }

    fn add_picks(&mut self, rules: &ServiceRules, transaction: &mut Transaction) {
        for (frontend, target) in &rules.frontends {
            let Target::Backends(backends, _) = target else {
                continue;
            };
            let count = u32::try_from(backends.len()).expect("fewer endpoints than addresses");
            if self.picks.insert((frontend.addr.is_ipv4(), count)) {
                rules::add_pick_chain(transaction, frontend.addr.is_ipv4(), count);
            }
        }
    }

    /// Only elements that differ. One with new data is deleted and added in the same transaction.
    fn diff(&mut self, before: BTreeMap<Key, Option<Option<Data>>>, transaction: &mut Transaction) {
        let mut gone: BTreeMap<String, Vec<Vec<u8>>> = BTreeMap::new();
        let mut added = Elements::new();
        for (key, old) in before {
            let new = self.in_kernel(&key);
            if new.is_none() {
                self.owners.remove(&key);
            }
            if old == new {
                continue;
            }
            if old.is_some() {
                gone.entry(key.0.clone()).or_default().push(key.1.clone());
            }
            if let Some(data) = new {
                added.insert(key, data);
            }
        }
        for (set, keys) in gone {
            transaction.delete(&set, keys);
        }
        add_elements(transaction, added.iter());
    }
}

fn add_elements<'a>(
    transaction: &mut Transaction,
    elements: impl Iterator<Item = (&'a Key, &'a Option<Data>)>,
) {
    let mut by_set: BTreeMap<&str, Vec<Element>> = BTreeMap::new();
    for ((set, key), data) in elements {
        by_set.entry(set).or_default().push(Element {
            key: key.clone(),
            data: data.clone(),
        });
    }
    for (set, elements) in by_set {
        transaction.add(set, elements);
    }
}

fn changed_udp(
    old: Option<&ServiceRules>,
    new: Option<&ServiceRules>,
    udp: &mut BTreeSet<Frontend>,
) {
    let target = |rules: Option<&ServiceRules>, frontend: &Frontend| {
        rules.and_then(|r| r.frontends.get(frontend)).cloned()
    };
    let all = [old, new]
        .into_iter()
        .flatten()
        .flat_map(|r| r.frontends.keys());
    for frontend in all.filter(|f| f.protocol == Protocol::Udp) {
        if target(old, frontend) != target(new, frontend) {
            udp.insert(*frontend);
        }
    }
}
