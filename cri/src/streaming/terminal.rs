// SPDX-License-Identifier: Apache-2.0
//! The master side of a terminal: a stream to read, one to write, and its size.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use tokio::net::unix::pipe;

/// A size is about 25 bytes; what is longer and is none yet will never be one.
const SIZE_BYTES_MAX: usize = 1 << 10;

/// The master side of an exec's terminal.
#[derive(Debug)]
pub(super) struct Terminal(OwnedFd);

impl Terminal {
    /// Takes the descriptor over and makes it non-blocking.
    ///
    /// # Errors
    /// When it is not open.
    pub(super) fn new(master: OwnedFd) -> io::Result<Self> {
        let flags = OFlag::from_bits_truncate(fcntl(&master, FcntlArg::F_GETFL)?);
        fcntl(&master, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        Ok(Self(master))
    }

    /// What the processes on the terminal write. Ends with EIO when the last of them closes it (pty(7)).
    /// tokio's pipe types serve any pollable descriptor; only the check for a pipe is left out.
    ///
    /// # Errors
    /// When there are no descriptors left.
    pub(super) fn output(&self) -> io::Result<pipe::Receiver> {
        pipe::Receiver::from_owned_fd_unchecked(self.0.try_clone()?)
    }

    /// What is typed.
    ///
    /// # Errors
    /// When there are no descriptors left.
    pub(super) fn input(&self) -> io::Result<pipe::Sender> {
        pipe::Sender::from_owned_fd_unchecked(self.0.try_clone()?)
    }

    /// # Errors
    /// When the terminal is gone.
    pub(super) fn resize(&self, columns: u16, rows: u16) -> io::Result<()> {
        super::sys::set_terminal_size(self.0.as_fd(), columns, rows)
    }
}

/// Terminal sizes as clients send them: JSON objects, one after the other, in pieces of any kind.
#[derive(Debug, Default)]
pub(super) struct Sizes {
    rest: Vec<u8>,
}

#[derive(serde::Deserialize)]
struct Size {
    #[serde(alias = "width", rename = "Width")]
    width: u16,
    #[serde(alias = "height", rename = "Height")]
    height: u16,
}

impl Sizes {
    /// The newest size, as columns and rows.
    pub(super) fn push(&mut self, data: &[u8]) -> Option<(u16, u16)> {
        self.rest.extend_from_slice(data);
        let mut sizes = serde_json::Deserializer::from_slice(&self.rest).into_iter::<Size>();
        let (mut newest, mut read) = (None, 0);
        let broken = loop {
            match sizes.next() {
                Some(Ok(size)) => {
                    newest = Some((size.width, size.height));
                    read = sizes.byte_offset();
                }
                Some(Err(error)) => break !error.is_eof(),
                None => break false,
            }
        };
        self.rest.drain(..read);
        if broken || self.rest.len() > SIZE_BYTES_MAX {
            self.rest.clear();
        }
        newest.filter(|(columns, rows)| *columns > 0 && *rows > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_json_in_pieces() {
        let mut sizes = Sizes::default();
        assert_eq!(sizes.push(br#"{"Width":80,"Height":24}"#), Some((80, 24)));
        assert_eq!(sizes.push(br#"{"Width":1,"Hei"#), None);
        assert_eq!(
            sizes.push(b"ght\":2}\n{\"Width\":3,\"Height\":4}\n"),
            Some((3, 4))
        );
        assert_eq!(sizes.push(br#"{"Width":0,"Height":24}"#), None);
        assert_eq!(sizes.push(b"junk"), None);
        assert_eq!(sizes.push(br#"{"width":80,"height":24}"#), Some((80, 24)));
        assert_eq!(sizes.push(&[b'['; 2 << 10]), None);
        assert_eq!(sizes.push(br#"{"Width":80,"Height":24}"#), Some((80, 24)));
    }
}
