// SPDX-License-Identifier: Apache-2.0
//! Annotations of Deployments and their ReplicaSets: revisions and remembered sizes.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::budget::Budget;

pub(crate) const REVISION: &str = "deployment.kubernetes.io/revision";
const HISTORY: &str = "deployment.kubernetes.io/revision-history";
pub(crate) const DESIRED: &str = "deployment.kubernetes.io/desired-replicas";
pub(crate) const MAX: &str = "deployment.kubernetes.io/max-replicas";
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
const ROLLBACK_TO: &str = "deprecated.deployment.rollback.to";

/// Annotations of the Deployment that its ReplicaSets do not inherit.
const NOT_INHERITED: [&str; 6] = [LAST_APPLIED, REVISION, HISTORY, DESIRED, MAX, ROLLBACK_TO];

/// The revision of a set or Deployment; zero if it has none.
pub(crate) fn revision(meta: &ObjectMeta) -> i64 {
    number(meta, REVISION).unwrap_or(0)
}

pub(crate) fn number(meta: &ObjectMeta, key: &str) -> Option<i64> {
    meta.annotations.as_ref()?.get(key)?.parse().ok()
}

/// Brings inherited annotations and the revision of the newest set up to date. `revision` is one
/// more than that of any older set; a set that already has a higher one keeps it.
pub(crate) fn annotate_new(set: &mut ReplicaSet, deployment: &Deployment, new: i64) {
    let annotations = set.metadata.annotations.get_or_insert_with(BTreeMap::new);
    for (key, value) in deployment.metadata.annotations.iter().flatten() {
        if !NOT_INHERITED.contains(&key.as_str()) {
            annotations.insert(key.clone(), value.clone());
        }
    }
    let old = annotations.get(REVISION).cloned().unwrap_or_default();
    if old.parse::<i64>().unwrap_or(0) < new {
        annotations.insert(REVISION.into(), new.to_string());
        // A set that comes back by a rollback remembers the revisions that it had.
        if !old.is_empty() && old != "0" {
            let history = annotations.entry(HISTORY.into()).or_default();
            if history.is_empty() {
                *history = old;
            } else {
                *history = format!("{history},{old}");
            }
        }
    }
}

/// Remembers for which size of the Deployment the set was scaled.
pub(crate) fn annotate_size(set: &mut ReplicaSet, budget: Budget) {
    let annotations = set.metadata.annotations.get_or_insert_with(BTreeMap::new);
    annotations.insert(DESIRED.into(), budget.replicas.to_string());
    annotations.insert(MAX.into(), budget.max_replicas().to_string());
}

#[cfg(test)]
mod tests {
    use super::super::super::machinery::testing::{labels, meta};
    use super::*;

    #[test]
    fn a_set_that_comes_back_gets_the_newest_revision_and_keeps_its_history() {
        let mut deployment = Deployment {
            metadata: meta("ns", "web"),
            ..Deployment::default()
        };
        deployment.metadata.annotations = Some(labels(&[(REVISION, "3"), ("team", "a")]));
        let mut set = ReplicaSet {
            metadata: meta("ns", "web-1"),
            ..ReplicaSet::default()
        };
        annotate_new(&mut set, &deployment, 1);
        annotate_new(&mut set, &deployment, 4);
        let annotations = set.metadata.annotations.unwrap_or_default();
        assert_eq!(annotations.get(REVISION).map(String::as_str), Some("4"));
        assert_eq!(annotations.get(HISTORY).map(String::as_str), Some("1"));
        assert_eq!(annotations.get("team").map(String::as_str), Some("a"));
    }
}
