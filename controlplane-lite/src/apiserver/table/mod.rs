// SPDX-License-Identifier: Apache-2.0
//! `meta.k8s.io/v1 Table`: what `kubectl get` shows (upstream: `pkg/printers/internalversion`).

mod age;
mod core;
mod pod;
mod workload;

pub(crate) use self::{
    core::{
        CONFIG_MAP, ENDPOINT_SLICE, ENDPOINTS, EVENT, EVENTS, LEASE, NAMESPACE, NODE,
        RUNTIME_CLASS, SECRET, SERVICE, SERVICE_ACCOUNT,
    },
    pod::POD,
    workload::{DEPLOYMENT, NETWORK_POLICY, REPLICA_SET},
};

use serde_json::{Value, json};

/// A column.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Column {
    name: &'static str,
    kind: &'static str,
    format: &'static str,
    /// 0 is always shown, 1 only with `-o wide`.
    priority: u8,
}

/// The columns of a kind and the function that fills them.
#[derive(Clone, Copy)]
pub(crate) struct Columns {
    pub(crate) definitions: &'static [Column],
    pub(crate) cells: fn(&Value) -> Vec<Value>,
}

const fn name() -> Column {
    Column {
        name: "Name",
        kind: "string",
        format: "name",
        priority: 0,
    }
}

const fn text(name: &'static str) -> Column {
    Column {
        name,
        kind: "string",
        format: "",
        priority: 0,
    }
}

const fn wide(name: &'static str) -> Column {
    Column {
        name,
        kind: "string",
        format: "",
        priority: 1,
    }
}

const fn number(name: &'static str) -> Column {
    Column {
        name,
        kind: "integer",
        format: "",
        priority: 0,
    }
}

/// An empty table with its columns.
pub(crate) fn head(definitions: &[Column]) -> Value {
    let columns: Vec<_> = definitions
        .iter()
        .map(|c| {
            json!({
                "name": c.name,
                "type": c.kind,
                "format": c.format,
                "description": c.name,
                "priority": c.priority,
            })
        })
        .collect();
    json!({
        "kind": "Table",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": {},
        "columnDefinitions": columns,
        "rows": [],
    })
}

/// `<none>` for nothing.
fn or_none(text: &str) -> Value {
    if text.is_empty() {
        "<none>".into()
    } else {
        text.into()
    }
}

/// `a=b,c=d`, sorted, or `<none>`.
fn pairs(map: Option<&Value>) -> Value {
    let found = map.and_then(Value::as_object).into_iter().flatten();
    let mut found: Vec<_> = found
        .map(|(k, v)| format!("{k}={}", v.as_str().unwrap_or("")))
        .collect();
    found.sort_unstable();
    or_none(&found.join(","))
}
