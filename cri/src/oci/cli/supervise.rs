// SPDX-License-Identifier: Apache-2.0
//! Waits for a process in the foreground, and passes signals on to it.

use std::os::fd::AsFd;

use shim::launch::Launched;
use shim::sys::{self, events};

use super::{Attempt, Outcome};

const PASSED_ON: [i32; 6] = [
    libc::SIGTERM,
    libc::SIGINT,
    libc::SIGHUP,
    libc::SIGQUIT,
    libc::SIGUSR1,
    libc::SIGUSR2,
];
/// `struct signalfd_siginfo`, whose first word is the signal's number.
const SIGNAL_INFO: usize = 128;

/// The exit code of the process; 128 + signal when a signal ended it.
pub(super) fn until_exit(launched: &Launched) -> Outcome<u8> {
    let raw = std::io::Error::from_raw_os_error;
    let signals = events::signal_descriptor(&PASSED_ON)
        .map_err(raw)
        .attempt("listening for signals")?;
    loop {
        let mut fds =
            [&launched.pidfd, &signals].map(|fd| events::interest(fd.as_fd(), libc::POLLIN));
        events::poll(&mut fds, -1).map_err(raw).attempt("waiting")?;
        let mut info = [0; SIGNAL_INFO];
        if fds[1].revents != 0 && sys::read(signals.as_fd(), &mut info).is_ok() {
            let [a, b, c, d, ..] = info;
            let signal = i32::from_ne_bytes([a, b, c, d]);
            // Fails only when it has just ended.
            let _ = sys::pidfd_send_signal(launched.pidfd.as_fd(), signal);
        }
        if fds[0].revents != 0 {
            let ended = sys::reap(Some(launched.pid), true).map_err(raw);
            let ended = ended.attempt("waiting")?;
            let code = ended.map_or(0, |ended| ended.code);
            return Ok(u8::try_from(code).unwrap_or(u8::MAX));
        }
    }
}
