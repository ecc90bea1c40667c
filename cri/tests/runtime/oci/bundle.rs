// SPDX-License-Identifier: Apache-2.0
//! What cannot be made is said in one line, and leaves nothing behind.

use serde_json::{Value, json};

use super::Bundle;

#[test]
fn what_cannot_be_created_is_said_and_cleaned_up() {
    let bundle = Bundle::new("", &[("/process/args", json!(["nosuch"]))]);
    let log = bundle.path("log");
    let log_text = log.to_str().expect("utf-8");
    let arguments = [
        "--log",
        log_text,
        "--log-format",
        "json",
        "create",
        "-b",
        bundle.bundle(),
    ];
    let output = bundle.oci(&[&arguments[..], &[&bundle.id]].concat());
    assert_eq!(output.status.code(), Some(1));
    let line: Value = serde_json::from_slice(&std::fs::read(log).expect("reads")).expect("json");
    let message = line["msg"].as_str().expect("a message");
    assert!(message.contains("exec: \"nosuch\": executable file not found in $PATH"));
    assert!(!bundle.path("root").join(&bundle.id).exists());
}

#[test]
fn a_config_that_is_wrong_is_named_by_field() {
    for (pointer, value, expected) in [
        (
            "/process/cwd",
            json!("tmp"),
            "config.json: process.cwd is invalid",
        ),
        (
            "/process/cwd",
            json!(5),
            "config.json: process.cwd: invalid type: integer",
        ),
        ("/process/args", json!([]), "config.json: process.args"),
        (
            "/process/OomScoreAdj",
            json!(-2000),
            "config.json: process.oomScoreAdj is invalid",
        ),
        (
            "/ociVersion",
            json!("2.0.0"),
            "config.json: ociVersion: \"2.0.0\"",
        ),
        ("/root/path", json!("nosuch"), "config.json: root.path: "),
        (
            "/root/path",
            json!("config.json"),
            "config.json: root.path: ",
        ),
        (
            "/linux/namespaces",
            json!([{"type": "nosuch"}]),
            "config.json: linux.namespaces[0].type: unknown variant",
        ),
        (
            "/mounts",
            json!([{"destination": "/x", "options": "ro"}]),
            "config.json: mounts[0].options: invalid type: string",
        ),
        (
            "/linux/cgroupsPath",
            json!("/../x"),
            "config.json: linux.cgroupsPath: ",
        ),
        (
            "/process/oomScoreAdj",
            json!(-2000),
            "config.json: process.oomScoreAdj is invalid: -2000",
        ),
        (
            "/process/rlimits",
            json!([{"type": "RLIMIT_X"}]),
            "config.json: process.rlimits[0].type",
        ),
    ] {
        let bundle = Bundle::new("true", &[]);
        let path = bundle.path("config.json");
        let text = std::fs::read(&path).expect("reads");
        let mut config: Value = serde_json::from_slice(&text).expect("json");
        let (parent, key) = pointer.rsplit_once('/').expect("a pointer");
        config.pointer_mut(parent).expect("there")[key] = value;
        std::fs::write(&path, config.to_string()).expect("writes");
        let said = bundle.refused(1, &["create", "-b", bundle.bundle(), &bundle.id]);
        assert!(said.contains(expected), "{said}");
        assert_eq!(said.lines().count(), 1, "{said}");
        bundle.nothing_left();
    }
}

#[test]
fn a_config_that_is_no_json_is_named_by_line_and_column() {
    let bundle = Bundle::new("true", &[]);
    let path = bundle.path("config.json");
    std::fs::write(&path, "{\n  \"ociVersion\": oops\n}").expect("writes");
    let said = bundle.refused(1, &["create", "-b", bundle.bundle(), &bundle.id]);
    assert!(
        said.contains("config.json: expected value at line 2 column 17"),
        "{said}"
    );
    std::fs::remove_file(path).expect("removes");
    let said = bundle.refused(1, &["create", "-b", bundle.bundle(), &bundle.id]);
    assert!(said.contains("config.json not found"), "{said}");
    let said = bundle.refused(1, &["create", "-b", "/no/such/bundle", &bundle.id]);
    assert!(
        said.contains("/no/such/bundle: no such file or directory"),
        "{said}"
    );
    bundle.nothing_left();
}

