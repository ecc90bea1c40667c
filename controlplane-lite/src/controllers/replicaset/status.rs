// SPDX-License-Identifier: Apache-2.0
//! Counts pods into `status`.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetCondition, ReplicaSetStatus};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;

use super::super::machinery::pods;
use super::super::machinery::selector::Selector;

/// What went wrong while the number of pods was changed, for the `ReplicaFailure` condition.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    pub(crate) reason: &'static str,
    pub(crate) message: String,
}

/// The new status, and when a ready pod will have become available.
pub(crate) fn status(
    set: &ReplicaSet,
    owned: &[Arc<Pod>],
    failure: Option<&Failure>,
    now: Timestamp,
) -> (ReplicaSetStatus, Option<Duration>) {
    let min_ready = set.spec.min_ready_seconds.unwrap_or(0);
    let template = template_labels(set);
    let empty = std::collections::BTreeMap::new();
    let (mut total, mut labelled, mut ready, mut available, mut terminating) = (0, 0, 0, 0, 0);
    let mut next: Option<Duration> = None;
    for pod in owned {
        if !pods::is_active(pod) {
            terminating += i32::from(pods::is_terminating(pod) && !pods::is_finished(pod));
            continue;
        }
        total += 1;
        let labels = pod.metadata.labels.as_ref().unwrap_or(&empty);
        labelled += i32::from(template.is_empty() || template.matches(labels));
        ready += i32::from(pods::is_ready(pod));
        match pods::available_in(pod, min_ready, now) {
            Some(Duration::ZERO) => available += 1,
            Some(wait) => next = Some(next.map_or(wait, |n| n.min(wait))),
            None => {}
        }
    }
    let status = ReplicaSetStatus {
        replicas: total,
        fully_labeled_replicas: Some(labelled),
        ready_replicas: Some(ready),
        available_replicas: Some(available),
        terminating_replicas: Some(terminating),
        observed_generation: set.metadata.generation,
        conditions: conditions(set, failure, now),
    };
    (status, next)
}

fn template_labels(set: &ReplicaSet) -> Selector {
    let labels = set
        .spec
        .template
        .as_ref()
        .and_then(|t| t.metadata.as_ref())
        .and_then(|m| m.labels.clone())
        .unwrap_or_default();
    Selector::from_labels(&labels)
}

fn conditions(
    set: &ReplicaSet,
    failure: Option<&Failure>,
    now: Timestamp,
) -> Option<Vec<ReplicaSetCondition>> {
    let old = set.status.as_ref().and_then(|s| s.conditions.clone());
    let mut kept: Vec<_> = old
        .clone()
        .unwrap_or_default()
        .into_iter()
        .filter(|c| c.type_.as_deref() != Some("ReplicaFailure"))
        .collect();
    if let Some(failure) = failure {
        let same = old.iter().flatten().find(|c| {
            c.type_.as_deref() == Some("ReplicaFailure")
                && c.reason.as_deref() == Some(failure.reason)
        });
        // An unchanged reason keeps its text and time: else every retry would write the status.
        kept.push(same.cloned().unwrap_or_else(|| ReplicaSetCondition {
            type_: Some("ReplicaFailure".into()),
            status: Some("True".into()),
            reason: Some(failure.reason.into()),
            message: Some(failure.message.clone()),
            last_transition_time: Some(Time(now)),
        }));
    }
    Some(kept).filter(|c| !c.is_empty())
}

/// The API leaves zero counts out, so absent and zero are the same.
pub(crate) fn differs(old: Option<&ReplicaSetStatus>, new: &ReplicaSetStatus) -> bool {
    let zero = |n: Option<i32>| n.unwrap_or(0);
    old.is_none_or(|old| {
        old.replicas != new.replicas
            || zero(old.fully_labeled_replicas) != zero(new.fully_labeled_replicas)
            || zero(old.ready_replicas) != zero(new.ready_replicas)
            || zero(old.available_replicas) != zero(new.available_replicas)
            || zero(old.terminating_replicas) != zero(new.terminating_replicas)
            || old.observed_generation != new.observed_generation
            || old.conditions.as_deref().unwrap_or_default()
                != new.conditions.as_deref().unwrap_or_default()
    })
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::apps::v1::ReplicaSetSpec;

    use super::super::super::machinery::testing::{at, meta, pod};
    use super::*;

    fn set() -> ReplicaSet {
        ReplicaSet {
            metadata: meta("ns", "web"),
            spec: ReplicaSetSpec {
                min_ready_seconds: Some(10),
                ..ReplicaSetSpec::default()
            },
            status: None,
        }
    }

    #[test]
    fn pods_are_counted_and_the_next_change_is_known() {
        let pods: Vec<_> = [
            pod("old", "Running", Some(0)),
            pod("new", "Running", Some(95)),
            pod("not", "Running", None),
            pod("done", "Failed", None),
        ]
        .into_iter()
        .map(Arc::new)
        .collect();
        let (status, next) = status(&set(), &pods, None, at(100));
        assert_eq!(status.replicas, 3);
        assert_eq!(status.ready_replicas, Some(2));
        assert_eq!(status.available_replicas, Some(1));
        assert_eq!(next, Some(Duration::from_secs(5)));
        assert_eq!(status.observed_generation, Some(1));
    }

    #[test]
    fn a_failure_is_shown_until_it_is_over() {
        let failure = Failure {
            reason: "FailedCreate",
            message: "forbidden".into(),
        };
        let mut set = set();
        let (shown, _) = status(&set, &[], Some(&failure), at(1));
        set.status = Some(shown.clone());
        let (again, _) = status(&set, &[], Some(&failure), at(2));
        assert!(!differs(Some(&shown), &again));
        let (over, _) = status(&set, &[], None, at(3));
        assert_eq!(over.conditions, None);
    }
}
