// SPDX-License-Identifier: Apache-2.0
//! One client's connection: packets in, and answers out that never wait for it.

use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};

use crate::protocol::{self, Message};
use crate::sys::events;
use crate::wire::Packet;

/// A client that lets this many answers pile up is cut off.
const OUTBOX_MAX: usize = 1024;

pub(super) struct Connection {
    pub(super) id: u64,
    pub(super) socket: OwnedFd,
    outbox: VecDeque<(Packet, Option<OwnedFd>)>,
    pub(super) subscribed: bool,
    /// To be dropped after this turn.
    pub(super) broken: bool,
}

impl Connection {
    pub(super) fn new(id: u64, socket: OwnedFd) -> Connection {
        Connection {
            id,
            socket,
            outbox: VecDeque::new(),
            subscribed: false,
            broken: false,
        }
    }

    pub(super) fn interest(&self) -> libc::pollfd {
        let sending = match self.outbox.is_empty() {
            true => 0,
            false => libc::POLLOUT,
        };
        events::interest(self.socket.as_fd(), libc::POLLIN | sending)
    }

    pub(super) fn send(&mut self, message: &Message, fd: Option<OwnedFd>) {
        let packet = protocol::encode(message)
            .map_err(|_| libc::EINVAL)
            .and_then(|bytes| Packet::new(&bytes));
        match packet {
            Ok(packet) if self.outbox.len() < OUTBOX_MAX => {
                self.outbox.push_back((packet, fd));
                self.flush();
            }
            _ => self.broken = true,
        }
    }

    pub(super) fn flush(&mut self) {
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
