// SPDX-License-Identifier: Apache-2.0
//! What a server knows of a connection's streams, and what it does about each frame.

use std::collections::HashMap;

use super::super::link::{Said, Say};
use super::frame::{CANCEL, Frame, PROTOCOL_ERROR, REFUSED_STREAM, Violation};
use super::headers::Headers;

/// Streams at once. A forwarded connection takes two.
const STREAMS_MAX: usize = 1024;

/// One stream, until both sides have closed it.
#[derive(Debug, Default)]
struct Stream {
    accepted: bool,
    /// The client sends no more.
    theirs_closed: bool,
    /// We send no more.
    ours_closed: bool,
}

/// The server's state.
#[derive(Debug, Default)]
pub struct Session {
    streams: HashMap<u32, Stream>,
    /// The last stream that the client opened.
    last: u32,
}

/// What follows from a frame.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Reaction {
    /// For the session, in this order.
    pub said: [Option<Said>; 2],
    /// For the client.
    pub reply: Option<Frame>,
    /// The client says goodbye.
    pub over: bool,
}

impl Reaction {
    fn reply(frame: Frame) -> Self {
        Self {
            reply: Some(frame),
            ..Self::default()
        }
    }

    fn said(one: Option<Said>, two: Option<Said>) -> Self {
        Self {
            said: [one, two],
            ..Self::default()
        }
    }
}

impl Session {
    /// Takes in a frame of the client.
    ///
    /// # Errors
    /// The connection must end.
    pub fn receive(&mut self, frame: Frame) -> Result<Reaction, Violation> {
        Ok(match frame {
            Frame::SynStream {
                stream,
                fin,
                unidirectional,
                headers,
            } => self.open(stream, fin, unidirectional, headers),
            Frame::Data { stream, fin, data } => {
                let Some(state) = self.streams.get(&stream) else {
                    // Data that were under way when the stream was reset.
                    if stream > self.last {
                        return Err(Violation(format!("data for stream {stream}, never opened")));
                    }
                    return Ok(Reaction::default());
                };
                if state.theirs_closed {
                    return Ok(Reaction::reply(reset(stream, PROTOCOL_ERROR)));
                }
                let data = (!data.is_empty()).then_some(Said::Data(stream, data));
                Reaction::said(data, fin.then(|| self.close_theirs(stream)).flatten())
            }
            Frame::Headers { stream, fin, .. } => {
                Reaction::said(fin.then(|| self.close_theirs(stream)).flatten(), None)
            }
            Frame::RstStream { stream, .. } => {
                let known = self.streams.remove(&stream).is_some();
                Reaction::said(known.then_some(Said::Reset(stream)), None)
            }
            // Of even number: the answer to one of ours.
            Frame::Ping { id } if id.is_multiple_of(2) => Reaction::default(),
            Frame::Ping { id } => Reaction::reply(Frame::Ping { id }),
            Frame::GoAway { .. } => Reaction {
                over: true,
                ..Reaction::default()
            },
            Frame::SynReply { stream, .. } => {
                return Err(Violation(format!(
                    "an answer for stream {stream}, which nobody asked for"
                )));
            }
            Frame::Settings | Frame::WindowUpdate { .. } => Reaction::default(),
        })
    }

    fn open(&mut self, stream: u32, fin: bool, one_way: bool, headers: Headers) -> Reaction {
        if stream.is_multiple_of(2) || stream <= self.last {
            return Reaction::reply(reset(stream, PROTOCOL_ERROR));
        }
        self.last = stream;
        if self.streams.len() >= STREAMS_MAX {
            return Reaction::reply(reset(stream, REFUSED_STREAM));
        }
        let state = Stream {
            ours_closed: one_way,
            ..Stream::default()
        };
        self.streams.insert(stream, state);
        let closed = fin.then(|| self.close_theirs(stream)).flatten();
        Reaction::said(Some(Said::Opened(stream, headers)), closed)
    }

    fn close_theirs(&mut self, stream: u32) -> Option<Said> {
        let state = self.streams.get_mut(&stream)?;
        if std::mem::replace(&mut state.theirs_closed, true) {
            return None;
        }
        if state.ours_closed && state.accepted {
            self.streams.remove(&stream);
        }
        Some(Said::Closed(stream))
    }

    /// The frame that says it, if the stream still is one that listens.
    pub fn say(&mut self, say: Say) -> Option<Frame> {
        let id = match &say {
            Say::Accept(id) | Say::Data(id, _) | Say::Close(id) | Say::Reset(id) => *id,
        };
        let state = self.streams.get_mut(&id)?;
        match say {
            Say::Accept(stream) => {
                if std::mem::replace(&mut state.accepted, true) {
                    return None;
                }
                let fin = state.ours_closed;
                if state.theirs_closed && fin {
                    self.streams.remove(&stream);
                }
                Some(Frame::SynReply {
                    stream,
                    fin,
                    headers: Headers::default(),
                })
            }
            Say::Data(stream, data) => {
                (!state.ours_closed && !data.is_empty()).then_some(Frame::Data {
                    stream,
                    fin: false,
                    data,
                })
            }
            Say::Close(stream) => {
                if std::mem::replace(&mut state.ours_closed, true) {
                    return None;
                }
                if state.theirs_closed {
                    self.streams.remove(&stream);
                }
                Some(Frame::Data {
                    stream,
                    fin: true,
                    data: bytes::Bytes::new(),
                })
            }
            Say::Reset(stream) => {
                self.streams.remove(&stream);
                Some(reset(stream, CANCEL))
            }
        }
    }

