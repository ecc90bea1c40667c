// SPDX-License-Identifier: Apache-2.0
//! A containerd of the test's own: private directories, network and mount namespace, so that nothing
//! of it outlives the test.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

/// The image that pods use: busybox, which also plays the sandbox's pause.
pub(crate) const IMAGE: &str = "localhost/busybox:1";

/// Dropping it kills containerd and what it started.
pub(crate) struct Containerd {
    dir: tempfile::TempDir,
    child: Child,
}

impl Containerd {
    /// Starts it and imports [`IMAGE`].
    pub(crate) fn start() -> Containerd {
        for tool in [
            "/usr/bin/containerd",
            "/usr/bin/ctr",
            "/usr/sbin/runc",
            "/bin/busybox",
            "/usr/lib/cni/ptp",
        ] {
            assert!(
                Path::new(tool).exists(),
                "{tool} is missing: apt-get install containerd busybox-static containernetworking-plugins"
            );
        }
        let dir = tempfile::Builder::new()
            .prefix("kl")
            .tempdir_in("/tmp")
            .expect("a temporary directory");
        let path = dir.path().display().to_string();
        let config = format!(
            r#"version = 2
root = "{path}/root"
state = "{path}/state"
[grpc]
  address = "{path}/c.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{IMAGE}"
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
  disable_apparmor = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{path}/cni"
"#
        );
        std::fs::write(dir.path().join("config.toml"), config).expect("writes");
        std::fs::create_dir(dir.path().join("cni")).expect("creates");
        let list = r#"{"cniVersion": "1.0.0", "name": "t", "plugins": [{"type": "ptp", "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.199.0.0/24"}]], "dataDir": "DIR/ipam"}}]}"#;
        std::fs::write(
            dir.path().join("cni/10-t.conflist"),
            list.replace("DIR", &path),
        )
        .expect("writes");
        let log = std::fs::File::create(dir.path().join("log")).expect("creates");
        // Shim sockets have a fixed place below /run: it gets its own.
        let script = format!(
            "mount -t tmpfs tmpfs /run && ip link set lo up && exec containerd -c {path}/config.toml"
        );
        let child = Command::new("unshare")
            .args([
                "--mount",
                "--net",
                "--pid",
                "--fork",
                "--kill-child",
                "--mount-proc",
                "sh",
                "-c",
                &script,
            ])
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("clones"))
            .stderr(log)
            .spawn()
            .expect("unshare starts");
        let containerd = Containerd { dir, child };
        containerd.import();
        containerd
    }

    /// The directory that holds everything.
    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    /// The CRI socket.
    pub(crate) fn endpoint(&self) -> String {
        format!("unix://{}", self.socket().display())
    }

    fn socket(&self) -> PathBuf {
        self.path().join("c.sock")
    }

    fn import(&self) {
        let archive = self.path().join("image.tar");
        std::fs::write(&archive, image()).expect("writes");
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let output = Command::new("ctr")
                .arg("--address")
                .arg(self.socket())
                .args(["-n", "k8s.io", "images", "import"])
                .arg(&archive)
                .output()
                .expect("ctr runs");
            if output.status.success() {
                return;
            }
            if Instant::now() > deadline {
                let log = std::fs::read_to_string(self.path().join("log")).unwrap_or_default();
                panic!(
                    "ctr: {}\ncontainerd: {log}",
                    String::from_utf8_lossy(&output.stderr)
                );
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        // The init of the PID namespace takes every shim and container with it.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A docker archive of one layer: busybox and the links that the tests use.
fn image() -> Vec<u8> {
    let mut layer = tar::Builder::new(Vec::new());
    let busybox = std::fs::read("/bin/busybox").expect("busybox is there");
    let header = |kind: tar::EntryType, size: usize| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(0o755);
        header.set_size(u64::try_from(size).expect("fits"));
        header
    };
    for folder in ["bin", "etc", "tmp", "proc", "sys", "dev", "v"] {
        let mut header = header(tar::EntryType::Directory, 0);
        layer
            .append_data(&mut header, folder, std::io::empty())
            .expect("appends");
    }
    let mut file = header(tar::EntryType::Regular, busybox.len());
    layer
        .append_data(&mut file, "bin/busybox", busybox.as_slice())
        .expect("appends");
    for name in ["sh", "sleep", "cat", "echo", "test", "true"] {
        let mut link = header(tar::EntryType::Symlink, 0);
        layer
            .append_link(&mut link, format!("bin/{name}"), "busybox")
            .expect("appends");
    }
    let layer = layer.into_inner().expect("finishes");
    let digest: String = Sha256::digest(&layer)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let config = serde_json::json!({
        "architecture": "amd64", "os": "linux",
        "config": {"Env": ["PATH=/bin"], "Cmd": ["/bin/sleep", "3600"]},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{digest}")]}
    });
    let manifest = serde_json::json!([{"Config": "config.json", "RepoTags": [IMAGE], "Layers": ["layer.tar"]}]);
    let mut archive = tar::Builder::new(Vec::new());
    let parts = [
        ("layer.tar", layer),
        ("config.json", config.to_string().into_bytes()),
        ("manifest.json", manifest.to_string().into_bytes()),
    ];
    for (name, data) in parts {
        let mut header = header(tar::EntryType::Regular, data.len());
        archive
            .append_data(&mut header, name, data.as_slice())
            .expect("appends");
    }
    archive.into_inner().expect("finishes")
}
