// SPDX-License-Identifier: Apache-2.0
//! The streaming server: exec, attach and port-forward over WebSocket, on a TCP address of its own.
//!
//! A request comes in two parts: over CRI, where it is checked and kept under a random token; then
//! over HTTP at `/<kind>/<token>`, once, within a minute. Whoever holds the URL is let in, so the
//! listener belongs on loopback. SPDY/3.1 is refused by name.

mod channels;
mod exec;
mod outcome;
mod port_forward;
mod sys;
mod terminal;
mod tokens;

use std::sync::Arc;

use axum::Router;
use axum::extract::ws::WebSocketUpgrade;
use axum::extract::{FromRequestParts as _, Path, Request, State};
use axum::response::{IntoResponse as _, Response};
use axum::routing::any;
use http::{HeaderMap, StatusCode, header};
use tokio::net::TcpListener;

pub(crate) use tokens::{Stream, Tokens};

use crate::fault::{Fault, Kind};
use crate::runtime::Runtime;

/// The protocols of exec and attach, best first.
const CHANNEL_PROTOCOLS: [&str; 2] = ["v5.channel.k8s.io", "v4.channel.k8s.io"];
/// The protocol of port-forward.
const PORT_FORWARD_PROTOCOLS: [&str; 1] = ["v4.channel.k8s.io"];
/// The largest message of a client. kubectl sends 32 KiB pieces.
const MESSAGE_BYTES_MAX: usize = 4 << 20;

/// Serves until the daemon stops. Sessions that are open then end with their tasks.
///
/// # Errors
/// When the listener fails for good.
pub(crate) async fn serve(runtime: Arc<Runtime>, listener: TcpListener) -> std::io::Result<()> {
    let stopping = runtime.stopping.clone();
    let router = Router::new()
        .route("/{kind}/{token}", any(open))
        .with_state(runtime);
    axum::serve(listener, router)
        .with_graceful_shutdown(stopping.cancelled_owned())
        .await
}

async fn open(
    State(runtime): State<Arc<Runtime>>,
    Path((kind, token)): Path<(String, String)>,
    request: Request,
) -> Response {
    if let Err(refusal) = check_upgrade(request.headers()) {
        return (StatusCode::BAD_REQUEST, refusal).into_response();
    }
    let (mut parts, _) = request.into_parts();
    let upgrade = match WebSocketUpgrade::from_request_parts(&mut parts, &()).await {
        Ok(upgrade) => upgrade,
        Err(rejection) => return rejection.into_response(),
    };
    let protocols: &[&'static str] = match kind.as_str() {
        "exec" | "attach" => &CHANNEL_PROTOCOLS,
        "portforward" => &PORT_FORWARD_PROTOCOLS,
        _ => return StatusCode::NOT_FOUND.into_response(),
    };
    let upgrade = upgrade
        .protocols(protocols.iter().copied())
        .max_message_size(MESSAGE_BYTES_MAX);
    let chosen = upgrade
        .selected_protocol()
        .and_then(|p| p.to_str().ok())
        .map(str::to_owned);
    let Some(protocol) = chosen else {
        let asked = header_text(&parts.headers, header::SEC_WEBSOCKET_PROTOCOL);
        let refusal = format!(
            "{kind}: none of the WebSocket protocols {asked:?} is supported; supported: {}\n",
            protocols.join(", ")
        );
        return (StatusCode::BAD_REQUEST, refusal).into_response();
    };
    let Some(stream) = runtime.tokens.take(&kind, &token) else {
        return (
            StatusCode::NOT_FOUND,
            "this stream's token is unknown, used or expired\n",
        )
            .into_response();
    };
    start(runtime, stream, protocol, upgrade)
}

fn start(
    runtime: Arc<Runtime>,
    stream: Stream,
    protocol: String,
    upgrade: WebSocketUpgrade,
) -> Response {
    upgrade.on_upgrade(move |socket| async move {
        let runtime_ = runtime.clone();
        let session = async move {
            match stream {
                Stream::PortForward { sandbox, ports } => {
                    port_forward::serve(&runtime_, socket, &sandbox, ports).await;
                }
                other => exec::serve(&runtime_, socket, other, &protocol).await,
            }
        };
        let stopping = runtime.stopping.clone();
        // Tracked, so that shutdown waits until what was started is ended again.
        let _ = runtime
            .tasks
            .spawn(async move {
                tokio::select! {
                    () = session => {}
                    () = stopping.cancelled() => {}
                }
            })
            .await;
    })
}

fn header_text(headers: &HeaderMap, name: header::HeaderName) -> String {
    let values: Vec<&str> = headers
        .get_all(name)
        .iter()
        .filter_map(|v| v.to_str().ok())
        .collect();
    values.join(", ")
}

/// Refuses what is no WebSocket, naming what it is and what is supported.
fn check_upgrade(headers: &HeaderMap) -> Result<(), String> {
    let wanted = header_text(headers, header::UPGRADE);
    let protocols = header_text(headers, header::SEC_WEBSOCKET_PROTOCOL);
    let supported = CHANNEL_PROTOCOLS.join(", ");
    if wanted.to_ascii_lowercase().contains("spdy") {
        return Err(format!(
            "upgrade to {wanted:?} is not supported: use WebSocket with one of {supported}\n"
        ));
    }
    if protocols.contains("SPDY/3.1+portforward.k8s.io") {
        return Err(
            "WebSocket protocol \"SPDY/3.1+portforward.k8s.io\" (tunnelled SPDY) is not supported: use v4.channel.k8s.io\n"
                .to_owned(),
        );
    }
    if !wanted.eq_ignore_ascii_case("websocket") {
        return Err(format!(
            "this address serves WebSocket upgrades only, with one of {supported}\n"
        ));
    }
    Ok(())
}

/// The text of a fault for a stream's error channel.
fn refusal(fault: &Fault) -> String {
    match fault.kind {
        Kind::Internal => format!("internal error: {}", fault.chain()),
        _ => fault.chain(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(upgrade: &str, protocol: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(header::UPGRADE, upgrade.parse().unwrap());
        headers.insert(header::SEC_WEBSOCKET_PROTOCOL, protocol.parse().unwrap());
        headers
    }

    #[test]
    fn spdy_is_refused_by_name() {
        assert!(
            check_upgrade(&headers("SPDY/3.1", ""))
                .unwrap_err()
                .contains("SPDY/3.1")
        );
        let tunnel = headers("websocket", "SPDY/3.1+portforward.k8s.io");
        assert!(check_upgrade(&tunnel).unwrap_err().contains("tunnelled"));
        assert!(check_upgrade(&headers("WebSocket", "v5.channel.k8s.io")).is_ok());
        assert!(check_upgrade(&HeaderMap::new()).is_err());
    }
}
