// SPDX-License-Identifier: Apache-2.0
//! podman, with its own store, over `podwright oci`.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tests::{TestHost, image, leftovers};

use crate::runtime::{self, Ended, eventually, run};

const IMAGE: &str = "localhost/busybox";

/// podman in a test host.
struct Podman {
    host: TestHost,
    runtime: String,
}

impl Podman {
    fn new() -> Result<Podman> {
        let host = TestHost::new()?;
        let runtime = runtime::link(&host)?;
        // podman reads what failed from the log of a runtime that it knows to write JSON.
        let config = "[engine]\nruntime_supports_json = [\"podwright-oci\"]\n";
        host.write("containers.conf", config)?;
        host.write(
            "policy.json",
            r#"{"default": [{"type": "insecureAcceptAnything"}]}"#,
        )?;
        let podman = Podman { host, runtime };
        image::busybox_rootfs(&podman.host.path().join("busybox"))?;
        podman.host.sh("tar -C busybox -cf busybox.tar .")?;
        let archive = podman.path("busybox.tar");
        podman.ok(&["import", &archive, IMAGE])?;
        Ok(podman)
    }

    fn path(&self, name: &str) -> String {
        self.host.path().join(name).to_string_lossy().into_owned()
    }

    fn command(&self, program: &str) -> Command {
        let mut command = self.host.command(program);
        command.env("CONTAINERS_CONF", self.path("containers.conf"));
        command
    }

    fn flags(&self) -> Vec<String> {
        let pairs = [
            ("--root", self.path("store")),
            ("--runroot", self.path("run")),
            ("--tmpdir", self.path("libpod")),
            ("--storage-driver", "vfs".into()),
            ("--cgroup-manager", "cgroupfs".into()),
            ("--events-backend", "none".into()),
            ("--runtime", self.runtime.clone()),
        ];
        let flags = pairs.into_iter();
        flags
            .flat_map(|(flag, value)| [flag.to_owned(), value])
            .collect()
    }

    fn podman(&self, args: &[&str]) -> Result<Ended> {
        run(self.command("podman").args(self.flags()).args(args))
    }

    fn ok(&self, args: &[&str]) -> Result<String> {
        let ended = self.podman(args)?.ok();
        ended.with_context(|| format!("podman {}", args.join(" ")))
    }

    /// `podman run FLAGS IMAGE COMMAND`, without a network and in this test's cgroups.
    fn run(&self, flags: &[&str], command: &[&str]) -> Result<Ended> {
        let parent = [
            "run",
            "--network",
            "none",
            "--cgroup-parent",
            &self.host.cgroup_parent,
        ];
        self.podman(&[&parent, flags, &[IMAGE], command].concat())
    }

    fn start(&self, name: &str, flags: &[&str], command: &[&str]) -> Result<()> {
        let all = [&["-d", "--name", name], flags].concat();
        self.run(&all, command)?.ok().map(drop)
    }

    fn inspect(&self, name: &str) -> Result<Value> {
        let text = self.ok(&["inspect", name])?;
        let list: Value = serde_json::from_str(&text)?;
        Ok(list[0].clone())
    }

    fn status(&self, name: &str) -> String {
        let inspected = self.inspect(name).unwrap_or_default();
        inspected["State"]["Status"]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    }

    fn down(self) -> Result<()> {
        self.ok(&["rm", "--all", "--force", "--time", "0"])?;
        leftovers::remove_parent_cgroups(&self.host)?;
        self.host.down()
    }
}

#[test]
fn run_passes_streams_and_exit_codes() -> Result<()> {
    let podman = Podman::new()?;
    let ended = podman.run(&["--rm"], &["sh", "-c", "echo out; echo err >&2; exit 7"])?;
    assert_eq!((ended.code, ended.stdout.as_str()), (7, "out"), "{ended:?}");
    assert!(ended.stderr.contains("err"), "{ended:?}");
    assert_eq!(podman.run(&["--rm"], &["nosuch"])?.code, 127);
    assert_eq!(podman.run(&["--rm"], &["/etc"])?.code, 126);
    let echoed = podman.host.sh(&format!(
        "echo typed | CONTAINERS_CONF={} podman {} run --rm -i --network none --cgroup-parent {} {IMAGE} cat",
        podman.path("containers.conf"),
        podman.flags().join(" "),
        podman.host.cgroup_parent,
    ))?;
    assert_eq!(echoed, "typed\n");
    assert_eq!(podman.ok(&["ps", "-aq"])?, "", "--rm leaves no container");
    podman.down()
}

