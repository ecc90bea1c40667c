// SPDX-License-Identifier: Apache-2.0
//! What is counted, while a container works.

use std::path::Path;

use serde_json::json;

use super::{Subtree, printed};
use crate::pod::Pod;

/// Fills eight MiB of the container's memory and burns some time.
const WORK: &str = "dd if=/dev/zero of=/tmp/fill bs=1M count=8 2>/dev/null; \
    i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; echo done; sleep 1000";

fn pressure_is_counted() -> bool {
    std::fs::read_to_string("/proc/pressure/cpu").is_ok()
}

#[tokio::test]
async fn all_statistics_of_a_working_container() {
    let (pod, tree) = (Pod::start().await, Subtree::new());
    let path = tree.child(
        "c",
        &json!({"memory": {"limit": 64 << 20}, "pids": {"limit": 30},
            "cpu": {"quota": 5000, "period": 10_000}}),
    );
    // The work takes several of these short periods, however fast the machine is.
    tree.launch(&pod, "c", &path, WORK).await;
    printed(&pod, "c", "done\n").await;
    let stats = tree.manager.stats(&path).expect("reads");
    let v2 = tree.manager.is_v2();
    let usage = &stats.cpu.usage;
    assert!(
        usage.total > 1_000_000 && usage.user + usage.kernel > 0,
        "{usage:?}"
    );
    assert!(stats.cpu.throttling.periods > 0, "{:?}", stats.cpu);
    if !v2 {
        assert_eq!(usage.percpu.iter().sum::<u64>(), usage.total);
        assert_eq!(usage.percpu.len(), usage.percpu_user.len());
        assert!(!stats.cpuset.cpus.is_empty() && stats.cpuset.mems == [0]);
    }
    let memory = &stats.memory;
    assert_eq!(memory.usage.limit, 64 << 20);
    assert!(
        memory.usage.usage >= 8 << 20 && memory.cache >= 8 << 20,
        "{memory:?}"
    );
    assert!(memory.swap.usage >= memory.usage.usage, "{memory:?}");
    assert!(memory.raw.contains_key("pgfault"));
    assert!(v2 || (memory.usage.max >= memory.usage.usage && memory.kernel.usage > 0));
    assert_eq!((stats.pids.current, stats.pids.limit), (1, 30));
    for psi in [stats.cpu.psi, memory.psi, stats.blkio.psi] {
        assert_eq!(psi.is_some(), pressure_is_counted());
    }
    let json = serde_json::to_value(&stats).expect("serialises");
    assert_eq!(json["memory"]["usage"]["limit"], 64 << 20);
    pod.stop().await;
}

#[tokio::test]
async fn the_summary_agrees_with_the_limits() {
    let (pod, tree) = (Pod::start().await, Subtree::new());
    let limits = json!({"memory": {"limit": 64 << 20, "swap": 80 << 20}});
    let path = tree.child("c", &limits);
    tree.launch(&pod, "c", &path, WORK).await;
    printed(&pod, "c", "done\n").await;
    let summary = tree.manager.summary(&path).expect("reads");
    assert_eq!(summary.memory_limit_bytes, Some(64 << 20));
    assert_eq!(summary.swap_limit_bytes, Some(16 << 20));
    assert_eq!(summary.swap_usage_bytes, Some(0));
    assert!(summary.memory_working_set_bytes <= summary.memory_usage_bytes);
    assert!(summary.memory_usage_bytes >= 8 << 20, "{summary:?}");
    assert_eq!((summary.pids, summary.oom_kills), (1, 0));
    assert_eq!(summary.cpu_pressure.is_some(), pressure_is_counted());
    let pids = tree.manager.pids(&path).expect("reads");
    assert_eq!(pids.len(), 1);
    pod.stop().await;
}

/// Waiting for a cpu that is not to be had is pressure.
#[tokio::test]
async fn throttling_is_pressure() {
    if !pressure_is_counted() || !Path::new("/proc/pressure/cpu").exists() {
        return;
    }
    let (pod, tree) = (Pod::start().await, Subtree::new());
    let path = tree.child("c", &json!({"cpu": {"quota": 2000, "period": 100_000}}));
    tree.launch(&pod, "c", &path, "echo go; while :; do :; done")
        .await;
    let waited = || {
        let psi = tree.manager.stats(&path).expect("reads").cpu.psi;
        psi.is_some_and(|psi| psi.some.total > 0)
    };
    crate::pod::eventually("pressure is counted", waited).await;
    pod.stop().await;
}
