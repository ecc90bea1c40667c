// SPDX-License-Identifier: Apache-2.0
//! Hands an upgraded connection through to the runtime's streaming server, byte for byte.
//!
//! The node API does not look into the stream: WebSocket or SPDY is a matter between the client
//! and the runtime. One direction may end before the other (`cat file | kubectl exec -i`), so an
//! end is passed on as a half-close and the other direction goes on.

use std::future::Future;
use std::io;
use std::sync::PoisonError;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::{HeaderMap, Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::reply::{self, Body, Problem, Reply};
use crate::probe::http::trusting_tls;

/// Reaching the runtime's streaming server, which is on this node.
const DIAL_DEADLINE: Duration = Duration::from_secs(10);
/// From the request to its answer, and from the answer to the upgrade.
const ANSWER_DEADLINE: Duration = Duration::from_secs(30);
/// No byte in either direction for this long ends the stream: upstream's idle timeout.
const IDLE: Duration = Duration::from_secs(4 * 60 * 60);
/// One write may be held back by a slow reader for this long.
const WRITE_DEADLINE: Duration = Duration::from_secs(10 * 60);
/// When the runtime is done, the client has this long to say so too.
const LINGER: Duration = Duration::from_secs(10);
/// More of an error body than this is cut off.
const ERROR_BODY: usize = 64 << 10;
const BUFFER: usize = 32 << 10;

/// Sends `request` to `url` and, when that upgrades, connects both in a task of `tracker`.
pub(super) async fn proxy(
    mut request: Request<Incoming>,
    url: &str,
    tracker: &TaskTracker,
    stop: &CancellationToken,
) -> Reply {
    if !wants_upgrade(request.headers()) {
        return Err(Problem::bad_request("Upgrade request required"));
    }
    let bad = |text: String| Problem::new(StatusCode::BAD_GATEWAY, text);
    let uri: Uri = url
        .parse()
        .map_err(|error| bad(format!("the runtime's streaming url is invalid: {error}")))?;
    let stream = dial(&uri).await.map_err(|error| {
        bad(format!(
            "the runtime's streaming server cannot be reached: {error}"
        ))
    })?;
    let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream));
    let (mut sender, connection) = handshake
        .await
        .map_err(|error| bad(format!("the runtime's streaming server: {error}")))?;
    let stopped = stop.clone();
    tracker.spawn(async move {
        tokio::select! {
            () = stopped.cancelled() => {}
            ended = connection.with_upgrades() => {
                if let Err(error) = ended {
                    tracing::debug!(%error, "a connection to the runtime ended");
                }
            }
        }
    });
    let forwarded = forwarded(&request, &uri);
    let mut answer = match timeout(ANSWER_DEADLINE, sender.send_request(forwarded)).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(error)) => return Err(bad(format!("the runtime's streaming server: {error}"))),
        Err(_) => {
            return Err(bad(
                "the runtime's streaming server did not answer".to_owned()
            ));
        }
    };
    if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Ok(refused(answer).await);
    }
    let client = hyper::upgrade::on(&mut request);
    let runtime = hyper::upgrade::on(&mut answer);
    let stopped = stop.clone();
    tracker.spawn(async move {
        // Keeps the connection's sending half until the stream ends.
        let _sender = sender;
        connect(client, runtime, stopped).await;
    });
    let mut response = Response::new(reply::whole(""));
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    *response.headers_mut() = answer.headers().clone();
    Ok(response)
}

fn wants_upgrade(headers: &HeaderMap) -> bool {
    let connection = headers.get_all(header::CONNECTION).iter();
    let mut tokens = connection
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','));
    headers.contains_key(header::UPGRADE)
        && tokens.any(|token| token.trim().eq_ignore_ascii_case("upgrade"))
}

/// Connects, with TLS when the runtime says https. Its certificate is one of its own making as a rule,
/// so it proves nothing; what makes the address trustworthy is that it came over the runtime's socket
/// and does not leave the node.
async fn dial(uri: &Uri) -> io::Result<Box<dyn Stream>> {
    let stream = dial_tcp(uri).await?;
    if uri.scheme_str() != Some("https") {
        return Ok(Box::new(stream));
    }
    let peer = stream.peer_addr()?.ip();
    if !peer.is_loopback() {
        return Err(io::Error::other(format!(
            "TLS to {peer}, which is not on loopback, cannot be verified: let the runtime stream on 127.0.0.1"
        )));
    }
    let config = trusting_tls().map_err(io::Error::other)?;
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let stream = timeout(DIAL_DEADLINE, connector.connect(peer.into(), stream)).await??;
    Ok(Box::new(stream))
}

/// A connection to the runtime.
trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

