// SPDX-License-Identifier: Apache-2.0
//! A host of its own on this kernel, and the server that runs in it.

use std::fs::{self, File};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

use crate::{image, leftovers, sys, wait_for};

/// The address that a test host by itself has. Such hosts don't see each other, so it can be the same.
pub const HOST_IP: &str = "192.0.2.10";

/// How long a node may take until it is Ready; generous, because the machine may be busy.
const READY_WITHIN: Duration = Duration::from_secs(60);

/// Where the executable under test is: `PODWRIGHT_BIN`, or beside the test executable.
pub fn binary() -> PathBuf {
    if let Some(path) = std::env::var_os("PODWRIGHT_BIN") {
        return path.into();
    }
    let exe = std::env::current_exe().expect("a test knows its own executable");
    let profile = exe.ancestors().find(|dir| dir.join("podwright").is_file());
    profile.map(|dir| dir.join("podwright")).unwrap_or_else(|| {
        panic!(
            "no podwright beside {}; build it first or set PODWRIGHT_BIN",
            exe.display()
        )
    })
}

/// A network namespace, a mount namespace, directories and a cgroup parent of its own.
pub struct TestHost {
    dir: Option<TempDir>,
    path: PathBuf,
    holder: Child,
    pub name: String,
    pub cgroup_parent: String,
    /// Its addresses, as `--node-ip` takes them.
    pub node_ip: String,
    /// Flags that every command of its node takes beside the usual ones.
    pub flags: Vec<String>,
    /// And those that only `server` and `agent` take.
    pub cluster_flags: Vec<String>,
    /// Of the API server, when that is another host's.
    api: Option<PathBuf>,
}

impl TestHost {
    /// A new host with `lo` up, an uplink that leads nowhere, and a default route over it.
    pub fn new() -> Result<Self> {
        let host = Self::bare(HOST_IP)?;
        host.sh(&format!(
            "ip link add name uplink0 type bridge && ip addr add {HOST_IP}/24 dev uplink0 \
             && ip link set uplink0 up && ip route add default via 192.0.2.1"
        ))?;
        Ok(host)
    }

    /// A new host with `lo` up, for these addresses, which it does not have yet.
    pub(crate) fn bare(node_ip: &str) -> Result<Self> {
        let host = Self::held(sys::in_new_namespaces, node_ip)?;
        host.sh("ip link set lo up")?;
        Ok(host)
    }

    /// The machine itself, which has these addresses: for a guest that is there for one test.
    pub fn machine(node_ip: &str) -> Result<Self> {
        Self::held(sys::in_these_namespaces, node_ip)
    }

    fn held(place: fn(&mut Command) -> &mut Command, node_ip: &str) -> Result<Self> {
        let dir = tempfile::Builder::new()
            .prefix("podwright-host-")
            .tempdir()?;
        let path = dir.path().to_owned();
        let id: u32 = rand::random();
        let mut holder = Command::new("sleep");
        holder.arg("infinity").stdin(Stdio::null());
        let holder = place(&mut holder)
            .spawn()
            .context("starting the process that holds a test host's namespaces; this needs root")?;
        Ok(Self {
            dir: Some(dir),
            path,
            holder,
            name: format!("host-{id:08x}"),
            cgroup_parent: format!("/podwright-test-{id:08x}"),
            node_ip: node_ip.to_owned(),
            flags: Vec::new(),
            cluster_flags: Vec::new(),
            api: None,
        })
    }

    /// The process that holds the host's namespaces.
    pub(crate) fn holder(&self) -> u32 {
        self.holder.id()
    }

    /// The host's directory; everything it writes is below.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where its network namespace can be entered.
    pub fn netns(&self) -> PathBuf {
        format!("/proc/{}/ns/net", self.holder.id()).into()
    }

