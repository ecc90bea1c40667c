// SPDX-License-Identifier: Apache-2.0
//! Port-forward over WebSocket channels: two per port, data (even) and error (odd), each opened by the
//! server with the port's number as two little-endian bytes. Over SPDY see `port_streams`; both use
//! [`forward`].

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::net::tcp::OwnedWriteHalf;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::link::{Link, Outbox, Said, Say};
use super::pump::{Ending, pump};
use crate::blocking;
use crate::fault::{Fault, Result};
use crate::runtime::Runtime;

/// How long the pod may take to accept on its own loopback.
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);
/// When the pod has said all, a client that says nothing more for this long is not waited for.
const LINGER: Duration = Duration::from_secs(1);
/// Pieces that may wait for the pod, per connection.
pub(super) const QUEUE: usize = 16;
/// Channels are numbered in one byte, two for each port.
const PORTS_MAX: usize = 127;

/// One connection to a port of a pod.
pub(super) struct Connection {
    pub(super) port: u16,
    pub(super) data: u32,
    pub(super) error: u32,
    /// From the client; closed when the client closes its side.
    pub(super) input: mpsc::Receiver<Bytes>,
    /// The client wants neither side any more.
    pub(super) reset: CancellationToken,
}

/// Serves until every connection has ended or the client is gone.
pub(super) async fn serve(runtime: &Arc<Runtime>, link: Link, sandbox: &str, ports: Vec<u16>) {
    let Link { outbox, mut inbox } = link;
    let mut queues = Vec::new();
    let mut connections = Vec::new();
    for (port, data) in ports.into_iter().take(PORTS_MAX).zip((0..).step_by(2)) {
        let (queue, input) = mpsc::channel(QUEUE);
        queues.push(Some(queue));
        let connection = Connection {
            port,
            data,
            error: data + 1,
            input,
            reset: CancellationToken::new(),
        };
        let netns = netns(runtime, sandbox);
        let outbox = outbox.clone();
        connections.push(async move {
            for channel in [data, data + 1] {
                let opening = Bytes::copy_from_slice(&port.to_le_bytes());
                if outbox.send(Say::Data(channel, opening)).await.is_err() {
                    return;
                }
            }
            forward(netns, connection, &outbox).await;
        });
    }
    let receiving = async {
        while let Some(said) = inbox.recv().await {
            // Data for a connection that has ended, or for none, are dropped.
            if let Said::Data(channel, data) = said
                && channel % 2 == 0
                && let Some(slot) = queues.get_mut(channel as usize / 2)
                && let Some(queue) = slot
                && queue.send(data).await.is_err()
            {
                *slot = None;
            }
        }
    };
    tokio::select! {
        _ = futures::future::join_all(connections) => {}
        () = receiving => {}
        () = outbox.closed() => {}
    }
}

/// Where a pod's ports are; `None` for the host's.
///
/// # Errors
/// When the sandbox is gone.
pub(super) fn netns(runtime: &Runtime, sandbox: &str) -> Result<Option<PathBuf>> {
    Ok(runtime.sandbox(sandbox)?.record.get().netns.clone())
}

/// Connects, and copies both ways: until both have ended, or the client resets. Each side's end is
/// passed on by itself. What went wrong is said on the error channel.
pub(super) async fn forward(netns: Result<Option<PathBuf>>, to: Connection, outbox: &Outbox) {
    let (port, data, error) = (to.port, to.data, to.error);
    let connected = match netns {
        Ok(netns) => connect(netns, port).await,
        Err(fault) => Err(fault),
    };
    let mut last = vec![Say::Close(data), Say::Close(error)];
    match connected {
        Ok(stream) => {
            let reset = to.reset.clone();
            tokio::select! {
                () = both_ways(stream, to, outbox) => {}
                () = reset.cancelled() => {}
            }
        }
        Err(fault) => {
            let text = format!("error forwarding port {port} to pod: {}", fault.chain());
            // A reset lets the client give up at once on what it was going to send.
            last = vec![
                Say::Data(error, text.into()),
                Say::Close(error),
                Say::Reset(data),
            ];
        }
    }
    for say in last {
        if outbox.send(say).await.is_err() {
            return;
        }
    }
}

async fn both_ways(stream: TcpStream, to: Connection, outbox: &Outbox) {
    let (reader, writer) = stream.into_split();
    let pod_is_done = CancellationToken::new();
    let down = async {
        let never = Ending::new(Duration::ZERO);
        pump(reader, to.data, outbox, &never).await;
        let _ = outbox.send(Say::Close(to.data)).await;
        pod_is_done.cancel();
    };
    tokio::join!(down, feed(writer, to.input, &pod_is_done));
}

async fn feed(
    mut writer: OwnedWriteHalf,
    mut input: mpsc::Receiver<Bytes>,
    pod_is_done: &CancellationToken,
) {
    loop {
        let lingering = async {
            pod_is_done.cancelled().await;
            tokio::time::sleep(LINGER).await;
        };
        let data = tokio::select! {
            data = input.recv() => data,
            () = lingering => return,
        };
        let Some(data) = data else {
            let _ = writer.shutdown().await;
            return;
        };
        if writer.write_all(&data).await.is_err() {
            return;
        }
    }
}

/// Connects to the port on the pod's loopback, IPv4 first, from within its network namespace.
async fn connect(netns: Option<PathBuf>, port: u16) -> Result<TcpStream> {
    let failed =
        |e: io::Error| Fault::internal(format!("connecting to localhost:{port} in the pod"), e);
    let stream = blocking::run("connecting to a pod's port", move || match netns {
        Some(netns) => cni::netns::run(&netns, || dial(port)).map_err(io::Error::other)?,
        None => dial(port),
    })
    .await?
    .map_err(failed)?;
    stream.set_nonblocking(true).map_err(failed)?;
    // What a client types shall not wait for company.
    stream.set_nodelay(true).map_err(failed)?;
    TcpStream::from_std(stream).map_err(failed)
}

fn dial(port: u16) -> io::Result<std::net::TcpStream> {
    let v4 = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let v6 = SocketAddr::from((Ipv6Addr::LOCALHOST, port));
    let dial = |address| std::net::TcpStream::connect_timeout(&address, CONNECT_DEADLINE);
    dial(v4).or_else(|first| {
        dial(v6).map_err(|second| {
            io::Error::new(first.kind(), format!("IPv4: {first}, IPv6: {second}"))
        })
    })
}
