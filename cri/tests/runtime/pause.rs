// SPDX-License-Identifier: Apache-2.0
//! The pause program: size, memory, signals, reaping.

use std::process::{Command, Stdio};

use crate::pod::{Pod, eventually, install};

#[test]
fn it_is_small_and_says_its_version() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let programs = install(dir.path());
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
async fn it_has_one_private_page_of_its_own_and_a_stack() {
    let pod = Pod::start().await;
    let path = format!("/proc/{}/smaps", pod.sandbox_pid);
    // KiB of the stack, and of all else.
    let private = || {
        let text = std::fs::read_to_string(&path).expect("reads");
        let (mut stack, mut other, mut in_stack) = (0, 0, false);
        for line in text.lines() {
            let mut words = line.split_whitespace();
            match (words.next(), words.next()) {
                (Some(range), _) if range.contains('-') => in_stack = line.ends_with("[stack]"),
                (Some(name), Some(size)) if name.starts_with("Private_") => {
                    let sum = if in_stack { &mut stack } else { &mut other };
                    *sum += size.parse::<u64>().expect("a number");
                }
                _ => {}
            }
        }
        (stack, other)
    };
    // Of stack there is one page of strings, and below it, at a random distance, what the kernel
    // tells a new program: that may be in two pages. Right after exec, pages of the exec itself are
    // still there.
    eventually("4 KiB and a stack of at most 12 KiB are private", || {
        let (stack, other) = private();
        stack <= 12 && other <= 4
    })
    .await;
    pod.stop().await;
}

#[tokio::test]
async fn it_ends_on_sigterm() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let programs = install(dir.path());
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
