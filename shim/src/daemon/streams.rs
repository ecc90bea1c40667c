// SPDX-License-Identifier: Apache-2.0
//! A container's standard streams: its log file, its attached clients, its stdin.
//!
//! The log file is the record; clients look on (see [`super::clients`]). Nothing here ever blocks
//! the shim, but for the writing of the log file.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use super::clients::Client;
use super::log::{Splitter, timestamp};
use super::log_file::LogFile;
use crate::protocol::ContainerIo;
use crate::sys::{self, Sys};

const CHUNK: usize = 8 * 1024;
/// What an ended process can have left in its pipe (fs.pipe-max-size without privileges). Whatever
/// else writes to it may go on for ever.
const LEFT_MAX: usize = 1024 * 1024;

/// Which output stream. The number is its place in what there is one of for each.
const STDOUT: usize = 0;
const STDERR: usize = 1;

#[derive(Debug)]
pub(super) struct Streams {
    io: ContainerIo,
    log: Option<LogFile>,
    /// Our ends of stdout and stderr. A terminal's master is the first.
    outputs: [Option<OwnedFd>; 2],
    splitters: [Splitter; 2],
    /// The write end of the container's stdin, or a copy of its terminal's master.
    stdin: Option<OwnedFd>,
    unsent_input: Vec<u8>,
    /// stdin is to be closed once it has what was sent before.
    input_ended: bool,
    clients: Vec<Client>,
    terminal: bool,
}

/// Where a readiness belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    Output(usize),
    Stdin,
    Input(usize),
    /// Client, and which of its outputs.
    Sink(usize, usize),
}

impl Streams {
    /// Opens the log file. `stdin`, `outputs`: our sides; a terminal's master comes later.
    pub(super) fn new(
        io: ContainerIo,
        stdin: Option<OwnedFd>,
        outputs: [Option<OwnedFd>; 2],
        terminal: bool,
    ) -> std::io::Result<Streams> {
        for fd in stdin.iter().chain(outputs.iter().flatten()) {
            sys::set_nonblocking(fd.as_fd()).map_err(std::io::Error::from_raw_os_error)?;
        }
        let log = io.log_path.as_deref().map(LogFile::open).transpose()?;
        Ok(Streams {
            io,
            log,
            outputs,
            splitters: [Splitter::new("stdout"), Splitter::new("stderr")],
            stdin,
            unsent_input: Vec::new(),
            input_ended: false,
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
        self.outputs[STDOUT] = Some(master);
        Ok(())
    }

    pub(super) fn terminal(&self) -> Option<BorrowedFd<'_>> {
        let master = self.outputs[STDOUT].as_ref().filter(|_| self.terminal);
        master.map(AsFd::as_fd)
    }

    /// Opens the log file anew, by the same name.
    pub(super) fn reopen_log(&mut self) -> std::io::Result<()> {
        self.log.as_mut().map_or(Ok(()), LogFile::reopen)
    }

    /// No more output will come.
    fn is_over(&self) -> bool {
        self.outputs.iter().all(Option::is_none)
    }

    /// When a client's time is up.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let over = self.is_over();
        let deadlines = self
            .clients
            .iter()
            .filter_map(|client| client.deadline(over));
        deadlines.min()
    }

    /// Nothing is left to read, and nothing to send.
    pub(super) fn is_done(&self) -> bool {
        self.is_over() && self.clients.is_empty()
    }

    /// Adds a client. Its descriptors in the order stdin, stdout, stderr.
    pub(super) fn attach(&mut self, [input, stdout, stderr]: [Option<OwnedFd>; 3]) -> Sys<()> {
        let input = input.filter(|_| self.stdin.is_some());
        self.clients.push(Client::new(input, [stdout, stderr])?);
        Ok(())
    }

