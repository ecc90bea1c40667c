// SPDX-License-Identifier: Apache-2.0
//! Every limit of the spec, read where the container reads it: in its own cgroup's files.

use std::path::Path;

use serde_json::{Value, json};

use super::{Subtree, disk};
use crate::pod::Pod;

/// Applies, and compares what the container sees with what v1 or v2 should show.
async fn shows(resources: Value, v1: &[(&str, &str)], v2: &[(&str, &str)]) {
    let (pod, tree) = (Pod::start().await, Subtree::new());
    let path = tree.child("c", &resources);
    tree.apply(&path, &resources).expect("is idempotent");
    let expected = if tree.manager.is_v2() { v2 } else { v1 };
    let files: Vec<&str> = expected.iter().map(|(file, _)| *file).collect();
    let seen = tree.seen(&pod, "c", &path, &files).await;
    for ((file, value), line) in expected.iter().zip(&seen) {
        let (_, found) = line.split_once(": ").unwrap_or((line, ""));
        assert_eq!(found, *value, "{file}");
    }
    assert_eq!(seen.len(), expected.len());
    pod.stop().await;
}

/// What this kernel refuses must be refused by the field's name.
fn refusal(resources: &Value) -> String {
    let tree = Subtree::new();
    let path = tree.child("c", &json!({}));
    let error = tree.apply(&path, resources).expect_err("refused");
    error.to_string()
}

#[tokio::test]
async fn memory() {
    let resources = json!({"memory": {"limit": 64 << 20, "swap": 96 << 20,
        "reservation": 32 << 20, "useHierarchy": true}});
    let v1 = [
        ("memory/memory.limit_in_bytes", "67108864"),
        ("memory/memory.memsw.limit_in_bytes", "100663296"),
        ("memory/memory.soft_limit_in_bytes", "33554432"),
        ("memory/memory.use_hierarchy", "1"),
    ];
    let v2 = [
        ("memory/memory.max", "67108864"),
        ("memory/memory.swap.max", "33554432"),
        ("memory/memory.low", "33554432"),
    ];
    shows(resources, &v1, &v2).await;
}

/// The period alone would be too short for the time that the cgroup has so far.
#[test]
fn real_time_can_be_cut_to_a_shorter_period() {
    let tree = Subtree::new();
    let path = tree.child("c", &json!({}));
    let dirs = tree.manager.join(&path).v1;
    let has = |dir: &&String| Path::new(dir).join("cpu.rt_runtime_us").exists();
    // Not on v2, and not in every kernel.
    let Some(dir) = dirs.iter().find(has) else {
        return;
    };
    let parent = Path::new(dir).parent().expect("a parent");
    std::fs::write(parent.join("cpu.rt_runtime_us"), "500000").expect("writes");
    for (period, runtime) in [(1_000_000, 400_000), (10_000, 3_000), (900_000, 300_000)] {
        let cpu = json!({"cpu": {"realtimePeriod": period, "realtimeRuntime": runtime}});
        tree.apply(&path, &cpu).expect("applies");
        for (file, value) in [("cpu.rt_period_us", period), ("cpu.rt_runtime_us", runtime)] {
            let text = std::fs::read_to_string(Path::new(dir).join(file)).expect("reads");
            assert_eq!(text.trim(), value.to_string(), "{file}");
        }
    }
}

#[tokio::test]
async fn memory_without_a_limit() {
    let resources = json!({"memory": {"limit": -1}});
    let v1 = [
        ("memory/memory.limit_in_bytes", "9223372036854771712"),
        ("memory/memory.memsw.limit_in_bytes", "9223372036854771712"),
    ];
    let v2 = [
        ("memory/memory.max", "max"),
        ("memory/memory.swap.max", "max"),
    ];
    shows(resources, &v1, &v2).await;
}

#[tokio::test]
async fn swappiness_and_the_oom_killer_are_v1s() {
    if super::Subtree::new().manager.is_v2() {
        for field in ["swappiness", "disableOOMKiller"] {
            let value = if field == "swappiness" {
                json!(10)
            } else {
                json!(true)
            };
            let error = refusal(&json!({"memory": {field: value}}));
            let name = format!("linux.resources.memory.{field} is not supported");
            assert!(error.starts_with(&name), "{error}");
        }
        return;
    }
    let resources = json!({"memory": {"swappiness": 10, "disableOOMKiller": true}});
    let v1 = [
        ("memory/memory.swappiness", "10"),
        (
            "memory/memory.oom_control",
            "oom_kill_disable 1 under_oom 0 oom_kill 0",
        ),
    ];
    shows(resources, &v1, &[]).await;
    let error = refusal(&json!({"memory": {"swappiness": 101}}));
    assert!(error.contains("memory.swappiness is invalid"), "{error}");
}

