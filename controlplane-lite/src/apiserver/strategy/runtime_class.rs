// SPDX-License-Identifier: Apache-2.0
//! RuntimeClasses, and what a pod gets from the one that it names (upstream: `pkg/apis/node/validation`
//! and `plugin/pkg/admission/runtimeclass`; KEP-585 and KEP-688).

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::{field::FieldErrors, names, pod, quantity};
use crate::apiserver::{
    json::{self, int, list, text},
    resource::{NameRule, Strategy},
};

const MISMATCH: &str = "pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead";
const WITHOUT_CLASS: &str =
    "pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead";

/// RuntimeClasses.
pub(crate) const RUNTIME_CLASS: Strategy = Strategy {
    validate,
    validate_update: |new, old, errors| {
        errors.immutable("handler", new.get("handler"), old.get("handler"));
    },
    ..Strategy::NONE
};

fn validate(class: &Value, errors: &mut FieldErrors) {
    let handler = text(class, "/handler");
    if let Some(why) = names::broken(NameRule::Label, handler) {
        errors.invalid("handler", handler, why);
    }
    quantity::check_overhead(class.pointer("/overhead/podFixed"), "overhead", errors);
    let scheduling = &class["scheduling"];
    let selector = scheduling.get("nodeSelector");
    names::labels(selector, "scheduling.nodeSelector", errors);
    pod::tolerations(scheduling, "scheduling", errors);
}

/// Gives a new pod what its class says; `class` is the one that it names, if there is one.
///
/// # Errors
/// Why the pod is refused.
pub(crate) fn admit(pod: &mut Value, class: Option<&Value>) -> Result<(), String> {
    let spec = &mut pod["spec"];
    let named = spec.get("runtimeClassName").and_then(Value::as_str);
    if let (Some(name), None) = (named, class) {
        return Err(format!("pod rejected: RuntimeClass {name:?} not found"));
    }
    overhead(spec, class.and_then(|class| class.get("overhead")))?;
    match class.and_then(|class| class.get("scheduling")) {
        Some(scheduling) => schedule(spec, scheduling),
        None => Ok(()),
    }
}

/// Overhead is the class's to say. A pod may repeat it, no more.
fn overhead(spec: &mut Value, of_class: Option<&Value>) -> Result<(), String> {
    let own = spec.get("overhead").filter(|own| !own.is_null());
    let Some(of_class) = of_class.filter(|overhead| !overhead.is_null()) else {
        return own.map_or(Ok(()), |_| Err(WITHOUT_CLASS.to_owned()));
    };
    let fixed = of_class.get("podFixed");
    if own.is_some() && amounts(own) != amounts(fixed) {
        return Err(MISMATCH.to_owned());
    }
    json::put(spec, "overhead", fixed.cloned());
    Ok(())
}

/// Amounts by name, so that `1` and `1000m` are the same.
fn amounts(map: Option<&Value>) -> BTreeMap<&str, Option<i128>> {
    let found = map.and_then(Value::as_object).into_iter().flatten();
    found
        .map(|(name, amount)| {
            (
                name.as_str(),
                quantity::milli(amount.as_str().unwrap_or("")),
            )
        })
        .collect()
}

/// The pod goes only where the class leads, and tolerates what the class tolerates.
fn schedule(spec: &mut Value, scheduling: &Value) -> Result<(), String> {
    let wanted = scheduling.get("nodeSelector").and_then(Value::as_object);
    if let Some(wanted) = wanted.filter(|wanted| !wanted.is_empty()) {
        let mut merged: Map<String, Value> = match spec.get("nodeSelector") {
            Some(Value::Object(own)) => own.clone(),
            _ => Map::new(),
        };
        for (key, value) in wanted {
            if let Some(own) = merged.insert(key.clone(), value.clone())
                && own != *value
            {
                let text = |value: &Value| value.as_str().unwrap_or("").to_owned();
                return Err(format!(
                    "conflict: runtimeClass.scheduling.nodeSelector[{key}] = {}; pod.spec.nodeSelector[{key}] = {}",
                    text(value),
                    text(&own)
                ));
            }
        }
        spec["nodeSelector"] = Value::Object(merged);
    }
    let all = [list(spec, "/tolerations"), list(scheduling, "/tolerations")].concat();
    if !all.is_empty() {
        spec["tolerations"] = Value::Array(without_redundant(&all));
    }
    Ok(())
}

/// Tolerations without those that another one includes; of equal ones the first stays.
fn without_redundant(all: &[Value]) -> Vec<Value> {
    let mut kept: Vec<Value> = Vec::new();
    for (at, one) in all.iter().enumerate() {
        let before = kept.iter().any(|other| includes(other, one));
        let after = all[at + 1..]
            .iter()
            .any(|other| other != one && includes(other, one));
        if !before && !after {
            kept.push(one.clone());
        }
    }
    kept
}

