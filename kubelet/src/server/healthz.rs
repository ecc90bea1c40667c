// SPDX-License-Identifier: Apache-2.0
//! Plain `GET /healthz` on loopback, for supervisors that have no certificate.

use std::convert::Infallible;
use std::time::Duration;

use http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::reply::{self, Body};

const HEADER_DEADLINE: Duration = Duration::from_secs(10);
const MAX_CONNECTIONS: usize = 32;
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves until `stop`; open connections end with it.
pub(super) async fn serve(listener: TcpListener, stop: CancellationToken) {
    let mut connections = JoinSet::new();
    loop {
        let full = connections.len() >= MAX_CONNECTIONS;
        tokio::select! {
            () = stop.cancelled() => return,
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
            accepted = listener.accept(), if !full => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(
                        http1::Builder::new()
                            .timer(TokioTimer::new())
                            .header_read_timeout(HEADER_DEADLINE)
                            .serve_connection(TokioIo::new(stream), service_fn(answer)),
                    );
                }
                Err(error) => {
                    tracing::debug!(%error, "a health check was not accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
        }
    }
}

async fn answer(request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
    Ok(match (request.method(), request.uri().path()) {
        (&Method::GET | &Method::HEAD, "/healthz") => reply::text(StatusCode::OK, "ok"),
        (_, "/healthz") => reply::text(StatusCode::METHOD_NOT_ALLOWED, "405: Method Not Allowed"),
        _ => reply::text(StatusCode::NOT_FOUND, "404 page not found\n"),
    })
}
