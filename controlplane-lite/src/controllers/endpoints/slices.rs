// SPDX-License-Identifier: Apache-2.0
//! EndpointSlices from candidates, changing as few of the existing slices as possible.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::{
    Endpoint, EndpointConditions, EndpointHints, EndpointPort, EndpointSlice, ForNode, ForZone,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::super::machinery::owner;
use super::candidates::{self, Candidate, Port};

pub(crate) const SERVICE_NAME: &str = "kubernetes.io/service-name";
pub(crate) const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
pub(crate) const MANAGER: &str = "endpointslice-controller.k8s.io";
pub(crate) const HEADLESS: &str = "service.kubernetes.io/headless";

/// Endpoints per slice, as kube-controller-manager's default.
const SLICE_MAX: usize = 100;

/// One write.
#[derive(Debug)]
pub(crate) enum Step {
    Create(EndpointSlice),
    Update(EndpointSlice),
    Delete(Arc<EndpointSlice>),
}

/// Brings the slices of a Service in line. `zone` names the zone of a node.
pub(crate) fn plan(
    service: &Service,
    candidates: &[Candidate],
    existing: &[Arc<EndpointSlice>],
    zone: &dyn Fn(&str) -> Option<String>,
) -> Vec<Step> {
    let families = families(service);
    let mut steps = Vec::new();
    for v6 in [false, true] {
        let address_type = if v6 { "IPv6" } else { "IPv4" };
        let (ours, wanted): (Vec<_>, Vec<_>) = (
            existing
                .iter()
                .filter(|s| s.address_type == address_type)
                .cloned()
                .collect(),
            candidates
                .iter()
                .filter(|c| c.address.is_ipv6() == v6)
                .cloned()
                .collect(),
        );
        if families.contains(&v6) {
            steps.extend(family(service, address_type, wanted, ours, zone));
        } else {
            steps.extend(ours.into_iter().map(Step::Delete));
        }
    }
    let odd = existing
        .iter()
        .filter(|s| !matches!(s.address_type.as_str(), "IPv4" | "IPv6"));
    steps.extend(odd.cloned().map(Step::Delete));
    steps
}

/// Which families the Service has: false for IPv4, true for IPv6.
fn families(service: &Service) -> Vec<bool> {
    let spec = service.spec.as_ref();
    let named: Vec<bool> = spec
        .and_then(|s| s.ip_families.as_ref())
        .into_iter()
        .flatten()
        .map(|family| family == "IPv6")
        .collect();
    if !named.is_empty() {
        return named;
    }
    let address = spec
        .and_then(|s| s.cluster_ip.as_ref())
        .and_then(|ip| ip.parse::<IpAddr>().ok());
    vec![address.is_some_and(|ip| ip.is_ipv6())]
}

fn family(
    service: &Service,
    address_type: &str,
    wanted: Vec<Candidate>,
    existing: Vec<Arc<EndpointSlice>>,
    zone: &dyn Fn(&str) -> Option<String>,
) -> Vec<Step> {
    let publish = candidates::publishes_not_ready(service);
    let mut groups = candidates::by_ports(wanted);
    if groups.is_empty() {
        // One empty slice says "known, and nobody answers".
        groups.insert(Vec::new(), Vec::new());
    }
    let mut left = existing;
    let mut steps = Vec::new();
    for (ports, members) in groups {
        let ports = api_ports(&ports);
        let (same, others): (Vec<_>, Vec<_>) = left
            .into_iter()
            .partition(|slice| slice.ports.clone().unwrap_or_default() == ports);
        left = others;
        let near = service.spec.as_ref();
        let near = near.and_then(|s| s.traffic_distribution.as_deref());
        let endpoints = members
            .iter()
            .map(|c| hinted(endpoint(c, publish, zone), near))
            .collect();
        steps.extend(group(service, address_type, &ports, endpoints, same));
    }
    steps.extend(left.into_iter().map(Step::Delete));
    steps
}

