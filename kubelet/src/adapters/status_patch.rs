// SPDX-License-Identifier: Apache-2.0
//! The strategic merge patch from one pod status to another. Pure. Conditions merge by type, so
//! those of other writers stay; addresses are replaced; everything else that is a list is atomic.

use serde_json::{Map, Value, json};

/// What turns `old` into `new`, or `None` when nothing has to change.
pub fn diff(old: &Value, new: &Value) -> Option<Value> {
    let empty = Map::new();
    let (old, new) = (
        old.as_object().unwrap_or(&empty),
        new.as_object().unwrap_or(&empty),
    );
    let mut patch = Map::new();
    for (key, value) in new {
        let before = old.get(key);
        if before == Some(value) {
            continue;
        }
        let change = match key.as_str() {
            "conditions" => conditions(before, value),
            "podIPs" | "hostIPs" => Some(replaced(before, value)),
            _ => Some(value.clone()),
        };
        if let Some(change) = change {
            patch.insert(key.clone(), change);
        }
    }
    for key in old.keys().filter(|key| !new.contains_key(*key)) {
        // These belong to other writers.
        if !matches!(
            key.as_str(),
            "conditions" | "resize" | "resourceClaimStatuses"
        ) {
            patch.insert(key.clone(), Value::Null);
        }
    }
    (!patch.is_empty()).then_some(Value::Object(patch))
}

/// A list with a merge key needs the directive, or old elements would stay.
fn replaced(before: Option<&Value>, value: &Value) -> Value {
    let had_some = before
        .and_then(Value::as_array)
        .is_some_and(|list| !list.is_empty());
    let mut list = value.as_array().cloned().unwrap_or_default();
    if had_some {
        list.push(json!({"$patch": "replace"}));
    }
    Value::Array(list)
}

fn conditions(before: Option<&Value>, value: &Value) -> Option<Value> {
    let before = before
        .and_then(Value::as_array)
        .cloned()
        .unwrap_or_default();
    let mut changed = Vec::new();
    for condition in value.as_array().into_iter().flatten() {
        let old = before
            .iter()
            .find(|old| old.get("type") == condition.get("type"));
        if old == Some(condition) {
            continue;
        }
        let mut element = condition.as_object().cloned().unwrap_or_default();
        let dropped = old
            .and_then(Value::as_object)
            .into_iter()
            .flat_map(Map::keys);
        for key in dropped {
            element.entry(key.clone()).or_insert(Value::Null);
        }
        changed.push(Value::Object(element));
    }
    (!changed.is_empty()).then_some(Value::Array(changed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_changed_is_sent() {
        let old = json!({
            "phase": "Pending", "reason": "x", "podIPs": [{"ip": "1"}],
            "conditions": [
                {"type": "Ready", "status": "False", "reason": "r"},
                {"type": "Initialized", "status": "True"},
                {"type": "example.org/gate", "status": "True"}
            ]
        });
        let new = json!({
            "phase": "Running", "podIPs": [{"ip": "2"}],
            "conditions": [
                {"type": "Ready", "status": "True"},
                {"type": "Initialized", "status": "True"}
            ]
        });
        assert_eq!(diff(&old, &old), None);
        assert_eq!(
            diff(&old, &new),
            Some(json!({
                "phase": "Running", "reason": null,
                "podIPs": [{"ip": "2"}, {"$patch": "replace"}],
                "conditions": [{"type": "Ready", "status": "True", "reason": null}]
            }))
        );
    }
}
