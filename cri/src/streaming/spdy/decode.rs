// SPDX-License-Identifier: Apache-2.0
//! Bytes to frames. Data come on as they arrive, so that a frame of 16 MiB needs no such memory.

use bytes::{Buf, Bytes, BytesMut};

use super::frame::{FLAG_FIN, FLAG_UNIDIRECTIONAL, Frame, VERSION, Violation, number};
use super::headers::{Headers, Unpacker};

/// Every frame begins with this many bytes: what it is, flags, and the length of the rest.
const HEAD: usize = 8;
/// The rest of a control frame. kubectl's have about a hundred bytes.
const CONTROL_BYTES_MAX: usize = 64 << 10;

/// The receiving end of a connection.
#[derive(Debug)]
pub struct Decoder {
    unpacker: Unpacker,
    /// What is left of a data frame that has begun.
    data: Option<Rest>,
}

#[derive(Debug)]
struct Rest {
    stream: u32,
    fin: bool,
    left: usize,
}

/// The first bytes of a frame.
struct Head {
    first: u32,
    flags: u8,
    length: usize,
}

impl Head {
    fn read(bytes: &[u8]) -> Option<Self> {
        let mut head = bytes.get(..HEAD)?;
        let first = head.get_u32();
        let second = head.get_u32();
        Some(Self {
            first,
            flags: second.to_be_bytes()[0],
            // 24 bits fit.
            length: (second & 0x00ff_ffff) as usize,
        })
    }
}

impl Default for Decoder {
    fn default() -> Self {
        Self::new()
    }
}

impl Decoder {
    /// Before the first byte.
    #[must_use]
    pub fn new() -> Self {
        Self {
            unpacker: Unpacker::new(),
            data: None,
        }
    }

    /// Takes the next frame, or piece of one, from the front of `bytes`; `None` when it needs more.
    /// It never needs more than 64 KiB and 8 bytes at once.
    ///
    /// # Errors
    /// The peer broke the protocol; the connection can't go on.
    pub fn next(&mut self, bytes: &mut BytesMut) -> Result<Option<Frame>, Violation> {
        if let Some(rest) = self.data.take() {
            return Ok(self.piece(rest, bytes));
        }
        let Some(head) = Head::read(bytes) else {
            return Ok(None);
        };
        if head.first >> 31 == 0 {
            if head.first == 0 {
                return Err("data for stream 0".into());
            }
            bytes.advance(HEAD);
            let rest = Rest {
                stream: head.first,
                fin: head.flags & FLAG_FIN != 0,
                left: head.length,
            };
            return Ok(self.piece(rest, bytes));
        }
        if head.length > CONTROL_BYTES_MAX {
            return Err(Violation(format!(
                "a control frame has {} bytes, more than {CONTROL_BYTES_MAX}",
                head.length
            )));
        }
        if bytes.len() < HEAD + head.length {
            return Ok(None);
        }
        bytes.advance(HEAD);
        let payload = bytes.split_to(head.length).freeze();
        self.control(&head, payload).map(Some)
    }

    /// As much of a data frame as is there. An empty frame comes too: it may end its stream.
    fn piece(&mut self, mut rest: Rest, bytes: &mut BytesMut) -> Option<Frame> {
        if bytes.is_empty() && rest.left > 0 {
            self.data = Some(rest);
            return None;
        }
        let data = bytes.split_to(bytes.len().min(rest.left)).freeze();
        rest.left -= data.len();
        let (stream, last) = (rest.stream, rest.left == 0);
        let fin = rest.fin && last;
        if !last {
            self.data = Some(rest);
        }
        Some(Frame::Data { stream, fin, data })
    }

    fn control(&mut self, head: &Head, mut payload: Bytes) -> Result<Frame, Violation> {
        let version = (head.first >> 16) & 0x7fff;
        if version != u32::from(VERSION) {
            return Err(Violation(format!("frames of version {version}, not 3")));
        }
        // 16 bits fit.
        let kind = (head.first & 0xffff) as u16;
        let fin = head.flags & FLAG_FIN != 0;
        match kind {
            number::SYN_STREAM => {
                let stream = stream_id(&mut payload)?;
                let _associated = word(&mut payload)?;
                // Priority and a slot for certificates, which do not matter here.
                if payload.len() < 2 {
                    return Err(too_short());
                }
                payload.advance(2);
                Ok(Frame::SynStream {
                    stream,
                    fin,
                    unidirectional: head.flags & FLAG_UNIDIRECTIONAL != 0,
                    headers: self.headers(&payload)?,
                })
            }
            number::SYN_REPLY => Ok(Frame::SynReply {
                stream: stream_id(&mut payload)?,
                fin,
                headers: self.headers(&payload)?,
            }),
            number::HEADERS => Ok(Frame::Headers {
                stream: stream_id(&mut payload)?,
                fin,
                headers: self.headers(&payload)?,
            }),
            number::RST_STREAM => Ok(Frame::RstStream {
                stream: stream_id(&mut payload)?,
                status: word(&mut payload)?,
            }),
            number::SETTINGS => settings(payload),
            number::PING => Ok(Frame::Ping {
                id: word(&mut payload)?,
            }),
            number::GOAWAY => Ok(Frame::GoAway {
                last: word(&mut payload)? & 0x7fff_ffff,
                status: word(&mut payload)?,
            }),
            number::WINDOW_UPDATE => Ok(Frame::WindowUpdate {
                stream: word(&mut payload)? & 0x7fff_ffff,
                delta: word(&mut payload)? & 0x7fff_ffff,
            }),
            other => Err(Violation(format!(
                "a control frame of unknown type {other}"
            ))),
        }
    }

