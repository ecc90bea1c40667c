// SPDX-License-Identifier: Apache-2.0
//! Control groups of this kernel, in a subtree that each test removes.

use std::path::Path;
use std::sync::Arc;

use cri::cgroup::{self, CgroupPath, Cpu, DeviceRule, Limits, Manager, Memory};
use serde_json::json;

use crate::pod::{Pod, container};

/// A subtree of one test's own.
pub(crate) struct Subtree {
    pub(crate) manager: Arc<dyn Manager>,
    pub(crate) path: CgroupPath,
}

impl Subtree {
    pub(crate) fn new() -> Subtree {
        let name = format!("podwright-test-{:08x}", rand::random::<u32>());
        let manager = cgroup::detect(Path::new("/sys/fs/cgroup")).expect("cgroups are mounted");
        Subtree {
            manager,
            path: CgroupPath::new(&name).expect("a plain name"),
        }
    }
}

impl Drop for Subtree {
    fn drop(&mut self) {
        let killed = self.manager.kill(&self.path);
        let removed = self.manager.remove(&self.path);
        if !std::thread::panicking() {
            killed.expect("kills");
            removed.expect("removes");
        }
    }
}

fn limits() -> Limits {
    let null = DeviceRule {
        allow: true,
        kind: 'c',
        major: Some(1),
        minor: Some(3),
        read: true,
        write: true,
        mknod: true,
    };
    let any_node = DeviceRule {
        major: None,
        minor: None,
        read: false,
        write: false,
        ..null.clone()
    };
    Limits {
        memory: Memory {
            limit: Some(32 << 20),
            ..Memory::default()
        },
        cpu: Cpu {
            shares: Some(512),
            quota: Some(50_000),
            period: Some(100_000),
            ..Cpu::default()
        },
        pids: Some(20),
        devices: Some(vec![any_node, null]),
        ..Limits::default()
    }
}

#[tokio::test]
async fn limits_hold_for_a_container() {
    let (pod, tree) = (Pod::start().await, Subtree::new());
    let path = tree.path.child("pod/c").expect("a plain name");
    tree.manager.create(&path).expect("creates");
    tree.manager.create(&path).expect("is idempotent");
    tree.manager.apply(&path, &limits()).expect("applies");
    tree.manager.apply(&path, &limits()).expect("is idempotent");
    let mut context = pod.context("c");
    context.cgroup = tree.manager.join(&path);
    context.cgroup_v2 = tree.manager.is_v2();
    let script = "echo x > /dev/null && echo null; head -c 1 /dev/zero >/dev/null 2>&1 || echo zero-denied; \
        cat /sys/fs/cgroup/pids/pids.max /sys/fs/cgroup/pids.max 2>/dev/null; sleep 1000";
    pod.launch("c", &container(script, &[]), &context, pod.io("c"))
        .await;
    crate::pod::eventually("the script ran", || {
        pod.log("c").exists() && pod.output("c").contains("20\n")
    })
    .await;
    assert_eq!(pod.output("c"), "null\nzero-denied\n20\n");
    let stats = tree.manager.summary(&path).expect("reads");
    assert_eq!(stats.memory_limit_bytes, Some(32 << 20));
    assert!(stats.pids >= 1 && stats.cpu_usage_nanos > 0, "{stats:?}");
    assert!(
        stats.memory_working_set_bytes <= stats.memory_usage_bytes,
        "{stats:?}"
    );
    assert_eq!(
        tree.manager.pids(&path).expect("reads").len() as u64,
        stats.pids
    );
    tree.manager.kill(&path).expect("kills");
    assert_eq!(pod.wait("c").await.signal, 9);
    assert_eq!(tree.manager.children(&tree.path).expect("lists"), ["pod"]);
    pod.stop().await;
}

#[tokio::test]
async fn an_out_of_memory_kill_is_in_the_exit_record() {
    let (pod, tree) = (Pod::start().await, Subtree::new());
    let path = tree.path.child("c").expect("a plain name");
    tree.manager.create(&path).expect("creates");
    let limits = Limits {
        memory: Memory {
            limit: Some(16 << 20),
            swap: Some(16 << 20),
            ..Memory::default()
        },
        ..Limits::default()
    };
    tree.manager.apply(&path, &limits).expect("applies");
    let mut context = pod.context("c");
    context.cgroup = tree.manager.join(&path);
    context.cgroup_v2 = tree.manager.is_v2();
    let args = json!(["dd", "if=/dev/zero", "of=/dev/null", "bs=64M", "count=1"]);
    let spec = container("", &[("/process/args", args)]);
    pod.launch("c", &spec, &context, pod.io("c")).await;
    let record = pod.wait("c").await;
    assert!(record.oom_killed, "{record:?}");
    assert_eq!((record.code, record.signal), (137, 9));
    pod.stop().await;
}

#[test]
fn what_is_gone_can_be_killed_and_removed() {
    let tree = Subtree::new();
    tree.manager.kill(&tree.path).expect("kills nobody");
    tree.manager.remove(&tree.path).expect("removes nothing");
    assert!(tree.manager.summary(&tree.path).is_err());
}

#[test]
fn paths_cannot_leave_the_hierarchy() {
    for bad in ["", "/", "../x", "a/../b", "a//b", "./a"] {
        assert!(CgroupPath::new(bad).is_err(), "{bad:?}");
    }
    let path = CgroupPath::new("/a/b").expect("a leading slash is dropped");
    assert_eq!(path.as_str(), "a/b");
}
