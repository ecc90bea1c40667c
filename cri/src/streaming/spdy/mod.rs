// SPDX-License-Identifier: Apache-2.0
//! SPDY/3.1, the server's side of what kubectl, crictl and kubelets speak (SPDY Protocol, draft 3.1).
//!
//! [`decode`] turns bytes into frames, [`session`] keeps what is known of streams and decides, [`encode`]
//! turns frames into bytes: none of them does I/O. `connection` carries them over a socket.
//!
//! There is no flow control. The peers in use (moby/spdystream) send no window updates and wait for
//! none, so a sender that kept to the windows of the draft would stop after 64 KiB. What bounds memory
//! is that nothing is read from the connection while what came before waits for its consumer.

pub(crate) mod connection;
pub mod decode;
mod dictionary;
pub mod encode;
pub mod frame;
pub mod headers;
pub mod session;
