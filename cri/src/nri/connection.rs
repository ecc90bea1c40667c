// SPDX-License-Identifier: Apache-2.0
//! One plugin's socket: requests to it, with a deadline each, and its requests to us.
//!
//! One task reads ([`Connection::read`], owned by whoever took the plugin in). A request that is not
//! answered in time, or a byte that makes no sense, closes the connection for good: a plugin that is
//! late once would otherwise answer the wrong question.

use std::collections::HashMap;
use std::io;
use std::os::fd::AsRawFd as _;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use nix::sys::socket::{Shutdown, shutdown};
use prost::Message as _;
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::api;
use super::wire::{self, Demux, Kind, Message, WireError};

/// The service that plugins serve.
const PLUGIN: &str = "nri.pkg.api.v1alpha1.Plugin";
/// The service that we serve.
const RUNTIME: &str = "nri.pkg.api.v1alpha1.Runtime";
/// gRPC's codes, of which ttrpc uses the numbers.
pub(crate) const CODE_UNKNOWN: i32 = 2;
pub(crate) const CODE_INVALID: i32 = 3;
pub(crate) const CODE_UNIMPLEMENTED: i32 = 12;
/// Requests of a plugin that wait to be served.
const REQUESTS_MAX: usize = 16;
/// How long a plugin may take to read an answer.
const ANSWER_DEADLINE: Duration = Duration::from_secs(5);

