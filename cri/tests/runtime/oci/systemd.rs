// SPDX-License-Identifier: Apache-2.0
//! `--systemd-cgroup`: containers as scope units of a real systemd.

use std::path::Path;

use serde_json::{Value, json};

use super::{Bundle, wait_for};
use crate::systemd::{BOOTED, run_under_systemd, show, systemctl};

const FLAG: &str = "--systemd-cgroup";
const SCOPE: &str = "oci-one.scope";
const PATH: &str = "/test.slice/test-b.slice/oci-one.scope";

#[test]
fn without_systemd_nothing_is_made() {
    if Path::new(BOOTED).is_dir() {
        return;
    }
    let bundle = Bundle::new("sleep 1000", &[]);
    for verb in ["create", "run"] {
        let said = bundle.refused(1, &[FLAG, verb, "-b", bundle.bundle(), &bundle.id]);
        let expected = format!("systemd does not run on this host ({BOOTED} is missing)");
        assert!(said.contains(&expected), "{said}");
        assert!(!bundle.path("root").exists());
    }
    bundle.nothing_left();
}

#[test]
fn containers_are_scopes_of_systemds() {
    run_under_systemd("oci::systemd::inside");
}

/// What the service of the test above does.
#[test]
#[ignore = "it needs systemd as its first process; the test above runs it there"]
fn inside() {
    every_verb_finds_the_scope();
    what_a_killed_create_left_is_removed();
    run_makes_a_scope_of_its_own();
    what_fails_leaves_no_scope();
}

fn in_the_scope(script: &str) -> Bundle {
    let changes = [
        ("/linux/cgroupsPath", json!("test-b.slice:oci:one")),
        ("/linux/resources/pids", json!({"limit": 20})),
        (
            "/annotations",
            json!({"org.systemd.property.CollectMode": "'inactive-or-failed'"}),
        ),
    ];
    Bundle::new(script, &changes)
}

fn pids(bundle: &Bundle) -> Value {
    let text = bundle.ok(&["ps", "-f", "json", &bundle.id]);
    serde_json::from_str(text.trim()).expect("json")
}

fn is_gone(scope: &str) {
    // A unit that has ended is forgotten a little later.
    wait_for("the unit is gone", || {
        show(scope, "LoadState") == "not-found"
    });
}

fn every_verb_finds_the_scope() {
    let bundle = in_the_scope("sleep 1000");
    bundle.ok(&[FLAG, "create", "-b", bundle.bundle(), &bundle.id]);
    let pid = bundle.state()["pid"].clone();
    assert_eq!(show(SCOPE, "ActiveState"), "active");
    assert_eq!(show(SCOPE, "ControlGroup"), PATH);
    assert_eq!(show(SCOPE, "CollectMode"), "inactive-or-failed");
    assert_eq!(show(SCOPE, "TasksMax"), "20");
    assert_eq!(pids(&bundle), json!([pid]), "no placeholder is left");
    bundle.ok(&["start", &bundle.id]);
    let another = Bundle::new("", &[("/linux/cgroupsPath", json!("test-b.slice:oci:one"))]);
    let said = another.refused(1, &[FLAG, "create", "-b", another.bundle(), &another.id]);
    assert!(said.contains("container's cgroup is not empty"), "{said}");

    bundle.ok(&["update", "--pids-limit", "33", &bundle.id]);
    systemctl(&["daemon-reload"]);
    assert_eq!(show(SCOPE, "TasksMax"), "33");

    let file = bundle.path("exec.pid");
    let pid_file = file.to_str().expect("utf-8");
    bundle.ok(&[
        "exec",
        "-d",
        "--pid-file",
        pid_file,
        &bundle.id,
        "sleep",
        "1000",
    ]);
    let exec: u32 = std::fs::read_to_string(&file)
        .expect("reads")
        .parse()
        .expect("a pid");
    let groups = std::fs::read_to_string(format!("/proc/{exec}/cgroup")).expect("reads");
    assert!(groups.lines().any(|line| line.ends_with(PATH)), "{groups}");
    let all = pids(&bundle);
    assert!(all.as_array().is_some_and(|all| all.len() == 2), "{all}");
    let event = bundle.json(&["events", "--stats", &bundle.id]);
    let event: Value = serde_json::from_str(&event).expect("json");
    assert_eq!(event["data"]["pids"]["current"], 2, "{event}");
    assert_eq!(event["data"]["pids"]["limit"], 33, "{event}");

    bundle.ok(&["pause", &bundle.id]);
    assert_eq!(bundle.status(), "paused");
    bundle.ok(&["resume", &bundle.id]);
    assert_eq!(bundle.status(), "running");
    bundle.ok(&["kill", "--all", &bundle.id, "KILL"]);
    bundle.until("stopped");
    bundle.ok(&["delete", &bundle.id]);
    is_gone(SCOPE);
}

/// Such a one has no record, and `delete` need not be told that systemd made its cgroup.
fn what_a_killed_create_left_is_removed() {
    let bundle = in_the_scope("sleep 1000");
    bundle.ok(&[FLAG, "create", "-b", bundle.bundle(), &bundle.id]);
    std::fs::remove_file(bundle.path("root").join(&bundle.id).join("state.json")).expect("removes");
    assert_eq!(show(SCOPE, "ActiveState"), "active");
    bundle.ok(&["delete", "--force", &bundle.id]);
    is_gone(SCOPE);
}

fn run_makes_a_scope_of_its_own() {
    let spaces = json!([{"type": "mount"}, {"type": "pid"}]);
    let changes = [("/linux/namespaces", spaces)];
    let bundle = Bundle::new("cat /proc/self/cgroup; exit 3", &changes);
    let scope = format!("podwright-{}.scope", bundle.id);
    let said = bundle.refused(3, &[FLAG, "run", "-b", bundle.bundle(), &bundle.id]);
    let place = format!("/system.slice/{scope}");
    assert!(said.lines().any(|line| line.ends_with(&place)), "{said}");
    is_gone(&scope);
}

fn what_fails_leaves_no_scope() {
    for (change, expected) in [
        (("/process/args", json!(["/no/such"])), "no such file"),
        (("/linux/cgroupsPath", json!("/a/b")), "slice:prefix:name"),
        (
            (
                "/annotations",
                json!({"org.systemd.property.NoSuch": "true"}),
            ),
            "NoSuch",
        ),
    ] {
        let bundle = Bundle::new("", &[change]);
        let said = bundle.refused(1, &[FLAG, "run", "-b", bundle.bundle(), &bundle.id]);
        assert!(said.contains(expected), "{said}");
        assert!(!bundle.path("root").join(&bundle.id).exists());
        is_gone(&format!("podwright-{}.scope", bundle.id));
    }
}
