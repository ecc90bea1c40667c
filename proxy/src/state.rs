// SPDX-License-Identifier: Apache-2.0
//! What the kernel's table holds, and which transaction leads from there to what is wanted.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use cni::nft::{Data, Element, Family, Transaction};

use crate::numbers::Chains;
use crate::rules::{self, Elements, Map, SetName, Settings};
use crate::service::{Backend, Frontend, Protocol, ServiceRules, Target};

/// Namespace and name of a Service.
pub type ServiceKey = (String, String);

/// UDP frontends, and the endpoints that each leads to.
pub type UdpTargets = BTreeMap<Frontend, Vec<Backend>>;

/// The rules of every Service, and what the kernel has of them.
#[derive(Debug, Clone)]
pub struct State {
    table: String,
    settings: Settings,
    services: HashMap<ServiceKey, ServiceRules>,
    /// Who wants a frontend. By mistake two Services may have one address; the first keeps it.
    claims: HashMap<Frontend, Vec<ServiceKey>>,
    /// How many Services have an address, in the sets of addresses.
    addresses: HashMap<(Map, IpAddr), u32>,
    chains: Chains,
}

/// What a change asks of the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// To be applied as a whole.
    pub transaction: Transaction,
    /// Afterwards: frontends whose flows may go astray.
    pub udp: UdpTargets,
}

/// A change of some Services, as it is worked out.
#[derive(Default)]
struct Change {
    /// Frontends that were touched, with what the kernel has of each.
    frontends: BTreeMap<Frontend, Option<Target>>,
    /// The same of addresses: were they there?
    addresses: BTreeMap<(Map, IpAddr), bool>,
}

impl State {
    /// Nothing is served yet.
    pub fn new(table: &str, settings: Settings) -> State {
        State {
            table: table.to_owned(),
            settings,
            services: HashMap::new(),
            claims: HashMap::new(),
            addresses: HashMap::new(),
            chains: Chains::default(),
        }
    }

    /// What the constant part depends on. After a change the table must be replaced: [`State::full`].
    pub fn settings_mut(&mut self) -> &mut Settings {
        &mut self.settings
    }

    /// What the constant part depends on.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Every Service's rules.
    pub fn services(&self) -> impl Iterator<Item = (&ServiceKey, &ServiceRules)> {
        self.services.iter()
    }

    /// Where a frontend leads now; `None`: it is not served.
    pub fn target(&self, frontend: &Frontend) -> Option<&Target> {
        let owner = self.claims.get(frontend)?.first()?;
        self.services.get(owner)?.target(frontend)
    }

    /// Everything, from nothing: the table is replaced in one transaction.
    pub fn full(&mut self) -> Step {
        let mut transaction = rules::skeleton(&self.table, &self.settings);
        let mut chains = Chains::default();
        chains.usual(&mut transaction);
        let mut by_set: BTreeMap<SetName, Vec<Element>> = BTreeMap::new();
        let mut udp = UdpTargets::new();
        for frontend in self.claims.keys() {
            let Some(target) = self.target(frontend) else {
                continue;
            };
            chains.using(&mut transaction, |numbers| {
                for ((set, key), data) in rules::target_elements(frontend, target, numbers) {
                    by_set.entry(set).or_default().push(Element { key, data });
                }
            });
            note_udp(&mut udp, frontend, Some(target));
        }
        for (map, ip) in self.addresses.keys() {
            let (set, key) = rules::address_element(*map, *ip);
            let element = Element { key, data: None };
            by_set.entry(set).or_default().push(element);
        }
        self.chains = chains;
        for (set, elements) in by_set {
            transaction.add(&set.to_string(), elements);
        }
        Step { transaction, udp }
    }

    /// Give Services new rules (`None`: the Service is gone), and return what has to change.
    pub fn update(&mut self, changes: Vec<(ServiceKey, Option<ServiceRules>)>) -> Step {
        let mut change = Change::default();
        for (service, rules) in changes {
            self.replace(service, rules, &mut change);
        }
        self.diff(change)
    }

    /// The same without a transaction, for what [`State::full`] writes afterwards.
    pub fn adopt(&mut self, changes: Vec<(ServiceKey, Option<ServiceRules>)>) {
        let mut change = Change::default();
        for (service, rules) in changes {
            self.replace(service, rules, &mut change);
        }
    }

