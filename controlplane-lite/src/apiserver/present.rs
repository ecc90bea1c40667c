// SPDX-License-Identifier: Apache-2.0
//! From stored objects to responses, in the form that the client asked for.

use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderValue, Response, header};
use serde_json::{Value, json};

use super::{
    body::{self, Body},
    error::ApiError,
    request::{Query, media_types},
    resource::Resource,
    table,
};
use crate::store::{Event, EventKind, Object};

/// The form of a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    Json,
    Yaml,
    /// `meta.k8s.io/v1 Table`, with this much of each object.
    Table(Include),
    /// `meta.k8s.io/v1 PartialObjectMetadata`.
    Partial,
}

/// What a table row carries of its object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Include {
    None,
    Metadata,
    Object,
}

impl Form {
    /// Chooses the first form of `Accept` that can be served. Protobuf cannot.
    pub(crate) fn negotiate(accept: &str, query: &Query) -> Result<Self, ApiError> {
        let include = match query.get("includeObject") {
            Some("None") => Include::None,
            Some("Object") => Include::Object,
            _ => Include::Metadata,
        };
        for (kind, parameters) in media_types(accept) {
            let meta = parameters.get("g").is_none_or(|g| g == "meta.k8s.io")
                && parameters.get("v").is_none_or(|v| v == "v1");
            let form = parameters.get("as").map(String::as_str);
            match (kind.as_str(), form) {
                ("application/json" | "application/*" | "*/*", None) => return Ok(Self::Json),
                ("application/yaml", None) => return Ok(Self::Yaml),
                ("application/json", Some("Table")) if meta => return Ok(Self::Table(include)),
                (
                    "application/json",
                    Some("PartialObjectMetadata" | "PartialObjectMetadataList"),
                ) if meta => return Ok(Self::Partial),
                _ => {}
            }
        }
        if accept.trim().is_empty() {
            return Ok(Self::Json);
        }
        Err(ApiError::not_acceptable())
    }
}

/// A response with a JSON body.
pub(crate) fn json(code: u16, bytes: impl Into<Bytes>) -> Response<Body> {
    typed(code, "application/json", bytes)
}

/// A response with a body of some type.
pub(crate) fn typed(code: u16, kind: &'static str, bytes: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(body::full(bytes));
    *response.status_mut() = http::StatusCode::from_u16(code).expect("codes are ours and valid");
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(
        header::CACHE_CONTROL,
        HeaderValue::from_static("no-cache, private"),
    );
    response
}

/// A response with a JSON value.
pub(crate) fn value(code: u16, value: &Value) -> Response<Body> {
    json(code, value.to_string())
}

/// An error.
pub(crate) fn failure(error: &ApiError) -> Response<Body> {
    value(error.code, &error.status())
}

/// The object's bytes as the row's version shows them.
pub(crate) fn encoded(row: &Resource, object: &Object) -> Bytes {
    match row.view {
        None => object.bytes().clone(),
        Some(view) => (view.from_stored)(object.value()).to_string().into(),
    }
}

fn viewed(row: &Resource, object: &Object) -> Value {
    match row.view {
        None => object.value(),
        Some(view) => (view.from_stored)(object.value()),
    }
}

fn partial(row: &Resource, object: &Object) -> Value {
    json!({
        "kind": "PartialObjectMetadata",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": viewed(row, object)["metadata"].take(),
    })
}

fn yaml(value: &Value) -> Result<Bytes, ApiError> {
    serde_saphyr::to_string(value)
        .map(Bytes::from)
        .map_err(ApiError::internal)
}

/// One object.
pub(crate) fn one(
    row: &Resource,
    form: Form,
    code: u16,
    object: &Object,
) -> Result<Response<Body>, ApiError> {
    Ok(match form {
        Form::Json => json(code, encoded(row, object)),
        Form::Yaml => typed(code, "application/yaml", yaml(&viewed(row, object))?),
        Form::Partial => value(code, &partial(row, object)),
        Form::Table(include) => value(code, &table_of(row, object, include)),
    })
}