/// Why a plugin gave no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CallError {
    #[error("the connection is closed")]
    Closed,
    #[error("no answer within {0:?}")]
    Late(Duration),
    /// The plugin's own words.
    #[error("{message}")]
    Refused { code: i32, message: String },
    #[error("encoding the request")]
    Size(#[source] WireError),
    #[error("decoding the answer")]
    Decode(#[source] prost::DecodeError),
    #[error("writing the request")]
    Io(#[source] io::Error),
}

impl CallError {
    /// Whether the plugin cannot be used any more; the request then goes on without it.
    pub(crate) fn is_fatal(&self) -> bool {
        !matches!(self, CallError::Refused { .. } | CallError::Size(_))
    }
}

/// A request of the plugin.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) stream: u32,
    pub(crate) method: String,
    pub(crate) payload: Bytes,
}

type Answer = Result<Bytes, CallError>;

/// The socket, and who waits for what.
#[derive(Debug)]
pub(crate) struct Connection {
    socket: UnixStream,
    writer: tokio::sync::Mutex<()>,
    next_stream: AtomicU32,
    waiting: Mutex<HashMap<u32, oneshot::Sender<Answer>>>,
    requests: mpsc::Sender<Asked>,
    closed: CancellationToken,
}

impl Connection {
    /// Takes a connected socket, and returns with it what the plugin will ask for.
    pub(crate) fn new(socket: UnixStream) -> (Connection, mpsc::Receiver<Asked>) {
        let (requests, asked) = mpsc::channel(REQUESTS_MAX);
        let connection = Connection {
            socket,
            writer: tokio::sync::Mutex::default(),
            next_stream: AtomicU32::new(1),
            waiting: Mutex::default(),
            requests,
            closed: CancellationToken::new(),
        };
        (connection, asked)
    }

    /// Ends the connection. Idempotent; whoever waits for an answer is told.
    pub(crate) fn close(&self) {
        self.closed.cancel();
        // Fails only when the other side has gone already.
        let _ = shutdown(self.socket.as_raw_fd(), Shutdown::Both);
        self.waiting().clear();
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.is_cancelled()
    }

    /// Resolves when the connection has ended.
    pub(crate) async fn closed(&self) {
        self.closed.cancelled().await;
    }

    /// The other side's process, if the kernel tells.
    pub(crate) fn pid(&self) -> Option<i32> {
        self.socket.peer_cred().ok().and_then(|peer| peer.pid())
    }

    fn waiting(&self) -> std::sync::MutexGuard<'_, HashMap<u32, oneshot::Sender<Answer>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks the plugin, and closes the connection unless it answers within `deadline`.
    ///
    /// # Errors
    /// See [`CallError`].
    pub(crate) async fn call<Q: prost::Message, A: prost::Message + Default>(
        &self,
        method: &str,
        request: &Q,
        deadline: Duration,
    ) -> Result<A, CallError> {
        let asked = tokio::time::timeout(deadline, self.ask(method, request, deadline)).await;
        let answer = match asked {
            Ok(answer) => answer.and_then(|bytes| A::decode(bytes).map_err(CallError::Decode)),
            Err(_) => Err(CallError::Late(deadline)),
        };
        if let Err(error) = &answer
            && error.is_fatal()
        {
            self.close();
        }
        answer
    }

    async fn ask<Q: prost::Message>(
        &self,
        method: &str,
        request: &Q,
        deadline: Duration,
    ) -> Result<Bytes, CallError> {
        let stream = self.next_stream.fetch_add(2, Ordering::Relaxed);
        let envelope = api::TtrpcRequest {
            service: PLUGIN.to_owned(),
            method: method.to_owned(),
            payload: request.encode_to_vec(),
            timeout_nano: i64::try_from(deadline.as_nanos()).unwrap_or(i64::MAX),
            metadata: Vec::new(),
        };
        let bytes = packet(wire::PLUGIN_SERVICE, stream, Kind::Request, &envelope)
            .map_err(CallError::Size)?;
        let (told, answer) = oneshot::channel();
        self.waiting().insert(stream, told);
        if self.is_closed() {
            self.waiting().clear();
            return Err(CallError::Closed);
        }
        self.write(&bytes).await.map_err(CallError::Io)?;
        answer.await.unwrap_or(Err(CallError::Closed))
    }

    async fn write(&self, mut bytes: &[u8]) -> io::Result<()> {
        let _writer = self.writer.lock().await;
        while !bytes.is_empty() {
            self.socket.writable().await?;
            match self.socket.try_write(bytes) {
                Ok(count) => bytes = bytes.get(count..).unwrap_or_default(),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Answers a request of the plugin: an error is its code and text.
    pub(crate) async fn answer<A: prost::Message>(
        &self,
        stream: u32,
        answer: Result<A, (i32, String)>,
    ) {
        let mut envelope = api::TtrpcResponse::default();
        match answer {
            Ok(answer) => envelope.payload = answer.encode_to_vec(),
            Err((code, message)) => envelope.status = Some(api::TtrpcStatus { code, message }),
        }
        let written = async {
            let bytes = packet(wire::RUNTIME_SERVICE, stream, Kind::Response, &envelope).ok()?;
            self.write(&bytes).await.ok()
        };
        if !matches!(
            tokio::time::timeout(ANSWER_DEADLINE, written).await,
            Ok(Some(()))
        ) {
            self.close();
        }
    }

    /// Reads until the connection ends. Afterwards it is closed.
    pub(crate) async fn read(&self) {
        let ended = tokio::select! {
            ended = self.take_in() => ended,
            () = self.closed.cancelled() => Ok(()),
        };
        if let Err(error) = ended {
            tracing::warn!(error = %crate::fault::chain(error.as_ref()), "nri: a plugin's connection is dropped");
        }
        self.close();
    }

    async fn take_in(&self) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let mut demux = Demux::default();
        let mut buffer = vec![0; 16 << 10];
        loop {
            self.socket.readable().await?;
            match self.socket.try_read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(count) => demux.feed(buffer.get(..count).unwrap_or_default())?,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                Err(error) => return Err(error.into()),
            }
            while let Some((connection, message)) = demux.next_message() {
                self.dispatch(connection, message)?;
            }
        }
    }

    fn dispatch(
        &self,
        connection: u32,
        message: Message,
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        match (connection, message.kind) {
            (wire::PLUGIN_SERVICE, Kind::Response) => {
                let answer = api::TtrpcResponse::decode(message.payload)?;
                // Without a waiter: the answer to a request that was given up.
                if let Some(told) = self.waiting().remove(&message.stream) {
                    let _ = told.send(unwrap(answer));
                }
            }
            (wire::RUNTIME_SERVICE, Kind::Request) => {
                let request = api::TtrpcRequest::decode(message.payload)?;
                let method = match request.service.as_str() {
                    RUNTIME => request.method,
                    other => format!("{other}/{}", request.method),
                };
                self.requests
                    .try_send(Asked {
                        stream: message.stream,
                        method,
                        payload: request.payload.into(),
                    })
                    .map_err(|_| "it asks faster than it is served")?;
            }
            _ => return Err("it speaks out of turn".into()),
        }
        Ok(())
    }
}

fn unwrap(answer: api::TtrpcResponse) -> Answer {
    match answer.status {
        Some(status) if status.code != 0 => Err(CallError::Refused {
            code: status.code,
            message: status.message,
        }),
        _ => Ok(answer.payload.into()),
    }
}

fn packet<M: prost::Message>(
    connection: u32,
    stream: u32,
    kind: Kind,
    envelope: &M,
) -> Result<Vec<u8>, WireError> {
    let payload = envelope.encode_to_vec().into();
    wire::encode(
        connection,
        &Message {
            stream,
            kind,
            flags: 0,
            payload,
        },
    )
}