    /// What to poll for; each entry comes back to [`ready`](Self::ready) with its place.
    pub(super) fn interests(&self, out: &mut Vec<(Place, libc::pollfd)>) {
        let mut add = |place, fd: &OwnedFd, events| {
            out.push((place, sys::events::interest(fd.as_fd(), events)));
        };
        for (output, fd) in self.outputs.iter().enumerate() {
            let congested = || self.clients.iter().any(|c| c.is_congested(output));
            if let Some(fd) = fd
                && !congested()
            {
                add(Place::Output(output), fd, libc::POLLIN);
            }
        }
        let idle = self.unsent_input.is_empty();
        if let (Some(stdin), false) = (&self.stdin, idle) {
            add(Place::Stdin, stdin, libc::POLLOUT);
        }
        for (index, client) in self.clients.iter().enumerate() {
            if let (Some(input), true) = (&client.input, idle) {
                add(Place::Input(index), input, libc::POLLIN);
            }
        }
        for (index, client) in self.clients.iter().enumerate() {
            let sinks = client.interests();
            out.extend(sinks.map(|(output, entry)| (Place::Sink(index, output), entry)));
        }
    }

    /// Handles one readiness.
    pub(super) fn ready(&mut self, place: Place, events: i16, now: i64) {
        match place {
            Place::Output(output) => drop(self.read_output(output, now)),
            Place::Stdin => self.send_input(),
            Place::Input(client) => self.read_input(client),
            Place::Sink(client, output) => {
                if let Some(client) = self.clients.get_mut(client) {
                    client.ready(output, events);
                }
            }
        }
    }

    /// Drops clients that are gone or cut off. Call after a round of [`ready`](Self::ready):
    /// places count clients, so none may vanish within a round.
    pub(super) fn sweep(&mut self, now: Instant) {
        let over = self.is_over();
        let mut input_ended = false;
        self.clients.retain(|client| {
            let finished = client.is_finished(over, now);
            input_ended |= finished && client.input.is_some();
            !finished
        });
        if input_ended {
            self.client_input_ended();
        }
    }

    fn client_input_ended(&mut self) {
        if self.io.stdin_once {
            self.input_ended = true;
            self.send_input();
        }
    }

    /// Reads what an ended process has left: it wrote all of it before.
    pub(super) fn drain(&mut self, now: i64) {
        for output in [STDOUT, STDERR] {
            let mut left = LEFT_MAX;
            while left > 0 {
                match self.read_output(output, now) {
                    0 => break,
                    count => left = left.saturating_sub(count),
                }
            }
        }
    }

    /// The container has ended, and its terminal or pipes may still be held by a stray process:
    /// nobody feeds it any more.
    pub(super) fn close_input(&mut self) {
        self.stdin = None;
        self.unsent_input = Vec::new();
    }

    /// Reads one piece; zero when there is nothing more now.
    fn read_output(&mut self, output: usize, now: i64) -> usize {
        let Some(slot) = self.outputs.get_mut(output) else {
            return 0;
        };
        let Some(open) = slot else { return 0 };
        let mut buffer = [0; CHUNK];
        let count = match sys::read(open.as_fd(), &mut buffer) {
            Ok(count) => count,
            Err(libc::EAGAIN | libc::EINTR) => return 0,
            // A terminal without an open slave says EIO.
            Err(_) => 0,
        };
        if count == 0 {
            *slot = None;
        }
        let bytes = buffer.get(..count).unwrap_or_default();
        self.record(output, bytes, now);
        for client in &mut self.clients {
            client.offer(output, bytes);
        }
        count
    }

    fn record(&mut self, output: usize, bytes: &[u8], now: i64) {
        let (Some(log), Some(splitter)) = (&mut self.log, self.splitters.get_mut(output)) else {
            return;
        };
        let (time, mut lines) = (timestamp(now), Vec::new());
        if bytes.is_empty() {
            splitter.finish(&time, &mut lines);
        } else {
            splitter.push(&time, bytes, &mut lines);
        }
        log.append(&lines);
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
                self.client_input_ended();
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
            return self.close_input();
        };
        match sys::write(stdin.as_fd(), &self.unsent_input) {
            Ok(count) => drop(self.unsent_input.drain(..count)),
            Err(libc::EAGAIN | libc::EINTR) => {}
            Err(_) => self.close_input(),
        }
        if self.input_ended && self.unsent_input.is_empty() {
            self.stdin = None;
        }
    }
}
