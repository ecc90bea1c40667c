// SPDX-License-Identifier: Apache-2.0
//! The shim: one thread, one poll loop, for one pod.
//!
//! It ends when it is told to (`Shutdown`) or when its directory (its socket) is gone; never because a client
//! went away. It owns: the pod's processes (as parent and subreaper), their streams, the socket.

pub mod log;
mod processes;
mod records;
mod streams;

use std::collections::VecDeque;
use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use processes::{Processes, failure};
use streams::Place;

use crate::protocol::{
    self, Answer, Body, ExitRecord, Failure, FailureKind, Message, ProcessId, Request, SOCKET_NAME,
    ShimState,
};
use crate::sys::{self, events, socket};
use crate::wire::{self, Packet};

pub use records::read_all as read_records;

/// A client that lets this many answers pile up is cut off.
const OUTBOX_MAX: usize = 1024;
/// How often stalled clients are looked for while there is output to send.
const TICK_MS: i32 = 1000;
/// Killed processes are awaited this long before the shim goes.
const SHUTDOWN_ROUNDS: usize = 500;

struct Connection {
    id: u64,
    socket: OwnedFd,
    outbox: VecDeque<(Packet, Option<OwnedFd>)>,
    subscribed: bool,
    broken: bool,
}

struct Waiter {
    connection: u64,
    request: u32,
    process: ProcessId,
}

/// The running shim.
pub struct Daemon {
    dir: PathBuf,
    listener: OwnedFd,
    signals: OwnedFd,
    removal: OwnedFd,
    connections: Vec<Connection>,
    next_connection: u64,
    processes: Processes,
    waiters: Vec<Waiter>,
    /// The connection and request that asked for the end.
    shutdown: Option<(u64, u32)>,
}

/// Says something on stderr, which is the pod's `shim.log`. Never fails: there is nobody to tell.
fn complain(words: std::fmt::Arguments<'_>) {
    use io::Write;
    let _ = writeln!(io::stderr(), "podwright-shim: {words}");
}

/// What a poll entry stands for.
enum Source {
    Listener,
    Signals,
    Removal,
    Connection(usize),
    Stream(ProcessId, Place),
}

impl Daemon {
    /// Listens in `dir`. A socket left by a dead shim is replaced; a living one is an error, which
    /// the caller prevents by owning the directory.
    ///
    /// # Errors
    /// When the directory cannot be watched or the socket not be made.
    pub fn new(dir: &Path) -> io::Result<Daemon> {
        let raw = io::Error::from_raw_os_error;
        let name = CString::new(dir.as_os_str().as_bytes())?;
        let removal = events::watch_removal(&name).map_err(raw)?;
        let signals = events::signal_descriptor(&[libc::SIGCHLD, libc::SIGTERM, libc::SIGINT])
            .map_err(raw)?;
        sys::become_subreaper().map_err(raw)?;
        let listener = listen(dir)?;
        Ok(Daemon {
            dir: dir.to_path_buf(),
            listener,
            signals,
            removal,
            connections: Vec::new(),
            next_connection: 1,
            processes: Processes::new(dir),
            waiters: Vec::new(),
            shutdown: None,
        })
    }

    /// Serves until the end. Everything that still ran is dead when it returns.
    ///
    /// # Errors
    /// When polling itself fails, which no client can cause.
    pub fn run(mut self) -> io::Result<()> {
        while self.shutdown.is_none() {
            let waiting = self.processes.streams().any(|(_, s)| s.has_unsent());
            if !self.turn(if waiting { TICK_MS } else { -1 })? {
                break;
            }
        }
        self.end();
        Ok(())
    }

