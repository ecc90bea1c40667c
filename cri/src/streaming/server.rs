// SPDX-License-Identifier: Apache-2.0
//! The HTTP side of streaming: accepts connections, and upgrades the ones that hold a token.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;

use super::negotiate::{self, Agreed, Kind};
use super::{Stream, run, tls};
use crate::blocking;
use crate::fault::{Fault, Result};
use crate::runtime::Runtime;
use crate::settings::Streaming;

/// Connections that may be busy with their handshakes, so that strangers cannot fill our memory.
const HANDSHAKES_MAX: usize = 256;
/// From accepting a connection to its upgrade.
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(30);
/// After accepting failed, for want of descriptors as a rule.
const BREATH: Duration = Duration::from_millis(100);

/// Where streams are served, before they are.
pub(crate) struct Listener {
    tcp: TcpListener,
    tls: Option<TlsAcceptor>,
    /// The address with its port.
    pub(crate) address: SocketAddr,
}

impl Listener {
    /// Binds the address and reads certificates.
    ///
    /// # Errors
    /// Either cannot be had.
    pub(crate) async fn bind(config: &Streaming) -> Result<Self> {
        let wanted = config.address;
        let failed = |e| Fault::internal(format!("listening on {wanted} for streams"), e);
        let tcp = TcpListener::bind(wanted).await.map_err(failed)?;
        let address = tcp.local_addr().map_err(failed)?;
        let config = config.clone();
        let tls = blocking::run("reading certificates", move || {
            tls::acceptor(&config, address.ip())
        })
        .await??;
        Ok(Self { tcp, tls, address })
    }

    /// Whether URLs begin with https.
    pub(crate) fn is_tls(&self) -> bool {
        self.tls.is_some()
    }
}

/// Serves until the daemon stops. Streams end by themselves then.
pub(crate) async fn serve(runtime: Arc<Runtime>, listener: Listener) {
    let handshakes = Arc::new(Semaphore::new(HANDSHAKES_MAX));
    loop {
        let accepted = tokio::select! {
            accepted = listener.tcp.accept() => accepted,
            () = runtime.stopping.cancelled() => return,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "accepting a connection for a stream");
                tokio::time::sleep(BREATH).await;
                continue;
            }
        };
        let Ok(permit) = handshakes.clone().try_acquire_owned() else {
            tracing::warn!("too many connections without a stream: one more is refused");
            continue;
        };
        // What is typed shall not wait for company.
        let _ = stream.set_nodelay(true);
        let (runtime_, tls) = (runtime.clone(), listener.tls.clone());
        // Not of the tasks that shutdown waits for: nothing has begun yet.
        tokio::spawn(async move {
            let _permit = permit;
            let stopping = runtime_.stopping.clone();
            let shaking = async {
                match tls {
                    None => shake_hands(runtime_, stream).await,
                    Some(tls) => match tls.accept(stream).await {
                        Ok(stream) => shake_hands(runtime_, stream).await,
                        Err(error) => tracing::debug!(%error, "a TLS handshake for a stream"),
                    },
                }
            };
            tokio::select! {
                _ = tokio::time::timeout(HANDSHAKE_DEADLINE, shaking) => {}
                () = stopping.cancelled() => {}
            }
        });
    }
}

/// Answers HTTP until one request was upgraded.
async fn shake_hands<S>(runtime: Arc<Runtime>, stream: S)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let service = service_fn(move |request| {
        let runtime = runtime.clone();
        async move { Ok::<_, Infallible>(answer(runtime, request)) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HANDSHAKE_DEADLINE)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    if let Err(error) = connection.await {
        tracing::debug!(%error, "a connection for a stream");
    }
}

fn answer(runtime: Arc<Runtime>, mut request: Request<Incoming>) -> Response<Full<Bytes>> {
    let path = request.uri().path().to_owned();
    let mut parts = path.trim_start_matches('/').splitn(2, '/');
    let (kind, token) = (parts.next().unwrap_or(""), parts.next().unwrap_or(""));
    let wanted = match kind {
        "exec" | "attach" => Kind::Process,
        "portforward" => Kind::Ports,
        _ => return text(StatusCode::NOT_FOUND, "no such page\n", HeaderMap::new()),
    };
    if request.method() != Method::GET && request.method() != Method::POST {
        let refused = "use GET or POST\n";
        return text(StatusCode::METHOD_NOT_ALLOWED, refused, HeaderMap::new());
    }
    // First, so that a client can come again with another protocol.
    let agreed = match negotiate::negotiate(wanted, request.headers()) {
        Ok(agreed) => agreed,
        Err(refusal) => {
            let mut accepted = HeaderMap::new();
            for name in refusal.accepted {
                accepted.append(negotiate::ACCEPTED, HeaderValue::from_static(name));
            }
            return text(refusal.status, refusal.text, accepted);
        }
    };
    let Some(stream) = runtime.tokens.take(kind, token) else {
        let unknown = "this stream's token is unknown, used or expired\n";
        return text(StatusCode::NOT_FOUND, unknown, HeaderMap::new());
    };
    let upgrade = hyper::upgrade::on(&mut request);
    start(runtime, stream, &agreed, upgrade);
    let mut response = Response::new(Full::default());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    *response.headers_mut() = agreed.headers;
    response
}

/// Serves the stream in a task that shutdown waits for, so that what was started is ended again.
fn start(
    runtime: Arc<Runtime>,
    stream: Stream,
    agreed: &Agreed,
    upgrade: hyper::upgrade::OnUpgrade,
) {
    let terms = (agreed.wire, agreed.last_word);
    let tasks = runtime.tasks.clone();
    tasks.spawn(async move {
        match tokio::time::timeout(HANDSHAKE_DEADLINE, upgrade).await {
            Ok(Ok(upgraded)) => run(&runtime, stream, terms, TokioIo::new(upgraded)).await,
            Ok(Err(error)) => tracing::debug!(%error, "upgrading to a stream"),
            Err(_) => tracing::debug!("a stream was not upgraded in time"),
        }
    });
}

fn text(
    status: StatusCode,
    text: impl Into<Bytes>,
    mut headers: HeaderMap,
) -> Response<Full<Bytes>> {
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    let mut response = Response::new(Full::new(text.into()));
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}
