// SPDX-License-Identifier: Apache-2.0
//! The pause program: size, memory, signals, reaping.

use std::process::{Command, Stdio};

use cri::shim_client::Programs;

use crate::pod::{Pod, eventually};

#[test]
fn it_is_small_and_says_its_version() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let programs = Programs::install(dir.path()).expect("installs");
    let size = std::fs::metadata(&programs.pause).expect("exists").len();
    assert!(size <= 16 * 1024, "{size} bytes");
    let output = Command::new(&programs.pause)
        .arg("-v")
        .output()
        .expect("runs");
    let version = format!("podwright pause {}\n", env!("CARGO_PKG_VERSION"));
    assert_eq!(String::from_utf8_lossy(&output.stdout), version);
}

#[tokio::test]
async fn it_has_at_most_three_private_pages() {
    let pod = Pod::start().await;
    let path = format!("/proc/{}/smaps_rollup", pod.sandbox_pid);
    let private = || {
        let text = std::fs::read_to_string(&path).expect("reads");
        text.lines()
            .filter(|line| line.starts_with("Private_"))
            .filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok())
            .sum::<u64>()
    };
    // Right after exec, pages of the exec itself are still there.
    eventually("at most 12 KiB are private", || private() <= 12).await;
    pod.stop().await;
}

#[tokio::test]
async fn it_ends_on_sigterm() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let programs = Programs::install(dir.path()).expect("installs");
    let mut child = Command::new(&programs.pause)
        .stdin(Stdio::null())
        .spawn()
        .expect("spawns");
    let call = format!("/proc/{}/syscall", child.id());
    // rt_sigtimedwait is call 128.
    eventually("it waits for signals", || {
        std::fs::read_to_string(&call).is_ok_and(|text| text.starts_with("128 "))
    })
    .await;
    let pid = nix::unistd::Pid::from_raw(child.id().try_into().expect("a pid"));
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).expect("signals");
    assert_eq!(child.wait().expect("ends").code(), Some(0));
}
