// SPDX-License-Identifier: Apache-2.0
//! The sockets, on a thread of their own: what else the process does, and how busy it is, does not
//! hold up answers.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::metrics::Transport;
use super::server::{Handled, Pending, Server};

/// Packets that wait to be read, in bytes: a burst of some thousand questions.
const RECEIVE_BUFFER: usize = 4 << 20;
/// A question is shorter.
const PACKET_MAX: usize = 4096;
/// Questions over UDP that wait for others. More are not taken up, and their clients ask again.
const PENDING: usize = 4096;
/// Connections at a time, together and from one address. Others wait in the kernel, or are closed.
const CONNECTIONS: usize = 256;
const CONNECTIONS_EACH: usize = 32;
/// Questions of one connection under way at a time.
const PIPELINE: usize = 32;
/// How long a connection may say nothing (RFC 7766, 6.2.3), and how long a message may take once it
/// has begun.
const IDLE: Duration = Duration::from_secs(10);
const MESSAGE: Duration = Duration::from_secs(2);

/// Both sockets of an address.
#[derive(Debug)]
pub(crate) struct Sockets {
    udp: std::net::UdpSocket,
    tcp: std::net::TcpListener,
}

/// What could not be bound.
#[derive(Debug, thiserror::Error)]
#[error(
    "listening on {address} ({transport}); if another DNS server holds the port, stop it or leave this one out with --disable dns"
)]
pub(crate) struct BindError {
    address: SocketAddr,
    transport: &'static str,
    #[source]
    source: io::Error,
}

impl Sockets {
    /// Of an address of this node.
    pub(crate) fn bind(address: SocketAddr) -> Result<Sockets, BindError> {
        let failed = |transport| {
            move |source| BindError {
                address,
                transport,
                source,
            }
        };
        let udp = std::net::UdpSocket::bind(address).map_err(failed("UDP"))?;
        // Not everybody may go beyond the system's limit; then that has to do.
        if setsockopt(&udp, sockopt::RcvBufForce, &RECEIVE_BUFFER).is_err() {
            let _ = setsockopt(&udp, sockopt::RcvBuf, &RECEIVE_BUFFER);
        }
        udp.set_nonblocking(true).map_err(failed("UDP"))?;
        let tcp = std::net::TcpListener::bind(address).map_err(failed("TCP"))?;
        tcp.set_nonblocking(true).map_err(failed("TCP"))?;
        Ok(Sockets { udp, tcp })
    }
}

/// Serve on a thread until `stop`. The receiver hears when it has ended, or fails if it panicked.
pub(crate) fn start(
    server: Arc<Server>,
    sockets: Vec<Sockets>,
    stop: CancellationToken,
) -> io::Result<oneshot::Receiver<io::Result<()>>> {
    let (ended, end) = oneshot::channel();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let thread = std::thread::Builder::new().name("dns".to_owned());
    thread.spawn(move || {
        let outcome = runtime.block_on(serve(server, sockets, stop));
        // What is under way is for clients that have lost their server.
        drop(runtime);
        let _ = ended.send(outcome);
    })?;
    Ok(end)
}

async fn serve(
    server: Arc<Server>,
    sockets: Vec<Sockets>,
    stop: CancellationToken,
) -> io::Result<()> {
    let mut tasks = JoinSet::new();
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    for Sockets { udp, tcp } in sockets {
        let udp = Arc::new(UdpSocket::from_std(udp)?);
        let tcp = TcpListener::from_std(tcp)?;
        tasks.spawn(packets(server.clone(), udp));
        tasks.spawn(connections(server.clone(), tcp, places.clone()));
    }
    tokio::select! {
        () = stop.cancelled() => {}
        // They never end; a panic is passed on.
        Some(Err(error)) = tasks.join_next() => return Err(io::Error::other(error)),
    }
    Ok(())
}

async fn packets(server: Arc<Server>, socket: Arc<UdpSocket>) {
    let mut buffer = [0; PACKET_MAX];
    let mut pending = JoinSet::new();
    loop {
        // Errors are those of packets sent before, whose receivers are gone.
        let Ok((length, peer)) = socket.recv_from(&mut buffer).await else {
            continue;
        };
        while pending.try_join_next().is_some() {}
        match server.handle(&buffer[..length], peer, Transport::Udp) {
            Handled::Nothing => {}
            // A full queue loses packets, as a wire does.
            Handled::Reply(reply) => drop(socket.try_send_to(&reply, peer)),
            Handled::Later(question) if pending.len() < PENDING => {
                let (server, socket) = (server.clone(), socket.clone());
                pending.spawn(async move {
                    let reply = server.finish(*question).await;
                    let _ = socket.try_send_to(&reply, peer);
                });
            }
            Handled::Later(_) => {}
        }
    }
}