    /// Our last frame.
    #[must_use]
    pub fn goodbye(&self, status: u32) -> Frame {
        Frame::GoAway {
            last: self.last,
            status,
        }
    }

    /// How many streams are open.
    #[must_use]
    pub fn open_streams(&self) -> usize {
        self.streams.len()
    }
}

fn reset(stream: u32, status: u32) -> Frame {
    Frame::RstStream { stream, status }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn opening(stream: u32, fin: bool) -> Frame {
        Frame::SynStream {
            stream,
            fin,
            unidirectional: false,
            headers: Headers::default(),
        }
    }

    fn data(stream: u32, fin: bool, data: &'static [u8]) -> Frame {
        let data = Bytes::from_static(data);
        Frame::Data { stream, fin, data }
    }

    #[test]
    fn a_stream_lives_until_both_sides_closed_it() {
        let mut session = Session::default();
        let opened = session.receive(opening(1, false)).unwrap();
        assert_eq!(opened.said[0], Some(Said::Opened(1, Headers::default())));
        assert!(matches!(
            session.say(Say::Accept(1)),
            Some(Frame::SynReply {
                stream: 1,
                fin: false,
                ..
            })
        ));
        assert_eq!(session.say(Say::Accept(1)), None, "one answer");
        let last = session.receive(data(1, true, b"x")).unwrap();
        assert_eq!(
            last.said,
            [
                Some(Said::Data(1, Bytes::from_static(b"x"))),
                Some(Said::Closed(1))
            ]
        );
        let late = session.receive(data(1, false, b"y")).unwrap();
        assert_eq!(late.reply, Some(reset(1, PROTOCOL_ERROR)));
        assert_eq!(
            session.say(Say::Data(1, Bytes::from_static(b"out"))),
            Some(data(1, false, b"out"))
        );
        assert_eq!(session.say(Say::Close(1)), Some(data(1, true, b"")));
        assert_eq!(session.open_streams(), 0);
        assert_eq!(session.say(Say::Data(1, Bytes::from_static(b"out"))), None);
        assert_eq!(
            session.receive(data(1, false, b"late")),
            Ok(Reaction::default())
        );
    }

    #[test]
    fn resets_end_a_stream_for_both() {
        let mut session = Session::default();
        session.receive(opening(1, false)).unwrap();
        session.receive(opening(3, false)).unwrap();
        let cut = session.receive(reset(1, CANCEL)).unwrap();
        assert_eq!(cut.said[0], Some(Said::Reset(1)));
        assert_eq!(session.say(Say::Close(1)), None);
        assert_eq!(session.say(Say::Reset(3)), Some(reset(3, CANCEL)));
        assert_eq!(session.receive(reset(3, CANCEL)), Ok(Reaction::default()));
        assert_eq!(session.open_streams(), 0);
    }

    #[test]
    fn numbers_grow_and_are_odd_and_streams_are_bounded() {
        let mut session = Session::default();
        session.receive(opening(5, false)).unwrap();
        for wrong in [5, 3, 6] {
            let refused = session.receive(opening(wrong, false)).unwrap();
            assert_eq!(refused.reply, Some(reset(wrong, PROTOCOL_ERROR)));
        }
        assert!(session.receive(data(7, false, b"")).is_err());
        for extra in 0..STREAMS_MAX as u32 {
            session.receive(opening(7 + 2 * extra, true)).unwrap();
        }
        assert_eq!(session.open_streams(), STREAMS_MAX);
        let last = 7 + 2 * STREAMS_MAX as u32;
        let refused = session.receive(opening(last, false)).unwrap();
        assert_eq!(refused.reply, Some(reset(last, REFUSED_STREAM)));
        assert_eq!(session.goodbye(0), Frame::GoAway { last, status: 0 });
    }

    #[test]
    fn pings_are_answered_and_goodbyes_heard() {
        let mut session = Session::default();
        let ping = Frame::Ping { id: 1 };
        assert_eq!(session.receive(ping.clone()).unwrap().reply, Some(ping));
        let pong = session.receive(Frame::Ping { id: 2 }).unwrap();
        assert_eq!(pong, Reaction::default());
        assert!(
            session
                .receive(Frame::GoAway { last: 0, status: 0 })
                .unwrap()
                .over
        );
    }
}
