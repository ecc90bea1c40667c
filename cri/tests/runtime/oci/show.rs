// SPDX-License-Identifier: Apache-2.0
//! state, list, ps.

use serde_json::{Value, json};

use super::Bundle;

#[test]
fn state_is_the_specifications() {
    let annotations = json!({"org.example": "x"});
    let bundle = Bundle::new("sleep 1000", &[("/annotations", annotations)]).started();
    let state = bundle.state();
    assert_eq!(state["id"], json!(bundle.id));
    assert_eq!(state["status"], "running");
    assert_eq!(state["annotations"]["org.example"], "x");
    assert_eq!(state["bundle"], json!(bundle.bundle()));
    assert!(state["pid"].as_u64().is_some_and(|pid| pid > 1));
    assert!(
        state["created"]
            .as_str()
            .is_some_and(|time| time.ends_with('Z'))
    );
    bundle.ok(&["kill", &bundle.id, "KILL"]);
    bundle.until("stopped");
    assert_eq!(bundle.state()["pid"], 0);
    let said = bundle.refused(1, &["state", "nosuch"]);
    assert!(said.contains("container does not exist"), "{said}");
}

#[test]
fn list_has_three_forms() {
    let bundle = Bundle::new("sleep 1000", &[]);
    let said = bundle.refused(1, &["list"]);
    assert!(said.contains("root: no such file or directory"), "{said}");
    let bundle = bundle.started();
    assert_eq!(bundle.ok(&["list", "--quiet"]).trim(), bundle.id);
    let table = bundle.ok(&["list"]);
    let mut lines = table
        .lines()
        .map(|l| l.split_whitespace().collect::<Vec<_>>());
    let title = ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"];
    assert_eq!(lines.next().expect("a title"), title);
    let row = lines.next().expect("a row");
    assert_eq!(
        (row[0], row[2], row[5]),
        (bundle.id.as_str(), "running", "root")
    );
    let all: Vec<Value> =
        serde_json::from_str(&bundle.ok(&["list", "--format", "json"])).expect("json");
    assert_eq!(all.len(), 1);
    assert_eq!(all[0]["owner"], "root");
}

#[test]
fn ps_shows_the_containers_processes_only() {
    let bundle = Bundle::new("sleep 1001 & echo > /tmp/ready; wait", &[]).started();
    bundle.file("ready");
    let pids: Vec<u32> =
        serde_json::from_str(&bundle.ok(&["ps", "-f", "json", &bundle.id])).expect("json");
    assert_eq!(pids.len(), 2);
    let table = bundle.ok(&["ps", &bundle.id]);
    assert_eq!(table.lines().count(), 3, "{table}");
    assert!(table.contains("sleep 1001"), "{table}");
    // Without ps, /proc says it.
    let mut command = bundle.command(&["ps", &bundle.id]);
    let output = bundle.finish(command.env("PATH", "/nonexistent"));
    let table = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success() && table.contains("sleep 1001"),
        "{table}"
    );
    assert_eq!(table.lines().count(), 3, "{table}");
}
