// SPDX-License-Identifier: Apache-2.0
//! Kills for want of memory: told from other kills, and told when they happen.

use std::time::Duration;

use cri::cgroup::OomEvent;
use serde_json::{Value, json};

use super::{Subtree, printed};
use crate::pod::{DEADLINE, Pod};

fn tight() -> Value {
    json!({"memory": {"limit": 16 << 20, "swap": 16 << 20}})
}

const EAT: &str = "dd if=/dev/zero of=/dev/null bs=64M count=1";

#[tokio::test]
async fn the_first_process_was_killed_for_memory() {
    let (pod, tree) = (Pod::start().await, Subtree::new());
    let path = tree.child("c", &tight());
    tree.launch(&pod, "c", &path, &format!("exec {EAT}")).await;
    let record = pod.wait("c").await;
    assert!(record.oom_killed, "{record:?}");
    assert_eq!((record.code, record.signal), (137, 9));
    assert_eq!(tree.manager.summary(&path).expect("reads").oom_kills, 1);
    pod.stop().await;
}

/// As containerd has it: the container had to do with it, whatever its first process made of that.
#[tokio::test]
async fn another_process_was_killed_for_memory() {
    let (pod, tree) = (Pod::start().await, Subtree::new());
    let path = tree.child("c", &tight());
    tree.launch(&pod, "c", &path, &format!("{EAT}; echo code $?; exit 3"))
        .await;
    let record = pod.wait("c").await;
    assert!(record.oom_killed, "{record:?}");
    assert_eq!((record.code, record.signal), (3, 0));
    let output = pod.output("c");
    assert!(output.contains("code 137\n"), "{output}");
    pod.stop().await;
}

#[tokio::test]
async fn a_plain_kill_is_not_for_memory() {
    let (pod, tree) = (Pod::start().await, Subtree::new());
    let path = tree.child("c", &tight());
    tree.launch(&pod, "c", &path, "echo go; sleep 1000").await;
    printed(&pod, "c", "go\n").await;
    tree.manager.kill(&path).expect("kills");
    let record = pod.wait("c").await;
    assert_eq!(
        (record.code, record.signal, record.oom_killed),
        (137, 9, false)
    );
    pod.stop().await;
}

/// The pod's limit kills in the container's cgroup, whose own limit is wider.
#[tokio::test]
async fn the_limit_of_the_cgroup_above_kills_for_memory_too() {
    let (pod, tree) = (Pod::start().await, Subtree::new());
    tree.manager.create(&tree.path).expect("creates");
    tree.apply(&tree.path, &tight()).expect("applies");
    let path = tree.child("c", &json!({}));
    tree.launch(&pod, "c", &path, &format!("exec {EAT}")).await;
    assert!(pod.wait("c").await.oom_killed);
    pod.stop().await;
}

#[tokio::test]
async fn a_group_that_dies_together_was_killed_for_memory() {
    let (pod, tree) = (Pod::start().await, Subtree::new());
    if !tree.manager.is_v2() {
        return pod.stop().await;
    }
    let mut limits = tight();
    limits["unified"] = json!({"memory.oom.group": "1"});
    let path = tree.child("c", &limits);
    tree.launch(&pod, "c", &path, &format!("{EAT}; echo survived"))
        .await;
    let record = pod.wait("c").await;
    assert_eq!((record.signal, record.oom_killed), (9, true));
    assert_eq!(pod.output("c"), "");
    pod.stop().await;
}

#[tokio::test]
async fn kills_are_told_when_they_happen() {
    let (pod, tree) = (Pod::start().await, Subtree::new());
    let path = tree.child("c", &tight());
    let mut watch = tree.manager.watch_oom(&path).expect("watches");
    let none = watch.next(Duration::ZERO).expect("looks");
    assert_eq!(none, None);
    tree.launch(&pod, "c", &path, &format!("{EAT}; echo go; sleep 1000"))
        .await;
    let event = watch.next(DEADLINE).expect("looks").expect("in time");
    assert!(matches!(event, OomEvent::Killed(_)), "{event:?}");
    printed(&pod, "c", "go\n").await;
    tree.manager.kill(&path).expect("kills");
    pod.wait("c").await;
    tree.manager.remove(&path).expect("removes");
    loop {
        match watch.next(DEADLINE).expect("looks").expect("in time") {
            OomEvent::Over => break,
            OomEvent::Killed(_) => {}
        }
    }
    pod.stop().await;
}
