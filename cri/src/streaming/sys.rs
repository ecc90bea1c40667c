// SPDX-License-Identifier: Apache-2.0
//! The one system call of this module that has no safe wrapper here: setting a terminal's size.
#![expect(unsafe_code, reason = "ioctl TIOCSWINSZ has no safe wrapper in nix")]

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};

/// Sets the size of the terminal behind `master` (ioctl_tty(2)).
///
/// # Errors
/// When it is no terminal.
pub(super) fn set_terminal_size(master: BorrowedFd<'_>, columns: u16, rows: u16) -> io::Result<()> {
    let size = libc::winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: TIOCSWINSZ reads one `winsize` through the pointer and keeps nothing; `size` lives
    // until the call returns, and the borrowed descriptor is open for as long.
    let result = unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
