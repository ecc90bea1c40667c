// SPDX-License-Identifier: Apache-2.0
//! A container's standard streams: its log file, its attached clients, its stdin.
//!
//! The log file is the record; clients look on. A client that is slow slows the container down, as
//! a terminal would; one that takes nothing for [`STALL_NANOS`] is dropped. So a dead reader never
//! blocks a container for long, and nothing here ever blocks the shim.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use super::log::{Splitter, timestamp};
use crate::protocol::ContainerIo;
use crate::sys::{self, Sys};

/// A client with this much unsent output pauses the reading of the container's output.
const PENDING_MAX: usize = 32 * 1024;
/// So long may a client take nothing.
pub(super) const STALL_NANOS: i64 = 5_000_000_000;
const CHUNK: usize = 8 * 1024;

/// Which output stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Output {
    Stdout,
    Stderr,
}

#[derive(Debug)]
pub(super) struct Streams {
    io: ContainerIo,
    log: Option<File>,
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
    splitters: [Splitter; 2],
    /// The write end of the container's stdin, or a copy of its terminal's master.
    stdin: Option<OwnedFd>,
    unsent_input: Vec<u8>,
    clients: Vec<Client>,
    terminal: bool,
}

#[derive(Debug)]
struct Client {
    input: Option<OwnedFd>,
    outputs: [Option<Sink>; 2],
}

#[derive(Debug)]
struct Sink {
    fd: OwnedFd,
    unsent: Vec<u8>,
    moved_at: i64,
}

impl Streams {
    /// Opens the log file. `ends`: our side of stdin, stdout, stderr; with a terminal, its master
    /// serves as all of them.
    pub(super) fn new(
        io: ContainerIo,
        stdin: Option<OwnedFd>,
        stdout: Option<OwnedFd>,
        stderr: Option<OwnedFd>,
        terminal: bool,
    ) -> std::io::Result<Streams> {
        for fd in [&stdin, &stdout, &stderr].into_iter().flatten() {
            sys::set_nonblocking(fd.as_fd()).map_err(std::io::Error::from_raw_os_error)?;
        }
        let log = io.log_path.as_deref().map(open_log).transpose()?;
        Ok(Streams {
            io,
            log,
            stdout,
            stderr,
            splitters: [Splitter::new("stdout"), Splitter::new("stderr")],
            stdin,
            unsent_input: Vec::new(),
            clients: Vec::new(),
            terminal,
        })
    }

    /// Adopts a terminal's master once the process has opened it.
    pub(super) fn set_terminal(&mut self, master: OwnedFd) -> Sys<()> {
        sys::set_nonblocking(master.as_fd())?;
        if self.io.stdin {
            self.stdin = Some(sys::dup_above_stdio(master.as_fd())?);
        }
        self.stdout = Some(master);
        Ok(())
    }

