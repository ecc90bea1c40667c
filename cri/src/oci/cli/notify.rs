// SPDX-License-Identifier: Apache-2.0
//! sd_notify(3) from within a container: with `NOTIFY_SOCKET` in our environment, the container gets
//! a socket of its own, and its `READY=1` is passed on to systemd with the process's id.

use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::{Path, PathBuf};

use oci_spec::runtime::Spec;
use serde_json::json;
use shim::sys::{self, events};

use super::{Attempt, Outcome};

const IN_CONTAINER: &str = "/run/notify";
const SOCKET: &str = "notify.sock";
/// How long systemd may take to confirm; runc's value.
const BARRIER_MS: i32 = 30_000;

/// A socket that is still to be made.
#[derive(Debug, Clone)]
pub(super) struct Notify {
    /// Systemd's.
    host: String,
    /// Directory of the container's.
    directory: PathBuf,
}

/// The container's socket, which its first message is awaited at.
#[derive(Debug)]
pub(super) struct Listening {
    host: String,
    socket: UnixDatagram,
}

impl Notify {
    pub(super) fn of_environment(container: &Path) -> Option<Notify> {
        let host = std::env::var("NOTIFY_SOCKET").ok()?;
        (!host.is_empty()).then(|| Notify {
            host,
            directory: container.join("notify"),
        })
    }

    /// Only the directory is bound into the container: the socket is made by `start`.
    pub(super) fn add_to(&self, spec: &mut Spec) {
        let mount = json!({"destination": IN_CONTAINER, "type": "bind", "source": self.directory,
            "options": ["bind", "nosuid", "noexec", "nodev", "ro"]});
        if let Ok(mount) = serde_json::from_value(mount) {
            let mut mounts = spec.mounts().clone().unwrap_or_default();
            mounts.push(mount);
            spec.set_mounts(Some(mounts));
        }
        if let Some(process) = spec.process_mut() {
            let mut env = process.env().clone().unwrap_or_default();
            env.push(format!("NOTIFY_SOCKET={IN_CONTAINER}/{SOCKET}"));
            process.set_env(Some(env));
        }
    }

    pub(super) fn make_directory(&self) -> Outcome<()> {
        std::fs::create_dir(&self.directory)
            .attempt(format_args!("creating {}", self.directory.display()))
    }

    pub(super) fn listen(self) -> Outcome<Listening> {
        let path = self.directory.join(SOCKET);
        let attempt = || format!("listening at {}", path.display());
        let socket = UnixDatagram::bind(&path).attempt(attempt())?;
        // The container's user is anybody.
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o777))
            .attempt(attempt())?;
        socket.set_nonblocking(true).attempt(attempt())?;
        Ok(Listening {
            host: self.host,
            socket,
        })
    }
}

impl Listening {
    pub(super) fn interest(&self) -> libc::pollfd {
        events::interest(self.socket.as_fd(), libc::POLLIN)
    }

    /// Waits for the container to be ready, or to end.
    pub(super) fn wait_and_forward(&self, process: BorrowedFd<'_>, pid: u32) -> Outcome<()> {
        loop {
            let mut fds = [self.interest(), events::interest(process, libc::POLLIN)];
            events::poll(&mut fds, -1)
                .map_err(std::io::Error::from_raw_os_error)
                .attempt("waiting for the container to be ready")?;
            if self.forward(pid)? || fds[1].revents != 0 {
                return Ok(());
            }
        }
    }

    /// Passes on what has come; whether that said that the container is ready.
    pub(super) fn forward(&self, pid: u32) -> Outcome<bool> {
        let mut buffer = [0; 4096];
        while let Ok(length) = self.socket.recv(&mut buffer) {
            let message = buffer.get(..length).unwrap_or_default();
            let mut lines = message.split(|byte| *byte == b'\n');
            if let Some(line) = lines.find(|line| line.starts_with(b"READY=")) {
                return self.tell(line, pid).map(|()| true);
            }
        }
        Ok(false)
    }

    fn tell(&self, ready: &[u8], pid: u32) -> Outcome<()> {
        let attempt = || format!("notifying {}", self.host);
        let host = UnixDatagram::unbound().attempt(attempt())?;
        let address = match self.host.strip_prefix('@') {
            Some(name) => SocketAddr::from_abstract_name(name),
            None => SocketAddr::from_pathname(&self.host),
        };
        address
            .and_then(|address| host.connect_addr(&address))
            .attempt(attempt())?;
        host.send(&[ready, b"\n"].concat()).attempt(attempt())?;
        host.send(format!("MAINPID={pid}\n").as_bytes())
            .attempt(attempt())?;
        barrier(&host).attempt(attempt())
    }
}

/// Systemd closes the descriptor once it has read everything before (sd_notify_barrier(3)).
fn barrier(host: &UnixDatagram) -> std::io::Result<()> {
    let raw = std::io::Error::from_raw_os_error;
    let (mut ours, theirs) = std::io::pipe()?;
    let theirs = OwnedFd::from(theirs);
    sys::socket::send(host.as_fd(), b"BARRIER=1", &[theirs.as_fd()]).map_err(raw)?;
    drop(theirs);
    // Others than systemd may not know the barrier: that is no failure.
    if events::wait_readable(ours.as_fd(), BARRIER_MS).map_err(raw)? {
        let mut end = [0];
        let _ = ours.read(&mut end)?;
    }
    Ok(())
}
