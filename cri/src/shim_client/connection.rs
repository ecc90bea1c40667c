// SPDX-License-Identifier: Apache-2.0
//! One connection to a shim, shared by all clones of a [`Shim`](super::Shim).
//!
//! A reader task owns the receiving side: it hands replies to their callers and exits to the
//! broadcast channel. It ends when the shim closes the connection or the last clone is dropped.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use shim::protocol::{self, Answer, Body, ExitRecord, Message, ProcessId, Request, SOCKET_NAME};
use shim::sys::socket;
use shim::wire::{self, Packet};
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::sync::{broadcast, oneshot};

use super::ShimError;

/// Exits that a slow receiver may be behind before it has to look at the state.
const EXITS_KEPT: usize = 256;

/// Aborts the reader task with the last handle.
#[derive(Debug)]
pub(super) struct Reader(tokio::task::JoinHandle<()>);

impl Reader {
    /// Connects to the shim of a pod directory.
    pub(super) fn connect(dir: &Path) -> io::Result<(Arc<Shared>, Arc<Reader>)> {
        let socket = UnixStream::from_std(dial(dir)?.into())?;
        let shared = Arc::new(Shared {
            dir: dir.to_path_buf(),
            socket,
            next: AtomicU32::new(1),
            pending: Mutex::new(Some(HashMap::new())),
            exits: Mutex::new(Some(broadcast::channel(EXITS_KEPT).0)),
        });
        let reading = Arc::clone(&shared);
        let task = tokio::spawn(async move { reading.read().await });
        Ok((shared, Arc::new(Reader(task))))
    }

    /// Whether the connection is gone.
    pub(super) fn has_ended(&self) -> bool {
        self.0.is_finished()
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.0.abort();
    }
}

type Reply = (Result<Answer, protocol::Failure>, Vec<OwnedFd>);

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) dir: PathBuf,
    /// A packet socket; tokio's stream type only lends its readiness.
    socket: UnixStream,
    next: AtomicU32,
    /// Callers by request number; `None` once the connection is gone.
    pending: Mutex<Option<HashMap<u32, oneshot::Sender<Reply>>>>,
    /// `None` once the connection is gone: dropping it tells the receivers.
    exits: Mutex<Option<broadcast::Sender<(ProcessId, ExitRecord)>>>,
}

/// Removes a caller that stopped waiting.
struct Pending<'a> {
    shared: &'a Shared,
    id: u32,
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        self.shared.with_pending(|pending| pending.remove(&self.id));
    }
}

impl Shared {
    fn with_pending<T>(
        &self,
        act: impl FnOnce(&mut HashMap<u32, oneshot::Sender<Reply>>) -> T,
    ) -> Option<T> {
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        pending.as_mut().map(act)
    }

    pub(super) fn exits(
        &self,
    ) -> MutexGuard<'_, Option<broadcast::Sender<(ProcessId, ExitRecord)>>> {
        self.exits.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn gone(&self, source: io::Error) -> ShimError {
        ShimError::Gone {
            dir: self.dir.clone(),
            source,
        }
    }

    pub(super) async fn call(
        &self,
        name: &'static str,
        body: Body,
        fds: &[BorrowedFd<'_>],
        deadline: Option<Duration>,
    ) -> Result<(Answer, Vec<OwnedFd>), ShimError> {
        let work = self.exchange(body, fds);
        let (result, fds) = match deadline {
            None => work.await?,
            Some(waited) => {
                tokio::time::timeout(waited, work)
                    .await
                    .map_err(|_| ShimError::Timeout {
                        dir: self.dir.clone(),
                        request: name,
                        waited,
                    })??
            }
        };
        match result {
            Ok(answer) => Ok((answer, fds)),
            Err(failure) => Err(ShimError::Refused {
                kind: failure.kind,
                message: failure.message,
            }),
        }
    }

    async fn exchange(&self, body: Body, fds: &[BorrowedFd<'_>]) -> Result<Reply, ShimError> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (sender, receiver) = oneshot::channel();
        let closed = || self.gone(io::ErrorKind::BrokenPipe.into());
        self.with_pending(|pending| pending.insert(id, sender))
            .ok_or_else(closed)?;
        let _pending = Pending { shared: self, id };
        let bytes = protocol::encode(&Request { id, body })
            .map_err(|error| self.gone(io::Error::other(error)))?;
        let packet = Packet::new(&bytes).map_err(|errno| self.gone(raw(errno)))?;
        self.socket
            .async_io(Interest::WRITABLE, || {
                packet.send(self.socket.as_fd(), fds).map_err(raw)
            })
            .await
            .map_err(|source| self.gone(source))?;
        receiver.await.map_err(|_| closed())
    }

    /// The reader task's work.
    async fn read(&self) {
        loop {
            let received = self
                .socket
                .async_io(Interest::READABLE, || {
                    wire::receive(self.socket.as_fd()).map_err(raw)
                })
                .await;
            let Ok(Some((bytes, fds))) = received else {
                break;
            };
            match protocol::decode_message(&bytes) {
                Ok(Message::Reply { id, result }) => {
                    let caller = self.with_pending(|pending| pending.remove(&id)).flatten();
                    if let Some(caller) = caller {
                        // A caller that went away does not want it any more.
                        let _ = caller.send((result, fds));
                    }
                }
                Ok(Message::Exit { process, record }) => {
                    // Fails only while nobody listens.
                    if let Some(exits) = self.exits().as_ref() {
                        let _ = exits.send((process, record));
                    }
                }
                Err(_) => break,
            }
        }
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        // Dropping the callers' channels tells them.
        *pending = None;
        *self.exits() = None;
    }
}

fn raw(errno: i32) -> io::Error {
    io::Error::from_raw_os_error(errno)
}

/// Through the directory's descriptor: a socket's path is limited to 107 bytes.
fn dial(dir: &Path) -> io::Result<OwnedFd> {
    let open = std::fs::File::open(dir)?;
    let path = format!("/proc/self/fd/{}/{SOCKET_NAME}", open.as_raw_fd());
    let socket = socket::socket(true).map_err(raw)?;
    socket::connect(socket.as_fd(), path.as_bytes()).map_err(raw)?;
    Ok(socket)
}
