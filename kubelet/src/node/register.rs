// SPDX-License-Identifier: Apache-2.0
//! Writes the Node object: created once, its labels kept, its status patched.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Node, NodeStatus};
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::{Map, Value, json};

use super::lease::within;

/// Makes sure that the Node exists and carries our labels. Another kubelet's labels, taints that
/// were set since, and everything else on an existing Node stay.
pub(super) async fn ensure(nodes: &Api<Node>, wanted: &Node) -> Result<Node, kube::Error> {
    let name = wanted.metadata.name.as_deref().unwrap_or_default();
    let existing = match within(nodes.get_opt(name)).await? {
        Some(existing) => existing,
        None => match within(nodes.create(&PostParams::default(), wanted)).await {
            Err(kube::Error::Api(status)) if status.code == 409 => within(nodes.get(name)).await?,
            result => return result,
        },
    };
    let labels = missing(&existing, wanted.metadata.labels.as_ref());
    if labels.is_empty() {
        return Ok(existing);
    }
    let patch = json!({"metadata": {"labels": labels}});
    let params = PatchParams::default();
    within(nodes.patch(name, &params, &Patch::Merge(patch))).await
}

/// The labels that differ.
fn missing(node: &Node, wanted: Option<&BTreeMap<String, String>>) -> BTreeMap<String, String> {
    let has = |key: &str| node.metadata.labels.as_ref().and_then(|l| l.get(key));
    let wanted = wanted.into_iter().flatten();
    wanted
        .filter(|(key, value)| has(key) != Some(value))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect()
}

/// Sends what differs between `known` and `wanted`.
pub(super) async fn patch_status(
    nodes: &Api<Node>,
    name: &str,
    known: Option<&NodeStatus>,
    wanted: &NodeStatus,
) -> Result<Node, kube::Error> {
    let patch = json!({"status": difference(known, wanted)});
    let params = PatchParams::default();
    within(nodes.patch_status(name, &params, &Patch::Strategic(patch))).await
}

/// A strategic merge patch by top-level field. Conditions merge by type, so those of others stay.
/// Addresses would merge by type as well and could not hold two of a kind, so they are replaced
/// as a whole, as upstream's kubelet does.
fn difference(known: Option<&NodeStatus>, wanted: &NodeStatus) -> Value {
    let object = |status: &NodeStatus| match serde_json::to_value(status) {
        Ok(Value::Object(map)) => map,
        _ => Map::new(),
    };
    let known = known.map(object).unwrap_or_default();
    let mut patch = Map::new();
    for (field, mut value) in object(wanted) {
        if known.get(&field) == Some(&value) {
            continue;
        }
        if field == "addresses"
            && known.contains_key(&field)
            && let Value::Array(list) = &mut value
        {
            list.push(json!({"$patch": "replace"}));
        }
        patch.insert(field, value);
    }
    Value::Object(patch)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(value: Value) -> NodeStatus {
        serde_json::from_value(value).expect("a status")
    }

    #[test]
    fn only_what_changed_is_sent() {
        let known = status(
            json!({"addresses": [{"type": "InternalIP", "address": "1.1.1.1"}],
            "capacity": {"cpu": "2"}}),
        );
        let wanted = status(
            json!({"addresses": [{"type": "InternalIP", "address": "1.1.1.2"}],
            "capacity": {"cpu": "2"}, "phase": "x"}),
        );
        assert_eq!(
            difference(Some(&known), &wanted),
            json!({"addresses": [{"type": "InternalIP", "address": "1.1.1.2"}, {"$patch": "replace"}],
                "phase": "x"})
        );
        assert_eq!(difference(Some(&known), &known), json!({}));
        assert_eq!(
            difference(None, &known)["addresses"],
            json!([{"type": "InternalIP", "address": "1.1.1.1"}])
        );
    }

    #[test]
    fn labels_of_others_stay() {
        let node: Node = serde_json::from_value(
            json!({"metadata": {"labels": {"a": "1", "b": "old", "x": "y"}}}),
        )
        .expect("a node");
        let wanted = [("a", "1"), ("b", "2"), ("c", "3")];
        let wanted = wanted.map(|(k, v)| (k.to_owned(), v.to_owned())).into();
        let keys: Vec<String> = missing(&node, Some(&wanted)).into_keys().collect();
        assert_eq!(keys, ["b", "c"]);
    }
}
