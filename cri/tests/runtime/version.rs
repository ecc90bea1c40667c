// SPDX-License-Identifier: Apache-2.0
//! A shim and clients of other builds: what version 1 said is understood for ever, and what is newer
//! than the shim is refused by name.

use std::os::fd::{AsFd, AsRawFd};

use cri::shim_client::FailureKind;
use serde::Serialize;
use shim::protocol::{self, Answer, Message, SOCKET_NAME, VERSION};
use shim::sys::socket;
use shim::wire::{self, Packet};

use crate::pod::Pod;

/// Sends these bytes as a client would, and returns the reply.
fn say(pod: &Pod, bytes: &[u8]) -> (u32, Result<Answer, protocol::Failure>) {
    let dir = std::fs::File::open(&pod.dir).expect("opens");
    let path = format!("/proc/self/fd/{}/{SOCKET_NAME}", dir.as_raw_fd());
    let client = socket::socket(false).expect("a socket");
    socket::connect(client.as_fd(), path.as_bytes()).expect("connects");
    let packet = Packet::new(bytes).expect("small");
    packet.send(client.as_fd(), &[]).expect("sends");
    let (reply, _) = wire::receive(client.as_fd())
        .expect("receives")
        .expect("open");
    match protocol::decode_message(&reply).expect("a message") {
        Message::Reply { id, result } => (id, result),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn the_first_version_is_still_spoken() {
    let pod = Pod::start().await;
    assert_eq!(pod.shim.version(), VERSION);
    // Request 5: Hello { version: 1 }, Request 6: State, Request 7: Wait for exec "x" of "c".
    let (id, answer) = say(&pod, &[2, 1, 5, 4, 0, 1, 1, 1]);
    let version = VERSION;
    assert_eq!((id, answer), (5, Ok(Answer::Hello { version })));
    let (id, answer) = say(&pod, &[2, 1, 6, 1, 1]);
    let Ok(Answer::State(state)) = answer else {
        panic!("{answer:?}");
    };
    assert_eq!((id, state.processes.len()), (6, 1));
    let wait = [2, 1, 7, 11, 8, 1, 8, 2, 2, 1, b'c', 3, 1, 1, b'x'];
    let (id, answer) = say(&pod, &wait);
    assert_eq!((id, answer.unwrap_err().kind), (7, FailureKind::NotFound));
    pod.stop().await;
}

/// The protocol of a build that is yet to come.
#[derive(Serialize)]
struct Request {
    id: u32,
    body: Body,
}

#[derive(Serialize)]
enum Body {
    Hello { version: u32, wishes: bool },
}

#[tokio::test]
async fn what_is_newer_is_refused_by_name() {
    let pod = Pod::start().await;
    let hello = |version, wishes| {
        let body = Body::Hello { version, wishes };
        protocol::encode(&Request { id: 9, body }).expect("encodes")
    };
    let (id, refused) = say(&pod, &hello(7, true));
    let refused = refused.unwrap_err();
    assert_eq!((id, refused.kind), (9, FailureKind::Newer));
    assert!(
        refused
            .message
            .contains("field 1 of Body is newer than this build"),
        "{}",
        refused.message
    );
    // Without the wish it is what it always was.
    assert!(say(&pod, &hello(7, false)).1.is_ok());
    let (id, refused) = say(&pod, &[2, 1, 3, 1, 99]);
    let refused = refused.unwrap_err();
    assert_eq!((id, refused.kind), (3, FailureKind::Newer));
    assert!(
        refused.message.contains("variant 99 of Body"),
        "{}",
        refused.message
    );
    pod.stop().await;
}