/// What the process could not say of itself, its limits do.
#[test]
fn limits_that_no_process_can_live_with_are_said() {
    let resources = |resources| [("/linux/resources", resources)];
    let bundle = Bundle::new("true", &resources(json!({"memory": {"limit": 10}})));
    let said = bundle.refused(1, &["create", "-b", bundle.bundle(), &bundle.id]);
    assert!(
        said.contains("OOM-killed (memory limit too low?)")
            || said.contains("unable to set memory limit"),
        "{said}"
    );
    bundle.nothing_left();
    let deadline = json!({"policy": "SCHED_DEADLINE", "runtime": 42_000, "deadline": 1_000_000, "period": 1_000_000});
    let mut changes = resources(json!({"cpu": {"cpus": "0"}})).to_vec();
    changes.push(("/process/scheduler", deadline));
    let bundle = Bundle::new("true", &changes);
    let said = bundle.refused(1, &["create", "-b", bundle.bundle(), &bundle.id]);
    // Where there is one processor, its number is no restriction.
    let one = std::thread::available_parallelism().is_ok_and(|count| count.get() == 1);
    assert!(
        one || said.contains("used together with AllowedCPUs"),
        "{said}"
    );
    bundle.nothing_left();
}

#[test]
fn a_terminal_needs_a_place_to_go() {
    let terminal = [("/process/terminal", json!(true))];
    let bundle = Bundle::new("true", &terminal);
    let said = bundle.refused(1, &["create", "-b", bundle.bundle(), &bundle.id]);
    assert!(said.contains("without setting console socket"), "{said}");
    let bundle = Bundle::new("true", &[]);
    let create = [
        "create",
        "--console-socket",
        "/no/socket",
        "-b",
        bundle.bundle(),
    ];
    let said = bundle.refused(1, &[&create[..], &[&bundle.id]].concat());
    assert!(said.contains("cannot use console socket"), "{said}");
    bundle.nothing_left();
}

/// Somebody else's cgroup would be killed with the container.
#[test]
fn a_cgroup_that_is_in_use_is_not_taken() {
    let other = Bundle::new("sleep 1000", &[]).started();
    let path = json!(format!("/{}", other.id));
    let bundle = Bundle::new("true", &[("/linux/cgroupsPath", path)]);
    let said = bundle.refused(1, &["create", "-b", bundle.bundle(), &bundle.id]);
    assert!(
        said.contains("cgroup is not empty: 1 process(es) found"),
        "{said}"
    );
    assert_eq!(other.status(), "running");
    bundle.nothing_left();
}

#[test]
fn the_log_gets_what_is_said() {
    let filter = json!({"defaultAction": "SCMP_ACT_ALLOW"});
    let bundle = Bundle::new("true", &[("/linux/seccomp", filter)]);
    let log = bundle.path("log");
    let log_text = log.to_str().expect("utf-8");
    let run = |format: &str| {
        let all = [
            "--debug",
            "--log",
            log_text,
            "--log-format",
            format,
            "run",
            "-b",
        ];
        bundle.ok(&[&all[..], &[bundle.bundle(), &bundle.id]].concat());
        let text = std::fs::read_to_string(&log).expect("reads");
        std::fs::remove_file(&log).expect("removes");
        text
    };
    let text = run("text");
    assert!(text.contains("level=debug msg=\"launching\""), "{text}");
    // SECCOMP_FILTER_FLAG_SPEC_ALLOW, which is what no flags at all stand for.
    let flags = "level=debug msg=\"seccomp filter flags: 4\"";
    assert!(text.contains(flags), "{text}");
    let text = run("json");
    let line: Value = serde_json::from_str(text.lines().next().expect("a line")).expect("json");
    assert_eq!(line["level"], "debug");
    bundle.refused(1, &["--log-format", "xml", "list"]);
}

#[test]
fn what_is_not_done_is_refused_by_name() {
    let bundle = Bundle::new("true", &[]);
    for (arguments, name) in [
        (
            &["--rootless", "true", "list"][..],
            "--rootless=true is not supported",
        ),
        (
            &["checkpoint", "--image-path", "x", "id"],
            "checkpoint is not supported",
        ),
        (&["restore", "id"], "restore is not supported"),
        (&["spec", "--rootless"], "--rootless is not supported"),
        (&["--root", "/", "list"], "--root must not be /"),
    ] {
        let said = bundle.refused(1, arguments);
        assert!(said.contains(name), "{said}");
    }
}