    pub(super) fn terminal(&self) -> Option<BorrowedFd<'_>> {
        match self.terminal {
            true => self.stdout.as_ref().map(AsFd::as_fd),
            false => None,
        }
    }

    /// Opens the log file anew, by the same name.
    pub(super) fn reopen_log(&mut self) -> std::io::Result<()> {
        if let Some(path) = self.io.log_path.as_deref() {
            self.log = Some(open_log(path)?);
        }
        Ok(())
    }

    /// Whether a client has output waiting, so that the clock matters.
    pub(super) fn has_unsent(&self) -> bool {
        let waiting = |sink: &Sink| !sink.unsent.is_empty();
        self.clients
            .iter()
            .any(|client| client.outputs.iter().flatten().any(waiting))
    }

    /// Nothing is left to read, and nothing to send.
    pub(super) fn is_done(&self) -> bool {
        self.stdout.is_none() && self.stderr.is_none() && self.clients.is_empty()
    }

    /// Adds a client.
    pub(super) fn attach(
        &mut self,
        input: Option<OwnedFd>,
        stdout: Option<OwnedFd>,
        stderr: Option<OwnedFd>,
        now: i64,
    ) -> Sys<()> {
        for fd in [&input, &stdout, &stderr].into_iter().flatten() {
            sys::set_nonblocking(fd.as_fd())?;
        }
        let sink = |fd: Option<OwnedFd>| {
            fd.map(|fd| Sink {
                fd,
                unsent: Vec::new(),
                moved_at: now,
            })
        };
        self.clients.push(Client {
            input: if self.stdin.is_some() { input } else { None },
            outputs: [sink(stdout), sink(stderr)],
        });
        Ok(())
    }

    /// What to poll for; each entry comes back to [`ready`](Self::ready) with its place.
    pub(super) fn interests(&self, out: &mut Vec<(Place, libc::pollfd)>) {
        let congested = self.clients.iter().any(Client::is_congested);
        if !congested {
            for (place, fd) in [(Place::Stdout, &self.stdout), (Place::Stderr, &self.stderr)] {
                if let Some(fd) = fd {
                    out.push((place, sys::events::interest(fd.as_fd(), libc::POLLIN)));
                }
            }
        }
        if let (Some(stdin), false) = (&self.stdin, self.unsent_input.is_empty()) {
            let entry = sys::events::interest(stdin.as_fd(), libc::POLLOUT);
            out.push((Place::Stdin, entry));
        }
        for (index, client) in self.clients.iter().enumerate() {
            if let (Some(input), true) = (&client.input, self.unsent_input.is_empty()) {
                let entry = sys::events::interest(input.as_fd(), libc::POLLIN);
                out.push((Place::Input(index), entry));
            }
            for (output, sink) in client.outputs.iter().enumerate() {
                let Some(sink) = sink else { continue };
                let events = if sink.unsent.is_empty() {
                    0
                } else {
                    libc::POLLOUT
                };
                let entry = sys::events::interest(sink.fd.as_fd(), events);
                out.push((Place::Sink(index, output), entry));
            }
        }
    }

    /// Handles one readiness.
    pub(super) fn ready(&mut self, place: Place, events: i16, now: i64) {
        match place {
            Place::Stdout => drop(self.read_output(Output::Stdout, now)),
            Place::Stderr => drop(self.read_output(Output::Stderr, now)),
            Place::Stdin => self.send_input(),
            Place::Input(client) => self.read_input(client),
            Place::Sink(client, output) => {
                if let Some(client) = self.clients.get_mut(client) {
                    client.sink_ready(output, events, now);
                }
            }
        }
    }

    /// Drops clients that are gone or have stalled. Call after a round of [`ready`](Self::ready):
    /// places count clients, so none may vanish within a round.
    pub(super) fn sweep(&mut self, now: i64) {
        let over = self.stdout.is_none() && self.stderr.is_none();
        let mut input_ended = false;
        self.clients.retain(|client| {
            let flushed = client
                .outputs
                .iter()
                .flatten()
                .all(|sink| sink.unsent.is_empty());
            let stalled = client
                .outputs
                .iter()
                .flatten()
                .any(|sink| !sink.unsent.is_empty() && now - sink.moved_at > STALL_NANOS);
            let silent = client.outputs.iter().all(Option::is_none) && client.input.is_none();
            let finished = stalled || silent || (over && flushed);
            input_ended |= finished && client.input.is_some();
            !finished
        });
        if input_ended && self.io.stdin_once {
            self.stdin = None;
        }
    }

    /// Reads until nothing is left: a process that has ended wrote all of it before.
    pub(super) fn drain(&mut self, now: i64) {
        for output in [Output::Stdout, Output::Stderr] {
            while self.read_output(output, now) {}
        }
    }

    /// The container has ended, and its terminal or pipes may still be held by a stray process:
    /// nobody feeds it any more.
    pub(super) fn close_input(&mut self) {
        self.stdin = None;
        self.unsent_input = Vec::new();
    }

    /// Reads one piece; false when there is nothing more now.
    fn read_output(&mut self, output: Output, now: i64) -> bool {
        let fd = match output {
            Output::Stdout => &mut self.stdout,
            Output::Stderr => &mut self.stderr,
        };
        let Some(open) = fd else { return false };
        let mut buffer = [0; CHUNK];
        let count = match sys::read(open.as_fd(), &mut buffer) {
            Ok(count) => count,
            Err(libc::EAGAIN | libc::EINTR) => return false,
            // A terminal without an open slave says EIO.
            Err(_) => 0,
        };
        if count == 0 {
            *fd = None;
        }
        let bytes = buffer.get(..count).unwrap_or_default();
        self.record(output, bytes, now);
        for client in &mut self.clients {
            client.offer(output, bytes, now);
        }
        count > 0
    }

    fn record(&mut self, output: Output, bytes: &[u8], now: i64) {
        let Some(log) = &mut self.log else { return };
        let splitter = match output {
            Output::Stdout => &mut self.splitters[0],
            Output::Stderr => &mut self.splitters[1],
        };
        let (time, mut lines) = (timestamp(now), Vec::new());
        if bytes.is_empty() {
            splitter.finish(&time, &mut lines);
        } else {
            splitter.push(&time, bytes, &mut lines);
        }
        // A full disk must not stop the container: the lines are lost.
        let _ = log.write_all(&lines);
    }

    fn read_input(&mut self, client: usize) {
        let Some(client) = self.clients.get_mut(client) else {
            return;
        };
        let Some(input) = &client.input else { return };
        let mut buffer = [0; CHUNK];
        match sys::read(input.as_fd(), &mut buffer) {
            Err(libc::EAGAIN | libc::EINTR) => {}
            Ok(0) | Err(_) => {
                client.input = None;
                if self.io.stdin_once {
                    self.stdin = None;
                }
            }
            Ok(count) => {
                let bytes = buffer.get(..count).unwrap_or_default();
                self.unsent_input.extend_from_slice(bytes);
                self.send_input();
            }
        }
    }

    fn send_input(&mut self) {
        let Some(stdin) = &self.stdin else {
            self.unsent_input = Vec::new();
            return;
        };
        match sys::write(stdin.as_fd(), &self.unsent_input) {
            Ok(count) => drop(self.unsent_input.drain(..count)),
            Err(libc::EAGAIN | libc::EINTR) => {}
            Err(_) => self.close_input(),
        }
    }
}

