// SPDX-License-Identifier: Apache-2.0
//! The bytes between a plugin and the runtime: ttrpc messages on a multiplexed connection. Pure.
//!
//! Two logical connections share one socket, each carrying ttrpc in one direction. A frame of the
//! multiplexer (containerd/nri, pkg/net/multiplex) is `u32 connection, u32 length, bytes`; a ttrpc
//! message (containerd/ttrpc, PROTOCOL.md) is `u32 length, u32 stream, u8 type, u8 flags, bytes`. All
//! numbers are big-endian. A message may be spread over frames, so frames are only a way to carry bytes.

use std::collections::VecDeque;

use bytes::{Buf as _, Bytes, BytesMut};

/// The connection on which plugins are asked.
pub const PLUGIN_SERVICE: u32 = 1;
/// The connection on which plugins ask.
pub const RUNTIME_SERVICE: u32 = 2;
/// What ttrpc lets through.
pub const MESSAGE_MAX: usize = 4 << 20;

const FRAME_HEADER: usize = 8;
const MESSAGE_HEADER: usize = 10;
/// Upstream's reader takes a frame into a buffer of this size, unless it is in the middle of a
/// message and has room for more: a longer first frame is lost to it.
const FIRST_FRAME_MAX: usize = 4096;

/// What a message is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Request,
    Response,
    /// Part of a stream, or of a later version: not used by this interface.
    Other(u8),
}

impl Kind {
    fn decode(number: u8) -> Kind {
        match number {
            1 => Kind::Request,
            2 => Kind::Response,
            other => Kind::Other(other),
        }
    }

    fn encode(self) -> u8 {
        match self {
            Kind::Request => 1,
            Kind::Response => 2,
            Kind::Other(number) => number,
        }
    }
}

/// One ttrpc message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Pairs a response with its request. Odd, chosen by whoever asks.
    pub stream: u32,
    pub kind: Kind,
    pub flags: u8,
    pub payload: Bytes,
}

/// Why bytes are not what a plugin may say.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    #[error("a frame of {length} bytes, more than a message may have")]
    Frame { length: usize },
    #[error("a message of {length} bytes, more than {MESSAGE_MAX}")]
    Message { length: usize },
}

/// Takes the bytes of a connection apart. Holds at most one message per logical connection.
#[derive(Debug, Default)]
pub struct Demux {
    header: BytesMut,
    /// The frame in progress: its connection, and how much of it is still to come.
    frame: Option<(u32, usize)>,
    plugin: BytesMut,
    runtime: BytesMut,
    ready: VecDeque<(u32, Message)>,
}

impl Demux {
    /// Takes bytes as they came.
    ///
    /// # Errors
    /// A length that nobody may send. Nothing after it can be understood.
    pub fn feed(&mut self, mut bytes: &[u8]) -> Result<(), WireError> {
        while !bytes.is_empty() {
            match self.frame {
                Some((connection, left)) => {
                    let (part, rest) = bytes.split_at(left.min(bytes.len()));
                    self.frame = (part.len() < left).then_some((connection, left - part.len()));
                    bytes = rest;
                    self.append(connection, part)?;
                }
                None => bytes = self.begin_frame(bytes)?,
            }
        }
        Ok(())
    }

    fn begin_frame<'a>(&mut self, bytes: &'a [u8]) -> Result<&'a [u8], WireError> {
        let (part, rest) = bytes.split_at((FRAME_HEADER - self.header.len()).min(bytes.len()));
        self.header.extend_from_slice(part);
        if self.header.len() == FRAME_HEADER {
            let (connection, length) = (self.header.get_u32(), self.header.get_u32() as usize);
            self.header.clear();
            if length > MESSAGE_MAX + MESSAGE_HEADER {
                return Err(WireError::Frame { length });
            }
            self.frame = (length > 0).then_some((connection, length));
        }
        Ok(rest)
    }

    fn append(&mut self, connection: u32, bytes: &[u8]) -> Result<(), WireError> {
        let buffer = match connection {
            PLUGIN_SERVICE => &mut self.plugin,
            RUNTIME_SERVICE => &mut self.runtime,
            // As upstream does with connections that nobody opened.
            _ => return Ok(()),
        };
        buffer.extend_from_slice(bytes);
        while let Some(message) = take_message(buffer)? {
            self.ready.push_back((connection, message));
        }
        Ok(())
    }

    /// The next complete message, with the connection that it came on.
    pub fn next_message(&mut self) -> Option<(u32, Message)> {
        self.ready.pop_front()
    }
}

