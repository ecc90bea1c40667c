// SPDX-License-Identifier: Apache-2.0
//! Which Service has which port of the nodes, and which nodes serve it. Decided from all objects
//! anew each time; nothing is stored but what the Services' status says.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Pod, Service};

use super::super::machinery::key::Key;

/// A port of all nodes: protocol and number.
pub(super) type Port = (String, i32);

/// What a node itself needs: SSH, etcd, the API server, kubelet and service proxy.
const OF_THE_NODE: [i32; 9] = [22, 2379, 2380, 6443, 10248, 10249, 10250, 10256, 10259];
/// Nodes with this label are not to be load balancers.
const EXCLUDED: &str = "node.kubernetes.io/exclude-from-external-load-balancers";

/// Is it a Service that this controller serves?
pub(super) fn is_ours(service: &Service) -> bool {
    let Some(spec) = &service.spec else {
        return false;
    };
    spec.type_.as_deref() == Some("LoadBalancer")
        && spec.load_balancer_class.is_none()
        && service.metadata.deletion_timestamp.is_none()
}

/// Addresses that a load balancer has now.
pub(super) fn given(service: &Service) -> Vec<String> {
    let status = service
        .status
        .as_ref()
        .and_then(|s| s.load_balancer.as_ref());
    let ingress = status
        .and_then(|s| s.ingress.as_deref())
        .unwrap_or_default();
    ingress.iter().filter_map(|i| i.ip.clone()).collect()
}

fn ports(service: &Service) -> Vec<Port> {
    let ports = service.spec.iter().flat_map(|s| s.ports.iter().flatten());
    let protocol = |p: &Option<String>| p.clone().unwrap_or_else(|| "TCP".into());
    ports.map(|p| (protocol(&p.protocol), p.port)).collect()
}

/// Ports that pods have on their nodes, and node ports of Services; with who has them.
fn taken_by_others(services: &[Arc<Service>], pods: &[Arc<Pod>]) -> BTreeMap<Port, String> {
    let mut taken = BTreeMap::new();
    for number in OF_THE_NODE {
        taken.insert(("TCP".to_owned(), number), "the node itself".to_owned());
    }
    for service in services {
        for port in service.spec.iter().flat_map(|s| s.ports.iter().flatten()) {
            let protocol = port.protocol.clone().unwrap_or_else(|| "TCP".into());
            if let Some(number) = port.node_port.filter(|n| *n != 0) {
                let who = format!("a node port of Service {}", Key::of(service.as_ref()));
                taken.insert((protocol, number), who);
            }
        }
    }
    for pod in pods {
        let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref());
        if matches!(phase, Some("Succeeded" | "Failed")) {
            continue;
        }
        for port in host_ports(pod) {
            taken.insert(port, format!("pod {}", Key::of(pod.as_ref())));
        }
    }
    taken
}

pub(super) fn host_ports(pod: &Pod) -> impl Iterator<Item = Port> {
    let containers = pod.spec.iter().flat_map(|spec| {
        let sidecars = spec.init_containers.iter().flatten();
        let sidecars = sidecars.filter(|c| c.restart_policy.as_deref() == Some("Always"));
        spec.containers.iter().chain(sidecars)
    });
    let ports = containers.flat_map(|c| c.ports.iter().flatten());
    ports.filter_map(|port| {
        let number = port.host_port.filter(|n| *n != 0)?;
        Some((
            port.protocol.clone().unwrap_or_else(|| "TCP".into()),
            number,
        ))
    })
}

/// For each load balancer: nothing, or the words that say who has a port that it wants. Who has
/// addresses already keeps its ports; among the rest, who came first.
pub(super) fn decide(
    services: &[Arc<Service>],
    pods: &[Arc<Pod>],
) -> BTreeMap<Key, Option<String>> {
    let mut taken = taken_by_others(services, pods);
    let mut ours: Vec<&Arc<Service>> = services.iter().filter(|s| is_ours(s)).collect();
    ours.sort_by_key(|s| {
        let created = s.metadata.creation_timestamp.as_ref().map(|t| t.0);
        (
            given(s).is_empty(),
            created,
            s.metadata.namespace.clone(),
            s.metadata.name.clone(),
        )
    });
    let mut decided = BTreeMap::new();
    for service in ours {
        let key = Key::of(service.as_ref());
        let wanted: BTreeSet<Port> = ports(service).into_iter().collect();
        let conflict = wanted.iter().find_map(|port| {
            let who = taken.get(port)?;
            Some(format!(
                "port {}/{} of the nodes is taken by {who}",
                port.1, port.0
            ))
        });
        if conflict.is_none() {
            let who = format!("Service {key}");
            taken.extend(wanted.into_iter().map(|port| (port, who.clone())));
        }
        decided.insert(key, conflict);
    }
    decided
}

/// Addresses of the nodes that serve a load balancer, of the Service's families. `with_endpoints`:
/// only of these nodes.
pub(super) fn addresses(
    service: &Service,
    nodes: &[Arc<Node>],
    with_endpoints: Option<&BTreeSet<String>>,
) -> Vec<String> {
    let families = service.spec.as_ref().and_then(|s| s.ip_families.as_deref());
    let families = families.unwrap_or_default();
    let served = |ip: &str| {
        let family = if ip.contains(':') { "IPv6" } else { "IPv4" };
        families.is_empty() || families.iter().any(|f| f == family)
    };
    let wanted = |node: &&Arc<Node>| {
        let name = node.metadata.name.as_deref().unwrap_or_default();
        is_usable(node) && with_endpoints.is_none_or(|nodes| nodes.contains(name))
    };
    let mut found: Vec<String> = nodes
        .iter()
        .filter(wanted)
        .flat_map(|node| node_addresses(node))
        .filter(|ip| served(ip))
        .collect();
    found.sort_unstable();
    found.dedup();
    found
}

