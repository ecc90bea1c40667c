// SPDX-License-Identifier: Apache-2.0
//! Freezing and thawing, and killing what is frozen.

use std::time::Duration;

use serde_json::json;

use super::{Subtree, printed};
use crate::pod::{Pod, eventually};

const COUNT: &str = "echo go; i=0; while :; do i=$((i+1)); done";

#[tokio::test]
async fn a_frozen_container_does_nothing_until_it_is_thawed() {
    let (pod, tree) = (Pod::start().await, Subtree::new());
    let path = tree.child("c", &json!({}));
    tree.launch(&pod, "c", &path, COUNT).await;
    printed(&pod, "c", "go\n").await;
    let used = || tree.manager.summary(&path).expect("reads").cpu_usage_nanos;
    assert!(!tree.manager.frozen(&path).expect("reads"));
    tree.manager.freeze(&path).expect("freezes");
    tree.manager.freeze(&path).expect("is idempotent");
    assert!(tree.manager.frozen(&path).expect("reads"));
    let before = used();
    // That nothing happens can only be seen over some time.
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(used(), before, "it used the cpu while frozen");
    tree.manager.thaw(&path).expect("thaws");
    assert!(!tree.manager.frozen(&path).expect("reads"));
    eventually("it runs on", || used() > before).await;
    pod.stop().await;
}

#[tokio::test]
async fn a_frozen_container_can_be_killed_and_removed() {
    let (pod, tree) = (Pod::start().await, Subtree::new());
    let path = tree.child("c", &json!({}));
    tree.launch(&pod, "c", &path, COUNT).await;
    printed(&pod, "c", "go\n").await;
    tree.manager.freeze(&path).expect("freezes");
    tree.manager.kill(&path).expect("kills");
    assert_eq!(pod.wait("c").await.signal, 9);
    tree.manager.remove(&path).expect("removes");
    assert!(!tree.manager.exists(&path));
    pod.stop().await;
}

#[tokio::test]
async fn a_container_that_forks_all_the_time_freezes() {
    let (pod, tree) = (Pod::start().await, Subtree::new());
    let path = tree.child("c", &json!({"pids": {"limit": 50}}));
    let script = "echo go; for n in 1 2 3 4; do (while :; do (echo) >/dev/null; done) & done; wait";
    tree.launch(&pod, "c", &path, script).await;
    printed(&pod, "c", "go\n").await;
    for _ in 0..10 {
        tree.manager.freeze(&path).expect("freezes");
        let pids = tree.manager.pids(&path).expect("reads");
        assert_eq!(tree.manager.pids(&path).expect("reads"), pids);
        tree.manager.thaw(&path).expect("thaws");
    }
    tree.manager.kill(&path).expect("kills");
    pod.wait("c").await;
    pod.stop().await;
}
