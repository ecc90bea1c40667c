// SPDX-License-Identifier: Apache-2.0
//! The three-way merge of `apply`: what was applied last, what is applied now, what is live.
//!
//! A field that is applied now is set; one that was applied last and is not applied now is removed;
//! everything else is left as it is. Lists of the kinds that Kubernetes merges by a key (containers
//! by name, ports by number …) are merged element by element, as kubectl's strategic merge patch
//! does; other lists are replaced.

use serde_json::{Map, Value};

/// The annotation that remembers what was applied last.
pub(crate) const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// Keys by which the elements of a list are told apart, by the list's field name. All of a row's
/// keys that an element has count (`patchMergeKey` and `listMapKeys` of the API types).
const MERGE_KEYS: &[(&str, &[&str])] = &[
    ("containers", &["name"]),
    ("initContainers", &["name"]),
    ("ephemeralContainers", &["name"]),
    ("volumes", &["name"]),
    ("env", &["name"]),
    ("imagePullSecrets", &["name"]),
    ("secrets", &["name"]),
    ("volumeMounts", &["mountPath"]),
    ("volumeDevices", &["devicePath"]),
    ("ports", &["containerPort", "port", "protocol"]),
    ("hostAliases", &["ip"]),
    (
        "topologySpreadConstraints",
        &["topologyKey", "whenUnsatisfiable"],
    ),
    ("ownerReferences", &["uid"]),
    ("resourceClaims", &["name"]),
    ("schedulingGates", &["name"]),
];

/// Lists of plain values that are merged as sets.
const SETS: &[&str] = &["finalizers"];

/// The object as it should be.
pub(crate) fn merge(last: &Value, now: &Value, live: &Value) -> Value {
    value("", last, now, live)
}

fn value(field: &str, last: &Value, now: &Value, live: &Value) -> Value {
    match (now, live) {
        (Value::Object(now), Value::Object(live)) => {
            let empty = Map::new();
            object(last.as_object().unwrap_or(&empty), now, live)
        }
        (Value::Array(now), Value::Array(live)) => {
            let last = last.as_array().map(Vec::as_slice).unwrap_or_default();
            list(field, last, now, live)
        }
        _ => now.clone(),
    }
}

fn object(last: &Map<String, Value>, now: &Map<String, Value>, live: &Map<String, Value>) -> Value {
    let mut merged = live.clone();
    for name in last.keys().filter(|name| !now.contains_key(*name)) {
        merged.remove(name);
    }
    for (name, wanted) in now {
        if wanted.is_null() {
            merged.remove(name);
            continue;
        }
        let before = last.get(name).unwrap_or(&Value::Null);
        let current = live.get(name).unwrap_or(&Value::Null);
        merged.insert(name.clone(), value(name, before, wanted, current));
    }
    Value::Object(merged)
}

fn list(field: &str, last: &[Value], now: &[Value], live: &[Value]) -> Value {
    if SETS.contains(&field) {
        let mut merged: Vec<Value> = live
            .iter()
            .filter(|v| now.contains(v) || !last.contains(v))
            .cloned()
            .collect();
        merged.extend(now.iter().filter(|v| !live.contains(v)).cloned());
        return Value::Array(merged);
    }
    let keys = MERGE_KEYS
        .iter()
        .find(|(name, _)| *name == field)
        .map(|(_, keys)| *keys);
    let Some(keys) = keys.filter(|keys| now.iter().chain(live).all(|v| key(keys, v).is_some()))
    else {
        return Value::Array(now.to_vec());
    };
    let find = |list: &[Value], wanted: &Value| -> Value {
        list.iter()
            .find(|v| key(keys, v) == key(keys, wanted))
            .cloned()
            .unwrap_or(Value::Null)
    };
    // The order is that of the manifest; what others have added follows.
    let mut merged: Vec<Value> = now
        .iter()
        .map(|v| value("", &find(last, v), v, &find(live, v)))
        .collect();
    let others = live
        .iter()
        .filter(|v| find(now, v).is_null() && find(last, v).is_null());
    merged.extend(others.cloned());
    Value::Array(merged)
}