/// Where a readiness belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    Stdout,
    Stderr,
    Stdin,
    Input(usize),
    /// Client, and which of its outputs.
    Sink(usize, usize),
}

impl Client {
    fn is_congested(&self) -> bool {
        let full = |sink: &Sink| sink.unsent.len() >= PENDING_MAX;
        self.outputs.iter().flatten().any(full)
    }

    fn offer(&mut self, output: Output, bytes: &[u8], now: i64) {
        let slot = match output {
            Output::Stdout => &mut self.outputs[0],
            Output::Stderr => &mut self.outputs[1],
        };
        if bytes.is_empty() {
            // End of stream: closing tells the client, once it has everything.
            if slot.as_ref().is_some_and(|sink| sink.unsent.is_empty()) {
                *slot = None;
            }
            return;
        }
        if let Some(sink) = slot {
            if sink.unsent.is_empty() {
                sink.moved_at = now;
            }
            sink.unsent.extend_from_slice(bytes);
        }
        self.flush(now);
    }

    /// Without unsent output, only a hang-up wakes a sink.
    fn sink_ready(&mut self, output: usize, events: i16, now: i64) {
        if events & (libc::POLLERR | libc::POLLHUP | libc::POLLNVAL) != 0
            && let Some(slot) = self.outputs.get_mut(output)
        {
            *slot = None;
        }
        self.flush(now);
    }

    fn flush(&mut self, now: i64) {
        for slot in &mut self.outputs {
            if let Some(sink) = slot
                && sink.flush(now).is_err()
            {
                *slot = None;
            }
        }
    }
}

impl Sink {
    fn flush(&mut self, now: i64) -> Sys<()> {
        if self.unsent.is_empty() {
            return Ok(());
        }
        match sys::write(self.fd.as_fd(), &self.unsent) {
            Ok(count) => {
                drop(self.unsent.drain(..count));
                self.moved_at = now;
                Ok(())
            }
            Err(libc::EAGAIN | libc::EINTR) => Ok(()),
            Err(errno) => Err(errno),
        }
    }
}

/// Appends, never follows a symbolic link (the directory may be a pod's volume), mode 0640.
fn open_log(path: &str) -> std::io::Result<File> {
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o640)
        .custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC)
        .open(path)
}
