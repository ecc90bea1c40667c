// SPDX-License-Identifier: Apache-2.0
//! The names of the cluster: what Services, EndpointSlices and Namespaces say, found by name and by
//! address. Pure: events in, questions out.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use cni::cidr::Cidr;
use hickory_proto::rr::Name;
use hickory_proto::rr::rdata::SOA;
use k8s_openapi::api::core::v1::{Namespace, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::runtime::watcher::Event;

use super::records::{self, EndpointRecord, Kind, ServiceRecord, SliceRecord};
use crate::objects::Store;
use crate::service::Protocol;
use crate::state::ServiceKey;

/// Where the cluster is.
#[derive(Debug, Clone)]
pub struct Place {
    /// The cluster's domain, absolute and in lower case.
    pub domain: Name,
    /// Addresses that the names are served on.
    pub servers: Vec<IpAddr>,
    /// Addresses of pods. Their names lead nowhere else.
    pub pods: Vec<Cidr>,
    /// Addresses of Services.
    pub services: Vec<Cidr>,
}

/// Whose an address is.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Owner {
    Service(Arc<ServiceKey>),
    Slice(Arc<ServiceKey>),
}

/// All that has a name.
#[derive(Debug)]
pub struct Zone {
    place: Place,
    services: Store<ServiceRecord>,
    slices: Store<SliceRecord>,
    namespaces: Store<()>,
    /// How many named Services a namespace has: it may be heard of before itself.
    counts: HashMap<String, usize>,
    by_service: HashMap<ServiceKey, BTreeSet<ServiceKey>>,
    by_address: HashMap<IpAddr, Vec<Owner>>,
    /// Grows with each change; the SOA record's.
    serial: u32,
    soa: SOA,
}

/// A port that can be asked for: name, protocol, number.
pub(crate) type Port<'z> = (&'z str, Protocol, u16);

impl Zone {
    /// Without a name. The serial number grows from here.
    pub fn new(place: Place, serial: u32) -> Zone {
        let below = |labels: &[&str]| {
            let name = Name::from_labels(labels.iter().map(|l| l.as_bytes()));
            let name = name.and_then(|name| name.append_domain(&place.domain));
            // A domain that long has no names below it, so nobody asks for this one.
            name.unwrap_or_else(|_| place.domain.clone())
        };
        let (server, contact) = (below(&["ns", "dns"]), below(&["hostmaster"]));
        let minimum = super::answer::TTL;
        let soa = SOA::new(server, contact, serial, 7200, 1800, 86_400, minimum);
        Zone {
            soa,
            place,
            services: Store::new(),
            slices: Store::new(),
            namespaces: Store::new(),
            counts: HashMap::new(),
            by_service: HashMap::new(),
            by_address: HashMap::new(),
            serial,
        }
    }

    /// Have all kinds been listed once? Until then, what is not known may still exist.
    pub fn complete(&self) -> bool {
        self.services.complete && self.slices.complete && self.namespaces.complete
    }

    /// Where the cluster is.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// Take in what the watch of Services says.
    pub fn service_event(&mut self, event: Event<Service>) {
        let (counts, by_address) = (&mut self.counts, &mut self.by_address);
        let serial = &mut self.serial;
        let note = |key: &ServiceKey, old: Option<&ServiceRecord>, new: Option<&ServiceRecord>| {
            *serial = serial.wrapping_add(1);
            match (old, new) {
                (None, Some(_)) => *counts.entry(key.0.clone()).or_default() += 1,
                (Some(_), None) => uncount(counts, &key.0),
                _ => {}
            }
            let owner = Owner::Service(Arc::new(key.clone()));
            disown(by_address, cluster_ips(old), &owner);
            own(by_address, cluster_ips(new), &owner);
        };
        self.services
            .take(event, |s| &s.metadata, records::service, note);
    }

    /// Take in what the watch of EndpointSlices says.
    pub fn slice_event(&mut self, event: Event<EndpointSlice>) {
        let (by_service, by_address) = (&mut self.by_service, &mut self.by_address);
        let serial = &mut self.serial;
        let note = |key: &ServiceKey, old: Option<&SliceRecord>, new: Option<&SliceRecord>| {
            *serial = serial.wrapping_add(1);
            let service = |slice: &SliceRecord| (key.0.clone(), slice.service.to_string());
            if let Some(service) = old.map(service)
                && let Some(names) = by_service.get_mut(&service)
            {
                names.remove(key);
                if names.is_empty() {
                    by_service.remove(&service);
                }
            }
            if let Some(service) = new.map(service) {
                by_service.entry(service).or_default().insert(key.clone());
            }
            let owner = Owner::Slice(Arc::new(key.clone()));
            disown(by_address, addresses(old), &owner);
            own(by_address, addresses(new), &owner);
        };
        self.slices
            .take(event, |s| &s.metadata, records::slice, note);
    }

