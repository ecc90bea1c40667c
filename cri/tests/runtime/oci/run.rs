// SPDX-License-Identifier: Apache-2.0
//! run in the foreground and detached.

use std::path::Path;

use serde_json::json;

use super::Bundle;

#[test]
fn run_returns_the_exit_code_and_leaves_nothing() {
    let bundle = Bundle::new("echo out; exit 5", &[]);
    let output = bundle.oci(&["run", "--bundle", bundle.bundle(), &bundle.id]);
    assert_eq!(output.status.code(), Some(5));
    assert!(String::from_utf8_lossy(&output.stdout).contains("out\n"));
    assert!(!bundle.path("root").join(&bundle.id).exists());
    let cgroup = Path::new("/sys/fs/cgroup/memory").join(&bundle.id);
    assert!(!cgroup.exists() && !Path::new("/sys/fs/cgroup").join(&bundle.id).exists());
}

#[test]
fn run_keeps_what_is_to_be_kept() {
    let bundle = Bundle::new("exit 3", &[]);
    let output = bundle.oci(&["run", "--keep", "-b", bundle.bundle(), &bundle.id]);
    assert_eq!(output.status.code(), Some(3));
    assert_eq!(bundle.status(), "stopped");
    bundle.ok(&["delete", &bundle.id]);
    bundle.nothing_left();
}

#[test]
fn run_detached_returns_and_the_container_stays() {
    let bundle = Bundle::new("sleep 1000", &[]);
    let pid_file = bundle.path("pid");
    let pid_file = pid_file.to_str().expect("utf-8");
    let run = ["run", "-d", "--pid-file", pid_file, "-b", bundle.bundle()];
    bundle.ok(&[&run[..], &[&bundle.id]].concat());
    let state = bundle.state();
    assert_eq!(state["status"], "running");
    let pid = std::fs::read_to_string(pid_file).expect("reads");
    assert_eq!(state["pid"].to_string(), pid);
}

#[test]
fn a_signal_in_the_foreground_is_the_containers() {
    let script = "trap 'exit 42' TERM; echo > /tmp/ready; while :; do sleep 0.05; done";
    let bundle = Bundle::new(script, &[]);
    let mut run = bundle
        .command(&["run", "--no-subreaper", "-b", bundle.bundle(), &bundle.id])
        .spawn()
        .expect("runs");
    bundle.file("ready");
    let pid = nix::unistd::Pid::from_raw(i32::try_from(run.id()).expect("a pid"));
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).expect("signals");
    assert_eq!(run.wait().expect("ends").code(), Some(42));
    bundle.nothing_left();
}

#[test]
fn a_container_that_a_signal_ends_has_128_and_its_number() {
    let bundle = Bundle::new(
        "kill -9 $$; sleep 1000",
        &[(
            "/linux/namespaces",
            json!([
        {"type": "mount"}, {"type": "ipc"}, {"type": "uts"}, {"type": "network"}]),
        )],
    );
    bundle.refused(137, &["run", "-b", bundle.bundle(), &bundle.id]);
    bundle.nothing_left();
}

#[test]
fn a_program_that_is_no_program_is_runs_own_failure() {
    let bundle = Bundle::new("", &[("/process/args", json!(["/etc/passwd"]))]);
    let said = bundle.refused(1, &["run", "-b", bundle.bundle(), &bundle.id]);
    assert!(
        said.contains("exec: \"/etc/passwd\": permission denied"),
        "{said}"
    );
    bundle.nothing_left();
}

#[test]
fn the_root_is_entered_without_pivot_root_when_asked() {
    let bundle = Bundle::new("ls / | tr '\\n' ' '; ls /proc/1/root/ > /dev/null", &[]);
    let said = bundle.ok(&["run", "--no-pivot", "-b", bundle.bundle(), &bundle.id]);
    assert!(said.contains("bin dev etc proc"), "{said}");
}

#[test]
fn names_limits_and_score_are_the_specs() {
    let changes = [
        ("/hostname", json!("inside")),
        ("/domainname", json!("example.test")),
        (
            "/process/rlimits",
            json!([{"type": "RLIMIT_NOFILE", "soft": 63, "hard": 64}]),
        ),
        ("/process/oomScoreAdj", json!(321)),
    ];
    let script = "hostname; cat /proc/sys/kernel/domainname; ulimit -Sn; ulimit -Hn; \
                  cat /proc/self/oom_score_adj";
    let bundle = Bundle::new(script, &changes);
    let said = bundle.ok(&["run", "-b", bundle.bundle(), &bundle.id]);
    assert_eq!(said, "inside\nexample.test\n63\n64\n321\n");
}