    /// A command that will run in the host's namespaces.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        command_beside(&self.holder, program)
    }

    /// Runs a shell script in the host's directory; an error has its output.
    pub fn sh(&self, script: &str) -> Result<String> {
        // Entering a mount namespace starts a process at its root.
        let script = format!("cd '{}'\n{script}", self.path.display());
        stdout_of(self.command("sh").args(["-ec", &script]))
    }

    /// `podwright VERB …`, with this host's directories for the verbs that take them.
    pub fn podwright(&self, args: &[&str]) -> Command {
        let mut command = self.command(binary());
        command.args(args).env("KUBECONFIG", self.kubeconfig());
        if matches!(
            args[0],
            "server" | "agent" | "cri" | "kubelet" | "run" | "purge" | "network"
        ) {
            command.args(self.node_flags());
            if matches!(args[0], "server" | "agent") {
                command.args(&self.cluster_flags);
            }
        } else if args[0] == "image" {
            command.arg("--data-dir").arg(self.path.join("data"));
        }
        command
    }

    /// The stock `kubectl`, pointed at this host's API server.
    pub fn kubectl(&self, args: &[&str]) -> Command {
        let mut command = self.command("kubectl");
        command.args(args).env("KUBECONFIG", self.kubeconfig());
        // kubectl keeps its discovery cache here; each host has other certificates.
        command.env("HOME", &self.path);
        command
    }

    /// Standard output of `kubectl ARGS`, an error if it fails.
    pub fn kubectl_ok(&self, args: &[&str]) -> Result<String> {
        stdout_of(&mut self.kubectl(args))
    }

    /// An object, or a list, as JSON.
    pub fn get(&self, args: &[&str]) -> Result<Value> {
        let text = self.kubectl_ok(&[&["get", "-o", "json"], args].concat())?;
        serde_json::from_str(&text).context("kubectl get printed no JSON")
    }

    pub fn kubeconfig(&self) -> PathBuf {
        match &self.api {
            Some(file) => file.clone(),
            None => self.path.join("data/server/kubeconfig.yaml"),
        }
    }

    /// Starts `podwright agent` against the API server of another host, with credentials that its
    /// authority signs, and waits until the node is Ready.
    pub fn agent(&mut self, server: &TestHost) -> Result<Server<'_>> {
        self.api = Some(server.kubeconfig());
        let files = server.credentials(&self.path, &self.name, &self.node_ip)?;
        let file = |path: &Path| path.to_string_lossy().into_owned();
        let args = [
            "agent",
            "--kubeconfig",
            &file(&files.kubelet_kubeconfig),
            "--tls-cert-file",
            &file(&files.kubelet_cert),
            "--tls-private-key-file",
            &file(&files.kubelet_key),
        ];
        let agent = Server::start(self, &args)?;
        agent.wait_ready()?;
        Ok(agent)
    }

    /// What the authority of this host's server signs for a node, in files below `dir`.
    pub fn credentials(
        &self,
        dir: &Path,
        name: &str,
        node_ip: &str,
    ) -> Result<controlplane_lite::AgentFiles> {
        let authority = dir.join("authority");
        let pki = authority.join("server/pki");
        fs::create_dir_all(&pki)?;
        for file in ["ca.crt", "ca.key"] {
            fs::copy(self.path.join("data/server/pki").join(file), pki.join(file))?;
        }
        let ips: Vec<IpAddr> = node_ip
            .split(',')
            .map(str::parse)
            .collect::<Result<_, _>>()?;
        let first = self.node_ip.split(',').next().unwrap_or_default();
        let url = format!("https://{first}:6443");
        controlplane_lite::agent_credentials(&authority, name, &ips, &url)
            .context("signing the node's credentials")
    }

    /// Waits until a node of this host's cluster is Ready.
    pub fn wait_node_ready(&self, node: &str) -> Result<()> {
        wait_for("the node is Ready", READY_WITHIN, || {
            let path = r#"jsonpath={.status.conditions[?(@.type=="Ready")].status}"#;
            match self.kubectl_ok(&["get", "node", node, "-o", path]) {
                Ok(status) if status == "True" => Ok(()),
                Ok(status) => Err(format!("Ready={status:?}")),
                Err(error) => Err(format!("{error:#}")),
            }
        })
    }

    /// Builds the image `localhost/busybox:1` into this host's store.
    pub fn busybox_image(&self) -> Result<()> {
        let rootfs = self.path.join("busybox-rootfs");
        image::busybox_rootfs(&rootfs)?;
        let rootfs = rootfs.to_string_lossy().into_owned();
        let build = [
            "image",
            "build",
            "--name",
            "localhost/busybox:1",
            "--cmd",
            "sh",
            &rootfs,
        ];
        stdout_of(&mut self.podwright(&build))?;
        Ok(())
    }

    /// Writes a file below the host's directory and returns its path.
    pub fn write(&self, name: &str, text: &str) -> Result<String> {
        let path = self.path.join(name);
        fs::create_dir_all(path.parent().expect("a file has a folder"))?;
        fs::write(&path, text)?;
        Ok(path.to_string_lossy().into_owned())
    }

    /// Starts `podwright server` and waits until its node is Ready.
    pub fn server(&self) -> Result<Server<'_>> {
        self.server_with(&[])
    }

    /// The same, with further flags.
    pub fn server_with(&self, flags: &[&str]) -> Result<Server<'_>> {
        let server = Server::start(self, &[&["server"], flags].concat())?;
        server.wait_ready()?;
        Ok(server)
    }

    /// Flags that keep a node within this host.
    pub fn node_flags(&self) -> Vec<String> {
        let below = |name: &str| self.path.join(name).to_string_lossy().into_owned();
        let pairs = [
            ("--data-dir", below("data")),
            ("--run-dir", below("run")),
            ("--node-name", self.name.clone()),
            ("--node-ip", self.node_ip.clone()),
            ("--cgroup-parent", self.cgroup_parent.clone()),
            ("--cni-conf-dir", below("cni")),
            ("--pod-logs-dir", below("logs")),
            ("--registries-dir", below("registries")),
            // The machine may be short of disk; that is not what is tested.
            ("--eviction-hard", "memory.available<1Mi".into()),
        ];
        pairs
            .into_iter()
            .flat_map(|(flag, value)| [flag.to_owned(), value])
            .chain(self.flags.iter().cloned())
            .collect()
    }

    /// Ends everything in the host and returns what is left of it, which should be nothing.
    pub fn down(mut self) -> Result<()> {
        self.purge()?;
        self.end_holder();
        let dir = self.dir.take().expect("a host is taken down once");
        let left = leftovers::of(&self.path, &self.cgroup_parent);
        dir.close().context("removing the host's directory")?;
        ensure!(
            left.is_empty(),
            "left behind by {}:\n{}",
            self.name,
            left.join("\n")
        );
        Ok(())
    }

    /// Ends and removes all of the node, as an operator would.
    pub fn purge(&self) -> Result<()> {
        stdout_of(&mut self.podwright(&["purge"])).map(drop)
    }

    fn end_holder(&mut self) {
        // Already gone is as good as ended.
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

impl Drop for TestHost {
    fn drop(&mut self) {
        if self.dir.is_some() {
            if std::env::var_os("PODWRIGHT_KEEP").is_some() {
                let kept = self.dir.take().map(TempDir::keep);
                eprintln!("kept: {kept:?}");
            }
            if let Err(error) = self.purge() {
                eprintln!("purging {}: {error:#}", self.name);
            }
            self.end_holder();
        }
    }
}

/// A command that will run in the namespaces that a process holds.
pub(crate) fn command_beside(holder: &Child, program: impl AsRef<std::ffi::OsStr>) -> Command {
    let pidfd = sys::pidfd_open(holder.id()).expect("the holder lives as long as its owner");
    let mut command = Command::new(program);
    command.stdin(Stdio::null());
    sys::in_namespaces_of(&mut command, pidfd);
    command
}

/// A running `podwright server`, or `agent`.
pub struct Server<'host> {
    host: &'host TestHost,
    child: Child,
}

