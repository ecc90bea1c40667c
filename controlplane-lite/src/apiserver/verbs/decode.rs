// SPDX-License-Identifier: Apache-2.0
//! From a body to an object of the row's kind, and the strategy's checks of it.

use http::{HeaderValue, Response, header};
use serde_json::Value;

use crate::apiserver::{
    api::{Call, FieldValidation},
    body::Body,
    error::ApiError,
    json::{self, text},
    resource::Resource,
    strategy::{field::FieldErrors, names},
};

/// An object in its stored form, and what to warn the client of.
pub(super) struct Decoded {
    pub(super) value: Value,
    pub(super) warnings: Vec<String>,
}

/// Decodes an object of the row's kind, converts it to the stored version and fills defaults in.
pub(super) fn decode(
    row: &Resource,
    validation: FieldValidation,
    mut value: Value,
    repeated: Vec<String>,
) -> Result<Decoded, ApiError> {
    check_kind(row, &mut value)?;
    let cannot = |why: String| {
        ApiError::bad_request(format!(
            "{kind} in version \"{version}\" cannot be handled as a {kind}: {why}",
            kind = row.kind,
            version = row.version
        ))
    };
    let decoded = (row.decode)(&value).map_err(|error| cannot(error.to_string()))?;
    let mut warnings = Vec::new();
    if validation != FieldValidation::Ignore {
        warnings.extend(
            decoded
                .unknown
                .iter()
                .map(|path| format!("unknown field \"{path}\"")),
        );
        warnings.extend(
            repeated
                .iter()
                .map(|path| format!("duplicate field \"{path}\"")),
        );
    }
    if validation == FieldValidation::Strict && !warnings.is_empty() {
        return Err(cannot(format!(
            "strict decoding error: {}",
            warnings.join(", ")
        )));
    }
    let mut value = decoded.value;
    if let Some(view) = row.view {
        value = (view.to_stored)(value);
    }
    (row.strategy.default)(&mut value);
    Ok(Decoded { value, warnings })
}

fn check_kind(row: &Resource, value: &mut Value) -> Result<(), ApiError> {
    if !value.is_object() {
        return Err(ApiError::bad_request(format!(
            "expected an object of kind {}, got something else",
            row.kind
        )));
    }
    let wanted = row.api_version();
    let version = text(value, "/apiVersion");
    if !version.is_empty() && version != wanted {
        return Err(ApiError::bad_request(format!(
            "the API version in the data ({version}) does not match the expected API version ({wanted})"
        )));
    }
    let kind = text(value, "/kind");
    if !kind.is_empty() && kind != row.kind {
        return Err(ApiError::bad_request(format!(
            "the kind in the data ({kind}) does not match the expected kind ({})",
            row.kind
        )));
    }
    json::default_text(value, "apiVersion", &wanted);
    json::default_text(value, "kind", row.kind);
    Ok(())
}

/// The namespace of the path and of the object must agree; an absent one is filled in.
pub(super) fn set_namespace(call: &Call, value: &mut Value) -> Result<(), ApiError> {
    let wanted = call.target.namespace.as_str();
    let found = text(value, "/metadata/namespace");
    if !call.row.namespaced {
        json::remove(json::object(value, "metadata"), "namespace");
        return Ok(());
    }
    if !found.is_empty() && found != wanted {
        return Err(ApiError::bad_request(format!(
            "the namespace of the provided object does not match the namespace sent on the request ({found} != {wanted})"
        )));
    }
    json::object(value, "metadata")["namespace"] = wanted.into();
    Ok(())
}

/// Checks an object, and against the stored one on update.
pub(super) fn validate(row: &Resource, new: &Value, old: Option<&Value>) -> Result<(), ApiError> {
    let mut errors = FieldErrors::default();
    names::metadata(row, new, &mut errors);
    (row.strategy.validate)(new, &mut errors);
    if let Some(old) = old {
        (row.strategy.validate_update)(new, old, &mut errors);
    }
    if errors.0.is_empty() {
        return Ok(());
    }
    let name = match text(new, "/metadata/name") {
        "" => text(new, "/metadata/generateName"),
        name => name,
    };
    Err(ApiError::invalid(row, name, &errors.0))
}

/// Adds `Warning` headers.
pub(super) fn warn(mut response: Response<Body>, warnings: &[String]) -> Response<Body> {
    for warning in warnings {
        let escaped = warning.replace('\\', "\\\\").replace('"', "\\\"");
        if let Ok(value) = HeaderValue::from_str(&format!("299 - \"{escaped}\"")) {
            response.headers_mut().append(header::WARNING, value);
        }
    }
    response
}
