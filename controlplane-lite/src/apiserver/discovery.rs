// SPDX-License-Identifier: Apache-2.0
//! Discovery: which groups, versions and resources there are, the old way and aggregated (v2).

use http::{HeaderValue, Response, header};
use serde_json::{Value, json};

use super::{
    body::Body,
    error::ApiError,
    present, registry,
    request::media_types,
    resource::{Resource, Sub},
};

const VERBS: &[&str] = &[
    "create",
    "delete",
    "deletecollection",
    "get",
    "list",
    "patch",
    "update",
    "watch",
];

/// Groups other than the core one, with their one version, in order.
fn group_versions() -> Vec<(&'static str, &'static str)> {
    let mut found: Vec<(&str, &str)> = Vec::new();
    for row in registry::rows() {
        if !row.group.is_empty() && !found.contains(&(row.group, row.version)) {
            found.push((row.group, row.version));
        }
    }
    found
}

/// `/`.
pub(crate) fn root() -> Response<Body> {
    let mut paths: Vec<String> = ["/api", "/api/v1", "/apis"].map(str::to_owned).into();
    for (group, version) in group_versions() {
        paths.push(format!("/apis/{group}"));
        paths.push(format!("/apis/{group}/{version}"));
    }
    let others = [
        "/healthz",
        "/livez",
        "/openapi/v2",
        "/openapi/v3",
        "/readyz",
        "/version",
    ];
    paths.extend(others.map(str::to_owned));
    present::value(200, &json!({"paths": paths}))
}

/// The version of aggregated discovery that the client prefers to the old form.
fn aggregated(accept: &str) -> Option<String> {
    for (kind, parameters) in media_types(accept) {
        if kind != "application/json" && kind != "*/*" {
            continue;
        }
        match parameters.get("as").map(String::as_str) {
            None => return None,
            Some("APIGroupDiscoveryList") => {
                let version = parameters.get("v").map_or("", String::as_str);
                if matches!(version, "v2" | "v2beta1") {
                    return Some(version.to_owned());
                }
            }
            Some(_) => {}
        }
    }
    None
}

/// `/api`.
pub(crate) fn core(accept: &str) -> Response<Body> {
    if let Some(version) = aggregated(accept) {
        return aggregated_list(&version, &[("", "v1")]);
    }
    present::value(
        200,
        &json!({"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []}),
    )
}

/// `/apis`.
pub(crate) fn groups(accept: &str) -> Response<Body> {
    if let Some(version) = aggregated(accept) {
        return aggregated_list(&version, &group_versions());
    }
    let groups: Vec<_> = group_versions()
        .into_iter()
        .map(|(g, v)| group_value(g, v))
        .collect();
    present::value(
        200,
        &json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}),
    )
}

fn group_value(group: &str, version: &str) -> Value {
    let version = json!({"groupVersion": format!("{group}/{version}"), "version": version});
    json!({"name": group, "versions": [version], "preferredVersion": version})
}

/// `/apis/<group>`.
pub(crate) fn group(group: &str) -> Result<Response<Body>, ApiError> {
    let found = group_versions().into_iter().find(|(g, _)| *g == group);
    let (group, version) = found.ok_or_else(ApiError::no_such_path)?;
    let mut value = group_value(group, version);
    value["kind"] = "APIGroup".into();
    value["apiVersion"] = "v1".into();
    Ok(present::value(200, &value))
}

fn rows_of<'a>(group: &'a str, version: &'a str) -> impl Iterator<Item = &'static Resource> + 'a {
    let rows = registry::rows().iter();
    rows.filter(move |r| r.group == group && r.version == version)
}

/// What a subresource is made of, and what can be done with it.
fn sub_kind(
    row: &Resource,
    sub: Sub,
) -> (
    &'static str,
    &'static str,
    &'static str,
    &'static [&'static str],
) {
    match sub {
        Sub::Scale => ("autoscaling", "v1", "Scale", &["get", "patch", "update"]),
        Sub::Binding => ("", "v1", "Binding", &["create"]),
        Sub::Eviction => ("policy", "v1", "Eviction", &["create"]),
        Sub::Finalize => (row.group, row.version, row.kind, &["update"]),
        Sub::Status => (
            row.group,
            row.version,
            row.kind,
            &["get", "patch", "update"],
        ),
        Sub::Log => (row.group, row.version, row.kind, &["get"]),
        Sub::Exec => ("", "v1", "PodExecOptions", &["create", "get"]),
        Sub::Attach => ("", "v1", "PodAttachOptions", &["create", "get"]),
        Sub::PortForward => ("", "v1", "PodPortForwardOptions", &["create", "get"]),
        Sub::EphemeralContainers | Sub::Resize | Sub::Proxy | Sub::Token => ("", "", "", &[]),
    }
}