    /// One round of the loop, after at most `timeout` milliseconds (-1: no limit); false when the
    /// directory is gone. Public for those who feed it packets that no client would send.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn turn(&mut self, timeout: i32) -> io::Result<bool> {
        let (sources, mut fds) = self.interests();
        events::poll(&mut fds, timeout).map_err(io::Error::from_raw_os_error)?;
        let now = sys::now();
        let mut removed = false;
        for (source, fd) in sources.into_iter().zip(fds) {
            if fd.revents == 0 {
                continue;
            }
            match source {
                Source::Listener => self.accept(),
                Source::Signals => self.collect(),
                Source::Removal => removed |= self.is_unreachable(),
                Source::Connection(index) => self.serve(index, fd.revents),
                Source::Stream(id, place) => {
                    if let Some(streams) = self.processes.streams_of(&id) {
                        streams.ready(place, fd.revents, now);
                    }
                }
            }
        }
        self.processes.sweep_streams(now);
        self.connections.retain(|connection| !connection.broken);
        Ok(!removed)
    }

    /// Without its socket nobody can reach the shim again: its directory is gone, or going.
    fn is_unreachable(&self) -> bool {
        let mut buffer = [0; 1024];
        while sys::read(self.removal.as_fd(), &mut buffer).is_ok_and(|count| count > 0) {}
        !self.dir.join(SOCKET_NAME).exists()
    }

    fn interests(&mut self) -> (Vec<Source>, Vec<libc::pollfd>) {
        let mut sources = vec![Source::Listener, Source::Signals, Source::Removal];
        let mut fds: Vec<_> = [&self.listener, &self.signals, &self.removal]
            .map(|fd| events::interest(fd.as_fd(), libc::POLLIN))
            .into();
        for (index, connection) in self.connections.iter().enumerate() {
            let sending = !connection.outbox.is_empty();
            let wanted = libc::POLLIN | if sending { libc::POLLOUT } else { 0 };
            sources.push(Source::Connection(index));
            fds.push(events::interest(connection.socket.as_fd(), wanted));
        }
        let mut places = Vec::new();
        for (id, streams) in self.processes.streams() {
            streams.interests(&mut places);
            for (place, fd) in places.drain(..) {
                sources.push(Source::Stream(id.clone(), place));
                fds.push(fd);
            }
        }
        (sources, fds)
    }

    fn accept(&mut self) {
        // A failure here is the client's loss; it will try again.
        if let Ok(socket) = socket::accept(self.listener.as_fd()) {
            self.connections.push(Connection {
                id: self.next_connection,
                socket,
                outbox: VecDeque::new(),
                subscribed: false,
                broken: false,
            });
            self.next_connection += 1;
        }
    }

    /// Empties the signal descriptor and collects ended children. SIGTERM and SIGINT are read and
    /// ignored: whoever stops a service group must not stop its pods.
    fn collect(&mut self) {
        let mut buffer = [0; 512];
        while sys::read(self.signals.as_fd(), &mut buffer).is_ok_and(|count| count > 0) {}
        for (process, record) in self.processes.reap() {
            self.announce(&process, record);
        }
    }

    fn announce(&mut self, process: &ProcessId, record: ExitRecord) {
        let message = Message::Exit {
            process: process.clone(),
            record,
        };
        let ids: Vec<u64> = self
            .connections
            .iter()
            .filter(|connection| connection.subscribed)
            .map(|connection| connection.id)
            .collect();
        for id in ids {
            self.send(id, &message, None);
        }
        let (due, rest) = std::mem::take(&mut self.waiters)
            .into_iter()
            .partition::<Vec<_>, _>(|waiter| waiter.process == *process);
        self.waiters = rest;
        for waiter in due {
            let result = Ok(Answer::Exited(record));
            self.reply(waiter.connection, waiter.request, result, None);
        }
    }

    fn serve(&mut self, index: usize, revents: i16) {
        let Some(connection) = self.connections.get_mut(index) else {
            return;
        };
        if revents & libc::POLLOUT != 0 {
            connection.flush();
        }
        if revents & (libc::POLLIN | libc::POLLHUP | libc::POLLERR) == 0 {
            return;
        }
        let id = connection.id;
        match wire::receive(connection.socket.as_fd()) {
            Err(libc::EAGAIN | libc::EINTR) => {}
            Ok(None) | Err(_) => connection.broken = true,
            Ok(Some((bytes, fds))) => match protocol::decode::<Request>(&bytes) {
                Ok(request) => {
                    drop(bytes);
                    self.handle(id, request, fds);
                }
                // A client of another build: nothing it says can be understood.
                Err(_) => connection.broken = true,
            },
        }
        if let Some(connection) = self.connections.get(index)
            && connection.broken
        {
            self.waiters.retain(|waiter| waiter.connection != id);
        }
    }

    fn handle(&mut self, connection: u64, request: Request, fds: Vec<OwnedFd>) {
        let Request { id, body } = request;
        let heavy = matches!(
            body,
            Body::StartSandbox(_) | Body::Create { .. } | Body::Exec { .. }
        );
        let mut terminal = None;
        let result = match body {
            Body::State => Ok(Answer::State(ShimState {
                shim_pid: std::process::id(),
                processes: self.processes.states(),
            })),
            Body::Subscribe => self.subscribe(connection),
            Body::StartSandbox(plan) => self.processes.start_sandbox(&plan),
            Body::Create {
                container,
                plan,
                io,
            } => self.processes.create(&container, &plan, io),
            Body::Start { container } => self.processes.start(&container),
            Body::Signal {
                process,
                signal,
                all,
            } => self.processes.signal(&process, signal, all),
            Body::Exec {
                container,
                exec,
                process,
            } => self
                .processes
                .exec(&container, exec, &process, fds)
                .map(|(answer, master)| {
                    terminal = master;
                    answer
                }),
            Body::Wait { process } => match self.processes.exited(&process) {
                Some(Some(record)) => Ok(Answer::Exited(record)),
                Some(None) => {
                    self.waiters.push(Waiter {
                        connection,
                        request: id,
                        process,
                    });
                    return;
                }
                None => Err(unknown(&process)),
            },
            Body::Resize {
                container,
                columns,
                rows,
            } => self.processes.resize(&container, columns, rows),
            Body::Attach {
                container,
                stdin,
                stdout,
                stderr,
            } => match name_streams([stdin, stdout, stderr], fds) {
                Some(streams) => self.processes.attach(&container, streams),
                None => Err(failure(FailureKind::Invalid, "descriptors are missing")),
            },
            Body::ReopenLog { container } => self.processes.reopen_log(&container),
            Body::Remove { process } => self.processes.remove(&process),
            Body::Shutdown => {
                self.shutdown = Some((connection, id));
                return;
            }
        };
        self.reply(connection, id, result, terminal);
        if heavy {
            sys::trim_memory();
        }
    }

    fn subscribe(&mut self, id: u64) -> Result<Answer, Failure> {
        for connection in &mut self.connections {
            connection.subscribed |= connection.id == id;
        }
        Ok(Answer::Done)
    }

    fn reply(
        &mut self,
        connection: u64,
        id: u32,
        result: Result<Answer, Failure>,
        terminal: Option<OwnedFd>,
    ) {
        self.send(connection, &Message::Reply { id, result }, terminal);
    }

    fn send(&mut self, connection: u64, message: &Message, fd: Option<OwnedFd>) {
        let found = self.connections.iter_mut().find(|c| c.id == connection);
        let Some(connection) = found else { return };
        let packet = protocol::encode(message)
            .map_err(|_| libc::EINVAL)
            .and_then(|bytes| Packet::new(&bytes));
        match packet {
            Ok(packet) if connection.outbox.len() < OUTBOX_MAX => {
                connection.outbox.push_back((packet, fd));
                connection.flush();
            }
            _ => connection.broken = true,
        }
    }

    fn end(&mut self) {
        let wait = [events::interest(self.signals.as_fd(), libc::POLLIN)];
        for _ in 0..SHUTDOWN_ROUNDS {
            self.processes.kill_all();
            self.collect();
            if self.processes.all_ended() {
                break;
            }
            // Either a child ends or a short time passes; both mean: look again.
            let _ = events::poll(&mut wait.clone(), 10);
        }
        // The directory, and with it the socket, may be gone already.
        let _ = std::fs::remove_file(self.dir.join(SOCKET_NAME));
        if let Some((connection, id)) = self.shutdown {
            self.reply(connection, id, Ok(Answer::Done), None);
        }
    }
}

