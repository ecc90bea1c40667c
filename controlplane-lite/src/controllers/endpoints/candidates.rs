// SPDX-License-Identifier: Apache-2.0
//! Pods as endpoints of one Service.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{
    Container, ObjectReference, Pod, Service, ServicePort, ServiceSpec,
};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::super::machinery::pods;

/// A port as the pod has it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Port {
    pub(crate) name: String,
    pub(crate) number: i32,
    pub(crate) protocol: String,
    pub(crate) app_protocol: Option<String>,
}

/// One address of one pod.
#[derive(Clone, Debug)]
pub(crate) struct Candidate {
    pub(crate) address: IpAddr,
    /// Sorted by name.
    pub(crate) ports: Vec<Port>,
    pub(crate) serving: bool,
    pub(crate) terminating: bool,
    pub(crate) hostname: Option<String>,
    pub(crate) node_name: Option<String>,
    pub(crate) target: ObjectReference,
}

fn spec(service: &Service) -> ServiceSpec {
    service.spec.clone().unwrap_or_default()
}

/// True if endpoints of this Service are ours to write.
pub(crate) fn is_managed(service: &Service) -> bool {
    let spec = service.spec.as_ref();
    let selects = spec
        .and_then(|s| s.selector.as_ref())
        .is_some_and(|s| !s.is_empty());
    let external = spec.and_then(|s| s.type_.as_deref()) == Some("ExternalName");
    selects && !external
}

pub(crate) fn is_headless(service: &Service) -> bool {
    service.spec.as_ref().and_then(|s| s.cluster_ip.as_deref()) == Some("None")
}

pub(crate) fn publishes_not_ready(service: &Service) -> bool {
    let spec = service.spec.as_ref();
    spec.and_then(|s| s.publish_not_ready_addresses) == Some(true)
}

/// All addresses of all pods, sorted by address. Pods that have finished or have no address yet are
/// left out; pods that are going away are in, marked.
pub(crate) fn candidates(service: &Service, selected: &[Arc<Pod>]) -> Vec<Candidate> {
    let ports = spec(service).ports.unwrap_or_default();
    let mut found: Vec<_> = selected
        .iter()
        .filter(|pod| !pods::is_finished(pod))
        .flat_map(|pod| {
            let ports = pod_ports(&ports, pod);
            addresses(pod)
                .into_iter()
                .map(move |address| candidate(service, pod, address, &ports))
        })
        .collect();
    found.sort_by_key(|c| (c.address, c.target.uid.clone()));
    found
}

fn addresses(pod: &Pod) -> Vec<IpAddr> {
    let Some(status) = &pod.status else {
        return Vec::new();
    };
    let mut addresses: Vec<IpAddr> = status
        .pod_ips
        .iter()
        .flatten()
        .filter_map(|ip| ip.ip.parse().ok())
        .collect();
    if addresses.is_empty() {
        addresses.extend(
            status
                .pod_ip
                .as_ref()
                .and_then(|ip| ip.parse::<IpAddr>().ok()),
        );
    }
    addresses
}

fn candidate(service: &Service, pod: &Pod, address: IpAddr, ports: &[Port]) -> Candidate {
    Candidate {
        address,
        ports: ports.to_vec(),
        serving: pods::is_ready(pod),
        terminating: pods::is_terminating(pod),
        hostname: hostname(service, pod),
        node_name: pods::node_name(pod).map(str::to_owned),
        target: ObjectReference {
            kind: Some("Pod".into()),
            namespace: pod.metadata.namespace.clone(),
            name: pod.metadata.name.clone(),
            uid: pod.metadata.uid.clone(),
            ..ObjectReference::default()
        },
    }
}

/// A pod whose `subdomain` is this Service gets a DNS name of its own.
fn hostname(service: &Service, pod: &Pod) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    let same = spec.subdomain.is_some() && spec.subdomain == service.metadata.name;
    spec.hostname
        .clone()
        .filter(|name| same && !name.is_empty())
}

fn pod_ports(ports: &[ServicePort], pod: &Pod) -> Vec<Port> {
    let mut found: Vec<Port> = ports
        .iter()
        .filter_map(|port| {
            Some(Port {
                name: port.name.clone().unwrap_or_default(),
                number: target_port(port, pod)?,
                protocol: protocol(port.protocol.as_deref()).to_owned(),
                app_protocol: port.app_protocol.clone(),
            })
        })
        .collect();
    found.sort();
    found
}

