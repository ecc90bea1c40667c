// SPDX-License-Identifier: Apache-2.0
//! OpenAPI v3: the index, and per group a document that says which operations there are and
//! which options they take. Schemas of the kinds are not published yet, so `kubectl explain` has
//! nothing to show; kubectl validates through the server (`fieldValidation`), which is announced
//! here.

use http::Response;
use serde_json::{Map, Value, json};

use super::{body::Body, error::ApiError, present, registry, resource::Resource};

/// `/openapi/v3`.
pub(crate) fn index() -> Response<Body> {
    let mut paths = Map::new();
    for row in registry::rows() {
        let path = base(row);
        let path = path.trim_start_matches('/');
        let hash = env!("CARGO_PKG_VERSION");
        let url = format!("/openapi/v3/{path}?hash={hash}");
        paths.insert(path.to_owned(), json!({"serverRelativeURL": url}));
    }
    present::value(200, &json!({"paths": paths}))
}

fn base(row: &Resource) -> String {
    if row.group.is_empty() {
        format!("/api/{}", row.version)
    } else {
        format!("/apis/{}/{}", row.group, row.version)
    }
}

/// The document of a group and version.
pub(crate) fn document(group: &str, version: &str) -> Result<Response<Body>, ApiError> {
    let mut paths = Map::new();
    let rows = registry::rows().iter();
    for row in rows.filter(|r| r.group == group && r.version == version) {
        let scope = if row.namespaced {
            "/namespaces/{namespace}"
        } else {
            ""
        };
        let all = format!("{}{scope}/{}", base(row), row.plural);
        let one = format!("{all}/{{name}}");
        paths.insert(all, collection(row));
        paths.insert(one, item(row));
    }
    if paths.is_empty() {
        return Err(ApiError::no_such_path());
    }
    let document = json!({
        "openapi": "3.0.0",
        "info": {"title": "Kubernetes", "version": "v1.37.0"},
        "paths": paths,
        "components": {"schemas": {}},
    });
    Ok(present::value(200, &document))
}

fn operation(row: &Resource, action: &str, parameters: &[&str]) -> Value {
    let parameters: Vec<_> = parameters
        .iter()
        .map(|name| json!({"name": name, "in": "query", "schema": {"type": "string"}}))
        .collect();
    json!({
        "x-kubernetes-action": action,
        "x-kubernetes-group-version-kind": {"group": row.group, "version": row.version, "kind": row.kind},
        "parameters": parameters,
        "responses": {"200": {"description": "OK"}},
    })
}

const WRITE: &[&str] = &["dryRun", "fieldManager", "fieldValidation"];
const LIST: &[&str] = &[
    "allowWatchBookmarks",
    "continue",
    "fieldSelector",
    "labelSelector",
    "limit",
    "resourceVersion",
    "resourceVersionMatch",
    "sendInitialEvents",
    "timeoutSeconds",
    "watch",
];
const DELETE: &[&str] = &["dryRun", "gracePeriodSeconds", "propagationPolicy"];

fn collection(row: &Resource) -> Value {
    json!({
        "get": operation(row, "list", LIST),
        "post": operation(row, "post", WRITE),
        "delete": operation(row, "deletecollection", DELETE),
    })
}

fn item(row: &Resource) -> Value {
    json!({
        "get": operation(row, "get", &[]),
        "put": operation(row, "put", WRITE),
        "patch": operation(row, "patch", WRITE),
        "delete": operation(row, "delete", DELETE),
    })
}
