// SPDX-License-Identifier: Apache-2.0
//! Port-forward over WebSocket: two channels per port, data (even) and error (odd), each opened by
//! the server with the port's number as two little-endian bytes.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::ws::WebSocket;
use bytes::Bytes;
use futures::StreamExt as _;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::net::tcp::OwnedWriteHalf;
use tokio::sync::mpsc;

use super::channels::{self, Input, Outbox};
use crate::blocking;
use crate::fault::{Fault, Result};
use crate::runtime::Runtime;

/// How long the pod may take to accept on its own loopback.
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);
/// Pieces that may wait for the pod, per port.
const QUEUE: usize = 4;
/// Channels are numbered in one byte, two for each port.
const PORTS_MAX: usize = 127;

/// Serves until every connection has ended or the client is gone.
pub(super) async fn serve(
    runtime: &Arc<Runtime>,
    socket: WebSocket,
    sandbox: &str,
    ports: Vec<u16>,
) {
    let (outbox, sender, mut inbox) = channels::split(socket);
    let mut queues = Vec::new();
    let mut connections = Vec::new();
    for (index, port) in ports.iter().take(PORTS_MAX).enumerate() {
        let (queue, input) = mpsc::channel(QUEUE);
        queues.push(queue);
        let netns = netns(runtime, sandbox);
        let channel = u8::try_from(index * 2).unwrap_or(u8::MAX - 1);
        connections.push(forward(netns, *port, channel, input, outbox.clone()));
    }
    drop(outbox);
    let receiving = async move {
        loop {
            match channels::parse(inbox.next().await) {
                None => {}
                Some(Input::End) => return,
                Some(Input::Data(channel, data)) => {
                    // Data for a connection that has ended, or for none, is dropped.
                    if let (0, Some(queue)) = (channel % 2, queues.get(usize::from(channel / 2))) {
                        let _ = queue.send(data).await;
                    }
                }
            }
        }
    };
    tokio::select! {
        _ = async { tokio::join!(futures::future::join_all(connections), sender) } => {}
        () = receiving => {}
    }
}

fn netns(runtime: &Runtime, sandbox: &str) -> Result<Option<PathBuf>> {
    Ok(runtime.sandbox(sandbox)?.record.get().netns.clone())
}

async fn forward(
    netns: Result<Option<PathBuf>>,
    port: u16,
    channel: u8,
    input: mpsc::Receiver<Bytes>,
    outbox: Outbox,
) {
    for channel in [channel, channel + 1] {
        let opening = channels::frame(channel, &port.to_le_bytes());
        if outbox.send(opening).await.is_err() {
            return;
        }
    }
    let connected = match netns {
        Ok(netns) => connect(netns, port).await,
        Err(fault) => Err(fault),
    };
    match connected {
        Ok(stream) => {
            let (reader, writer) = stream.into_split();
            // The pod's side decides when it is over; a client that only reads keeps its stream.
            tokio::select! {
                () = channels::pump(reader, channel, outbox) => {}
                () = feed(writer, input) => {}
            }
        }
        Err(fault) => {
            let text = format!("error forwarding port {port} to pod: {}", fault.chain());
            let _ = outbox
                .send(channels::frame(channel + 1, text.as_bytes()))
                .await;
        }
    }
}

async fn feed(mut writer: OwnedWriteHalf, mut input: mpsc::Receiver<Bytes>) {
    while let Some(data) = input.recv().await {
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
    TcpStream::from_std(stream).map_err(failed)
}

fn dial(port: u16) -> io::Result<std::net::TcpStream> {
    let v4 = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let v6 = SocketAddr::from((Ipv6Addr::LOCALHOST, port));
    let dial = |address| std::net::TcpStream::connect_timeout(&address, CONNECT_DEADLINE);
    dial(v4).or_else(|first| dial(v6).map_err(|_| first))
}