/// What flags ask for is what the container sees.
#[test]
fn flags_of_run_take_effect() -> Result<()> {
    let podman = Podman::new()?;
    let cases: &[(&[&str], &str, &str)] = &[
        (&["--user", "65534:65534"], "id -u; id -g", "65534\n65534"),
        (
            &["--cap-drop", "all"],
            "grep CapEff /proc/self/status",
            "CapEff:\t0000000000000000",
        ),
        (
            &["--read-only"],
            "touch /x 2>/dev/null || echo refused",
            "refused",
        ),
        (&["--hostname", "named"], "hostname", "named"),
        (&["--env", "KEY=value"], "echo $KEY", "value"),
        (&["--workdir", "/tmp"], "pwd", "/tmp"),
        (&[], "ls /sys/class/net", "lo"),
        (
            &["--tmpfs", "/scratch:size=1m"],
            "grep -c ' /scratch tmpfs' /proc/mounts",
            "1",
        ),
        (
            &["--security-opt", "no-new-privileges"],
            "grep NoNewPrivs /proc/self/status",
            "NoNewPrivs:\t1",
        ),
        (&["--init"], "cat /proc/1/comm", "podman-init"),
        (
            &["--pids-limit", "20"],
            "cat /sys/fs/cgroup/pids.max /sys/fs/cgroup/pids/pids.max 2>/dev/null || true",
            "20",
        ),
        (
            &["--memory", "64m"],
            "cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null || true",
            "67108864",
        ),
    ];
    for (flags, script, expected) in cases {
        let ended = podman.run(&[&["--rm"], *flags].concat(), &["sh", "-c", script])?;
        assert_eq!(ended.stdout, *expected, "{flags:?}: {ended:?}");
    }
    podman.down()
}

#[test]
fn a_container_is_managed_while_it_runs() -> Result<()> {
    let podman = Podman::new()?;
    podman.start("c", &[], &["sh", "-c", "echo started; sleep 1000"])?;
    let seen = podman.ok(&[
        "exec",
        "c",
        "sh",
        "-c",
        "cat /proc/1/cmdline | tr '\\0' ' '",
    ])?;
    assert!(seen.contains("sleep 1000"), "{seen}");
    assert_eq!(podman.podman(&["exec", "c", "sh", "-c", "exit 5"])?.code, 5);
    assert_eq!(podman.podman(&["exec", "c", "nosuch"])?.code, 127);
    assert_eq!(
        podman.ok(&["exec", "--user", "nobody", "c", "id", "-u"])?,
        "65534"
    );
    assert_eq!(
        podman.ok(&[
            "exec",
            "--workdir",
            "/tmp",
            "-e",
            "A=b",
            "c",
            "sh",
            "-c",
            "pwd; echo $A"
        ])?,
        "/tmp\nb"
    );
    eventually("the log has its line", || {
        podman.ok(&["logs", "c"]).is_ok_and(|log| log == "started")
    })?;
    let top = podman.ok(&["top", "c", "pid", "args"])?;
    assert!(top.contains("sleep 1000"), "{top}");

    podman.host.write("file", "copied")?;
    podman.ok(&["cp", &podman.path("file"), "c:/tmp/file"])?;
    assert_eq!(podman.ok(&["exec", "c", "cat", "/tmp/file"])?, "copied");

    podman.ok(&["pause", "c"])?;
    assert_eq!(podman.status("c"), "paused");
    podman.ok(&["unpause", "c"])?;
    assert_eq!(podman.status("c"), "running");
    podman.ok(&["update", "--memory", "128m", "c"])?;
    let limit = "cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null || true";
    assert_eq!(podman.ok(&["exec", "c", "sh", "-c", limit])?, "134217728");

    podman.ok(&["kill", "--signal", "KILL", "c"])?;
    eventually("it has exited", || podman.status("c") == "exited")?;
    assert_eq!(podman.inspect("c")?["State"]["ExitCode"], 137);
    podman.ok(&["start", "c"])?;
    podman.ok(&["stop", "--time", "1", "c"])?;
    assert_eq!(podman.status("c"), "exited");
    podman.ok(&["rm", "c"])?;
    podman.down()
}

/// Through script(1), which gives podman a terminal of its own.
#[test]
fn a_terminal_reaches_the_container() -> Result<()> {
    let podman = Podman::new()?;
    let inner = format!(
        "podman {} run --rm -it --network none --cgroup-parent {} {IMAGE} sh -c 'tty; stty size; exit 9'",
        podman.flags().join(" "),
        podman.host.cgroup_parent,
    );
    let mut script = podman.command("script");
    let ended = run(script.args(["-qec", &inner, "/dev/null"]))?;
    ensure!(ended.stdout.contains("/dev/pts/0"), "{ended:?}");
    assert_eq!(ended.code, 9);
    podman.start("t", &[], &["sleep", "1000"])?;
    let inner = format!("podman {} exec -it t tty", podman.flags().join(" "));
    let ended = run(podman.command("script").args(["-qec", &inner, "/dev/null"]))?;
    ensure!(ended.stdout.contains("/dev/pts/"), "{ended:?}");
    podman.down()
}

#[test]
fn a_pod_shares_its_namespaces() -> Result<()> {
    let podman = Podman::new()?;
    podman.start("first", &["--ipc", "shareable"], &["sleep", "1000"])?;
    let shared = [
        "--network",
        "container:first",
        "--ipc",
        "container:first",
        "--pid",
        "container:first",
    ];
    let script =
        "readlink /proc/self/ns/net; readlink /proc/1/ns/net; grep -c sleep /proc/1/cmdline";
    let all = [
        &["run", "--rm", "--cgroup-parent", &podman.host.cgroup_parent],
        &shared[..],
        &[IMAGE, "sh", "-c", script],
    ]
    .concat();
    let seen = podman.ok(&all)?;
    let lines: Vec<&str> = seen.lines().collect();
    ensure!(
        lines.len() == 3 && lines[0] == lines[1] && lines[2] == "1",
        "{seen}"
    );
    podman.down()
}