    /// Take in what the watch of Namespaces says.
    pub fn namespace_event(&mut self, event: Event<Namespace>) {
        let serial = &mut self.serial;
        let note =
            |_: &ServiceKey, _: Option<&()>, _: Option<&()>| *serial = serial.wrapping_add(1);
        self.namespaces
            .take(event, |n| &n.metadata, |_| Some(()), note);
    }

    /// Does the cluster have a namespace of this name?
    pub(crate) fn has_namespace(&self, name: &str) -> bool {
        let key = (String::new(), name.to_owned());
        self.counts.contains_key(name) || self.namespaces.objects.contains_key(&key)
    }

    /// A Service.
    pub(crate) fn service(&self, key: &ServiceKey) -> Option<&ServiceRecord> {
        self.services.objects.get(key)
    }

    fn slices<'z>(&'z self, key: &ServiceKey) -> impl Iterator<Item = &'z SliceRecord> + use<'z> {
        let names = self.by_service.get(key).into_iter().flatten();
        names.filter_map(|name| self.slices.objects.get(name))
    }

    /// The endpoints of a Service that have names, with the ports that each has.
    pub(crate) fn endpoints<'z>(
        &'z self,
        key: &ServiceKey,
        service: &ServiceRecord,
    ) -> impl Iterator<Item = (&'z EndpointRecord, &'z SliceRecord)> + use<'z> {
        let all = service.publish_not_ready;
        self.slices(key).flat_map(move |slice| {
            let named = slice.endpoints.iter().filter(move |e| e.ready || all);
            named.map(move |endpoint| (endpoint, slice))
        })
    }

    /// The names of an address: a Service's cluster IP has the Service's; else those of the
    /// endpoints that are there. Relative to `svc` below the domain, as namespace, Service, label.
    pub(crate) fn names_of(&self, addr: IpAddr) -> Vec<(String, String, Option<Box<str>>)> {
        let owners = self.by_address.get(&addr).map_or(&[][..], Vec::as_slice);
        let service = owners.iter().find_map(|owner| match owner {
            Owner::Service(key) => Some((key.0.clone(), key.1.clone(), None)),
            Owner::Slice(_) => None,
        });
        if let Some(name) = service {
            return vec![name];
        }
        let mut names = BTreeSet::new();
        for owner in owners {
            let Owner::Slice(key) = owner else { continue };
            let Some(slice) = self.slices.objects.get(&**key) else {
                continue;
            };
            let service = (key.0.clone(), slice.service.to_string());
            // Endpoints of what is no Service have no name.
            let Some(record) = self.service(&service) else {
                continue;
            };
            let here = slice.endpoints.iter();
            let here = here.filter(|e| e.addr == addr && (e.ready || record.publish_not_ready));
            names.extend(
                here.map(|e| (service.0.clone(), service.1.clone(), Some(e.label.clone()))),
            );
        }
        names.into_iter().collect()
    }

    /// Can the address be a pod's? Without ranges, any can.
    pub(crate) fn is_pod(&self, addr: IpAddr) -> bool {
        let pods = &self.place.pods;
        pods.is_empty() || pods.iter().any(|range| range.contains(addr))
    }

    /// Who serves the zone, by name.
    pub(crate) fn name_server(&self) -> &Name {
        &self.soa.mname
    }

    /// The record that says how long it counts that a name does not exist.
    pub(crate) fn soa(&self) -> SOA {
        let mut soa = self.soa.clone();
        soa.serial = self.serial;
        soa
    }
}

fn uncount(counts: &mut HashMap<String, usize>, namespace: &str) {
    if let Some(count) = counts.get_mut(namespace) {
        *count -= 1;
        if *count == 0 {
            counts.remove(namespace);
        }
    }
}

fn cluster_ips(service: Option<&ServiceRecord>) -> impl Iterator<Item = IpAddr> {
    let ips = service.map(|service| match &service.kind {
        Kind::Cluster(ips) => &ips[..],
        _ => &[],
    });
    ips.unwrap_or_default().iter().copied()
}

fn addresses(slice: Option<&SliceRecord>) -> impl Iterator<Item = IpAddr> {
    let endpoints = slice.map(|slice| &slice.endpoints[..]);
    endpoints.unwrap_or_default().iter().map(|e| e.addr)
}

fn own(
    by_address: &mut HashMap<IpAddr, Vec<Owner>>,
    ips: impl Iterator<Item = IpAddr>,
    owner: &Owner,
) {
    for ip in ips {
        let owners = by_address.entry(ip).or_default();
        if !owners.contains(owner) {
            owners.push(owner.clone());
        }
    }
}

fn disown(
    by_address: &mut HashMap<IpAddr, Vec<Owner>>,
    ips: impl Iterator<Item = IpAddr>,
    owner: &Owner,
) {
    for ip in ips {
        if let Some(owners) = by_address.get_mut(&ip) {
            owners.retain(|known| known != owner);
            if owners.is_empty() {
                by_address.remove(&ip);
            }
        }
    }
}
