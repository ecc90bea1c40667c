// SPDX-License-Identifier: Apache-2.0
//! Debian's containerd with runc and the reference CNI plugins, in a test host, as a peer, or with
//! another runtime than runc.

use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::Duration;

use crate::host::stdout_of;
use crate::{TestHost, wait_until};
use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A running containerd; ended when dropped.
pub struct Containerd {
    child: Child,
    pub socket: PathBuf,
}

const CONFIG: &str = r#"
version = 2
root = "DIR/containerd-root"
state = "DIR/containerd-state"
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.internal.v1.opt"]
[grpc]
  address = "DIR/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "localhost/pause:latest"
  restrict_oom_score_adj = true
  stream_server_address = "127.0.0.1"
  stream_server_port = "0"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "DIR/containerd-cni"
"#;

const NETWORK: &str = r#"{
  "cniVersion": "1.0.0", "name": "bench",
  "plugins": [
    { "type": "bridge", "bridge": "cd0", "isGateway": true, "ipMasq": true,
      "ipam": { "type": "host-local", "dataDir": "DIR/containerd-ipam",
                "ranges": [[{ "subnet": "10.44.0.0/16" }]], "routes": [{ "dst": "0.0.0.0/0" }] } },
    { "type": "portmap", "capabilities": { "portMappings": true } }
  ]
}"#;

impl Containerd {
    /// Starts it in `host` with the busybox image of the host's store, which also serves as the
    /// sandbox image with a process that sleeps.
    pub fn start(host: &TestHost) -> Result<Self> {
        let dir = host.path().to_string_lossy().into_owned();
        let config = host.write("containerd.toml", &CONFIG.replace("DIR", &dir))?;
        host.write(
            "containerd-cni/10-bench.conflist",
            &NETWORK.replace("DIR", &dir),
        )?;
        let log = std::fs::File::create(host.path().join("containerd.log"))?;
        let child = host
            .command("containerd")
            .args(["--config", &config])
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .context("starting containerd")?;
        let socket = host.path().join("containerd.sock");
        let containerd = Self { child, socket };
        wait_until("containerd listens", Duration::from_secs(30), || {
            containerd.socket.exists()
        })?;
        containerd.import(host)?;
        Ok(containerd)
    }

    fn import(&self, host: &TestHost) -> Result<()> {
        host.busybox_image()?;
        let rootfs = host
            .path()
            .join("busybox-rootfs")
            .to_string_lossy()
            .into_owned();
        let pause = [
            "image",
            "build",
            "--name",
            "localhost/pause:latest",
            "--entrypoint",
            "/bin/sleep",
            "--cmd",
            "1000000",
            &rootfs,
        ];
        stdout_of(&mut host.podwright(&pause))?;
        let socket = self.socket.to_string_lossy().into_owned();
        for name in ["localhost/busybox:1", "localhost/pause:latest"] {
            let archive = host.path().join("image.tar").to_string_lossy().into_owned();
            stdout_of(&mut host.podwright(&["image", "export", "--output", &archive, name]))?;
            let import = ["-a", &socket, "-n", "k8s.io", "image", "import", &archive];
            stdout_of(host.command("ctr").args(import))?;
        }
        Ok(())
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        // A containerd that has ended already needs nothing.
        let _ = self.child.kill();
        let _ = self.child.wait();
        // Its shims outlive it, with the containers of a run that failed.
        let socket = self.socket.to_string_lossy();
        for process in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
            let line = std::fs::read(process.path().join("cmdline")).unwrap_or_default();
            let name = process.file_name();
            if String::from_utf8_lossy(&line).contains(&*socket)
                && let Some(pid) = name.to_str().and_then(|name| name.parse().ok())
            {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
        }
    }
}
