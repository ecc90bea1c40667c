// SPDX-License-Identifier: Apache-2.0
//! A network and mount namespace per test, and small tools inside.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};

/// Run `test` on a thread with new network and mount namespaces of its own. Threads that it starts
/// inherit them; they are gone with the last of these.
pub(crate) fn in_new_host<T: Send + 'static>(test: impl FnOnce() -> T + Send + 'static) -> T {
    let thread = std::thread::spawn(|| {
        // A thread shares root and working directory with its process; a new mount namespace
        // needs its own.
        unshare(CloneFlags::CLONE_FS).expect("unshare fs");
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).expect("these tests need root");
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(None::<&str>, "/", None::<&str>, private, None::<&str>).expect("private mounts");
        run("ip", &["link", "set", "lo", "up"]);
        test()
    });
    match thread.join() {
        Ok(value) => value,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

/// A folder of the test's own. The namespaces that are held in it go with it.
pub(crate) struct Dir(tempfile::TempDir);

impl Dir {
    pub(crate) fn new() -> Dir {
        Dir(tempfile::tempdir().expect("a directory"))
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let mounts = std::fs::read_to_string("/proc/thread-self/mountinfo").unwrap_or_default();
        let points = mounts.lines().filter_map(|line| line.split(' ').nth(4));
        // A file that something is mounted on cannot be removed.
        for point in points.filter(|point| Path::new(point).starts_with(self.path())) {
            let _ = umount2(point, MntFlags::MNT_DETACH);
        }
    }
}

/// Run a program in the namespaces of this thread, and return what it printed.
pub(crate) fn run(program: &str, args: &[&str]) -> String {
    let out = Command::new(program).args(args).output().expect(program);
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let error = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{program} {args:?}: {text}{error}");
    text
}

/// Serve TCP on `address` in this thread's namespace: each connection gets `name` and the address
/// that the peer has. The server ends with the process.
pub(crate) fn serve_tcp(address: SocketAddr, name: &'static str) {
    let listener = TcpListener::bind(address).expect("bind");
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.expect("accept");
            let peer = stream.peer_addr().expect("peer");
            let _ = write!(stream, "{name} {}", peer.ip());
        }
    });
}

/// Answer UDP datagrams on `address` with `name` and the sender's address.
pub(crate) fn serve_udp(address: SocketAddr, name: &'static str) {
    let socket = UdpSocket::bind(address).expect("bind");
    std::thread::spawn(move || {
        let mut buffer = [0; 100];
        while let Ok((_, from)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(format!("{name} {}", from.ip()).as_bytes(), from);
        }
    });
}

/// Connect from this thread's namespace and return what the server says.
pub(crate) fn ask_tcp(address: SocketAddr) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(3))?;
    stream.set_read_timeout(Some(Duration::from_secs(3)))?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

/// Send a datagram from this thread's namespace and return the answer.
pub(crate) fn ask_udp(socket: &UdpSocket, address: SocketAddr) -> std::io::Result<String> {
    socket.set_read_timeout(Some(Duration::from_secs(2)))?;
    socket.send_to(b"?", address)?;
    let mut buffer = [0; 100];
    let (length, _) = socket.recv_from(&mut buffer)?;
    Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
}
