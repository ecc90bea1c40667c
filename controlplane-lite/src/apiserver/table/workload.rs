// SPDX-License-Identifier: Apache-2.0
//! Rows of kinds that select pods: Deployments, ReplicaSets, NetworkPolicies.

use serde_json::Value;

use super::{Columns, age, name, number, or_none, text, wide};
use crate::apiserver::json::{int, list, text as at};

/// Columns of Deployments.
pub(crate) const DEPLOYMENT: Columns = Columns {
    definitions: &[
        name(),
        text("Ready"),
        number("Up-to-date"),
        number("Available"),
        text("Age"),
        wide("Containers"),
        wide("Images"),
        wide("Selector"),
    ],
    cells: |deployment| {
        let wanted = int(deployment, "/spec/replicas").unwrap_or(0);
        let ready = int(deployment, "/status/readyReplicas").unwrap_or(0);
        let mut cells = vec![
            at(deployment, "/metadata/name").into(),
            format!("{ready}/{wanted}").into(),
            int(deployment, "/status/updatedReplicas")
                .unwrap_or(0)
                .into(),
            int(deployment, "/status/availableReplicas")
                .unwrap_or(0)
                .into(),
            age::of(deployment),
        ];
        cells.extend(template(deployment));
        cells
    },
};

/// Columns of ReplicaSets.
pub(crate) const REPLICA_SET: Columns = Columns {
    definitions: &[
        name(),
        number("Desired"),
        number("Current"),
        number("Ready"),
        text("Age"),
        wide("Containers"),
        wide("Images"),
        wide("Selector"),
    ],
    cells: |set| {
        let mut cells = vec![
            at(set, "/metadata/name").into(),
            int(set, "/spec/replicas").unwrap_or(0).into(),
            int(set, "/status/replicas").unwrap_or(0).into(),
            int(set, "/status/readyReplicas").unwrap_or(0).into(),
            age::of(set),
        ];
        cells.extend(template(set));
        cells
    },
};

/// Columns of NetworkPolicies.
pub(crate) const NETWORK_POLICY: Columns = Columns {
    definitions: &[name(), text("Pod-Selector"), text("Age")],
    cells: |policy| {
        vec![
            at(policy, "/metadata/name").into(),
            selector(&policy["spec"]["podSelector"]),
            age::of(policy),
        ]
    },
};

fn template(object: &Value) -> [Value; 3] {
    let containers = list(object, "/spec/template/spec/containers");
    let join = |field: &str| {
        let found: Vec<_> = containers.iter().map(|c| at(c, field)).collect();
        Value::from(found.join(","))
    };
    [
        join("/name"),
        join("/image"),
        selector(&object["spec"]["selector"]),
    ]
}

/// A label selector in one line.
fn selector(selector: &Value) -> Value {
    let mut found = Vec::new();
    let labels = selector.get("matchLabels").and_then(Value::as_object);
    for (key, value) in labels.into_iter().flatten() {
        found.push(format!("{key}={}", value.as_str().unwrap_or("")));
    }
    for rule in list(selector, "/matchExpressions") {
        let key = at(rule, "/key");
        let values: Vec<_> = list(rule, "/values")
            .iter()
            .filter_map(Value::as_str)
            .collect();
        found.push(match at(rule, "/operator") {
            "In" => format!("{key} in ({})", values.join(",")),
            "NotIn" => format!("{key} notin ({})", values.join(",")),
            "DoesNotExist" => format!("!{key}"),
            _ => key.to_owned(),
        });
    }
    or_none(&found.join(","))
}