#[test]
fn swap_below_memory_is_refused_on_v2() {
    let tree = Subtree::new();
    let path = tree.child("c", &json!({}));
    let less = json!({"memory": {"limit": 2 << 20, "swap": 1 << 20}});
    let error = tree.apply(&path, &less).expect_err("refused").to_string();
    match tree.manager.is_v2() {
        true => assert!(error.contains("should be >= memory limit"), "{error}"),
        // The kernel's own answer.
        false => assert!(error.contains("memory.memsw.limit_in_bytes"), "{error}"),
    }
}

#[tokio::test]
async fn cpu() {
    let resources = json!({"cpu": {"shares": 2048, "quota": 50000, "period": 100_000,
        "burst": 20000, "cpus": "0", "mems": "0"}});
    let v1 = [
        ("cpu/cpu.shares", "2048"),
        ("cpu/cpu.cfs_quota_us", "50000"),
        ("cpu/cpu.cfs_period_us", "100000"),
        ("cpu/cpu.cfs_burst_us", "20000"),
        ("cpuset/cpuset.cpus", "0"),
        ("cpuset/cpuset.mems", "0"),
    ];
    let v2 = [
        ("cpu/cpu.weight", "174"),
        ("cpu/cpu.max", "50000 100000"),
        ("cpu/cpu.max.burst", "20000"),
        ("cpuset/cpuset.cpus", "0"),
        ("cpuset/cpuset.mems", "0"),
    ];
    shows(resources, &v1, &v2).await;
}

#[tokio::test]
async fn an_idle_cpu_group() {
    let idle = [("cpu/cpu.idle", "1")];
    shows(json!({"cpu": {"idle": 1}}), &idle, &idle).await;
}

#[test]
fn realtime_scheduling_is_v1s() {
    let tree = Subtree::new();
    let resources = json!({"cpu": {"realtimeRuntime": 10000, "realtimePeriod": 500_000}});
    // The cgroup above must have what the one below is to get.
    tree.manager.create(&tree.path).expect("creates");
    match tree.apply(&tree.path, &resources) {
        Ok(()) => {
            let path = tree.child("c", &resources);
            assert_eq!(tree.value(&path, "cpu/cpu.rt_runtime_us"), "10000");
            assert_eq!(tree.value(&path, "cpu/cpu.rt_period_us"), "500000");
        }
        // On v2, and on kernels that are built without group scheduling of realtime processes.
        Err(error) => {
            let error = error.to_string();
            assert!(error.contains("linux.resources.cpu.realtime"), "{error}");
        }
    }
}

#[tokio::test]
async fn pids() {
    let limit = [("pids/pids.max", "20")];
    shows(json!({"pids": {"limit": 20}}), &limit, &limit).await;
    let none = [("pids/pids.max", "max")];
    shows(json!({"pids": {"limit": -1}}), &none, &none).await;
}

#[tokio::test]
async fn block_throttling() {
    let disk = disk();
    let (major, minor) = disk.split_once(':').expect("major:minor");
    let number = |text: &str| text.parse::<i64>().expect("a number");
    let rate = |rate: u64| json!([{"major": number(major), "minor": number(minor), "rate": rate}]);
    let resources = json!({"blockIO": {"throttleReadBpsDevice": rate(1 << 20),
        "throttleWriteBpsDevice": rate(2 << 20), "throttleReadIOPSDevice": rate(300),
        "throttleWriteIOPSDevice": rate(400)}});
    let lines = [1 << 20, 2 << 20, 300, 400].map(|rate| format!("{disk} {rate}"));
    let v1 = [
        ("blkio/blkio.throttle.read_bps_device", lines[0].as_str()),
        ("blkio/blkio.throttle.write_bps_device", &lines[1]),
        ("blkio/blkio.throttle.read_iops_device", &lines[2]),
        ("blkio/blkio.throttle.write_iops_device", &lines[3]),
    ];
    let line = format!("{disk} rbps=1048576 wbps=2097152 riops=300 wiops=400");
    shows(resources, &v1, &[("io/io.max", &line)]).await;
}

#[test]
fn block_weights_hold_or_are_refused_by_name() {
    let tree = Subtree::new();
    let path = tree.child("c", &json!({}));
    match tree.apply(&path, &json!({"blockIO": {"weight": 500}})) {
        Ok(()) => {
            let files = match tree.manager.is_v2() {
                true => ["io/io.bfq.weight", "io/io.weight"],
                false => ["blkio/blkio.bfq.weight", "blkio/blkio.weight"],
            };
            let values = files.map(|file| {
                let known = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                    tree.value(&path, file)
                }));
                known.unwrap_or_default()
            });
            let expected = ["default 500", "500", "default 4950"];
            assert!(
                values.iter().any(|v| expected.contains(&v.as_str())),
                "{values:?}"
            );
        }
        Err(error) => {
            let error = error.to_string();
            let named = "linux.resources.blockIO.weight cannot be set: the cgroup controller";
            assert!(error.starts_with(named), "{error}");
        }
    }
    if tree.manager.is_v2() {
        let error = refusal(&json!({"blockIO": {"leafWeight": 500}}));
        assert!(
            error.contains("blockIO.leafWeight is not supported"),
            "{error}"
        );
    }
}

