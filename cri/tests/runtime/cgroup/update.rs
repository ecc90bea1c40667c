// SPDX-License-Identifier: Apache-2.0
//! New limits for a container that runs, seen from inside.

use serde_json::{Value, json};

use super::{Subtree, printed};
use crate::pod::Pod;

/// Each step: what is asked for, and what v1 and v2 then show.
type Step = (Value, [(&'static str, &'static str); 2]);

fn steps() -> Vec<Step> {
    let memory = |limit: u64, swap: i64| json!({"memory": {"limit": limit, "swap": swap}});
    vec![
        // Up, past the former sum, and down again: the order of the two files matters on v1.
        (
            memory(200 << 20, 300 << 20),
            [
                ("memory/memory.memsw.limit_in_bytes", "314572800"),
                ("memory/memory.swap.max", "104857600"),
            ],
        ),
        (
            memory(50 << 20, 60 << 20),
            [
                ("memory/memory.memsw.limit_in_bytes", "62914560"),
                ("memory/memory.swap.max", "10485760"),
            ],
        ),
        (
            json!({"memory": {"swap": 70 << 20}}),
            [
                ("memory/memory.memsw.limit_in_bytes", "73400320"),
                ("memory/memory.swap.max", "20971520"),
            ],
        ),
        (
            json!({"memory": {"limit": -1}}),
            [
                ("memory/memory.limit_in_bytes", "9223372036854771712"),
                ("memory/memory.max", "max"),
            ],
        ),
        (
            json!({"cpu": {"quota": 30000, "period": 50000}}),
            [
                ("cpu/cpu.cfs_quota_us", "30000"),
                ("cpu/cpu.max", "30000 50000"),
            ],
        ),
        (
            json!({"cpu": {"period": 60000}}),
            [
                ("cpu/cpu.cfs_period_us", "60000"),
                ("cpu/cpu.max", "30000 60000"),
            ],
        ),
        (
            json!({"cpu": {"quota": -1}}),
            [("cpu/cpu.cfs_quota_us", "-1"), ("cpu/cpu.max", "max 60000")],
        ),
        (
            json!({"cpu": {"idle": 1}}),
            [("cpu/cpu.idle", "1"), ("cpu/cpu.idle", "1")],
        ),
        (
            json!({"cpu": {"idle": 0, "shares": 1024}}),
            [("cpu/cpu.shares", "1024"), ("cpu/cpu.weight", "100")],
        ),
        (
            json!({"cpu": {"cpus": "0"}}),
            [("cpuset/cpuset.cpus", "0"), ("cpuset/cpuset.cpus", "0")],
        ),
        (
            json!({"pids": {"limit": 17}}),
            [("pids/pids.max", "17"), ("pids/pids.max", "17")],
        ),
        (
            json!({"pids": {"limit": -1}}),
            [("pids/pids.max", "max"), ("pids/pids.max", "max")],
        ),
        (
            json!({"memory": {"reservation": 5 << 20}}),
            [
                ("memory/memory.soft_limit_in_bytes", "5242880"),
                ("memory/memory.low", "5242880"),
            ],
        ),
    ]
}

#[tokio::test]
async fn every_limit_can_change_while_the_container_runs() {
    let (pod, tree) = (Pod::start().await, Subtree::new());
    let start = json!({"memory": {"limit": 100 << 20, "swap": 100 << 20},
        "cpu": {"quota": 10000, "period": 100_000}, "pids": {"limit": 10}});
    let path = tree.child("c", &start);
    tree.launch(&pod, "c", &path, "echo go; sleep 1000").await;
    printed(&pod, "c", "go\n").await;
    for (number, (resources, expected)) in steps().into_iter().enumerate() {
        tree.apply(&path, &resources)
            .unwrap_or_else(|error| panic!("{resources}: {error}"));
        let (file, value) = expected[usize::from(tree.manager.is_v2())];
        let inside = match tree.manager.is_v2() {
            true => file.split_once('/').expect("controller/file").1,
            false => file,
        };
        let exec = format!("e{number}");
        let (_, seen) = pod
            .exec("c", &exec, &["cat", &format!("/sys/fs/cgroup/{inside}")])
            .await;
        assert_eq!(seen.trim(), value, "{file} after {resources}");
    }
    pod.stop().await;
}

/// v1 says so by itself; v2 would kill, and says so when it is asked to look first.
#[tokio::test]
async fn memory_below_what_is_in_use_is_refused_with_the_figures() {
    let (pod, tree) = (Pod::start().await, Subtree::new());
    let start = json!({"memory": {"limit": 64 << 20, "swap": 64 << 20}});
    let path = tree.child("c", &start);
    let script = "dd if=/dev/zero of=/tmp/m/fill bs=1M count=16 2>/dev/null; echo full; sleep 1000";
    let mut context = pod.context("c");
    context.cgroup = tree.manager.join(&path);
    context.cgroup_v2 = tree.manager.is_v2();
    let spec = crate::pod::container(script, &[]);
    let mut spec: Value = serde_json::to_value(spec).expect("serialises");
    // What lies there cannot be reclaimed.
    let tmpfs = json!({"destination": "/tmp/m", "type": "tmpfs", "source": "tmpfs"});
    spec["mounts"].as_array_mut().expect("mounts").push(tmpfs);
    let spec = serde_json::from_value(spec).expect("a spec");
    pod.launch("c", &spec, &context, pod.io("c")).await;
    printed(&pod, "c", "full\n").await;
    let mut less = json!({"memory": {"limit": 4 << 20, "swap": 64 << 20}});
    less["memory"]["checkBeforeUpdate"] = json!(true);
    let error = tree.apply(&path, &less).expect_err("refused").to_string();
    assert!(
        error.starts_with("rejecting memory limit 4194304 <= usage "),
        "{error}"
    );
    if !tree.manager.is_v2() {
        less["memory"]["checkBeforeUpdate"] = json!(false);
        let error = tree.apply(&path, &less).expect_err("refused").to_string();
        let text = "unable to set memory limit to 4194304 (current usage: ";
        assert!(error.starts_with(text), "{error}");
    }
    assert_eq!(tree.manager.pids(&path).expect("reads").len(), 1);
    pod.stop().await;
}
