// SPDX-License-Identifier: Apache-2.0
//! WebSocket: requests of any kind are agreed to or refused, and whatever frames a client sends, the
//! server's are well formed.

use cri::streaming::channels::Codec;
use cri::streaming::negotiate::{Kind, Wire, negotiate};
use http::{HeaderMap, HeaderName, HeaderValue};

use super::input::Input;
use super::spdy::answer;

/// The input is a request, raw bytes after the handshake, and a list of frames.
pub fn check(data: &[u8]) {
    request(data);
    for wire in [
        Wire::WebSocket(Codec::Binary),
        Wire::WebSocket(Codec::Closing),
        Wire::WebSocket(Codec::Base64),
        Wire::Tunnel,
    ] {
        well_formed(&answer(wire, data));
        well_formed(&answer(wire, &frames(data)));
    }
}

/// Lines with a name and a value.
fn request(data: &[u8]) {
    let mut headers = HeaderMap::new();
    for line in data.split(|byte| *byte == b'\n').take(50) {
        let mut parts = line.splitn(2, |byte| *byte == b':');
        let (name, value) = (parts.next(), parts.next());
        if let (Ok(name), Ok(value)) = (
            HeaderName::from_bytes(name.unwrap_or_default()),
            HeaderValue::from_bytes(value.unwrap_or_default()),
        ) {
            headers.append(name, value);
        }
    }
    for kind in [Kind::Process, Kind::Ports] {
        match negotiate(kind, &headers) {
            Ok(agreed) => assert!(agreed.headers.contains_key("upgrade")),
            Err(refusal) => {
                assert!(refusal.status.is_client_error() && refusal.text.ends_with('\n'))
            }
        }
    }
}

/// The input as masked frames of a client: a first byte, and a length with its payload.
fn frames(data: &[u8]) -> Vec<u8> {
    let (mut input, mut out) = (Input(data), Vec::new());
    while !input.is_empty() {
        let first = input.byte();
        let length = usize::from(input.byte());
        let payload = input.take(length);
        out.push(first);
        match payload.len() {
            // A byte of seven bits.
            short @ 0..126 => out.push(0x80 | short as u8),
            long => {
                out.push(0x80 | 126);
                out.extend_from_slice(&(long as u16).to_be_bytes());
            }
        }
        // A mask of zeros changes nothing.
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(payload);
    }
    out
}

/// Whole frames, not masked, of known kinds (RFC 6455, section 5.2).
fn well_formed(mut bytes: &[u8]) {
    while let [first, second, rest @ ..] = bytes {
        assert_eq!(first & 0x70, 0, "reserved bits");
        assert!(matches!(first & 0x0f, 0..=2 | 8..=10), "frame {first:#x}");
        assert_eq!(second & 0x80, 0, "a server masks nothing");
        let (length, rest) = match (second, rest) {
            (127, [a, b, c, d, e, f, g, h, rest @ ..]) => {
                (u64::from_be_bytes([*a, *b, *c, *d, *e, *f, *g, *h]), rest)
            }
            (126, [a, b, rest @ ..]) => (u64::from(u16::from_be_bytes([*a, *b])), rest),
            (short, rest) => (u64::from(*short), rest),
        };
        let length = usize::try_from(length).expect("short");
        bytes = rest.get(length..).expect("a whole frame");
    }
    assert!(bytes.is_empty(), "half a frame");
}
