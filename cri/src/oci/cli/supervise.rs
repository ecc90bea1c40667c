// SPDX-License-Identifier: Apache-2.0
//! Waits for a process in the foreground: passes signals on to it, relays its terminal, and reaps
//! what is orphaned.

use std::os::fd::{AsFd, OwnedFd};

use shim::launch::Launched;
use shim::sys::{self, events};

use super::notify::Listening;
use super::terminal::Relay;
use super::{Attempt, Outcome};

/// The last signal that there is; those from 32 on are real-time signals.
const SIGNALS: std::ops::RangeInclusive<i32> = 1..=64;
/// What is not for the process: what cannot be caught, what this process itself has done wrong, and
/// SIGPIPE, which is ours when a reader of our output is gone.
const NOT_PASSED_ON: [i32; 10] = [
    libc::SIGKILL,
    libc::SIGSTOP,
    libc::SIGSEGV,
    libc::SIGBUS,
    libc::SIGFPE,
    libc::SIGILL,
    libc::SIGTRAP,
    libc::SIGSYS,
    libc::SIGPIPE,
    libc::SIGURG,
];
/// `struct signalfd_siginfo`, whose first word is the signal's number.
const SIGNAL_INFO: usize = 128;

/// Signals that are taken from now on instead of ending this process.
#[derive(Debug)]
pub(super) struct Signals(OwnedFd);

impl Signals {
    pub(super) fn block() -> Outcome<Signals> {
        let all: Vec<i32> = SIGNALS
            .filter(|signal| !NOT_PASSED_ON.contains(signal))
            .collect();
        events::signal_descriptor(&all)
            .map(Signals)
            .map_err(std::io::Error::from_raw_os_error)
            .attempt("listening for signals")
    }

    fn next(&self) -> Option<i32> {
        let mut info = [0; SIGNAL_INFO];
        sys::read(self.0.as_fd(), &mut info).ok()?;
        let [a, b, c, d, ..] = info;
        Some(i32::from_ne_bytes([a, b, c, d]))
    }
}

/// The exit code of the process; 128 + signal when a signal ended it.
pub(super) fn until_exit(
    launched: &Launched,
    signals: Signals,
    mut relay: Option<Relay>,
    mut notify: Option<Listening>,
) -> Outcome<u8> {
    loop {
        let mut fds = vec![
            events::interest(launched.pidfd.as_fd(), libc::POLLIN),
            events::interest(signals.0.as_fd(), libc::POLLIN),
        ];
        fds.extend(notify.as_ref().map(Listening::interest));
        if let Some(relay) = &relay {
            fds.extend(relay.interests());
        }
        events::poll(&mut fds, -1)
            .map_err(std::io::Error::from_raw_os_error)
            .attempt("waiting")?;
        while let Some(signal) = signals.next() {
            take(signal, launched, relay.as_ref());
        }
        if let Some(listening) = &notify
            && listening.forward(std::process::id())?
        {
            notify = None;
        }
        if let Some(relay) = &mut relay {
            relay.turn();
        }
        if let Some(code) = reap(launched.pid)? {
            if let Some(relay) = relay {
                relay.finish();
            }
            return Ok(code);
        }
    }
}

fn take(signal: i32, launched: &Launched, relay: Option<&Relay>) {
    match signal {
        libc::SIGCHLD => {}
        libc::SIGWINCH => {
            if let Some(relay) = relay {
                relay.resize();
            }
        }
        // Fails only when it has just ended.
        _ => drop(sys::pidfd_send_signal(launched.pidfd.as_fd(), signal)),
    }
}

/// Collects whatever has ended; the code when the process itself is among it.
fn reap(pid: u32) -> Outcome<Option<u8>> {
    let mut code = None;
    while let Some(ended) = sys::reap(None, false)
        .map_err(std::io::Error::from_raw_os_error)
        .attempt("waiting")?
    {
        if ended.pid == pid {
            code = Some(u8::try_from(ended.code).unwrap_or(u8::MAX));
        }
    }
    Ok(code)
}
