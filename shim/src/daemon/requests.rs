// SPDX-License-Identifier: Apache-2.0
//! Requests: who does what is asked, and who gets the answers.

use std::os::fd::{AsFd, OwnedFd};

use super::processes::{Asked, DONE, Handled, News, failure, unknown};
use super::{Daemon, Waiter};
use crate::protocol::{
    self, Answer, Body, ExitRecord, Failure, FailureKind, Message, ProcessId, Request, ShimState,
    VERSION,
};
use crate::sys;
use crate::wire;

/// What a client may have said before its turn is over. What a client that is gone now has said is
/// always done before a later client's requests: those must see what came of it.
const PACKETS_MAX: usize = 1024;

impl Daemon {
    pub(super) fn serve(&mut self, index: usize, revents: i16) {
        let Some(connection) = self.connections.get_mut(index) else {
            return;
        };
        if revents & libc::POLLOUT != 0 {
            connection.flush();
        }
        if revents & (libc::POLLIN | libc::POLLHUP | libc::POLLERR) == 0 {
            return;
        }
        for _ in 0..PACKETS_MAX {
            if !self.serve_one(index) {
                break;
            }
        }
    }

    /// Takes one packet; false when there is none.
    fn serve_one(&mut self, index: usize) -> bool {
        let Some(connection) = self.connections.get_mut(index) else {
            return false;
        };
        let id = connection.id;
        match wire::receive(connection.socket.as_fd()) {
            Err(libc::EAGAIN | libc::EINTR) => return false,
            Ok(None) | Err(_) => connection.broken = true,
            Ok(Some((bytes, fds))) => match protocol::decode_request(&bytes) {
                Ok(request) => {
                    drop(bytes);
                    self.handle(id, request, fds);
                }
                Err(Some((request, refusal))) => self.reply(id, request, Err(refusal), None),
                // Nothing that it says can be understood.
                Err(None) => connection.broken = true,
            },
        }
        self.shutdown.is_none() && self.connections.get(index).is_some_and(|c| !c.broken)
    }

    fn handle(&mut self, connection: u64, request: Request, fds: Vec<OwnedFd>) {
        let Request { id, body } = request;
        let asked = Asked {
            connection,
            request: id,
        };
        self.trim |= matches!(
            body,
            Body::StartSandbox(_) | Body::Create { .. } | Body::Exec { .. }
        );
        match self.perform(asked, body, fds) {
            Ok(None) => {}
            Ok(Some(answer)) => self.reply(connection, id, Ok(answer), None),
            Err(refusal) => self.reply(connection, id, Err(refusal), None),
        }
    }

    fn perform(&mut self, asked: Asked, body: Body, fds: Vec<OwnedFd>) -> Handled {
        let processes = &mut self.processes;
        match body {
            Body::Hello { .. } => Ok(Some(Answer::Hello { version: VERSION })),
            Body::State => Ok(Some(Answer::State(ShimState {
                shim_pid: std::process::id(),
                processes: processes.states(),
            }))),
            Body::Subscribe => self.subscribe(asked.connection),
            Body::StartSandbox(plan) => processes.start_sandbox(&plan, asked),
            Body::Create {
                container,
                plan,
                io,
            } => processes.create(&container, &plan, io, asked),
            Body::Start { container } => processes.start(&container, asked),
            Body::Signal {
                process,
                signal,
                all,
            } => processes.signal(&process, signal, all),
            Body::Exec {
                container,
                exec,
                process,
            } => processes.exec(&container, exec, &process, fds, asked),
            Body::Wait { process } => self.wait(process, asked),
            Body::Resize {
                container,
                columns,
                rows,
            } => processes.resize(&container, columns, rows),
            Body::Attach {
                container,
                stdin,
                stdout,
                stderr,
            } => match name_streams([stdin, stdout, stderr], fds) {
                Some(streams) => processes.attach(&container, streams),
                None => Err(failure(FailureKind::Invalid, "descriptors are missing")),
            },
            Body::ReopenLog { container } => processes.reopen_log(&container),
            Body::Remove { process } => processes.remove(&process),
            Body::Shutdown => {
                self.shutdown = Some(asked);
                Ok(None)
            }
        }
    }

    fn wait(&mut self, process: ProcessId, asked: Asked) -> Handled {
        match self.processes.exited(&process) {
            Some(Some(record)) => Ok(Some(Answer::Exited(record))),
            Some(None) => {
                self.waiters.push(Waiter { asked, process });
                Ok(None)
            }
            None => Err(unknown(&process)),
        }
    }

    fn subscribe(&mut self, id: u64) -> Handled {
        for connection in &mut self.connections {
            connection.subscribed |= connection.id == id;
        }
        DONE
    }

    /// Tells clients what has happened.
    pub(super) fn tell(&mut self) {
        for news in std::mem::take(&mut self.processes.news) {
            match news {
                News::Answer(asked, result, terminal) => {
                    self.trim = true;
                    self.reply(asked.connection, asked.request, result, terminal);
                }
                News::Ended(process, record) => self.announce(&process, record),
            }
        }
        if std::mem::take(&mut self.trim) {
            sys::trim_memory();
        }
    }

    fn announce(&mut self, process: &ProcessId, record: ExitRecord) {
        let message = Message::Exit {
            process: process.clone(),
            record,
        };
        for connection in &mut self.connections {
            if connection.subscribed {
                connection.send(&message, None);
            }
        }
        let (due, rest) = std::mem::take(&mut self.waiters)
            .into_iter()
            .partition::<Vec<_>, _>(|waiter| waiter.process == *process);
        self.waiters = rest;
        for Waiter { asked, .. } in due {
            let result = Ok(Answer::Exited(record));
            self.reply(asked.connection, asked.request, result, None);
        }
    }

    pub(super) fn reply(
        &mut self,
        connection: u64,
        id: u32,
        result: Result<Answer, Failure>,
        terminal: Option<OwnedFd>,
    ) {
        if let Some(connection) = self.connections.iter_mut().find(|c| c.id == connection) {
            connection.send(&Message::Reply { id, result }, terminal);
        }
    }
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
