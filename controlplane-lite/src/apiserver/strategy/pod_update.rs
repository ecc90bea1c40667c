// SPDX-License-Identifier: Apache-2.0
//! What may be changed in a pod's specification after it was created: images, an active
//! deadline, more tolerations, a shorter grace period (upstream: `ValidatePodUpdate`).

use serde_json::Value;

use super::field::FieldErrors;
use crate::apiserver::json::{self, int, list, text};

const FORBIDDEN: &str = "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";

/// Checks an update. New, then old.
pub(super) fn validate(new: &Value, old: &Value, errors: &mut FieldErrors) {
    let (new, old) = (&new["spec"], &old["spec"]);
    if new == old {
        return;
    }
    let count = |spec: &Value, field: &str| list(spec, field).len();
    if count(new, "/containers") != count(old, "/containers")
        || count(new, "/initContainers") != count(old, "/initContainers")
    {
        errors.forbidden(
            "spec.containers",
            "pod updates may not add or remove containers",
        );
        return;
    }
    deadline(new, old, errors);
    let kept = |t: &Value| list(new, "/tolerations").contains(t);
    if !list(old, "/tolerations").iter().all(kept) {
        errors.forbidden(
            "spec.tolerations",
            "existing toleration can not be modified except its tolerationSeconds",
        );
    }
    let mut same = new.clone();
    for field in ["activeDeadlineSeconds", "tolerations"] {
        json::put(&mut same, field, old.get(field).cloned());
    }
    // A pod that waits for its gates may still get a node; binding does the same.
    if text(old, "/nodeName").is_empty() {
        json::put(&mut same, "nodeName", old.get("nodeName").cloned());
        if !text(new, "/nodeName").is_empty() && !list(old, "/schedulingGates").is_empty() {
            errors.forbidden(
                "spec.nodeName",
                "cannot be set until all schedulingGates have been cleared",
            );
        }
    }
    if list(new, "/schedulingGates").len() < list(old, "/schedulingGates").len() {
        json::put(
            &mut same,
            "schedulingGates",
            old.get("schedulingGates").cloned(),
        );
    }
    for field in ["containers", "initContainers"] {
        let images = list(old, &format!("/{field}")).to_vec();
        for (container, before) in json::items(&mut same, field).zip(images) {
            if text(container, "/image").is_empty() {
                errors.required(format!("spec.{field}.image"), "");
            }
            json::put(container, "image", before.get("image").cloned());
        }
    }
    if same != *old {
        errors.forbidden("spec", FORBIDDEN);
    }
}

fn deadline(new: &Value, old: &Value, errors: &mut FieldErrors) {
    let path = "spec.activeDeadlineSeconds";
    match (
        int(new, "/activeDeadlineSeconds"),
        int(old, "/activeDeadlineSeconds"),
    ) {
        (None, Some(_)) => errors.invalid(
            path,
            Value::Null,
            "must not update from a positive integer to nil value",
        ),
        (Some(new), Some(old)) if new > old => {
            errors.invalid(path, new, "must be less than or equal to previous value");
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn count(new: &Value, old: &Value) -> usize {
        let mut errors = FieldErrors::default();
        validate(new, old, &mut errors);
        errors.0.len()
    }

    #[test]
    fn images_and_tolerations_may_change_and_the_rest_may_not() {
        let old =
            json!({"spec": {"containers": [{"name": "c", "image": "x:1"}], "hostNetwork": true}});
        let mut new = old.clone();
        new["spec"]["containers"][0]["image"] = "x:2".into();
        new["spec"]["tolerations"] = json!([{"key": "a", "operator": "Exists"}]);
        assert_eq!(count(&new, &old), 0);
        new["spec"]["hostNetwork"] = false.into();
        assert_eq!(count(&new, &old), 1);
        let mut bound = old.clone();
        bound["spec"]["nodeName"] = "n".into();
        assert_eq!(count(&bound, &old), 0);
        assert_eq!(count(&old, &bound), 1);
    }
}
