// SPDX-License-Identifier: Apache-2.0
//! Descriptors in and out: --preserve-fds, LISTEN_FDS, --pidfd-socket, NOTIFY_SOCKET; and keyrings.

use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixDatagram, UnixListener};

use super::Bundle;

/// A shell that opens descriptors 3 and 4 and then becomes the command.
fn with_descriptors(bundle: &Bundle, arguments: &[&str], variables: &str) -> String {
    let command = bundle.command(arguments);
    let program = command.get_program().to_str().expect("utf-8");
    let mut shell = std::process::Command::new("/bin/sh");
    let script = format!("{variables} exec 3<$0 4<$0; exec {program}");
    shell.args(["-c", &script]).arg(bundle.path("secret"));
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => shell.env(name, value),
            None => shell.env_remove(name),
        };
    }
    shell.stdin(std::process::Stdio::null());
    std::fs::write(bundle.path("secret"), "from outside\n").expect("writes");
    let output = bundle.finish(&mut shell);
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).expect("utf-8")
}

/// Those that are open, less the one of the directory that is being listed.
const OPEN: &str = "cd /proc/self/fd; echo open: *; cat <&3";

#[test]
fn descriptors_are_passed_on_only_when_asked() {
    let script = "echo open: $(ls /proc/$$/fd); [ ! -e /proc/$$/fd/3 ] || cat <&3";
    let bundle = Bundle::new(script, &[]);
    let run = ["run", "-b", bundle.bundle(), &bundle.id];
    let said = with_descriptors(&bundle, &run, "");
    assert!(!said.contains("from outside"), "{said}");
    let run = [
        "run",
        "--preserve-fds",
        "2",
        "-b",
        bundle.bundle(),
        &bundle.id,
    ];
    let said = with_descriptors(&bundle, &run, "");
    assert!(said.contains("open: 0 1 2 3 4"), "{said}");
    assert!(said.contains("from outside"), "{said}");
    let said = bundle.refused(
        1,
        &[
            "run",
            "--preserve-fds",
            "50",
            "-b",
            bundle.bundle(),
            &bundle.id,
        ],
    );
    assert!(said.contains("unable to stat preserved-fd"), "{said}");
    bundle.nothing_left();
}

#[test]
fn exec_passes_descriptors_on() {
    let bundle = Bundle::new("sleep 1000", &[]).started();
    let exec = ["exec", "--preserve-fds", "1", &bundle.id, "sh", "-c", OPEN];
    assert!(with_descriptors(&bundle, &exec, "").contains("from outside"));
}

#[test]
fn systemds_sockets_are_passed_on_with_their_number() {
    let bundle = Bundle::new("echo $LISTEN_FDS for $LISTEN_PID; cat <&4", &[]);
    let run = ["run", "-b", bundle.bundle(), &bundle.id];
    let said = with_descriptors(&bundle, &run, "export LISTEN_FDS=2 LISTEN_PID=$$;");
    assert!(said.contains("2 for 1\nfrom outside"), "{said}");
}

#[test]
fn the_process_is_sent_as_a_descriptor() {
    let bundle = Bundle::new("sleep 1000", &[]);
    let path = bundle.path("pidfd.sock");
    let socket = path.to_str().expect("utf-8");
    let listener = UnixListener::bind(&path).expect("binds");
    let received = || {
        let (stream, _) = listener.accept().expect("accepts");
        let mut buffer = [0; 64];
        let (length, fds) =
            shim::sys::socket::receive(stream.as_fd(), &mut buffer).expect("receives");
        let pidfd = fds.into_iter().flatten().next().expect("a descriptor");
        shim::sys::pidfd_send_signal(pidfd.as_fd(), 0).expect("it is a process");
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    };
    bundle.ok(&[
        "create",
        "--pidfd-socket",
        socket,
        "-b",
        bundle.bundle(),
        &bundle.id,
    ]);
    assert_eq!(received(), "standard");
    bundle.ok(&["start", &bundle.id]);
    bundle.ok(&[
        "exec",
        "-d",
        "--pidfd-socket",
        socket,
        &bundle.id,
        "sleep",
        "1000",
    ]);
    assert_eq!(received(), "setns");
}

/// runc's way: the container has a socket of its own, and what it says reaches systemd's.
#[test]
fn readiness_is_passed_on() {
    let script = "echo $NOTIFY_SOCKET > /tmp/socket; mv /tmp/socket /tmp/told; sleep 1000";
    let bundle = Bundle::new(script, &[]);
    let path = bundle.path("systemd.sock");
    let systemd = UnixDatagram::bind(&path).expect("binds");
    let mut create = bundle.command(&["create", "-b", bundle.bundle(), &bundle.id]);
    assert!(
        bundle
            .finish(create.env("NOTIFY_SOCKET", &path))
            .status
            .success()
    );
    let mut start = bundle.command(&["start", &bundle.id]);
    let mut start = start.env("NOTIFY_SOCKET", &path).spawn().expect("runs");
    assert_eq!(bundle.file("told").trim(), "/run/notify/notify.sock");
    let own = bundle
        .path("root")
        .join(&bundle.id)
        .join("notify/notify.sock");
    let container = UnixDatagram::unbound().expect("a socket");
    container
        .send_to(b"STATUS=working\nREADY=1\n", own)
        .expect("sends");
    let message = || {
        let mut buffer = [0; 256];
        let (length, fds) =
            shim::sys::socket::receive(systemd.as_fd(), &mut buffer).expect("receives");
        // The barrier's pipe is closed here, as systemd does.
        drop(fds);
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    };
    assert_eq!(message(), "READY=1\n");
    assert_eq!(message(), format!("MAINPID={}\n", bundle.state()["pid"]));
    assert_eq!(message(), "BARRIER=1");
    assert!(start.wait().expect("ends").success());
}

/// A key in the caller's session keyring must not be the container's to see.
#[test]
fn the_session_keyring_is_the_containers_own() {
    let bundle = Bundle::new(
        "cat /proc/keys; sleep 1000",
        &[("/linux/maskedPaths", serde_json::json!([]))],
    );
    let keys = |flags: &[&str]| {
        let run = [&["run", "-d"], flags, &["-b", bundle.bundle(), &bundle.id]].concat();
        bundle.ok(&run);
        let keys = bundle.ok(&["exec", &bundle.id, "cat", "/proc/keys"]);
        bundle.ok(&["delete", "--force", &bundle.id]);
        keys
    };
    let name = format!("_ses.{}", bundle.id);
    if std::fs::metadata("/proc/keys").is_err() {
        return; // A kernel without keyrings has none to share.
    }
    // In this order: root in a container sees the keyrings of the host's root in the list.
    assert!(!keys(&["--no-new-keyring"]).contains(&name));
    assert!(keys(&[]).contains(&name), "exec has it too");
}

#[test]
fn streams_are_the_callers() {
    let bundle = Bundle::new("cat; echo err >&2", &[]);
    let mut command = bundle.command(&["run", "-b", bundle.bundle(), &bundle.id]);
    command.stdin(std::process::Stdio::piped());
    command.stdout(std::process::Stdio::piped());
    command.stderr(std::process::Stdio::piped());
    let mut child = command.spawn().expect("runs");
    let mut stdin = child.stdin.take().expect("a pipe");
    stdin.write_all(b"typed").expect("writes");
    drop(stdin);
    let mut stderr = String::new();
    child
        .stderr
        .take()
        .expect("a pipe")
        .read_to_string(&mut stderr)
        .expect("utf-8");
    let output = child.wait_with_output().expect("ends");
    assert_eq!(output.stdout, b"typed");
    assert_eq!(stderr, "err\n");
}
