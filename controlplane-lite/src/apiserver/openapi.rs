// SPDX-License-Identifier: Apache-2.0
//! OpenAPI v3: the index, and per group a document that says which operations there are and
//! which options they take. Schemas of the kinds are not published yet, so `kubectl explain` has
//! nothing to show; kubectl validates through the server (`fieldValidation`), which is announced
//! here. For a `List` it asks for version 2 all the same, and passes over kinds that have no
//! definition there; what is in the list is then validated by the server, one by one.

use http::Response;
use serde_json::{Map, Value, json};

use super::{body::Body, error::ApiError, present, registry, resource::Resource};

const TITLE: &str = "Kubernetes";
const VERSION: &str = "v1.37.0";
const PROTOBUF: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";
/// What client-go asks for version 2 as, and nothing else. It is no media type, so the answer is the
/// other.
const PROTOBUF_ASKED_FOR: &str = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";

/// `/openapi/v2`: that there is an API, without its definitions.
pub(crate) fn version_2(accept: &str) -> Response<Body> {
    if accept.contains(PROTOBUF) || accept.contains(PROTOBUF_ASKED_FOR) {
        return present::typed(200, PROTOBUF, version_2_protobuf());
    }
    let info = json!({"title": TITLE, "version": VERSION});
    present::value(200, &json!({"swagger": "2.0", "info": info, "paths": {}}))
}

/// The same as gnostic's `openapi.v2.Document`.
fn version_2_protobuf() -> Vec<u8> {
    const PATHS: u32 = 8;
    let info = [field(1, TITLE.as_bytes()), field(2, VERSION.as_bytes())].concat();
    [field(1, b"2.0"), field(2, &info), field(PATHS, b"")].concat()
}

/// A field with a length, of fewer than 128 bytes and with a number below 16.
fn field(number: u32, value: &[u8]) -> Vec<u8> {
    const LENGTH_DELIMITED: u32 = 2;
    let head = [
        number << 3 | LENGTH_DELIMITED,
        u32::try_from(value.len()).expect("short"),
    ];
    let head = head.map(|part| u8::try_from(part).expect("below 128"));
    [&head, value].concat()
}

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
        "info": {"title": TITLE, "version": VERSION},
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_2_is_a_message_of_three_fields() {
        let expected = b"\x0a\x032.0\x12\x15\x0a\x0aKubernetes\x12\x07v1.37.0\x42\0";
        assert_eq!(version_2_protobuf(), expected);
    }
}
