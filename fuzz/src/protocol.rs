// SPDX-License-Identifier: Apache-2.0
//! The shim's socket: whatever clients send, in whatever pieces and with whatever descriptors, the
//! shim goes on answering and keeps none of the descriptors.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use shim::daemon::Daemon;
use shim::plan::{LaunchPlan, ProcessPlan, RootFs};
use shim::protocol::{
    self, Answer, Body, ContainerIo, Message, ProcessId, Request, SOCKET_NAME, ShimState,
};
use shim::sys::socket;
use shim::wire::{self, Packet};

use super::input::Input;

const CLIENTS: usize = 3;
/// Turns of the loop that one action can need: accept, read, answer, notice the end.
const TURNS: usize = 4;

/// The input is a list of actions of up to three clients.
pub fn check(data: &[u8]) {
    decodes(data);
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut shim = Shim {
        daemon: Daemon::new(dir.path()).expect("listens"),
        path: dir.path().join(SOCKET_NAME).to_string_lossy().into_owned(),
        clients: Default::default(),
    };
    shim.turns();
    let before = descriptors();
    let mut input = Input(data);
    while !input.is_empty() {
        shim.act(&mut input);
    }
    shim.still_answers();
    shim.clients = Default::default();
    shim.turns();
    assert_eq!(descriptors(), before, "the shim kept descriptors");
}

/// Bytes are a message or they are not; what was decoded is encoded and decoded to the same.
fn decodes(data: &[u8]) {
    if let Ok(request) = protocol::decode::<Request>(data) {
        let bytes = protocol::encode(&request).expect("encodes");
        assert_eq!(protocol::decode::<Request>(&bytes), Ok(request));
    }
    if let Ok(message) = protocol::decode::<Message>(data) {
        let bytes = protocol::encode(&message).expect("encodes");
        assert_eq!(protocol::decode::<Message>(&bytes), Ok(message));
    }
}

struct Shim {
    daemon: Daemon,
    path: String,
    clients: [Option<OwnedFd>; CLIENTS],
}

impl Shim {
    fn turns(&mut self) {
        for _ in 0..TURNS {
            assert!(self.daemon.turn(0).expect("polls"), "the shim gave up");
        }
    }

    fn connect(&mut self) -> OwnedFd {
        let client = socket::socket(true).expect("a socket");
        socket::connect(client.as_fd(), self.path.as_bytes()).expect("the shim listens");
        self.turns();
        client
    }

    fn act(&mut self, input: &mut Input<'_>) {
        let index = input.below(CLIENTS);
        let action = input.byte() % 8;
        if action == 0 {
            self.clients[index] = None;
            return self.turns();
        }
        let client = match self.clients[index].take() {
            Some(client) => client,
            None => self.connect(),
        };
        let files: Vec<File> = (0..input.below(5))
            .map(|_| File::open("/dev/null").expect("opens"))
            .collect();
        let fds: Vec<BorrowedFd<'_>> = files.iter().map(AsFd::as_fd).collect();
        // A shim that has cut the client off is right to do so.
        let _ = match action {
            1 => {
                let length = input.below(64);
                socket::send(client.as_fd(), input.take(length), &fds)
            }
            2 => {
                let length = input.below(256);
                framed(&harmless(input.take(length)), client.as_fd(), &fds)
            }
            // Says that a file follows; with none, or a file that is none of ours.
            3 => socket::send(client.as_fd(), &[1], &fds),
            _ => {
                let request = Request {
                    id: u32::from(input.byte()),
                    body: body(input),
                };
                let mut bytes = protocol::encode(&request).expect("encodes");
                if action == 7 {
                    let at = input.below(bytes.len());
                    bytes[at] = input.byte();
                }
                framed(&harmless(&bytes), client.as_fd(), &fds)
            }
        };
        self.turns();
        while let Ok(Some((bytes, _))) = wire::receive(client.as_fd()) {
            protocol::decode::<Message>(&bytes).expect("answers are messages");
        }
        self.clients[index] = Some(client);
    }

    fn still_answers(&mut self) {
        let client = self.connect();
        let request = Request {
            id: 77,
            body: Body::State,
        };
        let bytes = protocol::encode(&request).expect("encodes");
        framed(&bytes, client.as_fd(), &[]).expect("sends");
        self.turns();
        let (bytes, _) = wire::receive(client.as_fd())
            .expect("an answer")
            .expect("a message");
        let answer: Message = protocol::decode(&bytes).expect("decodes");
        let state = ShimState {
            shim_pid: std::process::id(),
            processes: Vec::new(),
        };
        let result = Ok(Answer::State(state));
        assert_eq!(answer, Message::Reply { id: 77, result });
    }
}

fn framed(bytes: &[u8], to: BorrowedFd<'_>, fds: &[BorrowedFd<'_>]) -> shim::sys::Sys<()> {
    let room = fds.len().min(socket::MAX_FDS - 1);
    Packet::new(bytes)?.send(to, fds.get(..room).unwrap_or_default())
}

/// Fuzzers run as root: no request may start anything, name a file outside, or end the shim.
fn harmless(bytes: &[u8]) -> Vec<u8> {
    let Ok(mut request) = protocol::decode::<Request>(bytes) else {
        return bytes.to_vec();
    };
    let nowhere = RootFs::Dir("/nonexistent/podwright-fuzz".into());
    match &mut request.body {
        Body::StartSandbox(plan) => plan.rootfs = nowhere,
        Body::Create { plan, io, .. } => {
            plan.rootfs = nowhere;
            io.log_path = None;
        }
        Body::Shutdown => request.body = Body::State,
        _ => {}
    }
    if let Body::StartSandbox(plan) | Body::Create { plan, .. } = &mut request.body {
        **plan = LaunchPlan {
            rootfs: std::mem::take(&mut plan.rootfs),
            process: ProcessPlan {
                args: vec!["x".into()],
                cwd: "/".into(),
                ..ProcessPlan::default()
            },
            ..LaunchPlan::default()
        };
    }
    protocol::encode(&request).expect("encodes")
}

fn body(input: &mut Input<'_>) -> Body {
    let process = |input: &mut Input<'_>| ProcessId {
        container: input.word(),
        exec: (input.byte().is_multiple_of(2)).then(|| input.word()),
    };
    match input.byte() % 12 {
        0 => Body::State,
        1 => Body::Subscribe,
        2 => Body::StartSandbox(Box::default()),
        3 => Body::Create {
            container: input.word(),
            plan: Box::default(),
            io: ContainerIo {
                log_path: None,
                stdin: input.byte().is_multiple_of(2),
                stdin_once: input.byte().is_multiple_of(2),
            },
        },
        4 => Body::Start {
            container: input.word(),
        },
        5 => Body::Signal {
            process: process(input),
            signal: i32::from(input.byte()) - 64,
            all: input.byte().is_multiple_of(2),
        },
        6 => Body::Exec {
            container: input.word(),
            exec: input.word(),
            process: Box::default(),
        },
        7 => Body::Wait {
            process: process(input),
        },
        8 => Body::Resize {
            container: input.word(),
            columns: u16::from(input.byte()),
            rows: u16::from(input.byte()),
        },
        9 => Body::Attach {
            container: input.word(),
            stdin: input.byte().is_multiple_of(2),
            stdout: input.byte().is_multiple_of(2),
            stderr: input.byte().is_multiple_of(2),
        },
        10 => Body::ReopenLog {
            container: input.word(),
        },
        _ => Body::Remove {
            process: process(input),
        },
    }
}

/// How many descriptors are open.
fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").expect("procfs").count()
}
