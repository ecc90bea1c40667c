// SPDX-License-Identifier: Apache-2.0
//! containerd and its runc shim, over `podwright oci` in the place of runc.

use anyhow::{Context, Result, ensure};
use tests::containerd::Containerd;
use tests::{TestHost, leftovers};

use crate::runtime::{self, Ended, eventually, run};

const IMAGE: &str = "localhost/busybox:1";

struct Peer {
    host: TestHost,
    _containerd: Containerd,
    runtime: String,
    socket: String,
}

impl Peer {
    fn new() -> Result<Peer> {
        let host = TestHost::new()?;
        let runtime = runtime::link(&host)?;
        let containerd = Containerd::start(&host)?;
        let socket = containerd.socket.to_string_lossy().into_owned();
        Ok(Peer {
            host,
            _containerd: containerd,
            runtime,
            socket,
        })
    }

    fn ctr(&self, args: &[&str]) -> Result<Ended> {
        let connection = ["-a", &self.socket, "-n", "k8s.io"];
        run(self.host.command("ctr").args(connection).args(args))
    }

    fn ok(&self, args: &[&str]) -> Result<String> {
        let ended = self.ctr(args)?.ok();
        ended.with_context(|| format!("ctr {}", args.join(" ")))
    }

    fn run(&self, flags: &[&str], id: &str, command: &[&str]) -> Result<Ended> {
        let cgroup = format!("{}/{id}", self.host.cgroup_parent);
        let fixed = [
            "run",
            "--runtime",
            "io.containerd.runc.v2",
            "--runc-binary",
            &self.runtime,
            "--cgroup",
            &cgroup,
        ];
        self.ctr(&[&fixed, flags, &[IMAGE, id], command].concat())
    }

    fn status(&self, id: &str) -> String {
        let list = self.ok(&["task", "ls"]).unwrap_or_default();
        let row = list
            .lines()
            .find(|line| line.starts_with(id))
            .unwrap_or_default();
        row.split_whitespace().last().unwrap_or_default().to_owned()
    }

    fn down(self) -> Result<()> {
        let Peer {
            host, _containerd, ..
        } = self;
        drop(_containerd);
        leftovers::remove_parent_cgroups(&host)?;
        host.down()
    }
}

#[test]
fn run_passes_streams_and_exit_codes() -> Result<()> {
    let peer = Peer::new()?;
    let ended = peer.run(&["--rm"], "a", &["sh", "-c", "echo out; hostname; exit 7"])?;
    assert_eq!(ended.code, 7, "{ended:?}");
    ensure!(ended.stdout.starts_with("out"), "{ended:?}");
    let missing = peer.run(&["--rm"], "b", &["nosuch"])?;
    ensure!(
        missing.code != 0
            && missing
                .stderr
                .contains("executable file not found in $PATH"),
        "{missing:?}"
    );
    assert_eq!(
        peer.ok(&["container", "ls", "-q"])?,
        "",
        "--rm leaves no container"
    );
    peer.down()
}

#[test]
fn a_task_is_managed_while_it_runs() -> Result<()> {
    let peer = Peer::new()?;
    peer.run(
        &["-d", "--memory-limit", "67108864"],
        "t",
        &["sleep", "1000"],
    )?
    .ok()?;
    assert_eq!(peer.status("t"), "RUNNING");
    let exec = ["task", "exec", "--exec-id"];
    let seen = peer.ok(&[&exec[..], &["e1", "t", "cat", "/proc/1/cmdline"]].concat())?;
    ensure!(seen.starts_with("sleep"), "{seen}");
    let failed = peer.ctr(&[&exec[..], &["e2", "t", "sh", "-c", "exit 5"]].concat())?;
    assert_eq!(failed.code, 5, "{failed:?}");
    let processes = peer.ok(&["task", "ps", "t"])?;
    assert_eq!(processes.lines().count(), 2, "{processes}");
    let metrics = peer.ok(&["task", "metrics", "t"])?;
    ensure!(metrics.contains("memory"), "{metrics}");
    peer.ok(&["task", "pause", "t"])?;
    assert_eq!(peer.status("t"), "PAUSED");
    peer.ok(&["task", "resume", "t"])?;
    assert_eq!(peer.status("t"), "RUNNING");
    peer.ok(&["task", "kill", "--signal", "SIGKILL", "t"])?;
    eventually("it has stopped", || peer.status("t") == "STOPPED")?;
    let deleted = peer.ctr(&["task", "delete", "t"])?;
    ensure!(deleted.stderr.contains("exit code 137"), "{deleted:?}");
    peer.ok(&["container", "delete", "t"])?;
    peer.down()
}

#[test]
fn a_terminal_reaches_the_container() -> Result<()> {
    let peer = Peer::new()?;
    let inner = format!(
        "ctr -a {} -n k8s.io run --rm -t --runtime io.containerd.runc.v2 --runc-binary {} --cgroup {}/tty {IMAGE} tty sh -c 'tty; exit 9'",
        peer.socket, peer.runtime, peer.host.cgroup_parent
    );
    let ended = run(peer
        .host
        .command("script")
        .args(["-qec", &inner, "/dev/null"]))?;
    ensure!(ended.stdout.contains("/dev/pts/0"), "{ended:?}");
    assert_eq!(ended.code, 9);
    peer.down()
}