fn is_usable(node: &Node) -> bool {
    let labels = node.metadata.labels.as_ref();
    let excluded = labels.is_some_and(|l| l.contains_key(EXCLUDED));
    let status = node.status.as_ref();
    let mut conditions = status
        .and_then(|s| s.conditions.as_deref())
        .unwrap_or_default()
        .iter();
    let ready = conditions.any(|c| c.type_ == "Ready" && c.status == "True");
    ready && !excluded && node.metadata.deletion_timestamp.is_none()
}

/// The external addresses of a node, or its internal ones when it has no others.
fn node_addresses(node: &Node) -> Vec<String> {
    let status = node.status.as_ref();
    let all = status
        .and_then(|s| s.addresses.as_deref())
        .unwrap_or_default();
    let of = |kind: &str| -> Vec<String> {
        let chosen = all.iter().filter(|a| a.type_ == kind);
        chosen.map(|a| a.address.clone()).collect()
    };
    let external = of("ExternalIP");
    if external.is_empty() {
        of("InternalIP")
    } else {
        external
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn balancer(name: &str, created: u32, ports: &[i32], given: bool) -> Arc<Service> {
        let ports: Vec<Value> = ports
            .iter()
            .map(|p| json!({"port": p, "protocol": "TCP"}))
            .collect();
        let ingress: Vec<Value> = given
            .then(|| json!({"ip": "192.0.2.1"}))
            .into_iter()
            .collect();
        let object = json!({
            "metadata": {"name": name, "namespace": "d", "creationTimestamp": format!("2024-01-01T00:00:{created:02}Z")},
            "spec": {"type": "LoadBalancer", "ports": ports, "ipFamilies": ["IPv4"]},
            "status": {"loadBalancer": {"ingress": ingress}}
        });
        Arc::new(serde_json::from_value(object).expect("a Service"))
    }

    fn conflict(decided: &BTreeMap<Key, Option<String>>, name: &str) -> Option<String> {
        decided[&Key::new("d", name)].clone()
    }

    #[test]
    fn a_port_is_claimed_once_and_kept() {
        let services = [
            balancer("old", 1, &[80, 443], false),
            balancer("new", 2, &[443], false),
            balancer("other", 3, &[8443], false),
        ];
        let decided = decide(&services, &[]);
        assert_eq!(conflict(&decided, "old"), None);
        assert_eq!(conflict(&decided, "other"), None);
        let words = conflict(&decided, "new").expect("a conflict");
        assert_eq!(words, "port 443/TCP of the nodes is taken by Service d/old");
        let services = [
            balancer("old", 1, &[443], false),
            balancer("holder", 2, &[443], true),
        ];
        let decided = decide(&services, &[]);
        assert!(conflict(&decided, "old").is_some());
        assert_eq!(conflict(&decided, "holder"), None);
    }

    #[test]
    fn ports_of_nodes_and_pods_are_not_given_away() {
        let pod = json!({"metadata": {"name": "p", "namespace": "d"}, "spec": {"containers": [
            {"name": "c", "ports": [{"containerPort": 80, "hostPort": 8080}]}]}});
        let pod: Arc<Pod> = Arc::new(serde_json::from_value(pod).expect("a pod"));
        let services = [
            balancer("ssh", 1, &[22], false),
            balancer("web", 1, &[8080], false),
        ];
        let decided = decide(&services, &[pod]);
        assert!(conflict(&decided, "ssh").is_some_and(|w| w.contains("the node itself")));
        assert!(conflict(&decided, "web").is_some_and(|w| w.contains("pod d/p")));
    }

    #[test]
    fn ready_nodes_of_the_family_serve() {
        let node = |name: &str, ready: &str, ips: &[(&str, &str)]| -> Arc<Node> {
            let ips: Vec<Value> = ips
                .iter()
                .map(|(t, a)| json!({"type": t, "address": a}))
                .collect();
            let object = json!({"metadata": {"name": name}, "status": {"addresses": ips,
                "conditions": [{"type": "Ready", "status": ready}]}});
            Arc::new(serde_json::from_value(object).expect("a node"))
        };
        let nodes = [
            node(
                "a",
                "True",
                &[("InternalIP", "192.0.2.1"), ("InternalIP", "2001:db8::1")],
            ),
            node("b", "False", &[("InternalIP", "192.0.2.2")]),
            node(
                "c",
                "True",
                &[("InternalIP", "192.0.2.3"), ("ExternalIP", "198.51.100.3")],
            ),
        ];
        let service = balancer("s", 1, &[80], false);
        assert_eq!(
            addresses(&service, &nodes, None),
            ["192.0.2.1", "198.51.100.3"]
        );
        let only = BTreeSet::from(["c".to_owned()]);
        assert_eq!(addresses(&service, &nodes, Some(&only)), ["198.51.100.3"]);
    }
}
