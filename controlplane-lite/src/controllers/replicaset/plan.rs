// SPDX-License-Identifier: Apache-2.0
//! How many pods to create, or which to delete.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::jiff::Timestamp;

use super::super::machinery::{owner, pods};
use super::rank;

/// At most this many pods are made or deleted in one pass, as upstream.
const BURST: usize = 500;

/// What brings the pods to the wanted number.
#[derive(Debug)]
pub(crate) enum Step {
    Nothing,
    Create(usize),
    Delete(Vec<Arc<Pod>>),
}

/// Compares wanted and seen. `owned` are the pods that this set controls, `related` those of all
/// sets of the same owner (for spreading), both in any state.
pub(crate) fn plan(
    set: &ReplicaSet,
    owned: &[Arc<Pod>],
    related: &[Arc<Pod>],
    now: Timestamp,
) -> Step {
    if set.metadata.deletion_timestamp.is_some() {
        return Step::Nothing;
    }
    let active: Vec<_> = owned
        .iter()
        .filter(|p| pods::is_active(p))
        .cloned()
        .collect();
    let wanted = wanted(set);
    if active.len() < wanted {
        Step::Create((wanted - active.len()).min(BURST))
    } else if active.len() > wanted {
        let count = (active.len() - wanted).min(BURST);
        Step::Delete(rank::victims(active, related, count, now))
    } else {
        Step::Nothing
    }
}

/// `spec.replicas`, which defaults to one.
pub(crate) fn wanted(set: &ReplicaSet) -> usize {
    let replicas = set.spec.replicas.unwrap_or(1);
    usize::try_from(replicas).unwrap_or(0)
}

/// A pod from the set's template, controlled by the set.
pub(crate) fn pod_of(set: &ReplicaSet) -> Pod {
    let template: PodTemplateSpec = set.spec.template.clone().unwrap_or_default();
    let meta = template.metadata.unwrap_or_default();
    let name = set.metadata.name.as_deref().unwrap_or_default();
    Pod {
        metadata: ObjectMeta {
            generate_name: Some(format!("{name}-")),
            namespace: set.metadata.namespace.clone(),
            labels: meta.labels,
            annotations: meta.annotations,
            finalizers: meta.finalizers,
            owner_references: Some(vec![owner::controller_reference(set)]),
            ..ObjectMeta::default()
        },
        spec: template.spec,
        status: None,
    }
}

/// The sizes of successive batches of creations: 1, 2, 4 and so on, so that what cannot work (a
/// quota, say) fails once and not five hundred times.
pub(crate) fn slow_start(mut count: usize) -> Vec<usize> {
    let mut batches = Vec::new();
    let mut size = 1;
    while count > 0 {
        let batch = size.min(count);
        batches.push(batch);
        count -= batch;
        size = size.saturating_mul(2);
    }
    batches
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::apps::v1::ReplicaSetSpec;

    use super::super::super::machinery::testing::{at, labels, meta, pod};
    use super::*;

    fn set(replicas: i32) -> ReplicaSet {
        ReplicaSet {
            metadata: meta("ns", "web"),
            spec: ReplicaSetSpec {
                replicas: Some(replicas),
                template: Some(PodTemplateSpec {
                    metadata: Some(ObjectMeta {
                        labels: Some(labels(&[("app", "web")])),
                        ..ObjectMeta::default()
                    }),
                    spec: None,
                }),
                ..ReplicaSetSpec::default()
            },
            status: None,
        }
    }

    fn check(replicas: i32, pods: &[Pod]) -> String {
        let pods: Vec<_> = pods.iter().cloned().map(Arc::new).collect();
        match plan(&set(replicas), &pods, &pods, at(100)) {
            Step::Nothing => "nothing".into(),
            Step::Create(count) => format!("create {count}"),
            Step::Delete(victims) => {
                let names: Vec<_> = victims
                    .iter()
                    .filter_map(|p| p.metadata.name.clone())
                    .collect();
                format!("delete {}", names.join(" "))
            }
        }
    }

    #[test]
    fn missing_pods_are_created_and_finished_ones_do_not_count() {
        assert_eq!(check(3, &[]), "create 3");
        let pods = [pod("a", "Running", Some(1)), pod("b", "Failed", None)];
        assert_eq!(check(2, &pods), "create 1");
        assert_eq!(check(1, &pods), "nothing");
    }

    #[test]
    fn surplus_pods_go_in_order_of_use() {
        let pods = [
            pod("ready", "Running", Some(1)),
            pod("unready", "Running", None),
            pod("pending", "Pending", None),
        ];
        assert_eq!(check(2, &pods), "delete pending");
        assert_eq!(check(1, &pods), "delete pending unready");
        assert_eq!(check(0, &pods), "delete pending unready ready");
    }

    #[test]
    fn a_set_that_is_being_deleted_makes_nothing() {
        let mut going = set(3);
        going.metadata.deletion_timestamp = going.metadata.creation_timestamp.clone();
        assert!(matches!(plan(&going, &[], &[], at(0)), Step::Nothing));
    }

    #[test]
    fn pods_carry_their_owner_and_a_generated_name() {
        let pod = pod_of(&set(1));
        assert_eq!(pod.metadata.generate_name.as_deref(), Some("web-"));
        let owner = owner::controller_of(&pod.metadata).expect("a controller");
        assert_eq!(
            (owner.kind.as_str(), owner.uid.as_str()),
            ("ReplicaSet", "uid-web")
        );
        assert_eq!(owner.block_owner_deletion, Some(true));
    }

    #[test]
    fn batches_double() {
        assert_eq!(slow_start(10), [1, 2, 4, 3]);
        assert!(slow_start(0).is_empty());
    }
}
