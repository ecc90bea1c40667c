// SPDX-License-Identifier: Apache-2.0
//! Bodies: requests read within bounds, responses as bytes or streams.

use bytes::Bytes;
use futures::{Stream, StreamExt};
use http::{Request, header};
use http_body_util::{BodyExt, Full, Limited, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::{Frame, Incoming};
use serde_json::Value;

use super::{error::ApiError, protobuf, request::media_types, schema};

/// A response's body.
pub(crate) type Body = UnsyncBoxBody<Bytes, std::io::Error>;

/// Largest request body (upstream: `MaxRequestBodyBytes`).
const BODY_BYTES_MAX: usize = 3 << 20;
/// Media type of built-in kinds in protobuf.
const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";
/// Time for a client to send a body.
const BODY_DEADLINE: std::time::Duration = std::time::Duration::from_secs(60);

/// Nothing.
pub(crate) fn empty() -> Body {
    full(Bytes::new())
}

/// A body that is already there.
pub(crate) fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into())
        .map_err(|never| match never {})
        .boxed_unsync()
}

/// A body that comes in pieces.
pub(crate) fn stream(pieces: impl Stream<Item = Bytes> + Send + 'static) -> Body {
    let frames = pieces.map(|piece| Ok(Frame::data(piece)));
    StreamBody::new(frames).boxed_unsync()
}

/// A decoded request body, and the fields that were given twice.
#[derive(Debug)]
pub(crate) struct Received {
    pub(crate) value: Value,
    pub(crate) repeated: Vec<String>,
}

/// How a patch is to be applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PatchKind {
    Json,
    Merge,
    Strategic,
}

/// A patch.
#[derive(Debug)]
pub(crate) struct Patch {
    pub(crate) kind: PatchKind,
    pub(crate) value: Value,
    pub(crate) repeated: Vec<String>,
}

fn content_type(request: &Request<Incoming>) -> String {
    let header = request.headers().get(header::CONTENT_TYPE);
    let text = header.and_then(|v| v.to_str().ok()).unwrap_or("");
    media_types(text)
        .into_iter()
        .next()
        .map_or_else(|| "application/json".to_owned(), |(kind, _)| kind)
}

/// Reads a whole body, at most [`BODY_BYTES_MAX`] of it.
pub(crate) async fn bytes(request: Request<Incoming>) -> Result<Bytes, ApiError> {
    let body = Limited::new(request.into_body(), BODY_BYTES_MAX);
    match tokio::time::timeout(BODY_DEADLINE, body.collect()).await {
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => {
            Err(ApiError::too_large(BODY_BYTES_MAX))
        }
        Ok(Err(error)) => Err(ApiError::bad_request(format!(
            "reading the request: {error}"
        ))),
        Err(_) => Err(ApiError::bad_request("reading the request: timed out")),
    }
}

/// Reads an object.
pub(crate) async fn object(request: Request<Incoming>) -> Result<Received, ApiError> {
    let kind = content_type(&request);
    let bytes = bytes(request).await?;
    match kind.as_str() {
        "application/json" | "*/*" => json(&bytes),
        "application/yaml" => yaml(&bytes),
        PROTOBUF => {
            let value = protobuf::decode(&bytes).map_err(ApiError::bad_request)?;
            let repeated = Vec::new();
            Ok(Received { value, repeated })
        }
        other => Err(ApiError::unsupported_media(format!(
            "the body of the request was in an unknown format - accepted media types include: application/json, application/yaml, {PROTOBUF} (got {other})"
        ))),
    }
}

/// Reads an object that may be left out: options of a deletion.
pub(crate) async fn optional(request: Request<Incoming>) -> Result<Value, ApiError> {
    if hyper::body::Body::is_end_stream(request.body()) {
        return Ok(Value::Null);
    }
    let kind = content_type(&request);
    let bytes = bytes(request).await?;
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Ok(Value::Null);
    }
    if kind == PROTOBUF {
        return protobuf::decode(&bytes).map_err(ApiError::bad_request);
    }
    Ok(json(&bytes)?.value)
}

/// Reads a patch.
pub(crate) async fn patch(request: Request<Incoming>) -> Result<Patch, ApiError> {
    let kind = match content_type(&request).as_str() {
        "application/json-patch+json" => PatchKind::Json,
        "application/merge-patch+json" => PatchKind::Merge,
        "application/strategic-merge-patch+json" => PatchKind::Strategic,
        "application/apply-patch+yaml" | "application/apply-patch+cbor" => {
            return Err(ApiError::unsupported_media(
                "server-side apply is not supported by this server: use client-side apply (kubectl apply without --server-side)",
            ));
        }
        other => {
            return Err(ApiError::unsupported_media(format!(
                "the body of the request was in an unknown format - accepted media types include: application/json-patch+json, application/merge-patch+json, application/strategic-merge-patch+json (got {other})"
            )));
        }
    };
    let received = json(&bytes(request).await?)?;
    Ok(Patch {
        kind,
        value: received.value,
        repeated: received.repeated,
    })
}

fn json(bytes: &[u8]) -> Result<Received, ApiError> {
    let (value, repeated) = schema::parse_json(bytes).map_err(|error| {
        ApiError::bad_request(format!(
            "couldn't get version/kind; json parse error: {error}"
        ))
    })?;
    Ok(Received { value, repeated })
}

fn yaml(bytes: &[u8]) -> Result<Received, ApiError> {
    let text = std::str::from_utf8(bytes).map_err(|error| {
        ApiError::bad_request(format!("error converting YAML to JSON: {error}"))
    })?;
    let options = serde_saphyr::options! { legacy_octal_numbers: true };
    let value: Value = serde_saphyr::from_str_with_options(text, options).map_err(|error| {
        ApiError::bad_request(format!("error converting YAML to JSON: {error}"))
    })?;
    Ok(Received {
        value,
        repeated: Vec::new(),
    })
}
