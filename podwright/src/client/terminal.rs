// SPDX-License-Identifier: Apache-2.0
//! The local terminal: raw while a remote one is shown on it, and its size.

use std::io::{self, IsTerminal as _};

use nix::sys::termios::{self, SetArg, Termios};

/// Restores the terminal when dropped, also when the command fails.
pub(crate) struct Raw {
    before: Termios,
}

impl Raw {
    /// Makes stdin raw, if it is a terminal.
    ///
    /// # Errors
    /// Those of `tcgetattr` and `tcsetattr`.
    pub(crate) fn enter() -> io::Result<Option<Self>> {
        let stdin = io::stdin();
        if !stdin.is_terminal() {
            return Ok(None);
        }
        let before = termios::tcgetattr(&stdin)?;
        let mut raw = before.clone();
        termios::cfmakeraw(&mut raw);
        termios::tcsetattr(&stdin, SetArg::TCSADRAIN, &raw)?;
        Ok(Some(Self { before }))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // Nothing can be done about a terminal that is gone.
        let _ = termios::tcsetattr(io::stdin(), SetArg::TCSADRAIN, &self.before);
    }
}
