// SPDX-License-Identifier: Apache-2.0
//! Responses of the node API: bodies, content types, plain error texts.

use std::convert::Infallible;

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Frame;
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;

/// Every body: whole, or coming in pieces.
pub(super) type Body = BoxBody<Bytes, Infallible>;

/// A request that can't be served: the status and the text that the client gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Problem {
    pub(super) status: StatusCode,
    pub(super) text: String,
}

impl Problem {
    pub(super) fn new(status: StatusCode, text: impl Into<String>) -> Self {
        Self {
            status,
            text: text.into(),
        }
    }

    pub(super) fn not_found(text: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, text)
    }

    pub(super) fn bad_request(text: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, text)
    }

    /// The runtime refused or did not answer.
    pub(super) fn runtime(status: &tonic::Status) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, status.message())
    }

    pub(super) fn response(self) -> Response<Body> {
        text(self.status, self.text)
    }
}

/// What every handler returns.
pub(super) type Reply = Result<Response<Body>, Problem>;

pub(super) fn text(status: StatusCode, text: impl Into<Bytes>) -> Response<Body> {
    with_type(status, "text/plain; charset=utf-8", text.into())
}

pub(super) fn json(value: &impl serde::Serialize) -> Reply {
    match serde_json::to_vec(value) {
        Ok(body) => Ok(with_type(StatusCode::OK, "application/json", body.into())),
        Err(error) => Err(Problem::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            error.to_string(),
        )),
    }
}

pub(super) fn metrics(body: String) -> Response<Body> {
    let format = "text/plain; version=0.0.4; charset=utf-8";
    with_type(StatusCode::OK, format, body.into())
}

/// A body that ends when the sender is dropped.
pub(super) fn stream(pieces: mpsc::Receiver<Bytes>) -> Response<Body> {
    let frames = ReceiverStream::new(pieces).map(|piece| Ok(Frame::data(piece)));
    let mut response = Response::new(BodyExt::boxed(StreamBody::new(frames)));
    let plain = HeaderValue::from_static("text/plain");
    response.headers_mut().insert(header::CONTENT_TYPE, plain);
    response
}

pub(super) fn whole(body: impl Into<Bytes>) -> Body {
    Full::new(body.into()).boxed()
}

fn with_type(status: StatusCode, kind: &'static str, body: Bytes) -> Response<Body> {
    let mut response = Response::new(whole(body));
    *response.status_mut() = status;
    let kind = HeaderValue::from_static(kind);
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}
