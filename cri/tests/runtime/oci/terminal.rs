// SPDX-License-Identifier: Apache-2.0
//! Terminals: on the caller's own, and sent to a socket.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, channel};

use nix::pty::{OpenptyResult, openpty};
use nix::sys::signal::{Signal, kill};
use nix::sys::termios::{LocalFlags, tcgetattr};
use serde_json::json;

use super::{Bundle, wait_for};

/// A command on a terminal, from the side of the person at it.
struct Person {
    master: File,
    /// Held, so that its mode can be looked at after the command.
    slave: OwnedFd,
    child: Child,
    seen: Receiver<Vec<u8>>,
    text: String,
}

impl Person {
    fn at(bundle: &Bundle, arguments: &[&str]) -> Person {
        let OpenptyResult { master, slave } = openpty(None, None).expect("a terminal");
        let stream = || Stdio::from(slave.try_clone().expect("clones"));
        shim::sys::set_window_size(master.as_fd(), 81, 25).expect("resizes");
        let mut command = bundle.command(arguments);
        command.stdin(stream()).stdout(stream()).stderr(stream());
        let child = command.spawn().expect("runs");
        let master = File::from(master);
        let mut reader = master.try_clone().expect("clones");
        let (sender, seen) = channel();
        std::thread::spawn(move || {
            let mut buffer = [0; 1024];
            while let Ok(count) = reader.read(&mut buffer) {
                if count == 0 || sender.send(buffer[..count].to_vec()).is_err() {
                    return;
                }
            }
        });
        Person {
            master,
            slave,
            child,
            seen,
            text: String::new(),
        }
    }

    fn sees(&mut self, expected: &str) {
        while !self.text.contains(expected) {
            let piece = self.seen.recv_timeout(crate::pod::DEADLINE);
            let piece = piece.unwrap_or_else(|_| panic!("never {expected:?}: {:?}", self.text));
            self.text.push_str(&String::from_utf8_lossy(&piece));
        }
    }

    fn types(&mut self, text: &str) {
        self.master.write_all(text.as_bytes()).expect("types");
    }

    fn canonical(&self) -> bool {
        let mode = tcgetattr(&self.slave).expect("a terminal");
        mode.local_flags.contains(LocalFlags::ICANON)
    }

    fn resizes(&self, columns: u16, rows: u16) {
        shim::sys::set_window_size(self.master.as_fd(), columns, rows).expect("resizes");
        let pid = i32::try_from(self.child.id()).expect("a pid");
        kill(nix::unistd::Pid::from_raw(pid), Signal::SIGWINCH).expect("signals");
    }
}

const DIALOGUE: &str = "stty size; read line; echo got $line; \
    while [ \"$(stty size)\" != '40 100' ]; do sleep 0.05; done; echo resized; exit 7";

fn dialogue(person: &mut Person) {
    person.sees("25 81");
    wait_for("raw mode", || !person.canonical());
    person.types("hello\r");
    person.sees("got hello");
    person.resizes(100, 40);
    person.sees("resized");
    assert_eq!(person.child.wait().expect("ends").code(), Some(7));
    assert!(person.canonical(), "the mode is given back");
}

#[test]
fn run_relays_the_callers_own_terminal() {
    let bundle = Bundle::new(DIALOGUE, &[("/process/terminal", json!(true))]);
    dialogue(&mut Person::at(
        &bundle,
        &["run", "-b", bundle.bundle(), &bundle.id],
    ));
    bundle.nothing_left();
}

#[test]
fn exec_relays_the_callers_own_terminal() {
    let bundle = Bundle::new("sleep 1000", &[]).started();
    let arguments = ["exec", "-t", &bundle.id, "sh", "-c", DIALOGUE];
    dialogue(&mut Person::at(&bundle, &arguments));
}

#[test]
fn control_c_is_the_containers() {
    let script = "trap 'echo interrupted; exit 5' INT; echo ready; while :; do sleep 0.05; done";
    let bundle = Bundle::new(script, &[("/process/terminal", json!(true))]);
    let mut person = Person::at(&bundle, &["run", "-b", bundle.bundle(), &bundle.id]);
    person.sees("ready");
    wait_for("raw mode", || !person.canonical());
    person.types("\x03");
    person.sees("interrupted");
    assert_eq!(person.child.wait().expect("ends").code(), Some(5));
}

#[test]
fn a_terminal_is_sent_to_the_callers_socket() {
    let bundle = Bundle::new("tty; sleep 1000", &[("/process/terminal", json!(true))]);
    let path = bundle.path("console.sock");
    let socket = path.to_str().expect("utf-8");
    let listener = UnixListener::bind(&path).expect("binds");
    let received = || {
        let (stream, _) = listener.accept().expect("accepts");
        let (_, fds) = shim::sys::socket::receive(stream.as_fd(), &mut [0; 64]).expect("receives");
        let master = fds.into_iter().flatten().next().expect("a descriptor");
        let mut text = vec![0; 64];
        let count = File::from(master).read(&mut text).expect("reads");
        String::from_utf8_lossy(&text[..count]).into_owned()
    };
    let create = ["create", "--console-socket", socket, "-b", bundle.bundle()];
    bundle.ok(&[&create[..], &[&bundle.id]].concat());
    bundle.ok(&["start", &bundle.id]);
    assert!(received().starts_with("/dev/"), "it prints its name");
    let exec = [
        "exec",
        "-t",
        "-d",
        "--console-socket",
        socket,
        &bundle.id,
        "sh",
        "-c",
    ];
    bundle.ok(&[&exec[..], &["tty; sleep 1000"]].concat());
    assert!(received().starts_with("/dev/pts/"));
}