/// A list. `meta` are the fields of the list's metadata.
pub(crate) fn list(
    row: &Resource,
    form: Form,
    objects: &[Arc<Object>],
    meta: &Value,
) -> Result<Response<Body>, ApiError> {
    Ok(match form {
        Form::Json => json(200, encoded_list(row, objects, meta)),
        Form::Yaml => {
            let text = encoded_list(row, objects, meta);
            let parsed: Value = serde_json::from_slice(&text).map_err(ApiError::internal)?;
            typed(200, "application/yaml", yaml(&parsed)?)
        }
        Form::Partial => {
            let items: Vec<_> = objects.iter().map(|o| partial(row, o)).collect();
            let list = json!({
                "kind": "PartialObjectMetadataList",
                "apiVersion": "meta.k8s.io/v1",
                "metadata": meta,
                "items": items,
            });
            value(200, &list)
        }
        Form::Table(include) => {
            let rows: Vec<_> = objects.iter().map(|o| table_row(row, o, include)).collect();
            let mut table = table::head(row.columns.definitions);
            table["metadata"] = meta.clone();
            table["rows"] = rows.into();
            value(200, &table)
        }
    })
}

/// A list is the objects' bytes side by side: nothing is parsed or encoded again.
fn encoded_list(row: &Resource, objects: &[Arc<Object>], meta: &Value) -> Bytes {
    let head = format!(
        "{{\"kind\":\"{}List\",\"apiVersion\":\"{}\",\"metadata\":{meta},\"items\":[",
        row.kind,
        row.api_version()
    );
    let size: usize = objects.iter().map(|o| o.bytes().len() + 1).sum();
    let mut out = BytesMut::with_capacity(head.len() + size + 2);
    out.put_slice(head.as_bytes());
    for (at, object) in objects.iter().enumerate() {
        if at > 0 {
            out.put_u8(b',');
        }
        out.put_slice(&encoded(row, object));
    }
    out.put_slice(b"]}");
    out.freeze()
}

fn table_row(row: &Resource, object: &Object, include: Include) -> Value {
    let value = viewed(row, object);
    let shown = match include {
        Include::None => Value::Null,
        Include::Metadata => partial(row, object),
        Include::Object => value.clone(),
    };
    json!({"cells": (row.columns.cells)(&value), "object": shown})
}

fn table_of(row: &Resource, object: &Object, include: Include) -> Value {
    let mut table = table::head(row.columns.definitions);
    table["metadata"]["resourceVersion"] = object.revision().to_string().into();
    table["rows"] = json!([table_row(row, object, include)]);
    table
}

/// One line of a watch.
pub(crate) fn watch_line(kind: &str, object: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(object.len() + kind.len() + 24);
    out.put_slice(b"{\"type\":\"");
    out.put_slice(kind.as_bytes());
    out.put_slice(b"\",\"object\":");
    out.put_slice(object);
    out.put_slice(b"}\n");
    out.freeze()
}

/// An object as a watch in some form shows it.
pub(crate) fn watched(row: &Resource, form: Form, object: &Object) -> Bytes {
    match form {
        Form::Json | Form::Yaml => encoded(row, object),
        Form::Partial => partial(row, object).to_string().into(),
        Form::Table(include) => table_of(row, object, include).to_string().into(),
    }
}

/// The line of an event for a watcher to whom it means what it means by itself. Encoded once
/// for all of them.
pub(crate) fn natural_line(row: &Resource, form: Form, event: &Event) -> Bytes {
    let encode = |event: &Event| {
        let object = watched(row, form, &event.object);
        watch_line(natural_kind(event.kind), &object)
    };
    if form == Form::Json && row.view.is_none() {
        return event.frame(encode);
    }
    encode(event)
}

/// Name of an event on the wire.
pub(crate) fn natural_kind(kind: EventKind) -> &'static str {
    match kind {
        EventKind::Created => "ADDED",
        EventKind::Changed => "MODIFIED",
        EventKind::Deleted => "DELETED",
    }
}

/// A bookmark: an object of the kind that has nothing but a revision.
pub(crate) fn bookmark(row: &Resource, form: Form, revision: u64, initial_end: bool) -> Bytes {
    let mut object = json!({
        "kind": row.kind,
        "apiVersion": row.api_version(),
        "metadata": {"resourceVersion": revision.to_string(), "creationTimestamp": null},
    });
    if initial_end {
        object["metadata"]["annotations"] = json!({"k8s.io/initial-events-end": "true"});
    }
    let shown = match form {
        Form::Json | Form::Yaml => object,
        Form::Partial => json!({
            "kind": "PartialObjectMetadata",
            "apiVersion": "meta.k8s.io/v1",
            "metadata": object["metadata"],
        }),
        Form::Table(_) => {
            let mut table = table::head(row.columns.definitions);
            table["metadata"]["resourceVersion"] = revision.to_string().into();
            table["rows"] = json!([{"cells": [], "object": object}]);
            table
        }
    };
    watch_line("BOOKMARK", shown.to_string().as_bytes())
}
