// SPDX-License-Identifier: Apache-2.0
//! Passing a kubelet's answer on: a body, or an upgraded connection in both directions.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::{body::Incoming, upgrade::OnUpgrade};
use hyper_util::rt::TokioIo;
use tokio::io::copy_bidirectional_with_sizes;
use tokio_util::sync::CancellationToken;

use super::{dial::Dialer, map::Place};
use crate::apiserver::{
    body::{self, Body},
    error::ApiError,
};

/// Time for a kubelet to begin its answer.
const ANSWER_DEADLINE: Duration = Duration::from_secs(30);
/// Longest error text that is passed on.
const ERROR_BYTES_MAX: usize = 64 << 10;
/// Bytes of a stream that are under way, in each direction.
const BUFFER: usize = 32 << 10;
/// Headers of an upgrade that both sides must see.
const PASSED: &[&str] = &[
    "connection",
    "upgrade",
    "sec-websocket-key",
    "sec-websocket-version",
    "sec-websocket-protocol",
    "sec-websocket-accept",
    "sec-websocket-extensions",
    "x-stream-protocol-version",
];

/// Fetches a path and passes the body on as it comes.
pub(super) async fn fetch(
    dialer: &Dialer,
    place: &Place,
    path: &str,
    stop: CancellationToken,
) -> Result<Response<Body>, ApiError> {
    let request = Request::get(path)
        .header(header::HOST, place.address.to_string())
        .body(Full::default())
        .map_err(ApiError::internal)?;
    let answer = send(dialer, place, request, stop).await?;
    if !answer.status().is_success() {
        return Err(refusal(place, answer).await);
    }
    let (parts, incoming) = answer.into_parts();
    let mut response = Response::new(incoming.map_err(std::io::Error::other).boxed_unsync());
    let kind = parts.headers.get(header::CONTENT_TYPE).cloned();
    let kind = kind.unwrap_or(http::HeaderValue::from_static("text/plain"));
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    Ok(response)
}

async fn send(
    dialer: &Dialer,
    place: &Place,
    request: Request<Full<Bytes>>,
    stop: CancellationToken,
) -> Result<Response<Incoming>, ApiError> {
    let mut sender = dialer.connect(place, stop).await?;
    let fail = |why: String| {
        ApiError::internal(format!("asking the kubelet of node {}: {why}", place.node))
    };
    tokio::time::timeout(ANSWER_DEADLINE, sender.send_request(request))
        .await
        .map_err(|_| fail("no answer in time".to_owned()))?
        .map_err(|e| fail(e.to_string()))
}

/// The kubelet's own words with its own code.
async fn refusal(place: &Place, answer: Response<Incoming>) -> ApiError {
    let code = answer.status().as_u16();
    let body = Limited::new(answer.into_body(), ERROR_BYTES_MAX).collect();
    let text = match tokio::time::timeout(ANSWER_DEADLINE, body).await {
        Ok(Ok(collected)) => String::from_utf8_lossy(&collected.to_bytes())
            .trim()
            .to_owned(),
        _ => String::new(),
    };
    let text = if text.is_empty() {
        format!(
            "the kubelet of node {} answered with code {code}",
            place.node
        )
    } else {
        text
    };
    match code {
        404 => ApiError {
            code: 404,
            reason: "NotFound",
            message: text,
            details: None,
        },
        400..500 => ApiError::bad_request(text),
        _ => ApiError::internal(text),
    }
}

/// Asks the kubelet to upgrade as the client asked, and copies bytes both ways afterwards.
pub(super) async fn upgrade(
    dialer: &Dialer,
    place: &Place,
    path: &str,
    mut request: Request<Incoming>,
    stop: CancellationToken,
) -> Result<Response<Body>, ApiError> {
    let wanted = request
        .headers()
        .get(header::UPGRADE)
        .and_then(|v| v.to_str().ok());
    let wanted = wanted.unwrap_or("").to_ascii_lowercase();
    if wanted != "websocket" && wanted != "spdy/3.1" {
        return Err(ApiError::bad_request("Upgrade request required"));
    }
    let mut outgoing = Request::builder()
        .method(request.method().clone())
        .uri(path)
        .header(header::HOST, place.address.to_string())
        .body(Full::default())
        .map_err(ApiError::internal)?;
    pass(request.headers(), outgoing.headers_mut());
    let mut answer = send(dialer, place, outgoing, stop.clone()).await?;
    if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Err(refusal(place, answer).await);
    }
    let client = hyper::upgrade::on(&mut request);
    let kubelet = hyper::upgrade::on(&mut answer);
    tokio::spawn(copy(client, kubelet, stop));
    let mut response = Response::new(body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    pass(answer.headers(), response.headers_mut());
    Ok(response)
}

fn pass(from: &HeaderMap, to: &mut HeaderMap) {
    for name in PASSED {
        for value in from.get_all(*name) {
            to.append(*name, value.clone());
        }
    }
}

/// Copies until both directions have ended, one of them failed, or the server stops.
async fn copy(client: OnUpgrade, kubelet: OnUpgrade, stop: CancellationToken) {
    let (client, kubelet) = match tokio::try_join!(client, kubelet) {
        Ok(both) => both,
        Err(error) => {
            tracing::debug!(%error, "upgrading a stream");
            return;
        }
    };
    let (mut client, mut kubelet) = (TokioIo::new(client), TokioIo::new(kubelet));
    tokio::select! {
        copied = copy_bidirectional_with_sizes(&mut client, &mut kubelet, BUFFER, BUFFER) => {
            if let Err(error) = copied {
                tracing::debug!(%error, "copying a stream");
            }
        }
        () = stop.cancelled() => {}
    }
}