fn take_message(buffer: &mut BytesMut) -> Result<Option<Message>, WireError> {
    let Some(mut header) = buffer.get(..MESSAGE_HEADER) else {
        return Ok(None);
    };
    let length = header.get_u32() as usize;
    let (stream, kind, flags) = (header.get_u32(), header.get_u8(), header.get_u8());
    if length > MESSAGE_MAX {
        return Err(WireError::Message { length });
    }
    if buffer.len() < MESSAGE_HEADER + length {
        return Ok(None);
    }
    buffer.advance(MESSAGE_HEADER);
    Ok(Some(Message {
        stream,
        kind: Kind::decode(kind),
        flags,
        payload: buffer.split_to(length).freeze(),
    }))
}

/// A message as the bytes that carry it on `connection`.
///
/// # Errors
/// When it is larger than a peer takes.
pub fn encode(connection: u32, message: &Message) -> Result<Vec<u8>, WireError> {
    let length = message.payload.len();
    if length > MESSAGE_MAX {
        return Err(WireError::Message { length });
    }
    let mut whole = Vec::with_capacity(MESSAGE_HEADER + length);
    // Checked above: it fits.
    whole.extend_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes());
    whole.extend_from_slice(&message.stream.to_be_bytes());
    whole.extend_from_slice(&[message.kind.encode(), message.flags]);
    whole.extend_from_slice(&message.payload);
    let (first, rest) = whole.split_at(whole.len().min(FIRST_FRAME_MAX));
    let mut bytes = Vec::with_capacity(whole.len() + 2 * FRAME_HEADER);
    for frame in [first, rest] {
        if !frame.is_empty() {
            bytes.extend_from_slice(&connection.to_be_bytes());
            bytes.extend_from_slice(&u32::try_from(frame.len()).unwrap_or(u32::MAX).to_be_bytes());
            bytes.extend_from_slice(frame);
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(stream: u32, length: usize) -> Message {
        Message {
            stream,
            kind: Kind::Request,
            flags: 0,
            payload: Bytes::from(vec![7; length]),
        }
    }

    #[test]
    fn messages_survive_any_way_of_cutting_them() {
        let sent = [
            (PLUGIN_SERVICE, message(1, 0)),
            (RUNTIME_SERVICE, message(3, 10_000)),
            (PLUGIN_SERVICE, message(5, 4086)),
            (PLUGIN_SERVICE, message(7, 4087)),
        ];
        let bytes: Vec<u8> = sent
            .iter()
            .flat_map(|(connection, message)| encode(*connection, message).unwrap())
            .collect();
        for size in [1, 3, 17, 4096, bytes.len()] {
            let mut demux = Demux::default();
            for part in bytes.chunks(size) {
                demux.feed(part).unwrap();
            }
            let got: Vec<_> = std::iter::from_fn(|| demux.next_message()).collect();
            assert_eq!(got, sent, "in parts of {size}");
        }
    }

    #[test]
    fn a_first_frame_fits_what_upstream_reads_at_once() {
        let bytes = encode(PLUGIN_SERVICE, &message(1, 9000)).unwrap();
        assert_eq!(bytes[4..8], 4096_u32.to_be_bytes());
    }

    #[test]
    fn lengths_are_bounded_and_unknown_connections_ignored() {
        let mut demux = Demux::default();
        demux.feed(&[0, 0, 0, 9, 0, 0, 0, 1, 5]).unwrap();
        assert_eq!(demux.next_message(), None);
        let huge = [0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff];
        assert!(matches!(demux.feed(&huge), Err(WireError::Frame { .. })));
        let mut demux = Demux::default();
        let huge = [&[0, 0, 0, 1, 0, 0, 0, 10][..], &[0xff; 10]].concat();
        assert!(matches!(demux.feed(&huge), Err(WireError::Message { .. })));
        assert!(encode(1, &message(1, MESSAGE_MAX + 1)).is_err());
    }
}
