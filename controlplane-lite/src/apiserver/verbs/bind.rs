// SPDX-License-Identifier: Apache-2.0
//! pods/binding: how a scheduler gives a pod to a node.

use http::Response;
use serde_json::{Value, json};

use super::change::{Place, change};
use crate::apiserver::{
    api::{Api, Call},
    body::{Body, Received},
    error::ApiError,
    json::{self, list, text},
    present,
    resource::Sub,
};

/// Sets the node of a pod that has none, and its condition `PodScheduled`.
pub(crate) async fn bind(
    api: &Api,
    call: &Call,
    received: Received,
) -> Result<Response<Body>, ApiError> {
    let binding = received.value;
    let node = text(&binding, "/target/name").to_owned();
    let kind = text(&binding, "/target/kind");
    if node.is_empty() || !matches!(kind, "" | "Node") {
        return Err(ApiError::bad_request(
            "Binding: target.name must name a Node",
        ));
    }
    let place = Place {
        row: call.row,
        namespace: &call.target.namespace,
        name: &call.target.name,
        sub: Some(Sub::Binding),
        dry_run: call.dry_run,
    };
    change(api, place, |pod| {
        let conflict = |why: String| ApiError::conflict(call.row, &call.target.name, &why);
        if !text(pod, "/metadata/deletionTimestamp").is_empty() {
            return Err(conflict(format!(
                "pod {} is being deleted, cannot be assigned to a host",
                call.target.name
            )));
        }
        let bound = text(pod, "/spec/nodeName");
        if !bound.is_empty() {
            return Err(conflict(format!(
                "pod {} is already assigned to node {bound:?}",
                call.target.name
            )));
        }
        for (field, text_of) in [
            ("uid", text(&binding, "/metadata/uid")),
            (
                "resourceVersion",
                text(&binding, "/metadata/resourceVersion"),
            ),
        ] {
            if !text_of.is_empty() && text_of != text(pod, &format!("/metadata/{field}")) {
                return Err(conflict(format!(
                    "Precondition failed: {field} in precondition: {text_of}"
                )));
            }
        }
        Ok(bound_pod(pod, &node, &binding))
    })
    .await?;
    Ok(present::value(
        201,
        &json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201}),
    ))
}

fn bound_pod(pod: &Value, node: &str, binding: &Value) -> Value {
    let mut new = pod.clone();
    new["spec"]["nodeName"] = node.into();
    let annotations = binding
        .pointer("/metadata/annotations")
        .and_then(Value::as_object);
    for (key, value) in annotations.into_iter().flatten() {
        json::object(&mut new["metadata"], "annotations")[key] = value.clone();
    }
    let mut conditions = list(pod, "/status/conditions").to_vec();
    conditions.retain(|c| text(c, "/type") != "PodScheduled");
    conditions.push(json!({
        "type": "PodScheduled",
        "status": "True",
        "lastProbeTime": null,
        "lastTransitionTime": json::now(),
    }));
    json::object(&mut new, "status")["conditions"] = conditions.into();
    new
}
