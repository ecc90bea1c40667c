// SPDX-License-Identifier: Apache-2.0
//! Frames to bytes.

use bytes::{BufMut, BytesMut};

use super::frame::{FLAG_FIN, FLAG_UNIDIRECTIONAL, Frame, VERSION, number};
use super::headers::{Headers, Packer};

/// The sending end of a connection.
#[derive(Debug, Default)]
pub struct Encoder {
    packer: Packer,
}

impl Encoder {
    /// Appends a frame. Data must be shorter than 16 MiB.
    pub fn encode(&mut self, frame: &Frame, out: &mut BytesMut) {
        match frame {
            Frame::SynStream {
                stream,
                fin,
                unidirectional,
                headers,
            } => {
                let flags = fin_flag(*fin)
                    | if *unidirectional {
                        FLAG_UNIDIRECTIONAL
                    } else {
                        0
                    };
                self.with_headers(number::SYN_STREAM, flags, *stream, &[0; 6], headers, out);
            }
            Frame::SynReply {
                stream,
                fin,
                headers,
            } => self.with_headers(
                number::SYN_REPLY,
                fin_flag(*fin),
                *stream,
                &[],
                headers,
                out,
            ),
            Frame::Headers {
                stream,
                fin,
                headers,
            } => self.with_headers(number::HEADERS, fin_flag(*fin), *stream, &[], headers, out),
            Frame::RstStream { stream, status } => {
                words(number::RST_STREAM, &[*stream, *status], out)
            }
            Frame::Settings => words(number::SETTINGS, &[0], out),
            Frame::Ping { id } => words(number::PING, &[*id], out),
            Frame::GoAway { last, status } => words(number::GOAWAY, &[*last, *status], out),
            Frame::WindowUpdate { stream, delta } => {
                words(number::WINDOW_UPDATE, &[*stream, *delta], out);
            }
            Frame::Data { stream, fin, data } => {
                out.put_u32(*stream);
                out.put_u32(u32::from(fin_flag(*fin)) << 24 | length(data.len()));
                out.extend_from_slice(data);
            }
        }
    }

    fn with_headers(
        &mut self,
        kind: u16,
        flags: u8,
        stream: u32,
        between: &[u8],
        headers: &Headers,
        out: &mut BytesMut,
    ) {
        let start = out.len();
        head(kind, flags, 0, out);
        out.put_u32(stream);
        out.extend_from_slice(between);
        self.packer.pack(headers, out);
        let size = length(out.len() - start - 8);
        out[start + 5..start + 8].copy_from_slice(&size.to_be_bytes()[1..]);
    }
}

fn fin_flag(fin: bool) -> u8 {
    if fin { FLAG_FIN } else { 0 }
}

/// A length as 24 bits. Nothing longer is ever written.
fn length(bytes: usize) -> u32 {
    debug_assert!(bytes < 1 << 24);
    (bytes & 0x00ff_ffff) as u32
}

fn head(kind: u16, flags: u8, length: u32, out: &mut BytesMut) {
    out.put_u16(0x8000 | VERSION);
    out.put_u16(kind);
    out.put_u32(u32::from(flags) << 24 | length);
}

fn words(kind: u16, words: &[u32], out: &mut BytesMut) {
    head(kind, 0, length(words.len() * 4), out);
    for word in words {
        out.put_u32(*word);
    }
}
