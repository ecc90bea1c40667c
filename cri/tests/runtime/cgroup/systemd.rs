// SPDX-License-Identifier: Apache-2.0
//! The systemd driver, over a real systemd.

use std::path::Path;
use std::process::Command;

use cri::cgroup::{self, CgroupPath, Manager};
use cri::oci;
use serde_json::json;

use crate::systemd::{BOOTED, run_under_systemd, show, systemctl};

#[test]
fn without_systemd_the_driver_says_so() {
    if Path::new(BOOTED).is_dir() {
        return;
    }
    let error = cgroup::systemd(Path::new("/sys/fs/cgroup"), Vec::new()).expect_err("refused");
    let error = error.to_string();
    assert!(
        error.contains("systemd does not run on this host"),
        "{error}"
    );
}

#[test]
fn a_container_is_a_scope_of_systemds() {
    run_under_systemd("cgroup::systemd::inside");
}

/// A process in the cgroup, as a launch would put it there.
fn process_in(manager: &dyn Manager, path: &CgroupPath) -> std::process::Child {
    let child = Command::new("sleep").arg("1000").spawn().expect("starts");
    let join = manager.join(path);
    for dir in join.v1.iter().chain(&join.unified) {
        let procs = Path::new(dir).join("cgroup.procs");
        std::fs::write(procs, child.id().to_string()).expect("joins");
    }
    child
}

fn limit(manager: &dyn Manager, path: &CgroupPath, resources: serde_json::Value) {
    let resources = serde_json::from_value(resources).expect("resources");
    let limits = oci::limits(&resources).expect("compiles");
    manager.apply(path, &limits).expect("applies");
}

/// What the service of the test above does.
#[test]
#[ignore = "it needs systemd as its first process; the test above runs it there"]
fn inside() {
    let annotations = [("org.systemd.property.CollectMode", "'inactive-or-failed'")];
    let more = cgroup::systemd_properties(annotations.into_iter()).expect("parses");
    let manager = cgroup::systemd(Path::new("/sys/fs/cgroup"), more).expect("systemd runs");
    let path = cgroup::systemd_path(Some("test-a.slice:pod:one"), "id").expect("a path");
    assert_eq!(path.as_str(), "test.slice/test-a.slice/pod-one.scope");
    manager.create(&path).expect("creates");
    let limits = |limit: u64, pids: u64| {
        json!({"memory": {"limit": limit, "swap": limit}, "pids": {"limit": pids},
            "cpu": {"shares": 512, "quota": 15001, "period": 100_000},
            "devices": [{"allow": false, "access": "rwm"}]})
    };
    limit(&*manager, &path, limits(64 << 20, 20));
    let mut child = process_in(&*manager, &path);
    manager.settle(&path);
    assert_eq!(manager.pids(&path).expect("reads"), [child.id()]);
    let show = |property: &str| show("pod-one.scope", property);
    let memory = if manager.is_v2() {
        "MemoryMax"
    } else {
        "MemoryLimit"
    };
    assert_eq!(show("ActiveState"), "active");
    assert_eq!(show("ControlGroup"), format!("/{}", path.as_str()));
    assert_eq!(show("CollectMode"), "inactive-or-failed");
    assert_eq!(
        (show(memory), show("TasksMax")),
        ("67108864".into(), "20".into())
    );
    assert_eq!(show("Delegate"), "yes");
    assert_eq!(show("CPUQuotaPerSecUSec"), "160ms");
    let summary = || manager.summary(&path).expect("reads");
    assert_eq!(summary().memory_limit_bytes, Some(64 << 20));
    // An update is systemd's as well as the file's, and outlives what would undo the file's.
    limit(&*manager, &path, limits(80 << 20, 30));
    systemctl(&["daemon-reload"]);
    assert_eq!(
        (show(memory), show("TasksMax")),
        ("83886080".into(), "30".into())
    );
    assert_eq!(summary().memory_limit_bytes, Some(80 << 20));
    manager.freeze(&path).expect("freezes");
    manager.thaw(&path).expect("thaws");
    let unit_exists = manager.create(&path).expect_err("is there").to_string();
    assert!(
        unit_exists.starts_with("systemd: starting unit pod-one.scope"),
        "{unit_exists}"
    );
    let reaper = std::thread::spawn(move || child.wait());
    manager.kill(&path).expect("kills");
    reaper.join().expect("ends").expect("reaps");
    manager.remove(&path).expect("removes");
    manager.remove(&path).expect("is idempotent");
    assert!(!manager.exists(&path));
    assert_eq!(show("ActiveState"), "inactive");
}