    fn headers(&mut self, packed: &[u8]) -> Result<Headers, Violation> {
        self.unpacker.unpack(packed)
    }
}

fn settings(mut payload: Bytes) -> Result<Frame, Violation> {
    let count = word(&mut payload)? as usize;
    if payload.len() / 8 < count {
        return Err(too_short());
    }
    Ok(Frame::Settings)
}

fn too_short() -> Violation {
    "a control frame is too short".into()
}

fn word(payload: &mut Bytes) -> Result<u32, Violation> {
    if payload.len() < 4 {
        return Err(too_short());
    }
    Ok(payload.get_u32())
}

fn stream_id(payload: &mut Bytes) -> Result<u32, Violation> {
    match word(payload)? & 0x7fff_ffff {
        0 => Err("a control frame for stream 0".into()),
        stream => Ok(stream),
    }
}

#[cfg(test)]
mod tests {
    use super::super::encode::Encoder;
    use super::*;

    fn all_of(bytes: &[u8], at_once: usize) -> Result<Vec<Frame>, Violation> {
        let (mut decoder, mut buffer) = (Decoder::new(), BytesMut::new());
        let mut frames: Vec<Frame> = Vec::new();
        for chunk in bytes.chunks(at_once) {
            buffer.extend_from_slice(chunk);
            while let Some(frame) = decoder.next(&mut buffer)? {
                frames.push(frame);
            }
        }
        assert!(buffer.len() < HEAD + CONTROL_BYTES_MAX);
        Ok(frames)
    }

    fn data(stream: u32, fin: bool, data: &'static [u8]) -> Frame {
        let data = Bytes::from_static(data);
        Frame::Data { stream, fin, data }
    }

    #[test]
    fn frames_survive_the_wire_in_pieces_of_any_size() {
        let headers = Headers(vec![("streamtype".into(), "data".into())]);
        let frames = vec![
            Frame::SynStream {
                stream: 1,
                fin: false,
                unidirectional: false,
                headers: headers.clone(),
            },
            data(1, false, b"some"),
            Frame::Headers {
                stream: 1,
                fin: false,
                headers,
            },
            Frame::Ping { id: 3 },
            Frame::Settings,
            Frame::WindowUpdate {
                stream: 1,
                delta: 5,
            },
            data(1, true, b""),
            Frame::RstStream {
                stream: 1,
                status: 5,
            },
            Frame::GoAway { last: 0, status: 0 },
        ];
        let (mut encoder, mut bytes) = (Encoder::default(), BytesMut::new());
        for frame in &frames {
            encoder.encode(frame, &mut bytes);
        }
        assert_eq!(all_of(&bytes, usize::MAX), Ok(frames));
        for at_once in 1..9 {
            let pieces = all_of(&bytes, at_once).unwrap();
            let mut text = Vec::new();
            for piece in pieces {
                if let Frame::Data { data, .. } = piece {
                    text.extend_from_slice(&data);
                }
            }
            assert_eq!(text, b"some");
        }
    }

    #[test]
    fn the_end_of_a_stream_comes_with_the_last_piece() {
        let frames = all_of(&[0, 0, 0, 7, 1, 0, 0, 3, b'a', b'b', b'c'], 9).unwrap();
        assert_eq!(frames, vec![data(7, false, b"a"), data(7, true, b"bc")]);
    }

    #[test]
    fn what_breaks_the_protocol_is_refused() {
        for (broken, why) in [
            (&[0, 0, 0, 0, 0, 0, 0, 0][..], "stream 0"),
            (&[0x80, 2, 0, 6, 0, 0, 0, 4, 0, 0, 0, 1], "version 2"),
            (&[0x80, 3, 0, 5, 0, 0, 0, 0], "type 5"),
            (&[0x80, 3, 0, 6, 0, 0, 0, 0], "too short"),
            (&[0x80, 3, 0, 1, 0, 0xff, 0xff, 0xff], "more than"),
            (
                &[0x80, 3, 0, 3, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 1],
                "stream 0",
            ),
            (&[0x80, 3, 0, 4, 0, 0, 0, 4, 0xff, 0, 0, 0], "too short"),
        ] {
            let refused = all_of(broken, usize::MAX).unwrap_err().to_string();
            assert!(refused.contains(why), "{refused}");
        }
    }
}