/// How many connections each client has.
type Counts = Arc<Mutex<HashMap<IpAddr, usize>>>;

/// One of them.
struct Place {
    counts: Counts,
    client: IpAddr,
    _permit: OwnedSemaphorePermit,
}

impl Place {
    fn take(counts: &Counts, client: IpAddr, permit: OwnedSemaphorePermit) -> Option<Place> {
        let mut all = counts.lock().unwrap_or_else(PoisonError::into_inner);
        let count = all.entry(client).or_default();
        if *count >= CONNECTIONS_EACH {
            return None;
        }
        *count += 1;
        Some(Place {
            counts: counts.clone(),
            client,
            _permit: permit,
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut all = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = all.get_mut(&self.client) {
            *count -= 1;
            if *count == 0 {
                all.remove(&self.client);
            }
        }
    }
}

async fn connections(server: Arc<Server>, listener: TcpListener, places: Arc<Semaphore>) {
    let counts = Counts::default();
    let mut open = JoinSet::new();
    loop {
        // The semaphore is never closed.
        let Ok(permit) = places.clone().acquire_owned().await else {
            return;
        };
        while open.try_join_next().is_some() {}
        let Ok((stream, peer)) = listener.accept().await else {
            // No descriptors, most likely: let some go.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        if let Some(place) = Place::take(&counts, peer.ip(), permit) {
            let server = server.clone();
            open.spawn(async move {
                connection(server, stream, peer).await;
                drop(place);
            });
        }
    }
}

/// Answers go back in the order in which they are known, not in that of questions (RFC 7766, 7).
async fn connection(server: Arc<Server>, stream: TcpStream, peer: SocketAddr) {
    // Answers are whole messages; nothing is gained by waiting for more.
    let _ = stream.set_nodelay(true);
    let (reader, writer) = stream.into_split();
    let (replies, written) = mpsc::channel(PIPELINE);
    tokio::join!(read(server, reader, peer, replies), write(writer, written));
}

async fn read(
    server: Arc<Server>,
    mut reader: OwnedReadHalf,
    peer: SocketAddr,
    replies: mpsc::Sender<Vec<u8>>,
) {
    let mut pending = JoinSet::new();
    while let Some(packet) = next_message(&mut reader).await {
        match server.handle(&packet, peer, Transport::Tcp) {
            Handled::Nothing => break,
            Handled::Reply(reply) => {
                if replies.send(reply).await.is_err() {
                    break;
                }
            }
            Handled::Later(question) => {
                if pending.len() >= PIPELINE {
                    pending.join_next().await;
                }
                pending.spawn(later(server.clone(), *question, replies.clone()));
            }
        }
    }
    // A client that has asked and closed its side still gets its answers.
    while pending.join_next().await.is_some() {}
}

async fn later(server: Arc<Server>, question: Pending, replies: mpsc::Sender<Vec<u8>>) {
    let reply = server.finish(question).await;
    // The client has gone; that is its own affair.
    let _ = replies.send(reply).await;
}

/// `None`: the client is done, too slow, or says nothing.
async fn next_message(reader: &mut OwnedReadHalf) -> Option<Vec<u8>> {
    let length = timeout(IDLE, reader.read_u16()).await.ok()?.ok()?;
    if usize::from(length) > PACKET_MAX {
        return None;
    }
    let mut packet = vec![0; usize::from(length)];
    let whole = timeout(MESSAGE, reader.read_exact(&mut packet)).await;
    whole.ok()?.ok().map(|_| packet)
}

async fn write(mut writer: OwnedWriteHalf, mut replies: mpsc::Receiver<Vec<u8>>) {
    while let Some(reply) = replies.recv().await {
        let Ok(length) = u16::try_from(reply.len()) else {
            continue;
        };
        let framed = [&length.to_be_bytes()[..], &reply].concat();
        let sent = timeout(MESSAGE, writer.write_all(&framed)).await;
        if !matches!(sent, Ok(Ok(()))) {
            return;
        }
    }
}
