// SPDX-License-Identifier: Apache-2.0
//! create, start, kill, delete.

use std::path::Path;

use serde_json::json;

use super::{Bundle, wait_for};

#[test]
fn a_container_lives_through_all_its_states() {
    let bundle = Bundle::new("echo ran > /tmp/out; sleep 1000", &[]);
    let pid_file = bundle.path("pid");
    let pid_file = pid_file.to_str().expect("utf-8");
    bundle.ok(&[
        "create",
        "--bundle",
        bundle.bundle(),
        "--pid-file",
        pid_file,
        &bundle.id,
    ]);
    assert_eq!(bundle.status(), "created");
    let pid = std::fs::read_to_string(pid_file).expect("reads");
    assert!(Path::new(&format!("/proc/{pid}")).exists());
    assert!(
        !bundle.path("rootfs/tmp/out").exists(),
        "it waits for start"
    );
    bundle.ok(&["start", &bundle.id]);
    assert_eq!(bundle.status(), "running");
    assert_eq!(bundle.oci(&["start", &bundle.id]).status.code(), Some(1));
    assert_eq!(bundle.oci(&["delete", &bundle.id]).status.code(), Some(1));
    let exec = bundle.oci(&[
        "exec",
        &bundle.id,
        "sh",
        "-c",
        "cat /proc/self/cgroup; exit 9",
    ]);
    assert_eq!(exec.status.code(), Some(9));
    assert!(bundle.ok(&["list", "-q"]).contains(&bundle.id));
    bundle.ok(&["kill", &bundle.id, "KILL"]);
    bundle.until("stopped");
    bundle.ok(&["delete", &bundle.id]);
    assert_eq!(bundle.oci(&["state", &bundle.id]).status.code(), Some(1));
    bundle.ok(&["delete", "--force", &bundle.id]);
}

/// Also in the tree without a controller by which systemd ends what belongs to a unit: the caller's.
#[test]
fn a_container_is_its_own_in_every_tree_of_cgroups() {
    let bundle = Bundle::new("sleep 1000", &[]).started();
    let pid = bundle.state()["pid"].to_string();
    let below = std::fs::read_dir("/sys/fs/cgroup").expect("lists");
    let trees = below.flatten().map(|entry| entry.path());
    let mut count = 0;
    for tree in trees.chain(["/sys/fs/cgroup".into()]) {
        let is_tree = |parent: &Path| parent.join("cgroup.procs").exists();
        // Of a directory below, only what is a mount of its own.
        if !is_tree(&tree) || tree.parent().is_some_and(is_tree) {
            continue;
        }
        let procs = tree.join(&bundle.id).join("cgroup.procs");
        let pids = std::fs::read_to_string(&procs);
        let pids = pids.unwrap_or_else(|error| panic!("{}: {error}", procs.display()));
        assert!(pids.lines().any(|line| line == pid), "{}", procs.display());
        count += 1;
    }
    assert!(count > 0);
}

#[test]
fn a_created_container_is_deleted_without_force() {
    let bundle = Bundle::new("sleep 1000", &[]);
    bundle.ok(&["create", "-b", bundle.bundle(), &bundle.id]);
    let pid = bundle.state()["pid"].as_u64().expect("a pid");
    bundle.ok(&["delete", &bundle.id]);
    bundle.nothing_left();
    assert!(!alive(u32::try_from(pid).expect("a pid")));
    let said = bundle.refused(1, &["delete", &bundle.id]);
    assert!(said.contains("container does not exist"), "{said}");
}

/// Though it is the first of its pid namespace, for which the kernel drops what has no handler.
#[test]
fn a_created_container_ends_when_it_is_asked_to() {
    for signal in ["TERM", "INT", "HUP", "QUIT"] {
        let bundle = Bundle::new("sleep 1000", &[]);
        bundle.ok(&["create", "-b", bundle.bundle(), &bundle.id]);
        bundle.ok(&["kill", &bundle.id, signal]);
        bundle.until("stopped");
        bundle.ok(&["delete", &bundle.id]);
        bundle.nothing_left();
    }
    // The program has the defaults, as ever: the first of a pid namespace is not ended by TERM.
    let bundle = Bundle::new("exec sleep 1000", &[]).started();
    bundle.ok(&["kill", &bundle.id, "TERM"]);
    let status = format!("/proc/{}/status", bundle.state()["pid"]);
    let mut caught = String::new();
    wait_for("the shell is the program", || {
        caught = std::fs::read_to_string(&status).expect("reads");
        caught.starts_with("Name:\tsleep")
    });
    assert!(caught.contains("SigCgt:\t0000000000000000"), "{caught}");
    bundle.ok(&["delete", "--force", &bundle.id]);
}

#[test]
fn a_running_container_is_deleted_by_force_only() {
    let bundle = Bundle::new("sleep 1000", &[]).started();
    let said = bundle.refused(1, &["delete", &bundle.id]);
    assert!(said.contains("that is not stopped: running"), "{said}");
    bundle.ok(&["delete", "--force", &bundle.id]);
    bundle.nothing_left();
}

