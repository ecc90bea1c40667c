// SPDX-License-Identifier: Apache-2.0
//! The scale subresource: `autoscaling/v1 Scale` of whatever has `spec.replicas`.

use http::Response;
use serde_json::{Value, json};

use super::patching::{apply, place};
use crate::apiserver::{
    api::{Api, Call},
    authn::User,
    authz,
    body::{Body, Patch, Received},
    error::ApiError,
    json::{int, text},
    present,
    resource::Sub,
};

/// Answers with the scale.
pub(crate) fn scale_get(api: &Api, call: &Call) -> Result<Response<Body>, ApiError> {
    let object = api.store.get(&call.key());
    let object = object.ok_or_else(|| ApiError::not_found(call.row, &call.target.name))?;
    Ok(present::value(200, &scale_of(&object.value())))
}

/// Replaces the scale.
pub(crate) async fn scale_update(
    api: &Api,
    call: &Call,
    user: &User,
    received: Received,
) -> Result<Response<Body>, ApiError> {
    scale(api, call, user, |_| Ok(received.value.clone())).await
}

/// Patches the scale.
pub(crate) async fn scale_patch(
    api: &Api,
    call: &Call,
    user: &User,
    patch: Patch,
) -> Result<Response<Body>, ApiError> {
    scale(api, call, user, |old| apply(&patch, old)).await
}

async fn scale(
    api: &Api,
    call: &Call,
    user: &User,
    mut make: impl FnMut(Value) -> Result<Value, ApiError>,
) -> Result<Response<Body>, ApiError> {
    let object = super::change::change(api, place(call, Some(Sub::Scale)), |old| {
        authz::check_change(user, call.row, old)?;
        let wanted = make(scale_of(old))?;
        let replicas = match wanted.pointer("/spec/replicas") {
            None | Some(Value::Null) => 0,
            Some(found) => found.as_i64().ok_or_else(|| {
                ApiError::bad_request(format!(
                    "Scale in version \"v1\" cannot be handled as a Scale: spec.replicas: expected i32, got {found}"
                ))
            })?,
        };
        let mut new = old.clone();
        new["spec"]["replicas"] = replicas.into();
        if let Some(based_on) = wanted.pointer("/metadata/resourceVersion") {
            new["metadata"]["resourceVersion"] = based_on.clone();
        }
        Ok(new)
    });
    Ok(present::value(200, &scale_of(&object.await?.value())))
}

fn scale_of(object: &Value) -> Value {
    let metadata = &object["metadata"];
    let mut status = json!({"replicas": int(object, "/status/replicas").unwrap_or(0)});
    let selector = selector_text(object);
    if !selector.is_empty() {
        status["selector"] = selector.into();
    }
    json!({
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": {
            "name": metadata["name"],
            "namespace": metadata["namespace"],
            "uid": metadata["uid"],
            "resourceVersion": metadata["resourceVersion"],
            "creationTimestamp": metadata["creationTimestamp"],
        },
        "spec": {"replicas": int(object, "/spec/replicas").unwrap_or(0)},
        "status": status,
    })
}

fn selector_text(object: &Value) -> String {
    let mut found = Vec::new();
    let labels = object
        .pointer("/spec/selector/matchLabels")
        .and_then(Value::as_object);
    for (key, value) in labels.into_iter().flatten() {
        found.push(format!("{key}={}", value.as_str().unwrap_or("")));
    }
    for rule in crate::apiserver::json::list(object, "/spec/selector/matchExpressions") {
        let key = text(rule, "/key");
        let values = crate::apiserver::json::list(rule, "/values").iter();
        let values: Vec<_> = values.filter_map(Value::as_str).collect();
        found.push(match text(rule, "/operator") {
            "In" => format!("{key} in ({})", values.join(",")),
            "NotIn" => format!("{key} notin ({})", values.join(",")),
            "DoesNotExist" => format!("!{key}"),
            _ => key.to_owned(),
        });
    }
    found.join(",")
}
