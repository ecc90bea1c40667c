// SPDX-License-Identifier: Apache-2.0
//! Clients that look on: what they have not taken yet, and when they are given up.
//!
//! A client has [`UNSENT_MAX`] of output to be behind. Beyond that it slows the container down, as
//! a terminal would, but only while it reads: one that never took more than its pipe holds, or
//! nothing for [`PATIENCE`], is cut off. So a dead reader does not hold up anybody.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use crate::sys::{self, Sys, events};

/// How far a client may be behind.
pub(super) const UNSENT_MAX: usize = 1024 * 1024;
/// A client that is that far behind must take something within this time.
const PATIENCE: Duration = Duration::from_secs(1);
/// The container has ended: so long may a client take nothing before the rest is dropped.
const FAREWELL: Duration = Duration::from_secs(5);
/// Taken to be the capacity of what is no pipe.
const CAPACITY: usize = 256 * 1024;

#[derive(Debug)]
pub(super) struct Client {
    pub(super) input: Option<OwnedFd>,
    outputs: [Option<Sink>; 2],
}

#[derive(Debug)]
struct Sink {
    fd: OwnedFd,
    unsent: VecDeque<u8>,
    sent: u64,
    /// What the kernel holds for a reader; more than that was taken by one.
    capacity: u64,
    moved_at: Instant,
}

impl Client {
    /// Which of its outputs counts as which: 0 is stdout, 1 is stderr.
    pub(super) fn new(input: Option<OwnedFd>, outputs: [Option<OwnedFd>; 2]) -> Sys<Client> {
        for fd in input.iter().chain(outputs.iter().flatten()) {
            sys::set_nonblocking(fd.as_fd())?;
        }
        Ok(Client {
            input,
            outputs: outputs.map(|fd| fd.map(Sink::new)),
        })
    }

    /// Whether reading more of this output has to wait for the client.
    pub(super) fn is_congested(&self, output: usize) -> bool {
        self.sink(output).is_some_and(Sink::is_full)
    }

    fn sink(&self, output: usize) -> Option<&Sink> {
        self.outputs.get(output)?.as_ref()
    }

    /// What to poll its outputs for. Without unsent output, only a hang-up wakes a sink.
    pub(super) fn interests(&self) -> impl Iterator<Item = (usize, libc::pollfd)> {
        let sinks = self.outputs.iter().enumerate();
        sinks.filter_map(|(output, sink)| {
            let sink = sink.as_ref()?;
            let events = match sink.unsent.is_empty() {
                true => 0,
                false => libc::POLLOUT,
            };
            Some((output, events::interest(sink.fd.as_fd(), events)))
        })
    }

    /// Sends bytes, or keeps them until they can be sent. None: the stream has ended.
    pub(super) fn offer(&mut self, output: usize, bytes: &[u8]) {
        let Some(slot) = self.outputs.get_mut(output) else {
            return;
        };
        let Some(sink) = slot else { return };
        let finished = bytes.is_empty() && sink.unsent.is_empty();
        // Closing tells the client, once it has everything.
        if finished || sink.push(bytes).is_err() {
            *slot = None;
        }
    }

    pub(super) fn ready(&mut self, output: usize, events: i16) {
        let Some(slot) = self.outputs.get_mut(output) else {
            return;
        };
        let gone = events & (libc::POLLERR | libc::POLLHUP | libc::POLLNVAL) != 0;
        if gone || slot.as_mut().is_some_and(|sink| sink.flush().is_err()) {
            *slot = None;
        }
    }

    /// Whether nothing more is to be expected of it. `over`: no more output will come.
    pub(super) fn is_finished(&self, over: bool, now: Instant) -> bool {
        let mut sinks = self.outputs.iter().flatten().peekable();
        if sinks.peek().is_none() {
            return over || self.input.is_none();
        }
        let mut flushed = true;
        for sink in sinks {
            flushed &= sink.unsent.is_empty();
            if sink.deadline(over).is_some_and(|deadline| now >= deadline) {
                return true;
            }
        }
        over && flushed
    }

    /// When [`is_finished`](Self::is_finished) may change its mind without any event.
    pub(super) fn deadline(&self, over: bool) -> Option<Instant> {
        let sinks = self.outputs.iter().flatten();
        sinks.filter_map(|sink| sink.deadline(over)).min()
    }
}

impl Sink {
    fn new(fd: OwnedFd) -> Sink {
        let capacity = sys::pipe_capacity(fd.as_fd()).unwrap_or(CAPACITY);
        Sink {
            fd,
            unsent: VecDeque::new(),
            sent: 0,
            capacity: capacity as u64,
            moved_at: Instant::now(),
        }
    }

    fn is_full(&self) -> bool {
        self.unsent.len() >= UNSENT_MAX
    }

    /// When it will be given up unless it takes something.
    fn deadline(&self, over: bool) -> Option<Instant> {
        match (self.is_full(), over) {
            // Nobody has ever read here.
            (true, false) if self.sent <= self.capacity => Some(self.moved_at),
            (true, false) => Some(self.moved_at + PATIENCE),
            (_, true) if !self.unsent.is_empty() => Some(self.moved_at + FAREWELL),
            _ => None,
        }
    }

    fn push(&mut self, bytes: &[u8]) -> Sys<()> {
        if self.unsent.is_empty() {
            let count = self.write(bytes, &[])?;
            self.unsent.extend(bytes.get(count..).unwrap_or_default());
            return Ok(());
        }
        self.unsent.extend(bytes);
        self.flush()
    }

    fn flush(&mut self) -> Sys<()> {
        if self.unsent.is_empty() {
            return Ok(());
        }
        let unsent = std::mem::take(&mut self.unsent);
        let (head, tail) = unsent.as_slices();
        let written = self.write(head, tail);
        self.unsent = unsent;
        self.unsent.drain(..written?);
        if self.unsent.is_empty() {
            // Memory for a burst is not kept.
            self.unsent = VecDeque::new();
        }
        Ok(())
    }

    /// Zero when the other side takes nothing now.
    fn write(&mut self, head: &[u8], tail: &[u8]) -> Sys<usize> {
        match sys::write_parts(self.fd.as_fd(), &[IoSlice::new(head), IoSlice::new(tail)]) {
            Ok(count) => {
                if count > 0 {
                    self.sent += count as u64;
                    self.moved_at = Instant::now();
                }
                Ok(count)
            }
            Err(libc::EAGAIN | libc::EINTR) => Ok(0),
            Err(errno) => Err(errno),
        }
    }
}
