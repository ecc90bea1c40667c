// SPDX-License-Identifier: Apache-2.0
//! The master side of a terminal: a stream to read, one to write, and its size.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use tokio::net::unix::pipe;

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
