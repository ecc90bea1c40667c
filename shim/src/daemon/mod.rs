// SPDX-License-Identifier: Apache-2.0
//! The shim: one thread, one poll loop, for one pod.
//!
//! It ends when it is told to (`Shutdown`) or when its directory (its socket) is gone; never because a client
//! went away. It owns: the pod's processes (as parent and subreaper), their streams, the socket.

mod beginning;
mod burial;
mod clients;
mod connection;
mod external;
mod kill;
mod launching;
pub mod log;
mod log_file;
mod poststop;
mod processes;
mod records;
mod requests;
#[cfg(test)]
mod stream_tests;
mod streams;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Instant;

use connection::Connection;
use processes::{Asked, Processes};
use streams::Place;

use crate::protocol::{Answer, ProcessId, SOCKET_NAME};
use crate::sys::{self, events, socket};

pub use records::read_all as read_records;

/// Killed processes are awaited this often, for 10 ms each, before the shim goes.
const SHUTDOWN_ROUNDS: usize = 500;

struct Waiter {
    asked: Asked,
    process: ProcessId,
}

/// The running shim.
pub struct Daemon {
    dir: PathBuf,
    listener: OwnedFd,
    signals: OwnedFd,
    /// The pod's directory: the kernel tells of removals in it while this is open.
    _watched: OwnedFd,
    connections: Vec<Connection>,
    next_connection: u64,
    processes: Processes,
    waiters: Vec<Waiter>,
    /// Something large was freed.
    trim: bool,
    /// Who asked for the end.
    shutdown: Option<Asked>,
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
    Connection(usize),
    Launch(ProcessId),
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
        let caught = [libc::SIGCHLD, libc::SIGIO, libc::SIGTERM, libc::SIGINT];
        let signals = events::signal_descriptor(&caught).map_err(raw)?;
        let watched = OwnedFd::from(File::open(dir)?);
        events::notify_of_removal(watched.as_fd()).map_err(raw)?;
        sys::become_subreaper().map_err(raw)?;
        let listener = listen(dir)?;
        Ok(Daemon {
            dir: dir.to_path_buf(),
            listener,
            signals,
            _watched: watched,
            connections: Vec::new(),
            next_connection: 1,
            processes: Processes::new(dir),
            waiters: Vec::new(),
            trim: false,
            shutdown: None,
        })
    }

    /// Serves until the end. Everything that still ran is dead when it returns.
    ///
    /// # Errors
    /// When polling itself fails, which no client can cause.
    pub fn run(mut self) -> io::Result<()> {
        while self.shutdown.is_none() {
            if !self.turn(self.patience())? {
                self.processes.dir_goes = true;
                break;
            }
        }
        self.end();
        Ok(())
    }

    /// How many milliseconds may pass without any event; -1: no limit.
    fn patience(&self) -> i32 {
        let streams = self.processes.streams();
        let clients = streams.filter_map(|(_, streams)| streams.deadline()).min();
        let launches = self.processes.launch_deadline();
        let next = match (clients, launches) {
            (Some(a), Some(b)) => a.min(b),
            (Some(one), None) | (None, Some(one)) => one,
            (None, None) => return -1,
        };
        let left = next.saturating_duration_since(Instant::now()).as_millis();
        // Rounded up, so that the deadline has passed when poll returns.
        i32::try_from(left).map_or(i32::MAX, |left| left.saturating_add(1))
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
                Source::Signals => {
                    self.collect();
                    removed |= self.is_unreachable();
                }
                Source::Connection(index) => self.serve(index, fd.revents),
                Source::Launch(id) => self.processes.hear(&id),
                Source::Stream(id, place) => {
                    if let Some(streams) = self.processes.streams_of(&id) {
                        streams.ready(place, fd.revents, now);
                    }
                }
            }
        }
        self.processes.expire_launches();
        self.processes.sweep_streams();
        self.tell();
        self.part();
        Ok(!removed)
    }

    /// Without its socket nobody can reach the shim again: its directory is gone, or going.
    fn is_unreachable(&self) -> bool {
        !self.dir.join(SOCKET_NAME).exists()
    }

    fn interests(&self) -> (Vec<Source>, Vec<libc::pollfd>) {
        let mut sources = vec![Source::Listener, Source::Signals];
        let mut fds: Vec<_> = [&self.listener, &self.signals]
            .map(|fd| events::interest(fd.as_fd(), libc::POLLIN))
            .into();
        for (index, connection) in self.connections.iter().enumerate() {
            sources.push(Source::Connection(index));
            fds.push(connection.interest());
        }
        for (id, channel) in self.processes.channels() {
            sources.push(Source::Launch(id.clone()));
            fds.push(events::interest(channel, libc::POLLIN));
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
            let connection = Connection::new(self.next_connection, socket);
            self.connections.push(connection);
            self.next_connection += 1;
        }
    }

    /// Forgets connections that are broken, and what they wait for.
    fn part(&mut self) {
        for gone in self.connections.iter().filter(|c| c.broken) {
            self.waiters
                .retain(|waiter| waiter.asked.connection != gone.id);
        }
        self.connections.retain(|connection| !connection.broken);
    }

    /// Empties the signal descriptor and collects ended children. SIGIO is there to wake the loop;
    /// SIGTERM and SIGINT are read and ignored: whoever stops a service group must not stop its pods.
    fn collect(&mut self) {
        let mut buffer = [0; 512];
        while sys::read(self.signals.as_fd(), &mut buffer).is_ok_and(|count| count > 0) {}
        self.processes.reap();
    }

    fn end(&mut self) {
        let wait = [events::interest(self.signals.as_fd(), libc::POLLIN)];
        for _ in 0..SHUTDOWN_ROUNDS {
            self.processes.kill_all();
            self.collect();
            self.tell();
            if self.processes.all_ended() && self.processes.hook_runners.is_empty() {
                break;
            }
            // Either a child ends or a short time passes; both mean: look again.
            let _ = events::poll(&mut wait.clone(), 10);
        }
        self.processes.kill_hooks();
        // The directory, and with it the socket, may be gone already.
        let _ = std::fs::remove_file(self.dir.join(SOCKET_NAME));
        if let Some(asked) = self.shutdown {
            self.reply(asked.connection, asked.request, Ok(Answer::Done), None);
        }
    }
}

/// The socket is bound through the directory's descriptor, so that the length of the directory's
/// name doesn't matter, and is the owner's alone.
fn listen(dir: &Path) -> io::Result<OwnedFd> {
    let raw = io::Error::from_raw_os_error;
    let open = File::open(dir)?;
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