async fn dial_tcp(uri: &Uri) -> io::Result<TcpStream> {
    let invalid = || io::Error::from(io::ErrorKind::InvalidInput);
    let host = uri.host().ok_or_else(invalid)?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let port = uri.port_u16().unwrap_or(80);
    let stream = timeout(DIAL_DEADLINE, TcpStream::connect((host, port))).await??;
    // Keystrokes shall not wait for company.
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// The client's request, addressed to the runtime.
fn forwarded(request: &Request<Incoming>, uri: &Uri) -> Request<Empty<bytes::Bytes>> {
    let mut forwarded = Request::new(Empty::new());
    *forwarded.method_mut() = request.method().clone();
    if let Some(path) = uri.path_and_query() {
        *forwarded.uri_mut() = Uri::from(path.clone());
    }
    let mut headers = request.headers().clone();
    // The client's body, if it announced one, is not sent, and its credentials stay here.
    for name in [
        header::CONTENT_LENGTH,
        header::TRANSFER_ENCODING,
        header::AUTHORIZATION,
    ] {
        headers.remove(name);
    }
    let authority = uri.authority().map_or("localhost", |a| a.as_str());
    if let Ok(host) = authority.parse() {
        headers.insert(header::HOST, host);
    }
    *forwarded.headers_mut() = headers;
    forwarded
}

/// The runtime's refusal, as it is.
async fn refused(answer: Response<Incoming>) -> Response<Body> {
    let status = answer.status();
    let body = Limited::new(answer.into_body(), ERROR_BODY).collect();
    let body = match timeout(ANSWER_DEADLINE, body).await {
        Ok(Ok(body)) => body.to_bytes(),
        _ => bytes::Bytes::new(),
    };
    reply::text(status, body)
}

async fn connect(client: OnUpgrade, runtime: OnUpgrade, stop: CancellationToken) {
    let both = async { tokio::try_join!(client, runtime) };
    let (client, runtime) = match timeout(ANSWER_DEADLINE, both).await {
        Ok(Ok(both)) => both,
        Ok(Err(error)) => {
            tracing::debug!(%error, "a stream was not upgraded");
            return;
        }
        Err(_) => {
            tracing::debug!("a stream was not upgraded in time");
            return;
        }
    };
    let (client, runtime) = (TokioIo::new(client), TokioIo::new(runtime));
    tokio::select! {
        () = stop.cancelled() => {}
        ended = splice(client, runtime, IDLE) => {
            if let Err(error) = ended {
                tracing::debug!(%error, "a stream ended");
            }
        }
    }
}

/// Copies both ways until both ended, nothing moved for `idle`, or one side broke.
async fn splice<C, R>(client: C, runtime: R, idle: Duration) -> io::Result<()>
where
    C: AsyncRead + AsyncWrite + Unpin,
    R: AsyncRead + AsyncWrite + Unpin,
{
    let (client_in, client_out) = tokio::io::split(client);
    let (runtime_in, runtime_out) = tokio::io::split(runtime);
    let activity = Activity::new(idle);
    let upward = pump(client_in, runtime_out, &activity);
    let downward = pump(runtime_in, client_out, &activity);
    tokio::pin!(upward, downward);
    tokio::select! {
        result = &mut upward => {
            result?;
            downward.await
        }
        result = &mut downward => {
            result?;
            lingering(upward).await
        }
    }
}

async fn lingering(upward: impl Future<Output = io::Result<()>>) -> io::Result<()> {
    timeout(LINGER, upward).await.unwrap_or(Ok(()))
}

async fn pump(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    activity: &Activity,
) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        let size = match timeout(activity.left(), from.read(&mut buffer)).await {
            Ok(result) => result?,
            // The other direction may have moved meanwhile.
            Err(_) if !activity.left().is_zero() => continue,
            Err(_) => return Err(io::ErrorKind::TimedOut.into()),
        };
        activity.touch();
        if size == 0 {
            return timeout(WRITE_DEADLINE, to.shutdown()).await?;
        }
        timeout(WRITE_DEADLINE, to.write_all(&buffer[..size])).await??;
        timeout(WRITE_DEADLINE, to.flush()).await??;
        activity.touch();
    }
}

/// When a byte last moved in either direction.
struct Activity {
    last: Mutex<Instant>,
    idle: Duration,
}

impl Activity {
    fn new(idle: Duration) -> Self {
        Self {
            last: Mutex::new(Instant::now()),
            idle,
        }
    }

    fn touch(&self) {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    fn left(&self) -> Duration {
        let last = *self.last.lock().unwrap_or_else(PoisonError::into_inner);
        self.idle.saturating_sub(last.elapsed())
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::duplex;

    use super::*;

    #[tokio::test]
    async fn a_half_close_is_passed_on_and_the_other_way_goes_on() {
        let (mut client, client_end) = duplex(64);
        let (mut runtime, runtime_end) = duplex(64);
        let task = tokio::spawn(splice(client_end, runtime_end, IDLE));
        client.write_all(b"input").await.expect("writes");
        client.shutdown().await.expect("shuts down");
        let mut input = Vec::new();
        runtime.read_to_end(&mut input).await.expect("reads");
        assert_eq!(input, b"input");
        runtime.write_all(b"output").await.expect("still writes");
        drop(runtime);
        let mut output = Vec::new();
        client.read_to_end(&mut output).await.expect("reads");
        assert_eq!(output, b"output");
        task.await.expect("no panic").expect("no error");
    }

    #[tokio::test(start_paused = true)]
    async fn silence_ends_a_stream_and_bytes_in_one_direction_keep_it() {
        let (client, client_end) = duplex(64);
        let (mut runtime, runtime_end) = duplex(64);
        let idle = Duration::from_secs(60);
        let task = tokio::spawn(splice(client_end, runtime_end, idle));
        for _ in 0..3 {
            tokio::time::sleep(idle * 3 / 4).await;
            runtime.write_all(b"x").await.expect("is alive");
        }
        let ended = task.await.expect("no panic").expect_err("it was idle");
        assert_eq!(ended.kind(), io::ErrorKind::TimedOut);
        drop(client);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_never_closes_does_not_hold_a_finished_stream() {
        let (client, client_end) = duplex(64);
        let (runtime, runtime_end) = duplex(64);
        let task = tokio::spawn(splice(client_end, runtime_end, IDLE));
        drop(runtime);
        let ended = timeout(LINGER * 2, task).await.expect("it ends");
        ended.expect("no panic").expect("no error");
        drop(client);
    }
}
