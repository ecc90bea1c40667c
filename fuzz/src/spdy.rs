// SPDX-License-Identifier: Apache-2.0
//! SPDY/3.1: whatever a client sends, in whatever pieces, the server keeps to the protocol and holds a
//! bounded amount of it.

use bytes::BytesMut;
use cri::streaming::link::{Said, Say};
use cri::streaming::negotiate::Wire;
use cri::streaming::spdy::decode::Decoder;
use cri::streaming::spdy::encode::Encoder;
use cri::streaming::spdy::frame::{Frame, Violation};
use cri::streaming::spdy::session::Session;

/// What a decoder may hold of a frame that is not whole.
const HELD_MAX: usize = (64 << 10) + 8;
/// Streams that may be open at once.
const STREAMS_MAX: usize = 1024;

/// The input is what a client sends.
pub fn check(data: &[u8]) {
    let whole = decode(data, usize::MAX);
    for at_once in [1, 7] {
        assert_eq!(joined(decode(data, at_once)), joined(whole.clone()));
    }
    session(whole.0);
    let answer = answer(Wire::Spdy, data);
    let (frames, violation) = decode(&answer, usize::MAX);
    assert_eq!(violation, None, "the server broke the protocol");
    assert!(
        matches!(frames.last(), Some(Frame::GoAway { .. })),
        "no farewell"
    );
}

/// What the server's end of a connection sends to this client.
pub(crate) fn answer(wire: Wire, data: &[u8]) -> Vec<u8> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .expect("a runtime");
    runtime.block_on(cri::streaming::answer_to(wire, data))
}

fn decode(data: &[u8], at_once: usize) -> (Vec<Frame>, Option<Violation>) {
    let (mut decoder, mut buffer, mut frames) = (Decoder::new(), BytesMut::new(), Vec::new());
    for piece in data.chunks(at_once.min(data.len().max(1))) {
        buffer.extend_from_slice(piece);
        loop {
            match decoder.next(&mut buffer) {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(violation) => return (frames, Some(violation)),
            }
        }
        assert!(buffer.len() < HELD_MAX, "too much is held back");
    }
    (frames, None)
}

/// Pieces of data put together, so that where they were cut makes no difference.
fn joined((frames, violation): (Vec<Frame>, Option<Violation>)) -> (Vec<Frame>, Option<Violation>) {
    let mut joined: Vec<Frame> = Vec::new();
    for frame in frames {
        match (joined.last_mut(), frame) {
            (
                Some(Frame::Data { stream, fin, data }),
                Frame::Data {
                    stream: next,
                    fin: ends,
                    data: more,
                },
            ) if *stream == next && !*fin => {
                *data = [data.as_ref(), more.as_ref()].concat().into();
                *fin = ends;
            }
            (_, frame) => joined.push(frame),
        }
    }
    (joined, violation)
}

/// A session is as polite as can be, and its answers survive the wire.
fn session(frames: Vec<Frame>) {
    let (mut session, mut encoder, mut bytes) =
        (Session::default(), Encoder::default(), BytesMut::new());
    let mut sent = 0;
    for frame in frames {
        let Ok(reaction) = session.receive(frame) else {
            break;
        };
        let mut out: Vec<Frame> = reaction.reply.into_iter().collect();
        for said in reaction.said.into_iter().flatten() {
            let say = match said {
                Said::Opened(stream, _) => Say::Accept(stream),
                Said::Data(stream, data) => Say::Data(stream, data),
                Said::Closed(stream) | Said::Reset(stream) => Say::Close(stream),
            };
            out.extend(session.say(say));
        }
        assert!(session.open_streams() <= STREAMS_MAX);
        for frame in out {
            encoder.encode(&frame, &mut bytes);
            sent += 1;
        }
    }
    let (received, violation) = decode(&bytes, usize::MAX);
    assert_eq!((received.len(), violation), (sent, None));
}
