// SPDX-License-Identifier: Apache-2.0
//! The taints that follow from a node's conditions.

use k8s_openapi::api::core::v1::{Node, Taint};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;

use super::super::machinery::condition;

pub(crate) const NOT_READY: &str = "node.kubernetes.io/not-ready";
pub(crate) const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";
const PRESSURES: [(&str, &str); 4] = [
    ("MemoryPressure", "node.kubernetes.io/memory-pressure"),
    ("DiskPressure", "node.kubernetes.io/disk-pressure"),
    ("PIDPressure", "node.kubernetes.io/pid-pressure"),
    (
        "NetworkUnavailable",
        "node.kubernetes.io/network-unavailable",
    ),
];

/// (key, effect) of the taints that a node should have from us.
fn wanted(node: &Node) -> Vec<(&'static str, &'static str)> {
    let mut wanted = Vec::new();
    match condition::of_node(node, "Ready").map(|c| c.status.as_str()) {
        Some("True") => {}
        Some("False") => {
            wanted.extend([(NOT_READY, "NoSchedule"), (NOT_READY, "NoExecute")]);
        }
        _ => wanted.extend([(UNREACHABLE, "NoSchedule"), (UNREACHABLE, "NoExecute")]),
    }
    for (type_, key) in PRESSURES {
        if condition::of_node(node, type_).is_some_and(|c| c.status == "True") {
            wanted.push((key, "NoSchedule"));
        }
    }
    if node.spec.as_ref().and_then(|s| s.unschedulable) == Some(true) {
        wanted.push((UNSCHEDULABLE, "NoSchedule"));
    }
    wanted
}

fn is_ours(taint: &Taint) -> bool {
    let keys = [NOT_READY, UNREACHABLE, UNSCHEDULABLE];
    keys.contains(&taint.key.as_str()) || PRESSURES.iter().any(|(_, key)| *key == taint.key)
}

/// The node's taints as they should be, or `None` if they are. Foreign taints stay, and ours keep
/// the time at which they were added, because toleration seconds count from it.
pub(crate) fn change(node: &Node, now: Timestamp) -> Option<Vec<Taint>> {
    let old = node
        .spec
        .as_ref()
        .and_then(|s| s.taints.clone())
        .unwrap_or_default();
    let wanted = wanted(node);
    let mut new: Vec<Taint> = old
        .iter()
        .filter(|t| !is_ours(t) || wanted.contains(&(t.key.as_str(), t.effect.as_str())))
        .cloned()
        .collect();
    for (key, effect) in wanted {
        if !new.iter().any(|t| t.key == key && t.effect == effect) {
            new.push(Taint {
                key: key.into(),
                effect: effect.into(),
                value: None,
                time_added: Some(Time(now)),
            });
        }
    }
    (new != old).then_some(new)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{NodeCondition, NodeSpec, NodeStatus};

    use super::super::super::machinery::testing::{at, meta};
    use super::*;

    fn node(ready: &str, taints: Vec<Taint>) -> Node {
        Node {
            metadata: meta("", "n1"),
            spec: Some(NodeSpec {
                taints: Some(taints),
                ..NodeSpec::default()
            }),
            status: Some(NodeStatus {
                conditions: Some(vec![NodeCondition {
                    type_: "Ready".into(),
                    status: ready.into(),
                    ..NodeCondition::default()
                }]),
                ..NodeStatus::default()
            }),
        }
    }

    #[test]
    fn a_lost_node_is_tainted_and_a_found_one_freed() {
        let foreign = Taint {
            key: "gpu".into(),
            effect: "NoSchedule".into(),
            ..Taint::default()
        };
        let lost = change(&node("Unknown", vec![foreign.clone()]), at(5)).unwrap_or_default();
        assert_eq!(lost.len(), 3);
        assert!(
            lost.iter()
                .any(|t| t.key == UNREACHABLE && t.effect == "NoExecute")
        );
        assert_eq!(change(&node("Unknown", lost.clone()), at(9)), None);
        assert_eq!(change(&node("True", lost), at(9)), Some(vec![foreign]));
    }
}
