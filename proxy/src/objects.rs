// SPDX-License-Identifier: Apache-2.0
//! The Services and EndpointSlices that the API server has, and which Services a change touches.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::runtime::watcher::Event;

use crate::service::{Node, SERVICE_NAME_LABEL, ServiceRules, compile};
use crate::state::ServiceKey;

/// Namespace and name of an object.
fn key(meta: &ObjectMeta) -> ServiceKey {
    (
        meta.namespace.clone().unwrap_or_default(),
        meta.name.clone().unwrap_or_default(),
    )
}

/// The Service that a slice belongs to; `None` for a slice of nobody.
fn owner(slice: &EndpointSlice) -> Option<ServiceKey> {
    let name = slice.metadata.labels.as_ref()?.get(SERVICE_NAME_LABEL)?;
    Some((
        slice.metadata.namespace.clone().unwrap_or_default(),
        name.clone(),
    ))
}

/// All objects of one kind, as a watch tells them.
#[derive(Debug)]
struct Store<K> {
    objects: BTreeMap<ServiceKey, K>,
    /// While the watch lists: what it has named so far. The rest is gone when it is done.
    listed: Option<BTreeSet<ServiceKey>>,
    complete: bool,
}

impl<K> Store<K> {
    fn new() -> Store<K> {
        Store {
            objects: BTreeMap::new(),
            listed: None,
            complete: false,
        }
    }

    /// Take in an event; `changed` is called with every object before and after.
    fn take(
        &mut self,
        event: Event<K>,
        meta: impl Fn(&K) -> &ObjectMeta,
        mut changed: impl FnMut(Option<&K>, Option<&K>),
    ) {
        match event {
            Event::Init => self.listed = Some(BTreeSet::new()),
            Event::Apply(object) | Event::InitApply(object) => {
                let key = key(meta(&object));
                if let Some(listed) = &mut self.listed {
                    listed.insert(key.clone());
                }
                changed(self.objects.get(&key), Some(&object));
                self.objects.insert(key, object);
            }
            Event::Delete(object) => {
                let old = self.objects.remove(&key(meta(&object)));
                changed(old.as_ref(), None);
            }
            Event::InitDone => {
                let listed = self.listed.take().unwrap_or_default();
                self.objects.retain(|key, object| {
                    let keep = listed.contains(key);
                    if !keep {
                        changed(Some(object), None);
                    }
                    keep
                });
                self.complete = true;
            }
        }
    }
}

/// Both kinds, and the Services that wait to be looked at again.
#[derive(Debug)]
pub struct Objects {
    services: Store<Service>,
    slices: Store<EndpointSlice>,
    by_service: BTreeMap<ServiceKey, BTreeSet<ServiceKey>>,
    dirty: BTreeSet<ServiceKey>,
}

impl Objects {
    /// None known yet.
    pub fn new() -> Objects {
        Objects {
            services: Store::new(),
            slices: Store::new(),
            by_service: BTreeMap::new(),
            dirty: BTreeSet::new(),
        }
    }

    /// Have both kinds been listed once?
    pub fn complete(&self) -> bool {
        self.services.complete && self.slices.complete
    }

    /// Take in what the watch of Services says.
    pub fn service_event(&mut self, event: Event<Service>) {
        let dirty = &mut self.dirty;
        self.services.take(
            event,
            |s| &s.metadata,
            |old, new| {
                // Status and annotations change without meaning for us.
                if old.map(|s| (&s.spec, &s.metadata.labels))
                    != new.map(|s| (&s.spec, &s.metadata.labels))
                {
                    dirty.extend(new.or(old).map(|s| key(&s.metadata)));
                }
            },
        );
    }

    /// Take in what the watch of EndpointSlices says.
    pub fn slice_event(&mut self, event: Event<EndpointSlice>) {
        let (dirty, by_service) = (&mut self.dirty, &mut self.by_service);
        self.slices.take(
            event,
            |s| &s.metadata,
            |old, new| {
                for (slice, is_new) in [(old, false), (new, true)] {
                    let Some(slice) = slice else { continue };
                    let Some(service) = owner(slice) else {
                        continue;
                    };
                    let name = key(&slice.metadata);
                    if is_new {
                        by_service.entry(service.clone()).or_default().insert(name);
                    } else if let Some(names) = by_service.get_mut(&service) {
                        names.remove(&name);
                        if names.is_empty() {
                            by_service.remove(&service);
                        }
                    }
                    dirty.insert(service);
                }
            },
        );
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

impl Default for Objects {
    fn default() -> Objects {
        Objects::new()
    }
}
