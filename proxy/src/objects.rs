// SPDX-License-Identifier: Apache-2.0
//! The Services and EndpointSlices that the API server has, and which Services a change touches.

use std::collections::{BTreeSet, HashMap, HashSet};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::runtime::watcher::Event;

use crate::compile::compile;
use crate::parse::{self, ServiceInfo, SliceInfo};
use crate::service::{Node, ServiceRules};
use crate::state::ServiceKey;

/// When the pods behind a slice changed.
const TRIGGER_TIME: &str = "endpoints.kubernetes.io/last-change-trigger-time";

/// Namespace and name of an object.
pub(crate) fn key(meta: &ObjectMeta) -> ServiceKey {
    (
        meta.namespace.clone().unwrap_or_default(),
        meta.name.clone().unwrap_or_default(),
    )
}

/// What is kept of all objects of one kind, as a watch tells them.
#[derive(Debug)]
pub(crate) struct Store<T> {
    pub(crate) objects: HashMap<ServiceKey, T>,
    /// While the watch lists: what it has named so far. The rest is gone when it is done.
    listed: Option<HashSet<ServiceKey>>,
    pub(crate) complete: bool,
}

impl<T: PartialEq> Store<T> {
    pub(crate) fn new() -> Store<T> {
        Store {
            objects: HashMap::new(),
            listed: None,
            complete: false,
        }
    }

    /// Take in an event, whose object is kept as `parsed` says; `changed` is called with what was
    /// known before and is known now, where that differs.
    pub(crate) fn take<K>(
        &mut self,
        event: Event<K>,
        meta: impl Fn(&K) -> &ObjectMeta,
        parsed: impl Fn(&K) -> Option<T>,
        mut changed: impl FnMut(&ServiceKey, Option<&T>, Option<&T>),
    ) {
        match event {
            Event::Init => self.listed = Some(HashSet::new()),
            Event::Apply(object) | Event::InitApply(object) => {
                let key = key(meta(&object));
                if let Some(listed) = &mut self.listed {
                    listed.insert(key.clone());
                }
                let new = parsed(&object);
                if self.objects.get(&key) != new.as_ref() {
                    changed(&key, self.objects.get(&key), new.as_ref());
                }
                match new {
                    Some(new) => drop(self.objects.insert(key, new)),
                    None => drop(self.objects.remove(&key)),
                }
            }
            Event::Delete(object) => {
                let key = key(meta(&object));
                if let Some(old) = self.objects.remove(&key) {
                    changed(&key, Some(&old), None);
                }
            }
            Event::InitDone => {
                let listed = self.listed.take().unwrap_or_default();
                self.objects.retain(|key, object| {
                    let keep = listed.contains(key);
                    if !keep {
                        changed(key, Some(object), None);
                    }
                    keep
                });
                self.complete = true;
            }
        }
    }
}

/// How many objects have changed since they were last counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Changes {
    /// Services.
    pub services: u64,
    /// EndpointSlices.
    pub slices: u64,
}

/// Both kinds, and the Services that wait to be looked at again.
#[derive(Debug)]
pub struct Objects {
    node_name: String,
    services: Store<ServiceInfo>,
    slices: Store<SliceInfo>,
    /// Sorted. Most have one, for which a tree would take half a KiB.
    by_service: HashMap<ServiceKey, Vec<ServiceKey>>,
    dirty: BTreeSet<ServiceKey>,
    changes: Changes,
    /// When the endpoints that wait changed in the cluster, as their controller says.
    triggered: Vec<Timestamp>,
}

impl Objects {
    /// None known yet; endpoints of the node with this name are local.
    pub fn new(node_name: &str) -> Objects {
        Objects {
            node_name: node_name.to_owned(),
            services: Store::new(),
            slices: Store::new(),
            by_service: HashMap::new(),
            dirty: BTreeSet::new(),
            changes: Changes::default(),
            triggered: Vec::new(),
        }
    }

    /// Have both kinds been listed once?
    pub fn complete(&self) -> bool {
        self.services.complete && self.slices.complete
    }

    /// Does anything wait to be looked at?
    pub fn is_dirty(&self) -> bool {
        !self.dirty.is_empty()
    }

    /// Take in what the watch of Services says.
    pub fn service_event(&mut self, event: Event<Service>) {
        let (dirty, changes) = (&mut self.dirty, &mut self.changes);
        // Status and annotations change without meaning for us, and are not in what is kept.
        let note = |key: &ServiceKey, _: Option<&_>, _: Option<&_>| {
            changes.services += 1;
            dirty.insert(key.clone());
        };
        self.services
            .take(event, |s| &s.metadata, parse::service, note);
    }

    /// Take in what the watch of EndpointSlices says.
    pub fn slice_event(&mut self, event: Event<EndpointSlice>) {
        let trigger = match &event {
            Event::Apply(slice) if self.complete() => triggered(slice),
            _ => None,
        };
        let (dirty, by_service) = (&mut self.dirty, &mut self.by_service);
        let (changes, waiting) = (&mut self.changes, &mut self.triggered);
        let here = self.node_name.as_str();
        let note = |key: &ServiceKey, old: Option<&SliceInfo>, new: Option<&SliceInfo>| {
            changes.slices += 1;
            waiting.extend(trigger);
            let owner = |slice: &SliceInfo| (key.0.clone(), slice.service.to_string());
            if let Some(owner) = old.map(owner) {
                if let Some(names) = by_service.get_mut(&owner) {
                    names.retain(|name| name != key);
                    if names.is_empty() {
                        by_service.remove(&owner);
                    }
                }
                dirty.insert(owner);
            }
            if let Some(owner) = new.map(owner) {
                let names = by_service.entry(owner.clone());
                let names = names.or_insert_with(|| Vec::with_capacity(1));
                if let Err(at) = names.binary_search(key) {
                    names.insert(at, key.clone());
                }
                dirty.insert(owner);
            }
        };
        self.slices
            .take(event, |s| &s.metadata, |s| parse::slice(s, here), note);
    }

    /// Look at every Service again, because something of the node has changed.
    pub fn all_dirty(&mut self) {
        self.dirty.extend(self.services.objects.keys().cloned());
    }

    /// How many objects have changed, since the last call; and when their endpoints did.
    pub fn take_changed(&mut self) -> (Changes, Vec<Timestamp>) {
        (
            std::mem::take(&mut self.changes),
            std::mem::take(&mut self.triggered),
        )
    }

    /// The rules of every Service that has changed since the last call; `None`: it is gone.
    pub fn take_changes(&mut self, node: &Node) -> Vec<(ServiceKey, Option<ServiceRules>)> {
        let dirty = std::mem::take(&mut self.dirty);
        dirty
            .into_iter()
            .map(|key| {
                let rules = self.services.objects.get(&key).map(|service| {
                    let names = self.by_service.get(&key).into_iter().flatten();
                    let slices = names.filter_map(|name| self.slices.objects.get(name));
                    compile(service, slices, node)
                });
                (key, rules)
            })
            .collect()
    }
}

fn triggered(slice: &EndpointSlice) -> Option<Timestamp> {
    let annotations = slice.metadata.annotations.as_ref()?;
    annotations.get(TRIGGER_TIME)?.parse().ok()
}
