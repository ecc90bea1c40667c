// SPDX-License-Identifier: Apache-2.0
//! Why a node cannot take a pod, in upstream's words.

use k8s_openapi::api::core::v1::{Pod, Taint, Toleration};

use super::affinity;
use super::pod_request;
use super::snapshot::Place;
use crate::controllers::machinery::taints::first_untolerated;

pub(crate) fn tolerations(pod: &Pod) -> &[Toleration] {
    let spec = pod.spec.as_ref();
    spec.and_then(|s| s.tolerations.as_deref())
        .unwrap_or_default()
}

pub(crate) fn taints(place: &Place) -> &[Taint] {
    let spec = place.node.spec.as_ref();
    spec.and_then(|s| s.taints.as_deref()).unwrap_or_default()
}

/// Empty if the pod fits. The filters run in upstream's order and the first that objects answers.
pub(crate) fn objections(pod: &Pod, place: &Place) -> Vec<String> {
    let one = |reason: &str| vec![reason.to_owned()];
    if is_closed(pod, place) {
        return one("node(s) were unschedulable");
    }
    let taint = first_untolerated(
        taints(place),
        tolerations(pod),
        &["NoSchedule", "NoExecute"],
    );
    if let Some(taint) = taint {
        let value = taint.value.as_deref().unwrap_or_default();
        return vec![format!(
            "node(s) had untolerated taint {{{}: {value}}}",
            taint.key
        )];
    }
    if !affinity::matches(pod, &place.node) {
        return one("node(s) didn't match Pod's node affinity/selector");
    }
    let wanted = pod_request::host_ports(pod);
    if wanted
        .iter()
        .any(|port| place.ports.iter().any(|taken| taken.conflicts(port)))
    {
        return one("node(s) didn't have free ports for the requested pod ports");
    }
    missing(pod, place)
}

/// `spec.unschedulable` counts even before the taint for it is there.
fn is_closed(pod: &Pod, place: &Place) -> bool {
    let closed = place.node.spec.as_ref().and_then(|s| s.unschedulable) == Some(true);
    let taint = [Taint {
        key: "node.kubernetes.io/unschedulable".into(),
        effect: "NoSchedule".into(),
        ..Taint::default()
    }];
    closed && first_untolerated(&taint, tolerations(pod), &["NoSchedule"]).is_some()
}

fn missing(pod: &Pod, place: &Place) -> Vec<String> {
    let mut reasons = Vec::new();
    let room = place.allocatable.get("pods").copied().unwrap_or(0) / 1000;
    if i128::try_from(place.pods).is_ok_and(|pods| pods + 1 > room) {
        reasons.push("Too many pods".to_owned());
    }
    for (name, amount) in pod_request::of(pod) {
        let has = place.allocatable.get(&name).copied().unwrap_or(0);
        let taken = place.taken.get(&name).copied().unwrap_or(0);
        if amount > 0 && amount > has - taken {
            reasons.push(format!("Insufficient {name}"));
        }
    }
    reasons
}