/// Endpoints stay in the slice that they are in; free places are filled before slices are added.
fn group(
    service: &Service,
    address_type: &str,
    ports: &[EndpointPort],
    endpoints: Vec<Endpoint>,
    mut existing: Vec<Arc<EndpointSlice>>,
) -> Vec<Step> {
    existing.sort_by(|a, b| a.metadata.name.cmp(&b.metadata.name));
    let mut waiting: BTreeMap<_, Endpoint> =
        endpoints.into_iter().map(|e| (identity(&e), e)).collect();
    let mut slices: Vec<EndpointSlice> = Vec::new();
    for slice in &existing {
        let mut slice = slice.as_ref().clone();
        let kept = slice.endpoints.take().unwrap_or_default();
        let kept = kept
            .iter()
            .filter_map(|e| waiting.remove(&identity(e)))
            .collect();
        slice.endpoints = Some(kept);
        describe(&mut slice, service);
        slices.push(slice);
    }
    let mut waiting: Vec<_> = waiting.into_values().collect();
    for slice in &mut slices {
        let endpoints = slice.endpoints.get_or_insert_default();
        let room = SLICE_MAX.saturating_sub(endpoints.len()).min(waiting.len());
        endpoints.extend(waiting.drain(..room));
    }
    let mut steps = Vec::new();
    let mut keep_empty = waiting.is_empty() && slices.iter().all(is_empty);
    for (old, slice) in existing.into_iter().zip(slices) {
        if is_empty(&slice) && !std::mem::take(&mut keep_empty) {
            steps.push(Step::Delete(old));
        } else if !same(&old, &slice) {
            steps.push(Step::Update(slice));
        }
    }
    let created_empty = waiting.is_empty() && keep_empty;
    for chunk in waiting.chunks(SLICE_MAX) {
        steps.push(Step::Create(new(
            service,
            address_type,
            ports,
            chunk.to_vec(),
        )));
    }
    if created_empty {
        steps.push(Step::Create(new(service, address_type, ports, Vec::new())));
    }
    steps
}

fn is_empty(slice: &EndpointSlice) -> bool {
    slice.endpoints.as_ref().is_none_or(Vec::is_empty)
}

fn same(old: &EndpointSlice, new: &EndpointSlice) -> bool {
    old.endpoints.as_deref().unwrap_or_default() == new.endpoints.as_deref().unwrap_or_default()
        && old.metadata == new.metadata
}

fn identity(endpoint: &Endpoint) -> (Option<String>, Vec<String>) {
    let uid = endpoint.target_ref.as_ref().and_then(|t| t.uid.clone());
    (uid, endpoint.addresses.clone())
}

fn api_ports(ports: &[Port]) -> Vec<EndpointPort> {
    ports
        .iter()
        .map(|port| EndpointPort {
            name: Some(port.name.clone()),
            port: Some(port.number),
            protocol: Some(port.protocol.clone()),
            app_protocol: port.app_protocol.clone(),
        })
        .collect()
}

fn endpoint(
    candidate: &Candidate,
    publish: bool,
    zone: &dyn Fn(&str) -> Option<String>,
) -> Endpoint {
    Endpoint {
        addresses: vec![candidate.address.to_string()],
        conditions: Some(EndpointConditions {
            ready: Some(publish || (candidate.serving && !candidate.terminating)),
            serving: Some(candidate.serving),
            terminating: Some(candidate.terminating),
        }),
        hostname: candidate.hostname.clone(),
        node_name: candidate.node_name.clone(),
        zone: candidate.node_name.as_deref().and_then(zone),
        target_ref: Some(candidate.target.clone()),
        ..Endpoint::default()
    }
}

/// Who should use an endpoint, by the Service's `trafficDistribution`: clients of its own zone, or of
/// its own node and then of its zone. One that is not ready is for nobody in particular.
fn hinted(mut endpoint: Endpoint, distribution: Option<&str>) -> Endpoint {
    let node = match distribution {
        Some("PreferSameNode") => true,
        Some("PreferClose" | "PreferSameZone") => false,
        _ => return endpoint,
    };
    let ready = endpoint.conditions.as_ref().and_then(|c| c.ready);
    let zone = endpoint.zone.clone().map(|name| vec![ForZone { name }]);
    let node = endpoint.node_name.clone().filter(|_| node);
    let hints = EndpointHints {
        for_zones: zone,
        for_nodes: node.map(|name| vec![ForNode { name }]),
    };
    if ready != Some(false) && hints != EndpointHints::default() {
        endpoint.hints = Some(hints);
    }
    endpoint
}

/// Labels and owner of a slice: those of the Service, and ours.
fn describe(slice: &mut EndpointSlice, service: &Service) {
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.insert(
        SERVICE_NAME.into(),
        service.metadata.name.clone().unwrap_or_default(),
    );
    labels.insert(MANAGED_BY.into(), MANAGER.into());
    if candidates::is_headless(service) {
        labels.insert(HEADLESS.into(), String::new());
    } else {
        labels.remove(HEADLESS);
    }
    slice.metadata.labels = Some(labels);
    slice.metadata.owner_references = Some(vec![owner::controller_reference(service)]);
}