/// Whether everything that `one` tolerates is tolerated by `other` too.
fn includes(other: &Value, one: &Value) -> bool {
    if other == one {
        return true;
    }
    let same = |pointer: &str| text(other, pointer) == text(one, pointer);
    let operator = text(other, "/operator");
    // No key with Exists stands for every key, no effect for every effect.
    let every_key = text(other, "/key").is_empty() && operator == "Exists";
    if !(same("/key") || every_key) || !(same("/effect") || text(other, "/effect").is_empty()) {
        return false;
    }
    if text(other, "/effect") == "NoExecute"
        && let Some(most) = int(other, "/tolerationSeconds")
        && int(one, "/tolerationSeconds").is_none_or(|seconds| seconds > most)
    {
        return false;
    }
    match operator {
        "" | "Equal" => matches!(text(one, "/operator"), "" | "Equal") && same("/value"),
        "Exists" => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn admitted(spec: Value, class: Option<Value>) -> Result<Value, String> {
        let mut pod = json!({ "spec": spec });
        admit(&mut pod, class.as_ref())?;
        Ok(pod["spec"].take())
    }

    #[test]
    fn a_handler_is_a_label_and_amounts_are_amounts() {
        let check = |class: Value| {
            let mut errors = FieldErrors::default();
            validate(&class, &mut errors);
            let texts: Vec<_> = errors.0.iter().map(ToString::to_string).collect();
            texts.join("\n")
        };
        assert_eq!(check(json!({"handler": "crun"})), "");
        assert!(
            check(json!({}))
                .starts_with("handler: Invalid value: \"\": a lowercase RFC 1123 label")
        );
        assert!(check(json!({"handler": "a.b"})).starts_with("handler: Invalid value: \"a.b\""));
        let wrong = json!({"handler": "a", "overhead": {"podFixed": {"cpu": "-1"}},
            "scheduling": {"nodeSelector": {"a b": "c"}, "tolerations": [{"effect": "x", "operator": "Exists"}]}});
        let said = check(wrong);
        for part in [
            "overhead.limits[cpu]: Invalid value: \"-1\": must be greater than or equal to 0",
            "scheduling.nodeSelector: Invalid value: \"a b\"",
            "scheduling.tolerations[0].effect: Unsupported value: \"x\"",
        ] {
            assert!(said.contains(part), "{said}");
        }
    }

    #[test]
    fn overhead_is_the_classes_to_say() {
        let class = || Some(json!({"overhead": {"podFixed": {"cpu": "1", "memory": "8Mi"}}}));
        let named = |more: Value| {
            let mut spec = json!({"runtimeClassName": "c"});
            spec.as_object_mut()
                .expect("an object")
                .extend(more.as_object().cloned().expect("an object"));
            spec
        };
        let spec = admitted(named(json!({})), class()).expect("admitted");
        assert_eq!(spec["overhead"], json!({"cpu": "1", "memory": "8Mi"}));
        let same = json!({"overhead": {"memory": "8192Ki", "cpu": "1000m"}});
        admitted(named(same), class()).expect("the same amounts");
        let other = named(json!({"overhead": {"cpu": "1"}}));
        assert_eq!(admitted(other.clone(), class()), Err(MISMATCH.to_owned()));
        let without = Err(WITHOUT_CLASS.to_owned());
        assert_eq!(admitted(other, Some(json!({}))), without);
        assert_eq!(admitted(json!({"overhead": {"cpu": "1"}}), None), without);
        assert_eq!(
            admitted(named(json!({})), None),
            Err("pod rejected: RuntimeClass \"c\" not found".to_owned())
        );
        assert_eq!(admitted(json!({}), None), Ok(json!({})));
    }

    #[test]
    fn a_class_leads_its_pods_to_its_nodes() {
        let class = json!({"scheduling": {"nodeSelector": {"disk": "fast"},
            "tolerations": [{"key": "only", "operator": "Exists"}, {"key": "b", "value": "x", "effect": "NoSchedule"}]}});
        let spec = json!({"nodeSelector": {"zone": "a"}, "tolerations": [
            {"key": "only", "value": "y", "effect": "NoExecute", "tolerationSeconds": 5},
            {"key": "b", "operator": "Equal", "value": "x", "effect": "NoExecute"}]});
        let spec = admitted(spec, Some(class.clone())).expect("admitted");
        assert_eq!(spec["nodeSelector"], json!({"zone": "a", "disk": "fast"}));
        assert_eq!(
            spec["tolerations"],
            json!([
                {"key": "b", "operator": "Equal", "value": "x", "effect": "NoExecute"},
                {"key": "only", "operator": "Exists"},
                {"key": "b", "value": "x", "effect": "NoSchedule"},
            ])
        );
        let elsewhere = json!({"nodeSelector": {"disk": "slow"}});
        assert_eq!(
            admitted(elsewhere, Some(class)),
            Err("conflict: runtimeClass.scheduling.nodeSelector[disk] = fast; pod.spec.nodeSelector[disk] = slow".to_owned())
        );
        let seconds = |most: Option<i64>| json!({"key": "k", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": most});
        assert!(includes(&seconds(Some(9)), &seconds(Some(5))));
        assert!(!includes(&seconds(Some(5)), &seconds(Some(9))));
    }
}