#[test]
fn an_id_is_taken_once_and_has_a_form() {
    let bundle = Bundle::new("sleep 1000", &[]).started();
    let said = bundle.refused(1, &["create", "-b", bundle.bundle(), &bundle.id]);
    assert!(said.contains("given ID already exists"), "{said}");
    bundle.ok(&["kill", &bundle.id, "9"]);
    bundle.until("stopped");
    let said = bundle.refused(1, &["create", "-b", bundle.bundle(), &bundle.id]);
    assert!(said.contains("given ID already exists"), "{said}");
    assert_eq!(bundle.status(), "stopped", "the first one is still there");
    let said = bundle.refused(1, &["create", "-b", bundle.bundle(), ""]);
    assert!(said.contains("container id cannot be empty"), "{said}");
    for id in ["a/b", "..", "a b", "ä"] {
        let said = bundle.refused(1, &["create", "-b", bundle.bundle(), id]);
        assert!(said.contains("invalid container ID format"), "{said}");
    }
}

#[test]
fn signals_are_sent_by_name_and_number() {
    let script = "trap 'echo > /tmp/usr1' USR1; trap 'echo > /tmp/hup' HUP; \
        trap 'echo > /tmp/winch' WINCH; echo > /tmp/ready; while :; do sleep 0.05; done";
    let bundle = Bundle::new(script, &[]).started();
    bundle.file("ready");
    for (signal, file) in [("SIGUSR1", "usr1"), ("1", "hup"), ("winch", "winch")] {
        bundle.ok(&["kill", &bundle.id, signal]);
        bundle.file(file);
    }
    bundle.ok(&["kill", &bundle.id, "0"]);
    let said = bundle.refused(1, &["kill", &bundle.id, "NOSUCH"]);
    assert!(said.contains("unknown signal \"NOSUCH\""), "{said}");
    bundle.ok(&["kill", &bundle.id, "KILL"]);
    bundle.until("stopped");
    let said = bundle.refused(1, &["kill", &bundle.id, "TERM"]);
    assert!(said.contains("container not running"), "{said}");
    bundle.ok(&["kill", "--all", &bundle.id, "KILL"]);
}

/// As nohup and a shell's background jobs leave it.
#[test]
fn signals_that_the_caller_ignores_reach_the_container() {
    // Not by a shell, which ignores some itself.
    let look = json!(["grep", "SigIgn", "/proc/self/status"]);
    let bundle = Bundle::new("", &[("/process/args", look)]);
    let run = bundle.command(&["run", "-b", bundle.bundle(), &bundle.id]);
    let mut ignoring = std::process::Command::new("sh");
    ignoring
        .args(["-c", "trap '' HUP INT USR1; exec \"$0\""])
        .arg(run.get_program())
        .envs(
            run.get_envs()
                .filter_map(|(name, value)| Some((name, value?))),
        );
    let output = bundle.finish(&mut ignoring);
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(said.trim(), "SigIgn:\t0000000000000000");
}

/// In somebody else's pid namespace, nobody ends with the first process.
#[test]
fn kill_reaches_everyone_where_the_pid_namespace_is_shared() {
    let spaces = json!([{"type": "mount"}, {"type": "ipc"}, {"type": "uts"}, {"type": "network"}]);
    let bundle = Bundle::new(
        "sleep 1000 & echo > /tmp/ready; wait",
        &[("/linux/namespaces", spaces)],
    )
    .started();
    bundle.file("ready");
    let pids: Vec<u32> =
        serde_json::from_str(bundle.ok(&["ps", "--format", "json", &bundle.id]).trim())
            .expect("pids");
    assert_eq!(pids.len(), 2, "{pids:?}");
    bundle.ok(&["kill", &bundle.id, "KILL"]);
    wait_for("all are gone", || !pids.iter().any(|pid| alive(*pid)));
}

/// A zombie is its parent's to collect.
fn alive(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

/// What the killed half of a `create` has left.
#[test]
fn an_unfinished_container_is_deleted_by_force() {
    let bundle = Bundle::new("sleep 1000", &[]);
    bundle.ok(&["create", "-b", bundle.bundle(), &bundle.id]);
    let state = bundle.path("root").join(&bundle.id).join("state.json");
    std::fs::remove_file(state).expect("removes");
    bundle.ok(&["delete", "--force", &bundle.id]);
    bundle.nothing_left();
}

/// Linux 6.18 lets nothing live that is cloned into such a cgroup.
#[test]
fn a_cgroup_that_was_killed_once_can_be_used_again() {
    let bundle = Bundle::new("true", &[]);
    let manager = cri::cgroup::detect(Path::new("/sys/fs/cgroup")).expect("cgroups");
    let path = cri::cgroup::CgroupPath::new(&bundle.id).expect("a path");
    manager.create(&path).expect("creates");
    if let Some(dir) = manager.join(&path).unified {
        // Absent before 5.14, and then harmless.
        let _ = std::fs::write(Path::new(&dir).join("cgroup.kill"), "1");
    }
    bundle.ok(&["run", "-b", bundle.bundle(), &bundle.id]);
    bundle.nothing_left();
}
