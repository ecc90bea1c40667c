// SPDX-License-Identifier: Apache-2.0
//! Small HTTP servers: one short answer for each connection, within a deadline.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

/// From the first byte of a request to the last one of the answer.
const DEADLINE: Duration = Duration::from_secs(10);
/// Connections at a time; others wait in the kernel.
const CONNECTIONS: usize = 64;
/// How long to wait for an address that somebody else has.
const RETRY: Duration = Duration::from_secs(5);

/// What is answered to a path.
pub(crate) type Answer = Arc<dyn Fn(&str) -> Response<String> + Send + Sync>;

/// Serve until `stop`. While the address cannot be had, it is tried again every few seconds, and
/// `failed` is told the first time.
pub(crate) async fn serve(
    address: SocketAddr,
    answer: Answer,
    failed: impl FnOnce(std::io::Error) + Send,
    stop: CancellationToken,
) {
    let serving = async {
        let mut failed = Some(failed);
        let listener = loop {
            match TcpListener::bind(address).await {
                Ok(listener) => break listener,
                Err(error) => {
                    if let Some(failed) = failed.take() {
                        failed(error);
                    }
                }
            }
            tokio::time::sleep(RETRY).await;
        };
        accept(listener, answer).await;
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = serving => {}
    }
}

async fn accept(listener: TcpListener, answer: Answer) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let mut connections = tokio::task::JoinSet::new();
    loop {
        // The semaphore is never closed.
        let Ok(place) = places.clone().acquire_owned().await else {
            return;
        };
        while connections.try_join_next().is_some() {}
        let Ok((stream, _)) = listener.accept().await else {
            // No descriptors, most likely: let some go.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let answer = answer.clone();
        connections.spawn(async move {
            // A client that is too slow is cut off; there is nobody to tell.
            let _ = tokio::time::timeout(DEADLINE, connection(stream, answer)).await;
            drop(place);
        });
    }
}

async fn connection(stream: TcpStream, answer: Answer) {
    let service = service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
        let response = match *request.method() {
            Method::GET | Method::HEAD => answer(request.uri().path()),
            _ => status(StatusCode::METHOD_NOT_ALLOWED),
        };
        std::future::ready(Ok::<_, Infallible>(response))
    });
    let served = http1::Builder::new()
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    // The client went away: its own affair.
    let _ = served.await;
}

/// An answer without a text of its own.
pub(crate) fn status(status: StatusCode) -> Response<String> {
    let mut response = Response::new(format!("{status}\n"));
    *response.status_mut() = status;
    response
}
