// SPDX-License-Identifier: Apache-2.0
//! Pod templates: which ReplicaSet belongs to which, and the hash that names it.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::PodTemplateSpec;
use sha2::{Digest, Sha256};

/// The label that tells the pods of one version from those of another.
pub(crate) const HASH_LABEL: &str = "pod-template-hash";

/// Letters and digits that cannot form words or be mistaken for one another, as upstream uses.
const SAFE: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
const HASH_LEN: usize = 10;

/// Ten safe characters that depend on the template and the collision count. Stable across versions
/// of this program as long as the template serialises alike.
pub(crate) fn hash(template: &PodTemplateSpec, collisions: i32) -> String {
    let bytes = serde_json::to_vec(template).expect("a pod template is plain data");
    let mut hasher = Sha256::new();
    hasher.update(&bytes);
    hasher.update(collisions.to_be_bytes());
    hasher
        .finalize()
        .iter()
        .take(HASH_LEN)
        .map(|byte| char::from(SAFE[usize::from(*byte) % SAFE.len()]))
        .collect()
}

/// True if a set was made from this template: all but the hash label is equal.
pub(crate) fn is_from(set: &ReplicaSet, template: &PodTemplateSpec) -> bool {
    let Some(own) = &set.spec.template else {
        return false;
    };
    without_hash(own) == without_hash(template)
}

fn without_hash(template: &PodTemplateSpec) -> PodTemplateSpec {
    let mut template = template.clone();
    let meta = template.metadata.get_or_insert_default();
    if let Some(labels) = &mut meta.labels {
        labels.remove(HASH_LABEL);
    }
    // An empty map and a missing one mean the same.
    meta.labels = meta.labels.take().filter(|l| !l.is_empty());
    meta.annotations = meta.annotations.take().filter(|a| !a.is_empty());
    meta.creation_timestamp = None;
    template
}

/// The template with the hash among its labels.
pub(crate) fn with_hash(template: &PodTemplateSpec, hash: &str) -> PodTemplateSpec {
    let mut template = template.clone();
    let labels = &mut template.metadata.get_or_insert_default().labels;
    labels
        .get_or_insert_with(BTreeMap::new)
        .insert(HASH_LABEL.into(), hash.into());
    template
}

/// The deployment's template, or an empty one.
pub(crate) fn of(deployment: &Deployment) -> PodTemplateSpec {
    deployment.spec.template.clone()
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::apps::v1::ReplicaSetSpec;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

    use super::super::super::machinery::testing::labels;
    use super::*;

    fn template(app: &str) -> PodTemplateSpec {
        PodTemplateSpec {
            metadata: Some(ObjectMeta {
                labels: Some(labels(&[("app", app)])),
                ..ObjectMeta::default()
            }),
            spec: None,
        }
    }

    #[test]
    fn the_hash_is_stable_and_differs_by_template_and_collision() {
        let hash_of = |app, collisions| hash(&template(app), collisions);
        assert_eq!(hash_of("a", 0), hash_of("a", 0));
        assert_ne!(hash_of("a", 0), hash_of("b", 0));
        assert_ne!(hash_of("a", 0), hash_of("a", 1));
        assert_eq!(hash_of("a", 0).len(), HASH_LEN);
        assert!(hash_of("a", 0).bytes().all(|b| SAFE.contains(&b)));
    }

    #[test]
    fn the_hash_label_does_not_count_in_comparison() {
        let set = ReplicaSet {
            spec: ReplicaSetSpec {
                template: Some(with_hash(&template("a"), "xyz")),
                ..ReplicaSetSpec::default()
            },
            ..ReplicaSet::default()
        };
        assert!(is_from(&set, &template("a")));
        assert!(!is_from(&set, &template("b")));
    }
}
