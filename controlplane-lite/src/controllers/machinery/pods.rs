// SPDX-License-Identifier: Apache-2.0
//! Questions about pods that several controllers ask.

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;

use super::condition;

pub(crate) fn phase(pod: &Pod) -> &str {
    pod.status
        .as_ref()
        .and_then(|s| s.phase.as_deref())
        .unwrap_or("Pending")
}

/// Its containers have all stopped for good.
pub(crate) fn is_finished(pod: &Pod) -> bool {
    matches!(phase(pod), "Succeeded" | "Failed")
}

pub(crate) fn is_terminating(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some()
}

/// Neither finished nor being deleted: it counts as a replica.
pub(crate) fn is_active(pod: &Pod) -> bool {
    !is_finished(pod) && !is_terminating(pod)
}

pub(crate) fn is_ready(pod: &Pod) -> bool {
    condition::of_pod(pod, "Ready").is_some_and(|c| c.status == "True")
}

/// Since when the pod has been ready, if it is.
pub(crate) fn ready_since(pod: &Pod) -> Option<Timestamp> {
    condition::of_pod(pod, "Ready")
        .filter(|c| c.status == "True")
        .and_then(|c| c.last_transition_time.as_ref())
        .map(|time| time.0)
}

/// How long until a pod counts as available: `Some(0)` if it does, `None` if it is not ready.
pub(crate) fn available_in(pod: &Pod, min_ready_secs: i32, now: Timestamp) -> Option<Duration> {
    if !is_ready(pod) {
        return None;
    }
    let wanted = i64::from(min_ready_secs.max(0));
    if wanted == 0 {
        return Some(Duration::ZERO);
    }
    let ready_for = now.as_second() - ready_since(pod)?.as_second();
    let missing = u64::try_from(wanted - ready_for).unwrap_or(0);
    Some(Duration::from_secs(missing))
}

/// The node the pod is bound to, if it is.
pub(crate) fn node_name(pod: &Pod) -> Option<&str> {
    pod.spec
        .as_ref()
        .and_then(|s| s.node_name.as_deref())
        .filter(|name| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use super::super::testing::{at, pod};
    use super::*;

    #[test]
    fn availability_waits_for_min_ready_seconds() {
        let ready = pod("a", "Running", Some(10));
        assert_eq!(available_in(&ready, 0, at(10)), Some(Duration::ZERO));
        assert_eq!(
            available_in(&ready, 5, at(12)),
            Some(Duration::from_secs(3))
        );
        assert_eq!(available_in(&ready, 5, at(15)), Some(Duration::ZERO));
        assert_eq!(available_in(&pod("a", "Running", None), 0, at(15)), None);
    }
}
