// SPDX-License-Identifier: Apache-2.0
//! Execs: many at once, with children of their own, in containers that end meanwhile; and launches
//! that take their time.

use cri::shim_client::{ExecStdio, FailureKind, ShimError};
use serde_json::json;

use crate::pod::{DEADLINE, Pod, container, eventually, process, process_plan};

fn no_streams() -> ExecStdio {
    let null = || {
        let mut options = std::fs::File::options();
        let file = options.read(true).write(true).open("/dev/null");
        file.expect("opens").into()
    };
    ExecStdio::Streams([null(), null(), null()])
}

#[tokio::test]
async fn many_run_at_once() {
    let pod = Pod::start().await;
    pod.start_shell("c", "sleep 1000").await;
    let one = async |number: i32| {
        let script = format!("sleep 0.2; echo {number}; exit {number}");
        let name = format!("e{number}");
        let (record, output) = pod.exec("c", &name, &["sh", "-c", &script]).await;
        assert_eq!((record.code, output), (number, format!("{number}\n")));
    };
    futures::future::join_all((0..40).map(one)).await;
    pod.stop().await;
}

#[tokio::test]
async fn killing_one_takes_all_that_it_started_and_nothing_else() {
    let pod = Pod::start().await;
    pod.start_shell("c", "sleep 1001").await;
    let script = "sleep 2001 & (sleep 2002 & sleep 2003 &) ; sh -c 'sleep 2004; true' & wait";
    let plan = process_plan(&["sh", "-c", script]);
    let handle = pod.shim.exec("c", "e", plan, no_streams()).await;
    let handle = handle.expect("executes");
    // Which of these sleepers run, as the host sees them.
    let sleepers = || {
        let mut found = Vec::new();
        for entry in std::fs::read_dir("/proc").expect("reads").flatten() {
            let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let same = std::fs::read_link(entry.path().join("root"));
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            let ours = same.is_ok() && in_pid_namespace_of(&entry.path(), handle.pid);
            if let (Some(number), true) = (line.strip_prefix("sleep "), ours) {
                found.push(number.trim().to_owned());
            }
        }
        found.sort();
        found
    };
    let namespace = ["1001", "2001", "2002", "2003", "2004"];
    eventually("all of it runs", || sleepers() == namespace).await;
    let first = std::fs::read_link(format!("/proc/{}/ns/pid", handle.pid)).expect("reads");
    pod.shim
        .signal(&handle.process, libc::SIGKILL, true)
        .await
        .expect("signals");
    let record = pod.shim.wait(&handle.process).await.expect("is known");
    assert_eq!(record.signal, libc::SIGKILL);
    let left = || {
        let mut left = Vec::new();
        for entry in std::fs::read_dir("/proc").expect("reads").flatten() {
            let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let inside = std::fs::read_link(entry.path().join("ns/pid"));
            if line.starts_with(b"sleep") && inside.is_ok_and(|ns| ns == first) {
                left.push(String::from_utf8_lossy(&line).replace('\0', " "));
            }
        }
        left
    };
    eventually("only the container's own is left", || {
        left() == ["sleep 1001 "]
    })
    .await;
    pod.stop().await;
}

fn in_pid_namespace_of(process: &std::path::Path, pid: u32) -> bool {
    let of = |path: std::path::PathBuf| std::fs::read_link(path.join("ns/pid")).ok();
    let other = of(std::path::PathBuf::from(format!("/proc/{pid}")));
    other.is_some() && of(process.to_owned()) == other
}

#[tokio::test]
async fn a_container_that_ends_meanwhile_ends_them() {
    let pod = Pod::start().await;
    for round in 0..5 {
        let id = format!("c{round}");
        pod.start_shell(&id, "sleep 1000").await;
        let one = async |number: i32| {
            let name = format!("e{number}");
            let plan = process_plan(&["sleep", "1000"]);
            match pod.shim.exec(&id, &name, plan, no_streams()).await {
                Ok(handle) => {
                    let record = pod.shim.wait(&handle.process).await.expect("is known");
                    assert_eq!(record.signal, libc::SIGKILL);
                }
                // It came too late.
                Err(ShimError::Refused { kind, .. }) => {
                    assert!(matches!(kind, FailureKind::Launch | FailureKind::State));
                }
                Err(error) => panic!("{error}"),
            }
        };
        let kill = async {
            tokio::time::sleep(std::time::Duration::from_millis(round * 3)).await;
            let target = process(&id);
            pod.shim.signal(&target, libc::SIGKILL, false).await
        };
        let all = futures::future::join(futures::future::join_all((0..10).map(one)), kill);
        let (_, killed) = tokio::time::timeout(DEADLINE, all).await.expect("in time");
        killed.expect("signals");
        assert_eq!(pod.wait(&id).await.signal, libc::SIGKILL);
    }
    pod.stop().await;
}

#[tokio::test]
async fn a_launch_that_takes_its_time_stalls_nobody() {
    let pod = Pod::start().await;
    pod.start_shell("c", "while true; do echo tick; sleep 0.02; done")
        .await;
    eventually("it logs", || pod.log("c").exists()).await;
    let mut spec = serde_json::to_value(container("true", &[])).expect("serialises");
    let hook = json!({"path": "/bin/busybox", "args": ["busybox", "sleep", "3"], "timeout": 20});
    spec["hooks"] = json!({"createContainer": [hook]});
    let spec = serde_json::from_value(spec).expect("a spec");
    let plan = cri::oci::compile(&spec, &pod.context("slow")).expect("compiles");
    let (shim, io) = (pod.shim.clone(), pod.io("slow"));
    let slow = tokio::spawn(async move { shim.create("slow", plan, io).await });
    let child = || {
        let state = std::fs::read_dir("/proc").expect("reads").flatten();
        state
            .filter_map(|e| std::fs::read(e.path().join("cmdline")).ok())
            .any(|line| line == b"busybox\0sleep\x003\0")
    };
    eventually("the launch is on its way", child).await;
    let before = pod.log_lines("c").len();
    eventually("the other one logs on", || {
        pod.log_lines("c").len() > before + 10
    })
    .await;
    let (record, output) = pod.exec("c", "e", &["echo", "hi"]).await;
    assert_eq!((record.code, output.as_str()), (0, "hi\n"));
    assert!(!slow.is_finished(), "the launch was too quick to tell");
    slow.await.expect("joins").expect("creates");
    pod.stop().await;
}