fn new(
    service: &Service,
    address_type: &str,
    ports: &[EndpointPort],
    endpoints: Vec<Endpoint>,
) -> EndpointSlice {
    let name = service.metadata.name.as_deref().unwrap_or_default();
    let mut slice = EndpointSlice {
        metadata: ObjectMeta {
            generate_name: Some(format!("{name}-")),
            namespace: service.metadata.namespace.clone(),
            ..ObjectMeta::default()
        },
        address_type: address_type.into(),
        endpoints: Some(endpoints),
        ports: Some(ports.to_vec()),
    };
    describe(&mut slice, service);
    slice
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Pod;
    use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

    use super::super::candidates::tests::{pod_at, service};
    use super::*;

    /// Applies plans to a set of slices as the server would.
    #[derive(Default)]
    struct World {
        slices: Vec<Arc<EndpointSlice>>,
        made: usize,
    }

    impl World {
        fn pass(&mut self, service: &Service, pods: &[Pod]) -> usize {
            let pods: Vec<_> = pods.iter().cloned().map(Arc::new).collect();
            let candidates = candidates::candidates(service, &pods);
            let steps = plan(service, &candidates, &self.slices, &|_| None);
            let count = steps.len();
            for step in steps {
                match step {
                    Step::Create(mut slice) => {
                        self.made += 1;
                        slice.metadata.name = Some(format!("web-{}", self.made));
                        self.slices.push(Arc::new(slice));
                    }
                    Step::Update(slice) => {
                        self.slices
                            .retain(|s| s.metadata.name != slice.metadata.name);
                        self.slices.push(Arc::new(slice));
                    }
                    Step::Delete(slice) => {
                        self.slices
                            .retain(|s| s.metadata.name != slice.metadata.name);
                    }
                }
            }
            count
        }

        fn sizes(&self) -> Vec<usize> {
            let size = |s: &Arc<EndpointSlice>| s.endpoints.as_ref().map_or(0, Vec::len);
            let mut sizes: Vec<_> = self.slices.iter().map(size).collect();
            sizes.sort_unstable();
            sizes
        }
    }

    fn pods(count: usize) -> Vec<Pod> {
        (0..count)
            .map(|i| {
                pod_at(
                    &format!("p{i}"),
                    &format!("10.0.{}.{}", i / 200, i % 200 + 1),
                    true,
                )
            })
            .collect()
    }

    #[test]
    fn slices_hold_a_hundred_and_a_second_pass_changes_nothing() {
        let service = service(IntOrString::Int(8080));
        let mut world = World::default();
        world.pass(&service, &pods(250));
        assert_eq!(world.sizes(), [50, 100, 100]);
        assert_eq!(world.pass(&service, &pods(250)), 0);
        assert_eq!(world.pass(&service, &pods(251)), 1);
    }

    #[test]
    fn a_service_without_pods_has_one_empty_slice() {
        let service = service(IntOrString::Int(8080));
        let mut world = World::default();
        world.pass(&service, &[]);
        assert_eq!(world.sizes(), [0]);
        assert_eq!(world.pass(&service, &[]), 0);
        world.pass(&service, &pods(1));
        assert_eq!(world.sizes(), [1]);
        world.pass(&service, &[]);
        assert_eq!(world.sizes(), [0]);
    }

    #[test]
    fn conditions_follow_the_pod() {
        let mut service = service(IntOrString::Int(8080));
        let mut going = pod_at("a", "10.0.0.1", true);
        going.metadata.deletion_timestamp = going.metadata.creation_timestamp.clone();
        let check = |service: &Service, pod: &Pod| {
            let mut world = World::default();
            world.pass(service, std::slice::from_ref(pod));
            let endpoints = world.slices[0].endpoints.clone().unwrap_or_default();
            let c = endpoints[0].conditions.clone().unwrap_or_default();
            (c.ready, c.serving, c.terminating)
        };
        let some = |a, b, c| (Some(a), Some(b), Some(c));
        assert_eq!(check(&service, &going), some(false, true, true));
        let unready = pod_at("a", "10.0.0.1", false);
        assert_eq!(check(&service, &unready), some(false, false, false));
        service
            .spec
            .get_or_insert_default()
            .publish_not_ready_addresses = Some(true);
        assert_eq!(check(&service, &unready), some(true, false, false));
    }
}
