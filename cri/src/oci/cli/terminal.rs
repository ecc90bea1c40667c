// SPDX-License-Identifier: Apache-2.0
//! A container's terminal on our own: raw mode, both directions, and the size.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::sys::termios::{self, OutputFlags, SetArg, Termios};
use shim::launch::Launched;
use shim::sys::{self, events};

use super::{Attempt, Outcome};

/// As much as a terminal holds.
const BUFFER: usize = 4096;

/// Carries bytes between our streams and a terminal's master side until it is dropped, which gives
/// our terminal its mode back.
pub(super) struct Relay {
    ours: Ours,
    master: File,
    /// Typed, not yet taken by the container.
    input: Vec<u8>,
    input_ended: bool,
    output_ended: bool,
}

/// Our own terminal, and how it was.
struct Ours {
    terminal: OwnedFd,
    before: Termios,
}

impl Drop for Ours {
    fn drop(&mut self) {
        // Fails only when the terminal is gone.
        let _ = termios::tcsetattr(&self.terminal, SetArg::TCSADRAIN, &self.before);
    }
}

impl Relay {
    /// For a process in the foreground that has a terminal. Called before it is let go, so that it
    /// finds its terminal in the right size.
    pub(super) fn of(launched: &mut Launched) -> Outcome<Option<Relay>> {
        launched.terminal.take().map(Relay::start).transpose()
    }

    fn start(master: OwnedFd) -> Outcome<Relay> {
        let terminal = find()?;
        let before = termios::tcgetattr(&terminal).attempt("reading the terminal's mode")?;
        let mut raw = before.clone();
        termios::cfmakeraw(&mut raw);
        // As with runc, our terminal completes the ends of lines, not the container's: output that
        // goes to a file has them as the program wrote them.
        raw.output_flags.insert(OutputFlags::OPOST);
        let mut theirs = termios::tcgetattr(&master).attempt("reading the container's terminal")?;
        theirs.output_flags.remove(OutputFlags::ONLCR);
        termios::tcsetattr(&master, SetArg::TCSANOW, &theirs)
            .attempt("setting the container's terminal")?;
        termios::tcsetattr(&terminal, SetArg::TCSANOW, &raw).attempt("setting raw mode")?;
        let ours = Ours { terminal, before };
        sys::set_nonblocking(master.as_fd())
            .map_err(std::io::Error::from_raw_os_error)
            .attempt("preparing the terminal")?;
        let relay = Relay {
            ours,
            master: File::from(master),
            input: Vec::new(),
            input_ended: false,
            output_ended: false,
        };
        relay.resize();
        Ok(relay)
    }

    /// What to wait for before the next [`turn`](Self::turn).
    pub(super) fn interests(&self) -> Vec<libc::pollfd> {
        let mut wanted = Vec::with_capacity(2);
        if !self.input_ended && self.input.is_empty() {
            wanted.push(events::interest(sys::stdio(0), libc::POLLIN));
        }
        let mut master = 0;
        if !self.output_ended {
            master |= libc::POLLIN;
        }
        if !self.input.is_empty() {
            master |= libc::POLLOUT;
        }
        if master != 0 {
            wanted.push(events::interest(self.master.as_fd(), master));
        }
        wanted
    }

    /// Moves what there is. It never waits, except for our own stdout.
    pub(super) fn turn(&mut self) {
        if self.input.is_empty() && !self.input_ended && readable(sys::stdio(0)) {
            let mut buffer = [0; BUFFER];
            match sys::read(sys::stdio(0), &mut buffer) {
                Ok(0) => self.input_ended = true,
                Ok(count) => self.input.extend_from_slice(&buffer[..count]),
                Err(libc::EAGAIN | libc::EINTR) => {}
                Err(_) => self.input_ended = true,
            }
        }
        if !self.input.is_empty() {
            match self.master.write(&self.input) {
                Ok(count) => drop(self.input.drain(..count)),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                // The container has closed its terminal: there is nobody to type to.
                Err(_) => self.input.clear(),
            }
        }
        self.output();
    }

    /// One buffer of output; whether there was any.
    fn output(&mut self) -> bool {
        if self.output_ended {
            return false;
        }
        let mut buffer = [0; BUFFER];
        match self.master.read(&mut buffer) {
            Ok(count) if count > 0 => {
                let mut stdout = std::io::stdout();
                // A reader that is gone must not end the container.
                let _ = stdout.write_all(&buffer[..count]);
                let _ = stdout.flush();
                true
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => false,
            // EIO: nobody has the other side open any more.
            _ => {
                self.output_ended = true;
                false
            }
        }
    }

    /// What the container has written before it ended.
    pub(super) fn finish(mut self) {
        while self.output() {}
    }

    /// Gives the container's terminal the size of ours.
    pub(super) fn resize(&self) {
        // A terminal that is gone has no size.
        if let Ok((columns, rows)) = sys::window_size(self.ours.terminal.as_fd()) {
            let _ = sys::set_window_size(self.master.as_fd(), columns, rows);
        }
    }
}

fn readable(fd: BorrowedFd<'_>) -> bool {
    events::wait_readable(fd, 0).unwrap_or(false)
}

/// The first of our streams that is a terminal, else the one that controls this process.
fn find() -> Outcome<OwnedFd> {
    for number in [2, 1, 0] {
        let stream = sys::stdio(number);
        if nix::unistd::isatty(stream).unwrap_or(false) {
            return sys::dup_above_stdio(stream)
                .map_err(std::io::Error::from_raw_os_error)
                .attempt("copying the terminal");
        }
    }
    let mut options = File::options();
    let terminal = options.read(true).write(true).open("/dev/tty");
    terminal
        .map(OwnedFd::from)
        .attempt("process.terminal: this process has none: opening /dev/tty")
}
