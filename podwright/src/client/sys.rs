// SPDX-License-Identifier: Apache-2.0
//! The one system call that no safe wrapper among our crates has.
#![expect(
    unsafe_code,
    reason = "TIOCGWINSZ is an ioctl that writes through a pointer"
)]

use std::io;
use std::os::fd::AsRawFd as _;

/// Columns and rows of the terminal on stdout; `None` if it is not one (ioctl_tty(2)).
pub(super) fn window_size() -> Option<(u16, u16)> {
    let mut size = libc::winsize {
        ws_row: 0,
        ws_col: 0,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    let stdout = io::stdout();
    // SAFETY: TIOCGWINSZ writes one `winsize` through the pointer, which is valid for that and for
    // the length of the call; the descriptor is stdout's, which this process never closes.
    let result = unsafe { libc::ioctl(stdout.as_raw_fd(), libc::TIOCGWINSZ, &mut size) };
    (result == 0 && size.ws_col > 0).then_some((size.ws_col, size.ws_row))
}
