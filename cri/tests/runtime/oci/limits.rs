// SPDX-License-Identifier: Apache-2.0
//! update and events.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::Stdio;

use serde_json::{Value, json};

use super::Bundle;

/// A file of the container's cgroup, by its names on v1 and v2.
fn limit(bundle: &Bundle, v1: &str, v2: &str) -> String {
    let old = Path::new("/sys/fs/cgroup").join(v1.split('.').next().expect("a controller"));
    let path = match old.is_dir() {
        true => old.join(&bundle.id).join(v1),
        false => Path::new("/sys/fs/cgroup").join(&bundle.id).join(v2),
    };
    let text = std::fs::read_to_string(&path);
    text.unwrap_or_else(|error| panic!("{}: {error}", path.display()))
        .trim()
        .to_owned()
}

#[test]
fn update_changes_limits_by_flag_file_and_stdin() {
    let bundle = Bundle::new("sleep 1000", &[]).started();
    let update = |more: &[&str]| {
        bundle.ok(&[&["update"], more, &[&bundle.id]].concat());
    };
    update(&["--memory", "64m", "--pids-limit", "33"]);
    assert_eq!(
        limit(&bundle, "memory.limit_in_bytes", "memory.max"),
        "67108864"
    );
    assert_eq!(limit(&bundle, "pids.max", "pids.max"), "33");
    update(&["--cpu-period", "50000", "--cpu-quota", "25000"]);
    let quota = limit(&bundle, "cpu.cfs_quota_us", "cpu.max");
    assert!(matches!(quota.as_str(), "25000" | "25000 50000"), "{quota}");
    update(&["--cpu-share", "2048"]);
    let shares = limit(&bundle, "cpu.shares", "cpu.weight");
    assert_ne!(shares, "1024");
    assert_eq!(
        limit(&bundle, "pids.max", "pids.max"),
        "33",
        "the rest stays"
    );

    let file = bundle.path("resources.json");
    std::fs::write(&file, json!({"pids": {"limit": 44}}).to_string()).expect("writes");
    update(&["--resources", file.to_str().expect("utf-8")]);
    assert_eq!(limit(&bundle, "pids.max", "pids.max"), "44");

    let mut command = bundle.command(&["update", "-r", "-", &bundle.id]);
    let mut child = command.stdin(Stdio::piped()).spawn().expect("runs");
    let mut stdin = child.stdin.take().expect("a pipe");
    stdin
        .write_all(br#"{"pids": {"limit": 55}}"#)
        .expect("writes");
    drop(stdin);
    assert!(child.wait().expect("ends").success());
    assert_eq!(limit(&bundle, "pids.max", "pids.max"), "55");
}

#[test]
fn update_says_what_is_wrong() {
    let bundle = Bundle::new("sleep 1000", &[]).started();
    let file = bundle.path("resources.json");
    std::fs::write(&file, r#"{"memory": {"limit": "x"}}"#).expect("writes");
    for (arguments, expected) in [
        (&["--memory", "64x"][..], "invalid value for memory"),
        (
            &["-r", file.to_str().expect("utf-8")],
            "memory.limit: invalid type: string",
        ),
        (&["--l3-cache-schema", "L3:0=f"], "--l3-cache-schema: "),
        (&["--mem-bw-schema", "MB:0=20"], "--mem-bw-schema: "),
    ] {
        let said = bundle.refused(1, &[&["update"], arguments, &[&bundle.id]].concat());
        assert!(said.contains(expected), "{said}");
    }
    bundle.ok(&["kill", &bundle.id, "KILL"]);
    bundle.until("stopped");
    let said = bundle.refused(1, &["update", "--pids-limit", "5", &bundle.id]);
    assert!(said.contains("container not running"), "{said}");
}

#[test]
fn events_prints_statistics_once() {
    let bundle = Bundle::new("sleep 1000", &[]).started();
    let event: Value =
        serde_json::from_str(&bundle.ok(&["events", "--stats", &bundle.id])).expect("json");
    assert_eq!(
        (&event["type"], &event["id"]),
        (&json!("stats"), &json!(bundle.id))
    );
    assert!(
        event["data"]["memory"]["usage"]["usage"].as_u64() > Some(0),
        "{event}"
    );
    assert!(
        event["data"]["pids"]["current"].as_u64() > Some(0),
        "{event}"
    );
    assert!(
        event["data"]["network_interfaces"]
            .as_array()
            .is_some_and(|all| !all.is_empty())
    );
    let said = bundle.refused(1, &["events", "--interval", "0s", &bundle.id]);
    assert!(said.contains("interval must be greater than 0"), "{said}");
}

#[test]
fn events_streams_statistics_and_kills_until_the_container_ends() {
    let memory = json!({"limit": 16 << 20, "swap": 16 << 20});
    // A child is killed for want of memory; then the container waits for the word to end.
    let script = "(head -c 100000000 /dev/zero | tail -c 100000000 > /dev/null) || true; \
        while [ ! -e /tmp/end ]; do sleep 0.05; done";
    let script = format!("while [ ! -e /tmp/go ]; do sleep 0.05; done; {script}");
    let bundle = Bundle::new(&script, &[("/linux/resources/memory", memory)]);
    let busybox = std::fs::read_link(bundle.path("rootfs/bin/cat")).expect("an applet");
    let _ = std::os::unix::fs::symlink(busybox, bundle.path("rootfs/bin/tail"));
    let bundle = bundle.started();
    let mut command = bundle.command(&["events", "--interval", "50ms", &bundle.id]);
    let mut child = command.stdout(Stdio::piped()).spawn().expect("runs");
    let mut lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
    let mut until = |kind: &str| loop {
        let line = lines.next().expect("goes on").expect("utf-8");
        let event: Value = serde_json::from_str(&line).expect("json");
        if event["type"] == kind {
            break;
        }
    };
    until("stats");
    std::fs::write(bundle.path("rootfs/tmp/go"), "").expect("writes");
    until("oom");
    std::fs::write(bundle.path("rootfs/tmp/end"), "").expect("writes");
    // To its end: a full pipe would hold it up.
    lines.for_each(drop);
    assert!(child.wait().expect("ends").success());
}
