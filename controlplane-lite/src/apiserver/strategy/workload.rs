// SPDX-License-Identifier: Apache-2.0
//! Deployments and ReplicaSets.

use serde_json::{Value, json};

use super::{field::FieldErrors, labels, names, pod};
use crate::apiserver::{
    json::{self, int, text},
    resource::Strategy,
};

/// Deployments.
pub(crate) const DEPLOYMENT: Strategy = Strategy {
    default: |deployment| {
        let spec = json::object(deployment, "spec");
        json::default(spec, "replicas", 1);
        json::default(spec, "revisionHistoryLimit", 10);
        json::default(spec, "progressDeadlineSeconds", 600);
        let strategy = json::object(spec, "strategy");
        json::default_text(strategy, "type", "RollingUpdate");
        if text(strategy, "/type") == "RollingUpdate" {
            let rolling = json::object(strategy, "rollingUpdate");
            json::default(rolling, "maxSurge", "25%");
            json::default(rolling, "maxUnavailable", "25%");
        }
        default_template(deployment);
    },
    prepare_create: |deployment| deployment["status"] = json!({}),
    validate: |deployment, errors| {
        template(deployment, errors);
        for field in [
            "revisionHistoryLimit",
            "progressDeadlineSeconds",
            "minReadySeconds",
        ] {
            not_negative(deployment, field, errors);
        }
        rollout(&deployment["spec"]["strategy"], errors);
    },
    validate_update: same_selector,
    ..Strategy::NONE
};

/// ReplicaSets.
pub(crate) const REPLICA_SET: Strategy = Strategy {
    default: |set| {
        let spec = json::object(set, "spec");
        json::default(spec, "replicas", 1);
        default_template(set);
    },
    prepare_create: |set| set["status"] = json!({"replicas": 0}),
    validate: |set, errors| {
        template(set, errors);
        not_negative(set, "minReadySeconds", errors);
    },
    validate_update: same_selector,
    ..Strategy::NONE
};

fn default_template(object: &mut Value) {
    if object
        .pointer("/spec/template")
        .is_some_and(Value::is_object)
    {
        let spec = json::object(&mut object["spec"]["template"], "spec");
        pod::default_spec(spec);
    }
}

fn not_negative(object: &Value, field: &str, errors: &mut FieldErrors) {
    if let Some(value) = int(object, &format!("/spec/{field}")).filter(|v| *v < 0) {
        errors.invalid(
            format!("spec.{field}"),
            value,
            "must be greater than or equal to 0",
        );
    }
}

fn template(object: &Value, errors: &mut FieldErrors) {
    not_negative(object, "replicas", errors);
    let selector = &object["spec"]["selector"];
    let template = &object["spec"]["template"];
    if selector.is_null() {
        errors.required("spec.selector", "");
    } else {
        labels::check(selector, "spec.selector", errors);
        if labels::is_empty(selector) {
            errors.invalid(
                "spec.selector",
                selector.clone(),
                "empty selector is invalid for deployment",
            );
        } else if !labels::matches(selector, template.pointer("/metadata/labels")) {
            let found = template
                .pointer("/metadata/labels")
                .cloned()
                .unwrap_or(Value::Null);
            errors.invalid(
                "spec.template.metadata.labels",
                found,
                "`selector` does not match template `labels`",
            );
        }
    }
    names::labels(
        template.pointer("/metadata/labels"),
        "spec.template.labels",
        errors,
    );
    pod::validate_spec(&template["spec"], "spec.template.spec", errors);
    let policy = text(template, "/spec/restartPolicy");
    if !policy.is_empty() && policy != "Always" {
        errors.unsupported("spec.template.spec.restartPolicy", policy, &["Always"]);
    }
    if template.pointer("/spec/activeDeadlineSeconds").is_some() {
        errors.forbidden(
            "spec.template.spec.activeDeadlineSeconds",
            "activeDeadlineSeconds in ReplicaSet is not Supported",
        );
    }
}

fn rollout(strategy: &Value, errors: &mut FieldErrors) {
    let kind = text(strategy, "/type");
    errors.one_of("spec.strategy.type", kind, &["Recreate", "RollingUpdate"]);
    let rolling = strategy.get("rollingUpdate");
    if kind == "Recreate" {
        if rolling.is_some() {
            errors.forbidden(
                "spec.strategy.rollingUpdate",
                "may not be specified when strategy `type` is 'Recreate'",
            );
        }
        return;
    }
    let mut zeros = 0;
    for field in ["maxSurge", "maxUnavailable"] {
        let path = format!("spec.strategy.rollingUpdate.{field}");
        let found = rolling.and_then(|r| r.get(field)).unwrap_or(&Value::Null);
        let amount = match found {
            Value::Number(number) => number.as_i64(),
            Value::String(text) => text.strip_suffix('%').and_then(|n| n.parse().ok()),
            _ => continue,
        };
        match amount {
            Some(0) => zeros += 1,
            Some(1..) => {}
            _ => errors.invalid(
                path,
                found.clone(),
                "must be a number that is not negative, or a percentage (e.g. '5%')",
            ),
        }
    }
    if zeros == 2 {
        errors.invalid(
            "spec.strategy.rollingUpdate.maxUnavailable",
            0,
            "may not be 0 when `maxSurge` is 0",
        );
    }
}

fn same_selector(new: &Value, old: &Value, errors: &mut FieldErrors) {
    errors.immutable(
        "spec.selector",
        new.pointer("/spec/selector"),
        old.pointer("/spec/selector"),
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deployment_gets_defaults_and_its_selector_must_match() {
        let mut deployment = json!({"spec": {"selector": {"matchLabels": {"a": "b"}},
            "template": {"metadata": {"labels": {"a": "c"}}, "spec": {"containers": [{"name": "c", "image": "x:1"}]}}}});
        (DEPLOYMENT.default)(&mut deployment);
        assert_eq!(deployment["spec"]["replicas"], 1);
        assert_eq!(
            deployment["spec"]["strategy"]["rollingUpdate"]["maxSurge"],
            "25%"
        );
        assert_eq!(
            deployment["spec"]["template"]["spec"]["restartPolicy"],
            "Always"
        );
        assert!(
            deployment
                .pointer("/spec/template/spec/tolerations")
                .is_none()
        );
        let mut errors = FieldErrors::default();
        (DEPLOYMENT.validate)(&deployment, &mut errors);
        assert_eq!(
            errors.0[0].to_string(),
            "spec.template.metadata.labels: Invalid value: {\"a\":\"c\"}: `selector` does not match template `labels`"
        );
    }
}
