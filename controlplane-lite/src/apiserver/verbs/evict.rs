// SPDX-License-Identifier: Apache-2.0
//! pods/eviction. There are no disruption budgets yet, so an eviction is a graceful deletion.

use http::Response;
use serde_json::json;

use super::delete::{self, DeleteOptions};
use crate::apiserver::{
    api::{Api, Call},
    body::{Body, Received},
    error::ApiError,
    present,
};

/// Deletes a pod in the name of the eviction API.
pub(crate) async fn evict(
    api: &Api,
    call: &Call,
    received: Received,
) -> Result<Response<Body>, ApiError> {
    let options = received
        .value
        .get("deleteOptions")
        .cloned()
        .unwrap_or_default();
    let options = DeleteOptions::parse(&call.query, &options)?;
    delete::delete(api, call, options).await?;
    Ok(present::value(
        201,
        &json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201}),
    ))
}
