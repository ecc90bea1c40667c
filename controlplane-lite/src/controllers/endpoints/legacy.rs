// SPDX-License-Identifier: Apache-2.0
//! The older Endpoints object: one per Service, of the same name, split by readiness.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    EndpointAddress, EndpointPort, EndpointSubset, Endpoints, Service,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::candidates::{self, Candidate, Port};
use super::slices::HEADLESS;

const MANAGED_BY: &str = "endpoints.kubernetes.io/managed-by";
/// The API marks an object with more addresses than this; we cut it there, as upstream.
const ADDRESSES_MAX: usize = 1000;
const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";

/// The object as it should be, on top of what `existing` has.
pub(crate) fn wanted(
    service: &Service,
    candidates: &[Candidate],
    existing: Option<&Endpoints>,
) -> Endpoints {
    let publish = candidates::publishes_not_ready(service);
    let v6 = is_ipv6(service);
    // One family only, and pods that are going away only where unready ones are wanted.
    let mut listed: Vec<_> = candidates
        .iter()
        .filter(|c| c.address.is_ipv6() == v6 && (publish || !c.terminating))
        .cloned()
        .collect();
    let over = listed.len() > ADDRESSES_MAX;
    listed.truncate(ADDRESSES_MAX);
    let headless_without_ports = candidates::is_headless(service)
        && service
            .spec
            .as_ref()
            .is_none_or(|s| s.ports.as_ref().is_none_or(Vec::is_empty));
    let subsets: Vec<_> = candidates::by_ports(listed)
        .into_iter()
        .filter(|(ports, _)| !ports.is_empty() || headless_without_ports)
        .map(|(ports, members)| subset(&ports, &members, publish))
        .collect();
    let mut object = existing.cloned().unwrap_or_else(|| Endpoints {
        metadata: ObjectMeta {
            name: service.metadata.name.clone(),
            namespace: service.metadata.namespace.clone(),
            ..ObjectMeta::default()
        },
        subsets: None,
    });
    object.metadata.labels = Some(labels(service));
    mark_capacity(&mut object, over);
    object.subsets = Some(subsets).filter(|s| !s.is_empty());
    object
}

fn is_ipv6(service: &Service) -> bool {
    let spec = service.spec.as_ref();
    let first = spec
        .and_then(|s| s.ip_families.as_ref())
        .and_then(|f| f.first());
    match first {
        Some(family) => family == "IPv6",
        None => spec
            .and_then(|s| s.cluster_ip.as_ref())
            .is_some_and(|ip| ip.contains(':')),
    }
}

fn labels(service: &Service) -> BTreeMap<String, String> {
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.insert(MANAGED_BY.into(), "endpoint-controller".into());
    if candidates::is_headless(service) {
        labels.insert(HEADLESS.into(), String::new());
    } else {
        labels.remove(HEADLESS);
    }
    labels
}

fn mark_capacity(object: &mut Endpoints, over: bool) {
    if over {
        let annotations = object.metadata.annotations.get_or_insert_default();
        annotations.insert(OVER_CAPACITY.into(), "truncated".into());
    } else if let Some(annotations) = &mut object.metadata.annotations {
        annotations.remove(OVER_CAPACITY);
    }
}

fn subset(ports: &[Port], members: &[Candidate], publish: bool) -> EndpointSubset {
    let (ready, waiting): (Vec<_>, Vec<_>) = members.iter().partition(|c| publish || c.serving);
    let list = |members: Vec<&Candidate>| {
        Some(members.into_iter().map(address).collect::<Vec<_>>()).filter(|l| !l.is_empty())
    };
    let ports: Vec<_> = ports
        .iter()
        .map(|port| EndpointPort {
            name: Some(port.name.clone()).filter(|n| !n.is_empty()),
            port: port.number,
            protocol: Some(port.protocol.clone()),
            app_protocol: port.app_protocol.clone(),
        })
        .collect();
    EndpointSubset {
        addresses: list(ready),
        not_ready_addresses: list(waiting),
        ports: Some(ports).filter(|p| !p.is_empty()),
    }
}

fn address(candidate: &Candidate) -> EndpointAddress {
    EndpointAddress {
        ip: candidate.address.to_string(),
        hostname: candidate.hostname.clone(),
        node_name: candidate.node_name.clone(),
        target_ref: Some(candidate.target.clone()),
    }
}

/// True if the object must be written.
pub(crate) fn differs(existing: &Endpoints, wanted: &Endpoints) -> bool {
    existing.subsets.as_deref().unwrap_or_default() != wanted.subsets.as_deref().unwrap_or_default()
        || existing.metadata.labels != wanted.metadata.labels
        || existing.metadata.annotations.clone().unwrap_or_default()
            != wanted.metadata.annotations.clone().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

    use super::super::candidates::tests::{pod_at, service};
    use super::*;

    #[test]
    fn addresses_are_split_by_readiness() {
        let service = service(IntOrString::Int(8080));
        let pods = [
            Arc::new(pod_at("a", "10.0.0.1", true)),
            Arc::new(pod_at("b", "10.0.0.2", false)),
        ];
        let candidates = candidates::candidates(&service, &pods);
        let object = wanted(&service, &candidates, None);
        let subsets = object.subsets.clone().unwrap_or_default();
        let ips = |list: &Option<Vec<EndpointAddress>>| {
            list.iter()
                .flatten()
                .map(|a| a.ip.clone())
                .collect::<Vec<_>>()
        };
        assert_eq!(ips(&subsets[0].addresses), ["10.0.0.1"]);
        assert_eq!(ips(&subsets[0].not_ready_addresses), ["10.0.0.2"]);
        assert!(!differs(
            &object,
            &wanted(&service, &candidates, Some(&object))
        ));
    }
}
