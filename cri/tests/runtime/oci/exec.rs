// SPDX-License-Identifier: Apache-2.0
//! exec and its flags.

use std::path::Path;

use serde_json::json;

use super::{Bundle, wait_for};

fn sleeping() -> Bundle {
    Bundle::new("sleep 1000", &[]).started()
}

impl Bundle {
    /// What a command in the container prints.
    fn exec(&self, flags: &[&str], command: &[&str]) -> String {
        let text = self.ok(&[&["exec"], flags, &[&self.id], command].concat());
        text.trim().to_owned()
    }
}

#[test]
fn exec_returns_the_exit_code_and_255_for_its_own_failures() {
    let bundle = sleeping();
    bundle.refused(9, &["exec", &bundle.id, "sh", "-c", "exit 9"]);
    bundle.refused(143, &["exec", &bundle.id, "sh", "-c", "kill $$"]);
    for (arguments, expected) in [
        (&["nosuch"][..], "executable file not found in $PATH"),
        (&["/etc/passwd"], "permission denied"),
        (&[], "exec args cannot be empty"),
    ] {
        let said = bundle.refused(255, &[&["exec", &bundle.id], arguments].concat());
        assert!(
            said.contains("exec failed: ") && said.contains(expected),
            "{said}"
        );
    }
    bundle.ok(&["kill", &bundle.id, "KILL"]);
    bundle.until("stopped");
    let said = bundle.refused(255, &["exec", &bundle.id, "true"]);
    assert!(
        said.contains("cannot exec in a stopped container"),
        "{said}"
    );
    let said = bundle.refused(255, &["exec", "nosuch", "true"]);
    assert!(said.contains("container does not exist"), "{said}");
}

#[test]
fn exec_changes_directory_environment_and_identity() {
    let bundle = sleeping();
    assert_eq!(
        bundle.exec(&["--cwd", "/etc"], &["sh", "-c", "pwd"]),
        "/etc"
    );
    let env = bundle.exec(&["-e", "A=1", "--env", "B=2 3"], &["env"]);
    assert!(
        env.contains("A=1") && env.contains("B=2 3") && env.contains("PATH=/bin"),
        "{env}"
    );
    let flags = ["--user", "1000:7", "-g", "8", "--additional-gids", "9"];
    let id = bundle.exec(&flags, &["sh", "-c", "id -u; id -g; id -G"]);
    assert_eq!(
        id.lines().collect::<Vec<_>>(),
        ["1000", "7", "7 8 9"],
        "{id}"
    );
    let said = bundle.refused(255, &["exec", "--user", "root", &bundle.id, "id"]);
    assert!(said.contains("--user \"root\" is not uid[:gid]"), "{said}");
}

#[test]
fn exec_changes_capabilities_and_no_new_privs() {
    let bundle = sleeping();
    let status = |flags: &[&str], field: &str| {
        let text = bundle.exec(flags, &["cat", "/proc/self/status"]);
        let line = text.lines().find_map(|line| line.strip_prefix(field));
        line.expect("a field").trim().to_owned()
    };
    let bounding =
        |flags: &[&str]| u64::from_str_radix(&status(flags, "CapBnd:"), 16).expect("a number");
    const NET_ADMIN: u64 = 1 << 12;
    assert_eq!(bounding(&[]) & NET_ADMIN, 0);
    assert_ne!(bounding(&["--cap", "CAP_NET_ADMIN"]) & NET_ADMIN, 0);
    assert_eq!(status(&[], "NoNewPrivs:"), "0");
    assert_eq!(status(&["--no-new-privs"], "NoNewPrivs:"), "1");
    let said = bundle.ok(&["exec", "-c", "CAP_NOSUCH", &bundle.id, "true"]);
    assert!(
        said.contains("unavailable capabilities: [CAP_NOSUCH]"),
        "{said}"
    );
}

