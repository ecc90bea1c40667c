// SPDX-License-Identifier: Apache-2.0
//! `update` (PUT) and `patch`, of an object or of one of its subresources.

use http::Response;
use serde_json::Value;

use super::{
    change::{Place, change},
    decode::{decode, set_namespace, warn},
};
use crate::apiserver::{
    api::{Api, Call},
    authn::User,
    authz,
    body::{Body, Patch, PatchKind, Received},
    error::ApiError,
    json::{self, text},
    patch as patches, present,
    resource::Sub,
};

pub(super) fn place(call: &Call, sub: Option<Sub>) -> Place<'_> {
    Place {
        row: call.row,
        namespace: &call.target.namespace,
        name: &call.target.name,
        sub,
        dry_run: call.dry_run,
    }
}

/// Replaces an object.
pub(crate) async fn update(
    api: &Api,
    call: &Call,
    user: &User,
    sub: Option<Sub>,
    received: Received,
) -> Result<Response<Body>, ApiError> {
    let decoded = decode(call.row, call.validation, received.value, received.repeated)?;
    let mut wanted = decoded.value;
    let name = text(&wanted, "/metadata/name");
    if name != call.target.name {
        return Err(ApiError::bad_request(if name.is_empty() {
            "name must be provided".to_owned()
        } else {
            format!(
                "the name of the object ({name}) does not match the name on the URL ({})",
                call.target.name
            )
        }));
    }
    set_namespace(call, &mut wanted)?;
    let object = change(api, place(call, sub), |old| {
        authz::check_change(user, call.row, old)?;
        Ok(wanted.clone())
    });
    let response = present::one(call.row, call.form, 200, &*object.await?)?;
    Ok(warn(response, &decoded.warnings))
}

/// Patches an object.
pub(crate) async fn patch(
    api: &Api,
    call: &Call,
    user: &User,
    sub: Option<Sub>,
    patch: Patch,
) -> Result<Response<Body>, ApiError> {
    let mut warnings = Vec::new();
    let object = change(api, place(call, sub), |old| {
        authz::check_change(user, call.row, old)?;
        let (new, found) = patched(call, &patch, old)?;
        warnings = found;
        Ok(new)
    })
    .await?;
    let response = present::one(call.row, call.form, 200, &object)?;
    Ok(warn(response, &warnings))
}

/// Applies a patch to a stored object. The patch is written against the version of the path.
fn patched(call: &Call, patch: &Patch, old: &Value) -> Result<(Value, Vec<String>), ApiError> {
    let seen = match call.row.view {
        None => old.clone(),
        Some(view) => (view.from_stored)(old.clone()),
    };
    let before = text(&seen, "/metadata/name").to_owned();
    let new = apply(patch, seen)?;
    if text(&new, "/metadata/name") != before {
        return Err(ApiError::bad_request(
            "the name of the object may not be changed by a patch",
        ));
    }
    let decoded = decode(call.row, call.validation, new, patch.repeated.clone())?;
    let mut value = decoded.value;
    set_namespace(call, &mut value)?;
    Ok((value, decoded.warnings))
}

/// Applies a patch of any kind.
pub(super) fn apply(patch: &Patch, mut object: Value) -> Result<Value, ApiError> {
    let fail = |why: String| ApiError::unprocessable(why);
    match patch.kind {
        PatchKind::Json => {
            patches::json(&mut object, &patch.value).map_err(fail)?;
            Ok(object)
        }
        PatchKind::Merge => {
            patches::merge(&mut object, &patch.value);
            Ok(object)
        }
        PatchKind::Strategic => {
            let kind = text(&object, "/kind").to_owned();
            patches::strategic(&kind, &mut object, &patch.value).map_err(ApiError::bad_request)?;
            json::remove(&mut object, "$setElementOrder");
            Ok(object)
        }
    }
}
