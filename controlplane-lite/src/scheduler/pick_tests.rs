// SPDX-License-Identifier: Apache-2.0
//! Pods against nodes.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{
    Container, ContainerPort, Node, NodeSpec, NodeStatus, PodSpec, ResourceRequirements, Taint,
    Toleration,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::super::snapshot;
use super::*;
use crate::controllers::machinery::testing::{labels, meta};

fn quantities(pairs: &[(&str, &str)]) -> BTreeMap<String, Quantity> {
    pairs
        .iter()
        .map(|(k, v)| ((*k).to_owned(), Quantity((*v).to_owned())))
        .collect()
}

fn node(name: &str, cpu: &str) -> Node {
    let mut node = Node {
        metadata: meta("", name),
        spec: Some(NodeSpec::default()),
        status: Some(NodeStatus {
            allocatable: Some(quantities(&[
                ("cpu", cpu),
                ("memory", "4Gi"),
                ("pods", "3"),
            ])),
            ..NodeStatus::default()
        }),
    };
    node.metadata.labels = Some(labels(&[("name", name)]));
    node
}

fn pod(cpu: &str) -> Pod {
    Pod {
        metadata: meta("ns", "p"),
        spec: Some(PodSpec {
            containers: vec![Container {
                resources: Some(ResourceRequirements {
                    requests: Some(quantities(&[("cpu", cpu)])),
                    ..ResourceRequirements::default()
                }),
                ..Container::default()
            }],
            ..PodSpec::default()
        }),
        status: None,
    }
}

fn bound(mut pod: Pod, node: &str) -> Pod {
    pod.spec.get_or_insert_default().node_name = Some(node.into());
    pod
}

fn check(pod: &Pod, nodes: Vec<Node>, there: Vec<Pod>) -> Result<String, String> {
    let nodes = nodes.into_iter().map(Arc::new).collect();
    let there: Vec<_> = there.into_iter().map(Arc::new).collect();
    pick(pod, &snapshot::places(nodes, &there)).map_err(|none| none.message)
}

fn tainted(effect: &str) -> Node {
    let mut node = node("n0", "4");
    node.spec.get_or_insert_default().taints = Some(vec![Taint {
        key: "gpu".into(),
        value: Some("a".into()),
        effect: effect.into(),
        time_added: None,
    }]);
    node
}

#[test]
fn reasons_are_counted_in_the_words_that_people_know() {
    let none = check(
        &pod("2"),
        vec![node("n1", "1"), tainted("NoSchedule")],
        vec![],
    );
    assert_eq!(
        none,
        Err("0/2 nodes are available: 1 Insufficient cpu, 1 node(s) had untolerated taint {gpu: a}."
            .into())
    );
    let none = check(&pod("2"), vec![], vec![]);
    assert_eq!(none, Err("no nodes available to schedule pods".into()));
}

#[test]
fn what_is_taken_is_not_there() {
    let there = vec![bound(pod("3"), "n1")];
    assert!(check(&pod("2"), vec![node("n1", "4")], there.clone()).is_err());
    assert_eq!(
        check(&pod("1"), vec![node("n1", "4")], there),
        Ok("n1".into())
    );
}

#[test]
fn the_number_of_pods_is_limited() {
    let there = vec![bound(pod("0"), "n1"); 3];
    let none = check(&pod("0"), vec![node("n1", "4")], there);
    assert_eq!(
        none,
        Err("0/1 nodes are available: 1 Too many pods.".into())
    );
}

#[test]
fn the_emptier_node_is_taken() {
    let there = vec![bound(pod("2"), "n1")];
    assert_eq!(
        check(&pod("1"), vec![node("n1", "4"), node("n2", "4")], there),
        Ok("n2".into())
    );
}

#[test]
fn selectors_and_closed_nodes_are_respected() {
    let mut picky = pod("1");
    picky.spec.get_or_insert_default().node_selector = Some(labels(&[("name", "n2")]));
    assert_eq!(
        check(&picky, vec![node("n1", "4"), node("n2", "4")], vec![]),
        Ok("n2".into())
    );
    let none = check(&picky, vec![node("n1", "4")], vec![]);
    assert_eq!(
        none,
        Err("0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector.".into())
    );
    let mut closed = node("n1", "4");
    closed.spec.get_or_insert_default().unschedulable = Some(true);
    let none = check(&pod("1"), vec![closed], vec![]);
    assert_eq!(
        none,
        Err("0/1 nodes are available: 1 node(s) were unschedulable.".into())
    );
}

#[test]
fn tolerations_open_tainted_nodes() {
    let mut tolerant = pod("1");
    tolerant.spec.get_or_insert_default().tolerations = Some(vec![Toleration {
        operator: Some("Exists".into()),
        ..Toleration::default()
    }]);
    assert_eq!(
        check(&tolerant, vec![tainted("NoSchedule")], vec![]),
        Ok("n0".into())
    );
    let soft = check(
        &pod("1"),
        vec![tainted("PreferNoSchedule"), node("n2", "4")],
        vec![],
    );
    assert_eq!(soft, Ok("n2".into()));
    assert_eq!(
        check(&pod("1"), vec![tainted("PreferNoSchedule")], vec![]),
        Ok("n0".into())
    );
}

#[test]
fn host_ports_are_taken_once() {
    let mut web = pod("0");
    web.spec.get_or_insert_default().containers[0].ports = Some(vec![ContainerPort {
        host_port: Some(80),
        container_port: 80,
        ..ContainerPort::default()
    }]);
    let there = vec![bound(web.clone(), "n1")];
    assert_eq!(
        check(&web, vec![node("n1", "4"), node("n2", "4")], there.clone()),
        Ok("n2".into())
    );
    assert_eq!(
        check(&web, vec![node("n1", "4")], there),
        Err("0/1 nodes are available: 1 node(s) didn't have free ports for the requested pod ports."
            .into())
    );
}