impl Connection {
    fn flush(&mut self) {
        while let Some((packet, fd)) = self.outbox.front() {
            let fds: Vec<_> = fd.iter().map(AsFd::as_fd).collect();
            match packet.send(self.socket.as_fd(), &fds) {
                Ok(()) => drop(self.outbox.pop_front()),
                Err(libc::EAGAIN | libc::EINTR) => return,
                Err(_) => {
                    self.broken = true;
                    return;
                }
            }
        }
    }
}

fn unknown(process: &ProcessId) -> Failure {
    let name = process.exec.as_ref().unwrap_or(&process.container);
    failure(
        FailureKind::NotFound,
        format!("no process {name:?} in this pod"),
    )
}

/// Puts the descriptors of an attach request in their places.
fn name_streams(wanted: [bool; 3], fds: Vec<OwnedFd>) -> Option<[Option<OwnedFd>; 3]> {
    let mut fds = fds.into_iter();
    let mut streams = [None, None, None];
    for (slot, wanted) in streams.iter_mut().zip(wanted) {
        if wanted {
            *slot = Some(fds.next()?);
        }
    }
    fds.next().is_none().then_some(streams)
}

/// The socket is bound through the directory's descriptor, so that the length of the directory's
/// name doesn't matter, and is the owner's alone.
fn listen(dir: &Path) -> io::Result<OwnedFd> {
    let raw = io::Error::from_raw_os_error;
    let open = std::fs::File::open(dir)?;
    let path = format!("/proc/self/fd/{}/{SOCKET_NAME}", open.as_raw_fd());
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = socket::socket(true).map_err(raw)?;
    sys::umask(0o177);
    let bound = socket::listen(listener.as_fd(), path.as_bytes());
    sys::umask(0o022);
    bound.map_err(raw)?;
    Ok(listener)
}