impl<'host> Server<'host> {
    fn start(host: &'host TestHost, args: &[&str]) -> Result<Self> {
        let log = File::options()
            .create(true)
            .append(true)
            .open(host.path.join("server.log"))?;
        let child = host
            .podwright(args)
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .with_context(|| format!("starting podwright {}", args[0]))?;
        Ok(Self { host, child })
    }

    fn wait_ready(&self) -> Result<()> {
        let ready = self.host.wait_node_ready(&self.host.name);
        ready.with_context(|| format!("the server's log ends with:\n{}", self.log_tail()))
    }

    /// The last lines of what the server logged.
    pub fn log_tail(&self) -> String {
        let log = fs::read_to_string(self.host.path.join("server.log")).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }

    /// The host that it runs on.
    pub fn host(&self) -> &'host TestHost {
        self.host
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// `kill -9`, at once.
    pub fn kill(mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// SIGTERM, and its exit code, which must come within a deadline.
    pub fn stop(mut self) -> Result<()> {
        let pid = Pid::from_raw(i32::try_from(self.child.id())?);
        kill(pid, Signal::SIGTERM)?;
        let status = wait_for(
            "the server stops on SIGTERM",
            Duration::from_secs(30),
            || match self.child.try_wait() {
                Ok(Some(status)) => Ok(status),
                other => Err(format!("{other:?}")),
            },
        )?;
        ensure!(
            status.success(),
            "the server ended with {status}:\n{}",
            self.log_tail()
        );
        Ok(())
    }
}

impl Drop for Server<'_> {
    fn drop(&mut self) {
        // A server that has ended already needs nothing.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs a command to its end; its standard output, or an error with all that it said.
pub fn stdout_of(command: &mut Command) -> Result<String> {
    let output = output_of(command)?;
    if !output.status.success() {
        bail!(
            "{command:?} ended with {}:\n{}{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs a command to its end, however it ends.
pub fn output_of(command: &mut Command) -> Result<Output> {
    command
        .output()
        .with_context(|| format!("running {command:?}"))
}
