// SPDX-License-Identifier: Apache-2.0
//! Logs, rotation, attach, stdin and terminals.

use std::io::{Read, Write};
use std::os::fd::OwnedFd;

use cri::shim_client::{ContainerIo, ExecStdio};
use serde_json::json;

use crate::pod::{Pod, container, eventually};

#[tokio::test]
async fn logs_have_the_cri_format_with_long_lines_split() {
    let pod = Pod::start().await;
    let script = "echo out; echo err >&2; head -c 20000 /dev/zero | tr '\\0' x; echo; echo -n rest";
    let (record, _) = pod.run("c", script, &[]).await;
    assert_eq!(record.code, 0);
    let lines = pod.log_lines("c");
    let shape = |line: &String| {
        let parts: Vec<&str> = line.splitn(4, ' ').collect();
        assert!(parts[0].ends_with('Z') && parts[0].len() == 30, "{line}");
        (parts[1].to_owned(), parts[2].to_owned(), parts[3].len())
    };
    let mut shapes: Vec<_> = lines.iter().map(shape).collect();
    let stderr = shapes.iter().position(|(stream, ..)| stream == "stderr");
    assert_eq!(shapes.remove(stderr.expect("stderr is logged")).2, 3);
    let expected = [("F", 3), ("P", 16384), ("F", 20000 - 16384), ("P", 4)];
    let expected = expected.map(|(tag, length)| ("stdout".to_owned(), tag.to_owned(), length));
    assert_eq!(shapes, expected);
    pod.stop().await;
}

#[tokio::test]
async fn a_rotated_log_is_opened_anew() {
    let pod = Pod::start().await;
    let script = "echo one; while [ ! -e /go ]; do sleep 0.05; done; echo two";
    pod.launch("c", &container(script, &[]), &pod.context("c"), pod.io("c"))
        .await;
    eventually("the first line", || {
        pod.log("c").exists() && pod.output("c") == "one\n"
    })
    .await;
    std::fs::rename(pod.log("c"), pod.path("rotated")).expect("renames");
    pod.shim.reopen_log("c").await.expect("reopens");
    pod.exec("c", "go", &["touch", "/go"]).await;
    pod.wait("c").await;
    assert_eq!(pod.output("c"), "two\n");
    pod.stop().await;
}

#[tokio::test]
async fn several_clients_attach_and_a_dead_one_blocks_nobody() {
    let pod = Pod::start().await;
    let io = ContainerIo {
        stdin: true,
        stdin_once: true,
        ..pod.io("c")
    };
    let script =
        "while read line; do echo got $line; done; head -c 300000 /dev/zero; echo; echo end";
    pod.launch("c", &container(script, &[]), &pod.context("c"), io)
        .await;
    let pipe = || std::io::pipe().expect("a pipe");
    let ((stdin, mut to), (mut from, stdout)) = (pipe(), pipe());
    // Reads nothing, ever: the container's output exceeds its pipe.
    let (_dead, dead_end) = pipe();
    pod.shim
        .attach("c", None, Some(dead_end.into()), None)
        .await
        .expect("attaches");
    pod.shim
        .attach("c", Some(stdin.into()), Some(stdout.into()), None)
        .await
        .expect("attaches");
    to.write_all(b"hello\n").expect("writes");
    drop(to);
    let reader = tokio::task::spawn_blocking(move || {
        let mut all = Vec::new();
        from.read_to_end(&mut all).expect("reads");
        all
    });
    assert_eq!(pod.wait("c").await.code, 0);
    let seen = tokio::time::timeout(crate::pod::DEADLINE, reader).await;
    let seen = seen.expect("in time").expect("joins");
    assert!(seen.starts_with(b"got hello\n") && seen.ends_with(b"\nend\n"));
    assert_eq!(seen.len(), 10 + 300_000 + 5);
    assert!(pod.output("c").ends_with("end\n"));
    pod.stop().await;
}

#[tokio::test]
async fn a_container_can_have_a_terminal() {
    let pod = Pod::start().await;
    let changes = [
        ("/process/terminal", json!(true)),
        ("/process/consoleSize", json!({"width": 101, "height": 31})),
    ];
    let script = "tty; stty size; echo hi > /dev/console; while [ $(stty size | head -c 2) != 42 ]; do sleep 0.05; done; stty size";
    let spec = container(script, &changes);
    pod.launch("c", &spec, &pod.context("c"), pod.io("c")).await;
    eventually("the first size", || pod.output("c").contains("31 101")).await;
    pod.shim.resize("c", 102, 42).await.expect("resizes");
    assert_eq!(pod.wait("c").await.code, 0);
    let output = pod.output("c").replace('\r', "");
    assert_eq!(output, "/dev/pts/0\n31 101\nhi\n42 102\n");
    pod.stop().await;
}

#[tokio::test]
async fn an_exec_can_have_a_terminal() {
    let pod = Pod::start().await;
    pod.launch(
        "c",
        &container("sleep 1000", &[]),
        &pod.context("c"),
        pod.io("c"),
    )
    .await;
    let process = json!({"user": {"uid": 0, "gid": 0}, "cwd": "/", "env": ["PATH=/bin"],
        "args": ["sh", "-c", "tty; read x; echo got $x"], "terminal": true});
    let process = serde_json::from_value(process).expect("a process");
    let plan = cri::oci::compile_process(&process, None).expect("compiles");
    let mut handle = pod
        .shim
        .exec("c", "t", plan, ExecStdio::Terminal)
        .await
        .expect("executes");
    let master: OwnedFd = handle.terminal.take().expect("a terminal");
    let talk = tokio::task::spawn_blocking(move || {
        let mut master = std::fs::File::from(master);
        master.write_all(b"word\n").expect("writes");
        let mut all = Vec::new();
        // Ends with EIO when the last holder of the other side is gone.
        let _ = master.read_to_end(&mut all);
        String::from_utf8_lossy(&all).into_owned()
    });
    let wait = tokio::time::timeout(crate::pod::DEADLINE, pod.shim.wait(&handle.process));
    assert_eq!(wait.await.expect("in time").expect("known").code, 0);
    let seen = talk.await.expect("joins");
    assert!(
        seen.contains("/dev/pts/") && seen.contains("got word"),
        "{seen}"
    );
    pod.stop().await;
}
