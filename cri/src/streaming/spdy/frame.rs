// SPDX-License-Identifier: Apache-2.0
//! The frames of SPDY/3.1, in memory.

use std::fmt;

use bytes::Bytes;

use super::headers::Headers;

/// The version in control frames: SPDY/3.1 is framed as 3.
pub(super) const VERSION: u16 = 3;
/// The only flag of a data frame, and the one of control frames that says the sender's side ends.
pub(super) const FLAG_FIN: u8 = 1;
/// The stream has no direction back.
pub(super) const FLAG_UNIDIRECTIONAL: u8 = 2;

/// Why a stream is refused or cut (draft, section 2.6.3).
pub const PROTOCOL_ERROR: u32 = 1;
/// See [`PROTOCOL_ERROR`].
pub const REFUSED_STREAM: u32 = 3;
/// See [`PROTOCOL_ERROR`].
pub const CANCEL: u32 = 5;

/// The type numbers of control frames.
pub(super) mod number {
    pub(crate) const SYN_STREAM: u16 = 1;
    pub(crate) const SYN_REPLY: u16 = 2;
    pub(crate) const RST_STREAM: u16 = 3;
    pub(crate) const SETTINGS: u16 = 4;
    pub(crate) const PING: u16 = 6;
    pub(crate) const GOAWAY: u16 = 7;
    pub(crate) const HEADERS: u16 = 8;
    pub(crate) const WINDOW_UPDATE: u16 = 9;
}

/// One frame; of a data frame maybe a part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// A stream is opened.
    SynStream {
        /// Odd from clients, even from servers, growing.
        stream: u32,
        /// The sender will send no data.
        fin: bool,
        /// The receiver may send no data.
        unidirectional: bool,
        /// Names in lower case.
        headers: Headers,
    },
    /// A stream is accepted.
    SynReply {
        /// The stream.
        stream: u32,
        /// The sender will send no data.
        fin: bool,
        /// Names in lower case.
        headers: Headers,
    },
    /// A stream ends in both directions.
    RstStream {
        /// The stream.
        stream: u32,
        /// Why: [`CANCEL`] and others.
        status: u32,
    },
    /// Settings; none of them matters here, so they are not kept.
    Settings,
    /// Answered with itself, when it is of the other side.
    Ping {
        /// Odd from clients, even from servers.
        id: u32,
    },
    /// The sender wants no more streams.
    GoAway {
        /// The last stream that the sender has dealt with.
        last: u32,
        /// 0 is a farewell in peace.
        status: u32,
    },
    /// More headers of a stream.
    Headers {
        /// The stream.
        stream: u32,
        /// The sender will send no more data.
        fin: bool,
        /// Names in lower case.
        headers: Headers,
    },
    /// More may be sent; not used by anybody.
    WindowUpdate {
        /// The stream, or 0 for the connection.
        stream: u32,
        /// Bytes.
        delta: u32,
    },
    /// Data, a piece at a time.
    Data {
        /// The stream.
        stream: u32,
        /// With the last piece of the frame: the sender will send no more.
        fin: bool,
        /// At most what was given to the decoder at once.
        data: Bytes,
    },
}

/// What a peer did that ends the connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation(pub(super) String);

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Violation {}

impl From<&str> for Violation {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}