/// Subresources that are served; those that are refused by name are not advertised.
fn subs(row: &Resource) -> impl Iterator<Item = Sub> {
    let subs = row.subresources.iter().copied();
    subs.filter(|s| {
        !matches!(
            s,
            Sub::EphemeralContainers | Sub::Resize | Sub::Proxy | Sub::Token
        )
    })
}

/// `/api/v1` and `/apis/<group>/<version>`.
pub(crate) fn resources(group: &str, version: &str) -> Result<Response<Body>, ApiError> {
    let mut found = Vec::new();
    for row in rows_of(group, version) {
        let mut entry = json!({
            "name": row.plural,
            "singularName": row.singular,
            "namespaced": row.namespaced,
            "kind": row.kind,
            "verbs": VERBS,
        });
        if !row.short.is_empty() {
            entry["shortNames"] = row.short.into();
        }
        if !row.categories.is_empty() {
            entry["categories"] = row.categories.into();
        }
        found.push(entry);
        for sub in subs(row) {
            let (sub_group, sub_version, kind, verbs) = sub_kind(row, sub);
            let mut entry = json!({
                "name": format!("{}/{}", row.plural, sub.name()),
                "singularName": "",
                "namespaced": row.namespaced,
                "kind": kind,
                "verbs": verbs,
            });
            if sub_group != row.group {
                entry["group"] = sub_group.into();
                entry["version"] = sub_version.into();
            }
            found.push(entry);
        }
    }
    if found.is_empty() {
        return Err(ApiError::no_such_path());
    }
    let name = if group.is_empty() {
        version.to_owned()
    } else {
        format!("{group}/{version}")
    };
    let list = json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": name, "resources": found});
    Ok(present::value(200, &list))
}

fn aggregated_list(version: &str, groups: &[(&'static str, &'static str)]) -> Response<Body> {
    let items: Vec<_> = groups
        .iter()
        .map(|(group, group_version)| {
            let resources: Vec<_> = rows_of(group, group_version).map(aggregated_resource).collect();
            let metadata = if group.is_empty() { json!({}) } else { json!({"name": group}) };
            json!({
                "metadata": metadata,
                "versions": [{"version": group_version, "resources": resources, "freshness": "Current"}],
            })
        })
        .collect();
    let list = json!({
        "kind": "APIGroupDiscoveryList",
        "apiVersion": format!("apidiscovery.k8s.io/{version}"),
        "metadata": {},
        "items": items,
    });
    let mut response = present::value(200, &list);
    let kind =
        format!("application/json;g=apidiscovery.k8s.io;v={version};as=APIGroupDiscoveryList");
    if let Ok(kind) = HeaderValue::from_str(&kind) {
        response.headers_mut().insert(header::CONTENT_TYPE, kind);
    }
    response
}

fn aggregated_resource(row: &'static Resource) -> Value {
    let subresources: Vec<_> = subs(row)
        .map(|sub| {
            let (group, version, kind, verbs) = sub_kind(row, sub);
            json!({
                "subresource": sub.name(),
                "responseKind": {"group": group, "version": version, "kind": kind},
                "verbs": verbs,
            })
        })
        .collect();
    let mut entry = json!({
        "resource": row.plural,
        "responseKind": {"group": row.group, "version": row.version, "kind": row.kind},
        "scope": if row.namespaced { "Namespaced" } else { "Cluster" },
        "singularResource": row.singular,
        "verbs": VERBS,
    });
    for (field, list) in [("shortNames", row.short), ("categories", row.categories)] {
        if !list.is_empty() {
            entry[field] = list.into();
        }
    }
    if !subresources.is_empty() {
        entry["subresources"] = subresources.into();
    }
    entry
}