fn protocol(text: Option<&str>) -> &str {
    text.unwrap_or("TCP")
}

/// A named port is looked up in the pod's containers, sidecars included; a pod that lacks it does
/// not answer on this port.
fn target_port(port: &ServicePort, pod: &Pod) -> Option<i32> {
    match &port.target_port {
        None => Some(port.port),
        Some(IntOrString::Int(0)) => Some(port.port),
        Some(IntOrString::Int(number)) => Some(*number),
        Some(IntOrString::String(name)) if name.is_empty() => Some(port.port),
        Some(IntOrString::String(name)) => {
            let spec = pod.spec.as_ref()?;
            let sidecars = spec
                .init_containers
                .iter()
                .flatten()
                .filter(|c| is_sidecar(c));
            spec.containers
                .iter()
                .chain(sidecars)
                .flat_map(|container| container.ports.iter().flatten())
                .find(|p| {
                    p.name.as_ref() == Some(name)
                        && protocol(p.protocol.as_deref()) == protocol(port.protocol.as_deref())
                })
                .map(|p| p.container_port)
        }
    }
}

fn is_sidecar(container: &Container) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

/// Candidates that share a list of ports belong together in one slice or subset.
pub(crate) fn by_ports(candidates: Vec<Candidate>) -> BTreeMap<Vec<Port>, Vec<Candidate>> {
    let mut groups: BTreeMap<Vec<Port>, Vec<Candidate>> = BTreeMap::new();
    for candidate in candidates {
        groups
            .entry(candidate.ports.clone())
            .or_default()
            .push(candidate);
    }
    groups
}

#[cfg(test)]
pub(crate) mod tests {
    use k8s_openapi::api::core::v1::{ContainerPort, PodIP};

    use super::super::super::machinery::testing::{labels, meta, pod};
    use super::*;

    pub(crate) fn service(port: IntOrString) -> Service {
        Service {
            metadata: meta("ns", "web"),
            spec: Some(ServiceSpec {
                selector: Some(labels(&[("app", "web")])),
                ports: Some(vec![ServicePort {
                    name: Some("http".into()),
                    port: 80,
                    target_port: Some(port),
                    ..ServicePort::default()
                }]),
                ..ServiceSpec::default()
            }),
            status: None,
        }
    }

    pub(crate) fn pod_at(name: &str, ip: &str, ready: bool) -> Pod {
        let mut pod = pod(name, "Running", ready.then_some(1));
        pod.status.get_or_insert_default().pod_ips = Some(vec![PodIP { ip: ip.into() }]);
        pod.spec.get_or_insert_default().containers = vec![Container {
            ports: Some(vec![ContainerPort {
                name: Some("web".into()),
                container_port: 8080,
                ..ContainerPort::default()
            }]),
            ..Container::default()
        }];
        pod
    }

    #[test]
    fn named_ports_are_found_in_the_pod() {
        let service = service(IntOrString::String("web".into()));
        let found = candidates(&service, &[Arc::new(pod_at("a", "10.0.0.1", true))]);
        assert_eq!(found[0].ports[0].number, 8080);
        let missing = self::service(IntOrString::String("other".into()));
        let found = candidates(&missing, &[Arc::new(pod_at("a", "10.0.0.1", true))]);
        assert!(found[0].ports.is_empty());
    }

    #[test]
    fn finished_pods_and_pods_without_address_are_left_out() {
        let service = service(IntOrString::Int(80));
        let mut done = pod_at("a", "10.0.0.1", false);
        done.status.get_or_insert_default().phase = Some("Succeeded".into());
        let waiting = pod("b", "Pending", None);
        assert!(candidates(&service, &[Arc::new(done), Arc::new(waiting)]).is_empty());
    }

    #[test]
    fn services_without_selector_are_not_ours() {
        let mut service = service(IntOrString::Int(80));
        assert!(is_managed(&service));
        service.spec.get_or_insert_default().selector = None;
        assert!(!is_managed(&service));
    }
}