    fn replace(&mut self, service: ServiceKey, rules: Option<ServiceRules>, change: &mut Change) {
        let old = self.services.get(&service);
        if old.is_none() && rules.is_none() {
            return;
        }
        let old_frontends = old.map(|o| &*o.frontends).unwrap_or_default();
        let new_frontends = rules.as_ref().map(|r| &*r.frontends).unwrap_or_default();
        for (frontend, _) in old_frontends.iter().chain(new_frontends) {
            if !change.frontends.contains_key(frontend) {
                let before = self.target(frontend).cloned();
                change.frontends.insert(*frontend, before);
            }
        }
        let old = self.services.remove(&service).unwrap_or_default();
        for (frontend, _) in &old.frontends {
            let stays = rules.as_ref().is_some_and(|r| r.target(frontend).is_some());
            if !stays && let Some(claims) = self.claims.get_mut(frontend) {
                claims.retain(|claim| *claim != service);
                if claims.is_empty() {
                    self.claims.remove(frontend);
                }
            }
        }
        self.count_addresses(&old, change, |count| count.saturating_sub(1));
        let Some(rules) = rules else { return };
        self.count_addresses(&rules, change, |count| count + 1);
        for (frontend, _) in &rules.frontends {
            let claims = self.claims.entry(*frontend);
            let claims = claims.or_insert_with(|| Vec::with_capacity(1));
            if !claims.contains(&service) {
                claims.push(service.clone());
            }
        }
        self.services.insert(service, rules);
    }

    fn count_addresses(
        &mut self,
        rules: &ServiceRules,
        change: &mut Change,
        count: impl Fn(u32) -> u32,
    ) {
        let ips = rules.cluster_ips.iter().map(|ip| (Map::ClusterIps, *ip));
        let loops = rules.loops.iter().map(|ip| (Map::Loop, *ip));
        for key in ips.chain(loops) {
            let before = self.addresses.get(&key).copied().unwrap_or(0);
            change.addresses.entry(key).or_insert(before > 0);
            match count(before) {
                0 => drop(self.addresses.remove(&key)),
                after => drop(self.addresses.insert(key, after)),
            }
        }
    }

    /// Only elements that differ. One with new data is deleted and added in the same transaction.
    fn diff(&mut self, change: Change) -> Step {
        let mut transaction = Transaction::new(Family::Inet, &self.table);
        let mut chains = std::mem::take(&mut self.chains);
        let (mut gone, mut added) = (BTreeMap::new(), Elements::new());
        let mut udp = UdpTargets::new();
        for (frontend, before) in change.frontends {
            let after = self.target(&frontend);
            if before.as_ref() == after {
                continue;
            }
            let mut of = |target: Option<&Target>| {
                target.map_or_else(Elements::new, |target| {
                    chains.using(&mut transaction, |numbers| {
                        rules::target_elements(&frontend, target, numbers)
                    })
                })
            };
            let (old, new) = (of(before.as_ref()), of(after));
            chains.leave_sources(&frontend, before.as_ref(), after);
            difference(old, new, &mut gone, &mut added);
            note_udp(&mut udp, &frontend, after);
        }
        self.chains = chains;
        for ((map, ip), before) in change.addresses {
            let (set, key) = rules::address_element(map, ip);
            match (before, self.addresses.contains_key(&(map, ip))) {
                (true, false) => gone.entry(set).or_insert_with(Vec::new).push(key),
                (false, true) => drop(added.insert((set, key), None)),
                _ => {}
            }
        }
        for (set, keys) in gone {
            transaction.delete(&set.to_string(), keys);
        }
        add_elements(&mut transaction, added);
        Step { transaction, udp }
    }

    /// Addresses that several Services have and only the first serves, with those that don't.
    pub fn conflicts(&self, services: &BTreeSet<ServiceKey>) -> Vec<(ServiceKey, Frontend)> {
        let mut found = Vec::new();
        for service in services {
            let Some(rules) = self.services.get(service) else {
                continue;
            };
            for (frontend, _) in &rules.frontends {
                let owner = self.claims.get(frontend).and_then(|claims| claims.first());
                if owner != Some(service) {
                    found.push((service.clone(), *frontend));
                }
            }
        }
        found
    }
}

fn difference(
    mut old: Elements,
    new: Elements,
    gone: &mut BTreeMap<SetName, Vec<Vec<u8>>>,
    added: &mut Elements,
) {
    for (key, data) in new {
        let before = old.remove(&key);
        if before.as_ref() == Some(&data) {
            continue;
        }
        if before.is_some() {
            gone.entry(key.0).or_default().push(key.1.clone());
        }
        added.insert(key, data);
    }
    for ((set, key), _) in old {
        gone.entry(set).or_default().push(key);
    }
}

fn add_elements(transaction: &mut Transaction, elements: Elements) {
    let mut by_set: BTreeMap<SetName, Vec<Element>> = BTreeMap::new();
    for ((set, key), data) in elements {
        let data: Option<Data> = data;
        by_set.entry(set).or_default().push(Element { key, data });
    }
    for (set, elements) in by_set {
        transaction.add(&set.to_string(), elements);
    }
}

fn note_udp(udp: &mut UdpTargets, frontend: &Frontend, target: Option<&Target>) {
    if frontend.protocol == Protocol::Udp {
        let backends = target.map(|t| t.backends().collect()).unwrap_or_default();
        udp.insert(*frontend, backends);
    }
}
