// SPDX-License-Identifier: Apache-2.0
//! The streaming server: exec, attach and port-forward over WebSocket and SPDY/3.1, on a TCP address of
//! its own, with or without TLS.
//!
//! A request comes in two parts: over CRI, where it is checked and kept under a random token; then
//! over HTTP at `/<kind>/<token>`, once, within a minute. Whoever holds the URL is let in, so the
//! listener belongs on loopback.
//!
//! [`negotiate`] decides what to speak. A transport (`websocket`, [`spdy`], or SPDY in a `tunnel`) and a
//! session (`exec`, `port_forward`, `port_streams`) then talk over a [`link`], and end together.

pub mod channels;
mod exec;
pub mod link;
pub mod negotiate;
mod outcome;
mod port_forward;
mod port_streams;
mod pump;
mod roles;
mod server;
pub mod spdy;
mod sys;
mod terminal;
mod tls;
mod tokens;
pub mod tunnel;
pub mod websocket;

use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::sync::CancellationToken;

pub(crate) use server::{Listener, serve};
pub(crate) use tokens::{Stream, Tokens};

use self::exec::Client;
use self::link::{Far, Link, Say, Watch};
use self::negotiate::{LastWord, Wire};
use self::roles::Roles;
use crate::fault::{Fault, Kind};
use crate::runtime::Runtime;

/// Serves one stream on an upgraded connection, to its end.
async fn run(
    runtime: &Arc<Runtime>,
    stream: Stream,
    (wire, last_word): (Wire, LastWord),
    io: impl AsyncRead + AsyncWrite + Unpin,
) {
    let (link, far) = link::pair();
    let idle = runtime.config.settings.get().streaming.idle_timeout;
    let watch = Watch::new(idle, runtime.stopping.clone());
    let session = session(runtime, stream, wire, last_word, link);
    tokio::join!(session, carry(wire, io, far, &watch));
}

/// Carries a session over a connection, whatever both speak. Ends when either side does.
async fn carry(wire: Wire, io: impl AsyncRead + AsyncWrite + Unpin, far: Far, watch: &Watch) {
    match wire {
        Wire::WebSocket(codec) => websocket::carry(io, codec, far, watch).await,
        Wire::Spdy => spdy::connection::carry(io, far, watch).await,
        Wire::Tunnel => {
            let tunnel = tunnel::Tunnel::new(websocket::server(io).await);
            spdy::connection::carry(tunnel, far, watch).await;
        }
    }
}

async fn session(
    runtime: &Arc<Runtime>,
    stream: Stream,
    wire: Wire,
    last_word: LastWord,
    mut link: Link,
) {
    let patience = runtime.config.settings.get().streaming.creation_timeout;
    if let Stream::PortForward { sandbox, ports } = stream {
        return match wire {
            Wire::WebSocket(_) => port_forward::serve(runtime, link, &sandbox, ports).await,
            Wire::Spdy | Wire::Tunnel => {
                port_streams::serve(runtime, link, &sandbox, patience).await;
            }
        };
    }
    let (roles, early) = match wire {
        Wire::Spdy => {
            let wanted = roles::wanted(&stream);
            match roles::await_channels(&mut link, &wanted, patience).await {
                Some(opened) => opened,
                None => return,
            }
        }
        Wire::WebSocket(_) | Wire::Tunnel => {
            // An empty message on the first channel tells the client that the session is open.
            let first = roles::first_output(&stream);
            let _ = link.outbox.try_send(Say::Data(first, bytes::Bytes::new()));
            (Roles::FIXED, Vec::new())
        }
    };
    let client = Client {
        link,
        roles,
        early,
        last_word,
    };
    exec::serve(runtime, client, stream).await;
}

/// The text of a fault for a stream's error channel.
fn refusal(fault: &Fault) -> String {
    match fault.kind {
        Kind::Internal => format!("internal error: {}", fault.chain()),
        _ => fault.chain(),
    }
}

/// Gives `input` to a transport as what a client sends, with a session that sends back what it hears.
/// For tests with hostile clients: returns the bytes that the client would get.
#[doc(hidden)]
pub async fn answer_to(wire: Wire, input: &[u8]) -> Vec<u8> {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let (client, server) = tokio::io::duplex(1 << 16);
    let (mut link, far) = link::pair();
    let (mut reader, mut writer) = tokio::io::split(client);
    let echo = async move {
        while let Some(said) = link.inbox.recv().await {
            let say = match said {
                link::Said::Opened(stream, _) => Say::Accept(stream),
                link::Said::Data(stream, data) => Say::Data(stream, data),
                link::Said::Closed(stream) => Say::Close(stream),
                link::Said::Reset(stream) => Say::Reset(stream),
            };
            if link.outbox.send(say).await.is_err() {
                return;
            }
        }
    };
    let send = async move {
        let _ = writer.write_all(input).await;
        let _ = writer.shutdown().await;
    };
    let mut output = Vec::new();
    let watch = Watch::new(std::time::Duration::from_secs(60), CancellationToken::new());
    let receive = reader.read_to_end(&mut output);
    let _ = tokio::join!(carry(wire, server, far, &watch), echo, send, receive);
    output
}
