// SPDX-License-Identifier: Apache-2.0
//! Which pods to delete first (`ActivePodsWithRanks` of upstream's controller utilities): not bound,
//! pending, not ready, cheaper by annotation, crowded on one node, ready for less long, restarted
//! more often, younger.

use std::cmp::{Ordering, Reverse};
use std::collections::HashMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;

use super::super::machinery::pods;

const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";

/// The `count` pods that are missed least, in that order.
pub(crate) fn victims(
    mut active: Vec<Arc<Pod>>,
    related: &[Arc<Pod>],
    count: usize,
    now: Timestamp,
) -> Vec<Arc<Pod>> {
    if count < active.len() {
        let crowd = crowd(related);
        active.sort_by(|a, b| compare(a, b, &crowd, now));
        active.truncate(count);
    } else {
        active.sort_by(|a, b| compare(a, b, &HashMap::new(), now));
    }
    active
}

/// Active pods per node.
fn crowd(related: &[Arc<Pod>]) -> HashMap<String, usize> {
    let mut crowd = HashMap::new();
    for pod in related.iter().filter(|p| pods::is_active(p)) {
        if let Some(node) = pods::node_name(pod) {
            *crowd.entry(node.to_owned()).or_default() += 1;
        }
    }
    crowd
}

fn compare(a: &Pod, b: &Pod, crowd: &HashMap<String, usize>, now: Timestamp) -> Ordering {
    let on_node = |pod: &Pod| {
        pods::node_name(pod)
            .and_then(|node| crowd.get(node).copied())
            .unwrap_or(0)
    };
    let key = |pod: &Pod| {
        (
            pods::node_name(pod).is_some(),
            phase_rank(pod),
            pods::is_ready(pod),
            deletion_cost(pod),
            Reverse(on_node(pod)),
        )
    };
    let age = |at: Option<Timestamp>| at.map(|at| log2_seconds(at, now));
    key(a)
        .cmp(&key(b))
        // Ages are compared by order of magnitude, so that equals are not always picked alike.
        .then_with(|| age(pods::ready_since(a)).cmp(&age(pods::ready_since(b))))
        .then_with(|| restarts(b).cmp(&restarts(a)))
        .then_with(|| age(created(a)).cmp(&age(created(b))))
        .then_with(|| a.metadata.uid.cmp(&b.metadata.uid))
}

fn phase_rank(pod: &Pod) -> u8 {
    match pods::phase(pod) {
        "Pending" => 0,
        "Unknown" => 1,
        _ => 2,
    }
}

fn deletion_cost(pod: &Pod) -> i32 {
    let annotations = pod.metadata.annotations.as_ref();
    annotations
        .and_then(|a| a.get(DELETION_COST))
        .and_then(|cost| cost.parse().ok())
        .unwrap_or(0)
}

fn restarts(pod: &Pod) -> i32 {
    let status = pod.status.as_ref();
    let containers = status.and_then(|s| s.container_statuses.as_ref());
    containers
        .into_iter()
        .flatten()
        .map(|c| c.restart_count)
        .max()
        .unwrap_or(0)
}

fn created(pod: &Pod) -> Option<Timestamp> {
    pod.metadata.creation_timestamp.as_ref().map(|t| t.0)
}

fn log2_seconds(at: Timestamp, now: Timestamp) -> u32 {
    let seconds = u64::try_from(now.as_second() - at.as_second()).unwrap_or(0);
    seconds.checked_ilog2().map_or(0, |log| log + 1)
}

#[cfg(test)]
mod tests {
    use super::super::super::machinery::testing::{at, labels, pod};
    use super::*;

    fn check(pods: Vec<Pod>, count: usize) -> Vec<String> {
        let pods: Vec<_> = pods.into_iter().map(Arc::new).collect();
        victims(pods.clone(), &pods, count, at(1000))
            .iter()
            .filter_map(|p| p.metadata.name.clone())
            .collect()
    }

    fn on(node: &str, mut pod: Pod) -> Pod {
        pod.spec.get_or_insert_default().node_name = Some(node.into());
        pod
    }

    #[test]
    fn a_pod_without_a_node_goes_first() {
        let pods = vec![pod("a", "Pending", None), on("", pod("b", "Pending", None))];
        assert_eq!(check(pods, 1), ["b"]);
    }

    #[test]
    fn a_crowded_node_loses_a_pod_first() {
        let ready = |name, node| on(node, pod(name, "Running", Some(1)));
        let pods = vec![ready("a", "n1"), ready("b", "n2"), ready("c", "n2")];
        assert_ne!(check(pods, 1), ["a"]);
    }

    #[test]
    fn cost_outranks_age_and_younger_goes_before_older() {
        let mut cheap = pod("cheap", "Running", Some(1));
        cheap.metadata.annotations = Some(labels(&[(DELETION_COST, "-5")]));
        let pods = vec![
            pod("old", "Running", Some(1)),
            cheap,
            pod("young", "Running", Some(990)),
        ];
        assert_eq!(check(pods, 2), ["cheap", "young"]);
    }
}
