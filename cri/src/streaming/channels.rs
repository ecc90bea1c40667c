// SPDX-License-Identifier: Apache-2.0
//! The channel protocols of Kubernetes over WebSocket: the first byte of each message names its
//! channel, the rest is data (KEP-4006 describes v5, which adds the closing of a channel). With base64
//! the first character is the channel's number counted from '0', and the rest is encoded.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::{BufMut as _, Bytes, BytesMut};
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{Message, Utf8Bytes};

use super::link::{Said, Say};

/// The channels of exec and attach over WebSocket.
pub(super) const STDIN: u32 = 0;
/// See [`STDIN`].
pub(super) const STDOUT: u32 = 1;
/// See [`STDIN`].
pub(super) const STDERR: u32 = 2;
/// See [`STDIN`].
pub(super) const ERROR: u32 = 3;
/// See [`STDIN`].
pub(super) const RESIZE: u32 = 4;
/// v5: the second byte names a channel that the client closes.
const CLOSE: u8 = 255;

/// How a protocol writes channels into messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Codec {
    /// `channel.k8s.io`, and v4.
    Binary,
    /// v5: as binary, and channels can be closed.
    Closing,
    /// `base64.channel.k8s.io`, and v4.
    Base64,
}

/// What a message says.
#[derive(Debug, PartialEq, Eq)]
pub enum Parsed {
    /// Nothing to do: a ping, or the empty message with which some clients open a channel.
    Nothing,
    /// Something for the session.
    Said(Said),
    /// Goodbye.
    End,
    /// Not of the protocol: what to close with.
    Wrong(CloseCode, &'static str),
}

impl Codec {
    /// Understands a message.
    #[must_use]
    pub fn parse(self, message: Message) -> Parsed {
        let data = match message {
            Message::Binary(data) => data,
            Message::Text(text) => Bytes::from(text),
            Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => return Parsed::Nothing,
            Message::Close(_) => return Parsed::End,
        };
        let Some(first) = data.first().copied() else {
            return Parsed::Nothing;
        };
        let rest = data.slice(1..);
        match self {
            Self::Closing if first == CLOSE => match rest.as_ref() {
                [channel] => Parsed::Said(Said::Closed(u32::from(*channel))),
                _ => Parsed::Wrong(CloseCode::Protocol, "one channel is closed at a time"),
            },
            Self::Binary | Self::Closing => said(u32::from(first), rest),
            Self::Base64 => match STANDARD.decode(&rest) {
                Ok(decoded) => said(u32::from(first.wrapping_sub(b'0')), decoded.into()),
                Err(_) => Parsed::Wrong(CloseCode::Invalid, "data that are not base64"),
            },
        }
    }

    /// The message that says it; there is none for what only other transports can say.
    #[must_use]
    pub fn message(self, say: Say) -> Option<Message> {
        let Say::Data(channel, data) = say else {
            return None;
        };
        match self {
            Self::Binary | Self::Closing => {
                let mut bytes = BytesMut::with_capacity(data.len() + 1);
                bytes.put_u8(u8::try_from(channel).ok()?);
                bytes.extend_from_slice(&data);
                Some(Message::Binary(bytes.freeze()))
            }
            Self::Base64 => {
                let mut text = String::with_capacity(data.len().div_ceil(3) * 4 + 2);
                text.push(char::from_u32(channel + u32::from(b'0'))?);
                STANDARD.encode_string(&data, &mut text);
                Some(Message::Text(Utf8Bytes::from(text)))
            }
        }
    }
}

fn said(channel: u32, data: Bytes) -> Parsed {
    if data.is_empty() {
        return Parsed::Nothing;
    }
    Parsed::Said(Said::Data(channel, data))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn binary(codec: Codec, bytes: &[u8]) -> Parsed {
        codec.parse(Message::Binary(Bytes::copy_from_slice(bytes)))
    }

    fn data(channel: u32, text: &'static str) -> Parsed {
        Parsed::Said(Said::Data(channel, Bytes::from_static(text.as_bytes())))
    }

    #[test]
    fn the_first_byte_is_the_channel() {
        assert_eq!(binary(Codec::Binary, b"\x00hi"), data(STDIN, "hi"));
        assert_eq!(binary(Codec::Binary, b"\x00"), Parsed::Nothing);
        assert_eq!(binary(Codec::Binary, b""), Parsed::Nothing);
        assert_eq!(Codec::Binary.parse(Message::Close(None)), Parsed::End);
        let out = Say::Data(STDOUT, Bytes::from_static(b"x"));
        let message = Message::Binary(Bytes::from_static(b"\x01x"));
        assert_eq!(Codec::Closing.message(out), Some(message));
        assert_eq!(Codec::Closing.message(Say::Close(1)), None);
    }

    #[test]
    fn a_channel_is_closed_in_version_5_only() {
        let close = b"\xff\x00";
        assert_eq!(binary(Codec::Closing, close), Parsed::Said(Said::Closed(0)));
        assert_eq!(binary(Codec::Binary, close), data(255, "\0"));
        let two = binary(Codec::Closing, b"\xff\x00\x01");
        assert!(
            matches!(two, Parsed::Wrong(CloseCode::Protocol, _)),
            "{two:?}"
        );
    }

    #[test]
    fn base64_counts_channels_in_digits() {
        let text = |text: &'static str| Codec::Base64.parse(Message::Text(text.into()));
        assert_eq!(text("0Zm9v"), data(STDIN, "foo"));
        assert_eq!(text("4"), Parsed::Nothing);
        assert!(matches!(text("0?"), Parsed::Wrong(CloseCode::Invalid, _)));
        let out = Say::Data(STDERR, Bytes::from_static(b"foo"));
        assert_eq!(
            Codec::Base64.message(out),
            Some(Message::Text("2Zm9v".into()))
        );
    }
}