#[test]
fn exec_takes_a_process_from_a_file() {
    let bundle = sleeping();
    let file = bundle.path("process.json");
    let path = file.to_str().expect("utf-8");
    let process = json!({"cwd": "/etc", "args": ["sh", "-c", "pwd; echo $X"],
        "env": ["PATH=/bin", "X=y"]});
    std::fs::write(&file, process.to_string()).expect("writes");
    let said = bundle.exec(&["--process", path], &[]);
    assert_eq!(said.lines().collect::<Vec<_>>(), ["/etc", "y"]);
    std::fs::write(&file, r#"{"cwd": "/", "args": "sh"}"#).expect("writes");
    let said = bundle.refused(255, &["exec", "-p", path, &bundle.id]);
    assert!(
        said.contains("process.json: args: invalid type: string"),
        "{said}"
    );
    std::fs::write(&file, r#"{"cwd": "x", "args": ["sh"]}"#).expect("writes");
    let said = bundle.refused(255, &["exec", "-p", path, &bundle.id]);
    assert!(said.contains("process.cwd is invalid"), "{said}");
}

#[test]
fn exec_detached_leaves_a_process_and_its_id() {
    let bundle = sleeping();
    let file = bundle.path("pid");
    let path = file.to_str().expect("utf-8");
    bundle.exec(&["-d", "--pid-file", path], &["sleep", "1002"]);
    let pid = std::fs::read_to_string(&file).expect("reads");
    let arguments = std::fs::read(format!("/proc/{pid}/cmdline")).expect("it runs");
    assert_eq!(arguments, b"sleep\x001002\0");
}

#[test]
fn exec_in_a_paused_container_waits_for_it_when_asked() {
    let bundle = sleeping();
    bundle.ok(&["pause", &bundle.id]);
    let arguments = ["exec", "--ignore-paused", &bundle.id, "touch", "/tmp/done"];
    let mut exec = bundle.command(&arguments).spawn().expect("runs");
    let done = bundle.path("rootfs/tmp/done");
    // It has joined the cgroup once there is a second process.
    wait_for("it is in the cgroup", || {
        let pids = bundle.ok(&["ps", "-f", "json", &bundle.id]);
        let pids: Vec<u32> = serde_json::from_str(&pids).expect("json");
        pids.len() > 1 || exec.try_wait().expect("waits").is_some()
    });
    assert!(!done.exists(), "it is frozen too");
    bundle.ok(&["resume", &bundle.id]);
    assert!(exec.wait().expect("ends").success());
    assert!(done.exists());
}

#[test]
fn exec_joins_a_cgroup_below_the_containers() {
    let bundle = sleeping();
    let v1 = Path::new("/sys/fs/cgroup/pids").is_dir();
    let parent = match v1 {
        true => Path::new("/sys/fs/cgroup/pids").join(&bundle.id),
        false => Path::new("/sys/fs/cgroup").join(&bundle.id),
    };
    std::fs::create_dir(parent.join("sub")).expect("creates");
    let flag = if v1 { "pids:sub" } else { "sub" };
    let groups = bundle.exec(&["--cgroup", flag], &["cat", "/proc/self/cgroup"]);
    assert!(
        groups.lines().any(|line| line.ends_with("/sub")),
        "{groups}"
    );
    let groups = bundle.exec(&["--cgroup", "/"], &["cat", "/proc/self/cgroup"]);
    assert!(!groups.contains("/sub"), "{groups}");
    let said = bundle.refused(255, &["exec", "--cgroup", "nosuch", &bundle.id, "true"]);
    assert!(said.contains("invalid --cgroup argument: nosuch"), "{said}");
}

/// As systemd does in a container: on v2, a cgroup that gives controllers on has no processes itself.
#[test]
fn exec_joins_the_first_process_where_the_container_divides_its_cgroup() {
    let bundle = sleeping();
    let own = Path::new("/sys/fs/cgroup").join(&bundle.id);
    if !own.join("cgroup.controllers").exists() {
        return;
    }
    let write = |file: &str, text: &str| {
        let path = own.join(file);
        std::fs::write(&path, text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    };
    std::fs::create_dir(own.join("init")).expect("creates");
    write("init/cgroup.procs", &bundle.state()["pid"].to_string());
    write("cgroup.subtree_control", "+pids");
    let groups = bundle.exec(&[], &["cat", "/proc/self/cgroup"]);
    assert!(groups.trim_end().ends_with("/init"), "{groups}");
    let said = bundle.refused(255, &["exec", "--cgroup", "/", &bundle.id, "true"]);
    assert!(said.contains("device or resource busy"), "{said}");
}