/// On a hybrid host the controller is in the unified tree, and is enabled there for this test only.
#[test]
fn huge_pages() {
    let control = "/sys/fs/cgroup/unified/cgroup.subtree_control";
    let before = std::fs::read_to_string(control).unwrap_or_default();
    {
        let tree = Subtree::new();
        let path = tree.child("c", &json!({}));
        let limit = json!({"hugepageLimits": [{"pageSize": "2MB", "limit": 4 << 20}]});
        match tree.apply(&path, &limit) {
            Ok(()) => {
                let stats = tree.manager.stats(&path).expect("reads");
                assert_eq!(stats.hugetlb["2MB"].usage, 0);
                let dir = match tree.manager.is_v2() {
                    true => "/sys/fs/cgroup",
                    false => "/sys/fs/cgroup/unified",
                };
                for file in ["hugetlb.2MB.max", "hugetlb.2MB.rsvd.max"] {
                    let value = std::fs::read_to_string(format!("{dir}/{}/{file}", path.as_str()));
                    assert_eq!(value.expect("reads").trim(), "4194304", "{file}");
                }
            }
            Err(error) => {
                let error = error.to_string();
                assert!(
                    error.starts_with("linux.resources.hugepageLimits"),
                    "{error}"
                );
            }
        }
        let unknown = json!({"hugepageLimits": [{"pageSize": "3MB", "limit": 0}]});
        let error = tree
            .apply(&path, &unknown)
            .expect_err("refused")
            .to_string();
        assert!(
            error.starts_with("linux.resources.hugepageLimits"),
            "{error}"
        );
    }
    if !before.contains("hugetlb") {
        let _ = std::fs::write(control, "-hugetlb");
    }
}

#[test]
fn network_classes_hold_or_are_refused_by_name() {
    let tree = Subtree::new();
    let path = tree.child("c", &json!({}));
    for (network, controller, field, file) in [
        (
            json!({"classID": 1_048_577}),
            "net_cls",
            "classID",
            "net_cls.classid",
        ),
        (
            json!({"priorities": [{"name": "lo", "priority": 2}]}),
            "net_prio",
            "priorities",
            "net_prio.ifpriomap",
        ),
    ] {
        match tree.apply(&path, &json!({"network": network})) {
            Ok(()) => {
                let value = tree.value(&path, &format!("{controller}/{file}"));
                assert!(
                    value.contains("1048577") || value.contains("lo 2"),
                    "{value}"
                );
            }
            Err(error) => {
                let error = error.to_string();
                let name = format!("linux.resources.network.{field} is not supported");
                assert!(
                    error.starts_with(&name) && error.contains(controller),
                    "{error}"
                );
            }
        }
    }
}

#[test]
fn rdma_without_the_device_is_refused_by_name() {
    let error = refusal(&json!({"rdma": {"mlx5_9": {"hcaHandles": 3, "hcaObjects": 10000}}}));
    let absent = error.starts_with("linux.resources.rdma is not supported");
    let unknown = error.contains("mlx5_9 hca_handle=3 hca_object=10000");
    assert!(absent || unknown, "{error}");
}

#[tokio::test]
async fn files_of_v2_by_name() {
    if !Subtree::new().manager.is_v2() {
        let error = refusal(&json!({"unified": {"memory.high": "1"}}));
        let named = "linux.resources.unified.memory.high is not supported: invalid \
            configuration: cannot use unified on cgroup v1";
        assert_eq!(error, named);
        return;
    }
    let resources = json!({"unified": {"memory.high": "33554432", "memory.oom.group": "1",
        "pids.max": "77"}, "pids": {"limit": 5}});
    let v2 = [
        ("memory/memory.high", "33554432"),
        ("memory/memory.oom.group", "1"),
        ("pids/pids.max", "77"),
    ];
    shows(resources, &[], &v2).await;
    for (name, reason) in [
        ("../memory.high", "no slashes"),
        ("memory", "CONTROLLER.PARAMETER"),
        ("cgroup.procs", "not a limit"),
        ("nosuch.max", "no cgroup controller nosuch"),
    ] {
        let error = refusal(&json!({"unified": {name: "1"}}));
        let named = format!("linux.resources.unified.{name} is");
        assert!(
            error.starts_with(&named) && error.contains(reason),
            "{error}"
        );
    }
}
