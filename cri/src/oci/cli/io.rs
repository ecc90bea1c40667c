// SPDX-License-Identifier: Apache-2.0
//! What a new process gets from the caller, and what the caller gets of it: streams, descriptors,
//! the terminal, the process's id.

use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use shim::launch::Launched;
use shim::plan::ProcessPlan;
use shim::sys;

use super::{Attempt, Failure, Outcome};

/// Where a process's terminal goes must be known before, and only then.
pub(super) fn check_terminal(terminal: bool, detached: bool, socket: bool) -> Outcome<()> {
    if detached && terminal && !socket {
        return Err(Failure::new(
            "cannot allocate tty if podwright will detach without setting console socket",
        ));
    }
    if socket && !(detached && terminal) {
        return Err(Failure::new(
            "cannot use console socket if podwright will not detach or allocate tty",
        ));
    }
    Ok(())
}

/// Descriptors that a process gets beside its streams: systemd's sockets (sd_listen_fds(3)) when
/// they are for this process, then those of `--preserve-fds`.
///
/// Call it before anything else is opened: their numbers are those right after the streams.
pub(super) fn inherited(preserve: u32, activation: bool) -> Outcome<Inherited> {
    let sockets = if activation { listen_fds() } else { 0 };
    for number in 0..sockets.saturating_add(preserve) {
        let path = format!("/proc/self/fd/{}", u64::from(number) + 3);
        if number >= sockets && std::fs::symlink_metadata(&path).is_err() {
            return Err(Failure::new(format!(
                "unable to stat preserved-fd {} (of {preserve}): no such file or directory",
                number - sockets
            )));
        }
    }
    Ok(Inherited { sockets, preserve })
}

fn listen_fds() -> u32 {
    let number = |name| std::env::var(name).ok()?.parse::<u32>().ok();
    match number("LISTEN_PID") == Some(std::process::id()) {
        true => number("LISTEN_FDS").unwrap_or(0),
        false => 0,
    }
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Inherited {
    sockets: u32,
    preserve: u32,
}

impl Inherited {
    /// The first number that is none of theirs.
    pub(super) fn end(self) -> u32 {
        3 + self.sockets + self.preserve
    }

    pub(super) fn add_to(self, process: &mut ProcessPlan) {
        process.preserved_fds = self.sockets + self.preserve;
        if self.sockets > 0 {
            process.env.push(format!("LISTEN_FDS={}", self.sockets));
            process.env.push("LISTEN_PID=1".to_owned());
        }
    }
}

/// Sends what the caller listens for: the terminal's master side, and the process itself. `kind` is
/// what runc calls the process: `standard` or `setns`.
pub(super) fn hand_over(
    launched: &mut Launched,
    console: Option<&Path>,
    pidfd: Option<(&Path, &str)>,
) -> Outcome<()> {
    if let Some(socket) = console
        && let Some(master) = launched.terminal.take()
    {
        send(socket, "the terminal", b"/dev/ptmx", master.as_fd())?;
    }
    if let Some((socket, kind)) = pidfd {
        let process = launched.pidfd.as_fd();
        send(socket, "the process", kind.as_bytes(), process)?;
    }
    Ok(())
}

fn send(socket: &Path, what: &str, name: &[u8], fd: BorrowedFd<'_>) -> Outcome<()> {
    let attempt = || format!("sending {what} to {}", socket.display());
    let stream = UnixStream::connect(socket).attempt(attempt())?;
    sys::socket::send(stream.as_fd(), name, &[fd])
        .map_err(std::io::Error::from_raw_os_error)
        .attempt(attempt())
}

/// Written whole: whoever waits for the file must not read half a number.
pub(super) fn write_pid(path: Option<&Path>, pid: u32) -> Outcome<()> {
    let Some(path) = path else {
        return Ok(());
    };
    let temporary = path.with_extension(format!("{pid}.new"));
    std::fs::write(&temporary, pid.to_string())
        .and_then(|()| std::fs::rename(&temporary, path))
        .attempt(format_args!("writing {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_needs_a_place_to_go() {
        assert!(check_terminal(true, true, true).is_ok());
        assert!(check_terminal(true, false, false).is_ok());
        assert!(check_terminal(false, true, false).is_ok());
        for (terminal, detached, socket) in [
            (true, true, false),
            (true, false, true),
            (false, true, true),
        ] {
            assert!(check_terminal(terminal, detached, socket).is_err());
        }
    }

    #[test]
    fn a_descriptor_that_is_not_there_is_named() {
        let refused = inherited(4000, false).expect_err("not so many are open");
        assert!(refused.message.contains("(of 4000)"), "{}", refused.message);
    }
}
