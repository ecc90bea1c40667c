// SPDX-License-Identifier: Apache-2.0
//! Logs, rotation, attach, stdin and terminals.

use std::io::{Read, Write};
use std::os::fd::OwnedFd;

use cri::shim_client::{ContainerIo, ExecStdio};
use serde_json::json;

use crate::pod::{Pod, container, eventually, process_plan};

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
    pod.start_shell("c", script).await;
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
async fn a_hundred_rotations_lose_no_line() {
    const ROTATIONS: usize = 100;
    let pod = Pod::start().await;
    let script = "i=0; while [ ! -e /stop ]; do echo line $i; echo error $i >&2; i=$((i+1)); done; \
                  echo total $i; echo total $i >&2";
    pod.start_shell("c", script).await;
    let old = |number: usize| pod.path(&format!("c.log.{number}"));
    for number in 0..ROTATIONS {
        let grown = || std::fs::metadata(pod.log("c")).is_ok_and(|log| log.len() > 0);
        eventually("the log grows", grown).await;
        std::fs::rename(pod.log("c"), old(number)).expect("renames");
        pod.shim.reopen_log("c").await.expect("reopens");
    }
    pod.exec("c", "stop", &["touch", "/stop"]).await;
    assert_eq!(pod.wait("c").await.code, 0);
    let mut text = String::new();
    for path in (0..ROTATIONS).map(old).chain([pod.log("c")]) {
        text.push_str(&std::fs::read_to_string(path).expect("a log"));
    }
    for (stream, word) in [("stdout", "line"), ("stderr", "error")] {
        let prefix = format!(" {stream} F ");
        let lines = text
            .lines()
            .filter_map(|line| Some(line.split_once(&prefix)?.1));
        let lines: Vec<&str> = lines.collect();
        let (total, lines) = lines.split_last().expect("a last line");
        assert_eq!(*total, format!("total {}", lines.len()));
        for (number, line) in lines.iter().enumerate() {
            assert_eq!(*line, format!("{word} {number}"));
        }
    }
    assert_eq!(text.matches(" P ").count(), 0);
    pod.stop().await;
}

#[tokio::test]
async fn a_log_may_hold_any_bytes() {
    let pod = Pod::start().await;
    let script = "printf '\\377\\000\\303(\\r\\n\\n\\200'";
    pod.start_shell("c", script).await;
    pod.wait("c").await;
    let log = std::fs::read(pod.log("c")).expect("a log");
    let texts: Vec<&[u8]> = log
        .split_inclusive(|byte| *byte == b'\n')
        .map(|line| &line[b"2026-01-02T03:04:05.123456789Z ".len()..])
        .collect();
    let expected: [&[u8]; 3] = [
        b"stdout F \xff\x00\xc3(\r\n",
        b"stdout F \n",
        b"stdout P \x80\n",
    ];
    assert_eq!(texts, expected);
    pod.stop().await;
}

#[tokio::test]
async fn a_full_disk_costs_lines_but_does_not_stop_the_container() {
    let pod = Pod::start().await;
    let io = ContainerIo {
        log_path: Some("/dev/full".into()),
        ..ContainerIo::default()
    };
    let spec = container("head -c 1000000 /dev/zero; echo; exit 3", &[]);
    pod.launch("c", &spec, &pod.context("c"), io).await;
    assert_eq!(pod.wait("c").await.code, 3);
    let said = std::fs::read_to_string(pod.dir.join("shim.log")).expect("a log");
    assert!(said.contains("writing /dev/full: No space left"), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
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
        "while read line; do echo got $line; done; head -c 3000000 /dev/zero; echo; echo end";
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
    assert_eq!(seen.len(), 10 + 3_000_000 + 5);
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
    pod.start_shell("c", "sleep 1000").await;
    let plan = process_plan(&["sh", "-c", "tty; read x; echo got $x"]);
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