/// The values of an element's keys. A protocol that is not given is TCP.
fn key(keys: &[&str], element: &Value) -> Option<Vec<String>> {
    let element = element.as_object()?;
    let mut found = Vec::new();
    for key in keys {
        match element.get(*key) {
            Some(value) => found.push(value.to_string()),
            None if *key == "protocol" => found.push("\"TCP\"".into()),
            None => {}
        }
    }
    let only_protocol = keys.contains(&"protocol") && found.len() == 1;
    (!found.is_empty() && !only_protocol).then_some(found)
}

/// The JSON merge patch (RFC 7396) that turns `from` into `to`; `None` if they are equal.
pub(crate) fn difference(from: &Value, to: &Value) -> Option<Value> {
    let (Value::Object(from), Value::Object(to)) = (from, to) else {
        return (from != to).then(|| to.clone());
    };
    let mut patch = Map::new();
    for name in from.keys().filter(|name| !to.contains_key(*name)) {
        patch.insert(name.clone(), Value::Null);
    }
    for (name, wanted) in to {
        match from.get(name) {
            Some(current) => {
                if let Some(change) = difference(current, wanted) {
                    patch.insert(name.clone(), change);
                }
            }
            None => {
                patch.insert(name.clone(), wanted.clone());
            }
        }
    }
    (!patch.is_empty()).then_some(Value::Object(patch))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn check(last: Value, now: Value, live: Value) -> Value {
        merge(&last, &now, &live)
    }

    #[test]
    fn what_is_not_applied_any_more_goes_and_what_others_set_stays() {
        let merged = check(
            json!({"a": 1, "b": 2}),
            json!({"a": 5}),
            json!({"a": 1, "b": 2, "c": 3}),
        );
        assert_eq!(merged, json!({"a": 5, "c": 3}));
    }

    #[test]
    fn containers_merge_by_name_and_keep_defaults() {
        let merged = check(
            json!({"containers": [{"name": "a", "image": "x", "tty": true}, {"name": "gone"}]}),
            json!({"containers": [{"name": "a", "image": "y"}]}),
            json!({"containers": [
                {"name": "a", "image": "x", "tty": true, "imagePullPolicy": "Always"},
                {"name": "gone"}, {"name": "injected"}]}),
        );
        assert_eq!(
            merged,
            json!({"containers": [
                {"name": "a", "image": "y", "imagePullPolicy": "Always"}, {"name": "injected"}]})
        );
    }

    #[test]
    fn service_ports_keep_their_node_port() {
        let now = json!({"ports": [{"port": 80, "targetPort": 8080}]});
        let live = json!({"ports": [{"port": 80, "targetPort": 80, "protocol": "TCP", "nodePort": 30080}]});
        let merged = check(now.clone(), now, live);
        assert_eq!(merged["ports"][0]["nodePort"], 30080);
        assert_eq!(merged["ports"][0]["targetPort"], 8080);
    }

    #[test]
    fn plain_lists_are_replaced() {
        let merged = check(
            json!({}),
            json!({"args": ["a"]}),
            json!({"args": ["b", "c"]}),
        );
        assert_eq!(merged, json!({"args": ["a"]}));
    }

    #[test]
    fn a_second_apply_changes_nothing() {
        let now = json!({"spec": {"replicas": 2, "containers": [{"name": "a"}]}});
        let live = json!({"spec": {"replicas": 1, "containers": [{"name": "a", "x": 1}], "y": 2}});
        let once = check(json!({}), now.clone(), live);
        let twice = check(now.clone(), now, once.clone());
        assert_eq!(difference(&once, &twice), None);
    }

    #[test]
    fn the_difference_is_a_merge_patch() {
        let patch = difference(
            &json!({"a": 1, "b": {"c": 1, "d": 2}}),
            &json!({"b": {"c": 3, "d": 2}}),
        );
        assert_eq!(patch, Some(json!({"a": null, "b": {"c": 3}})));
    }
}
