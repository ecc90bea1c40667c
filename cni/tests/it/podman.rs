// SPDX-License-Identifier: Apache-2.0
//! Another runtime with our plugins as executables: Debian's podman, whose networks are CNI lists.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;

use crate::executables::our_plugins;
use crate::place::{Dir, in_new_host, run};

/// podman with a store, a network and cgroups of its own.
struct Podman {
    dir: Dir,
    cgroup: String,
}

impl Podman {
    fn new() -> Podman {
        let dir = Dir::new();
        let name = dir.path().file_name().expect("a name").to_string_lossy();
        let cgroup = format!("/podwright-test-{}", name.trim_start_matches('.'));
        let podman = Podman { dir, cgroup };
        let bin = our_plugins(podman.dir.path());
        let net = podman.path("net");
        std::fs::create_dir(&net).expect("mkdir");
        let ipam = json!({"type": "host-local", "dataDir": podman.path("leases"),
            "ranges": [[{"subnet": "10.88.0.0/16", "gateway": "10.88.0.1"}]], "routes": [{"dst": "0.0.0.0/0"}]});
        // As podman itself writes one.
        let list = json!({"cniVersion": "0.4.0", "name": "own", "plugins": [
            {"type": "bridge", "bridge": "cni-podman0", "isGateway": true, "ipMasq": true,
                "hairpinMode": true, "ipam": ipam, "capabilities": {"ips": true, "mac": true}},
            {"type": "portmap", "capabilities": {"portMappings": true}},
            {"type": "firewall", "backend": ""},
            {"type": "tuning", "capabilities": {"mac": true}, "dataDir": podman.path("tuning")}
        ]});
        std::fs::write(net.join("87-own.conflist"), list.to_string()).expect("written");
        let conf = format!(
            "[network]\nnetwork_backend = \"cni\"\ncni_plugin_dirs = [{bin:?}]\n\
             network_config_dir = {net:?}\ndefault_network = \"own\"\n\
             [engine]\nruntime = \"runc\"\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"file\"\n"
        );
        std::fs::write(podman.path("containers.conf"), conf).expect("written");
        podman.make_rootfs();
        podman
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn make_rootfs(&self) {
        let root = self.path("rootfs");
        for dir in ["bin", "proc", "sys", "dev", "etc", "run"] {
            std::fs::create_dir_all(root.join(dir)).expect("mkdir");
        }
        let paths = ["/bin/busybox", "/usr/bin/busybox"];
        let busybox = paths.iter().find(|path| Path::new(path).exists());
        std::fs::copy(
            busybox.expect("apt install busybox-static"),
            root.join("bin/busybox"),
        )
        .expect("copied");
    }

    fn run(&self, args: &[&str]) -> String {
        let out = Command::new("podman")
            .env("CONTAINERS_CONF", self.path("containers.conf"))
            .arg("--root")
            .arg(self.path("root"))
            .arg("--runroot")
            .arg(self.path("runroot"))
            .args(args)
            .output()
            .expect("apt install podman");
        let error = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.success(), "podman {args:?}: {error}");
        String::from_utf8_lossy(&out.stdout).into_owned()
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        let _ = Command::new("podman")
            .env("CONTAINERS_CONF", self.path("containers.conf"))
            .arg("--root")
            .arg(self.path("root"))
            .arg("--runroot")
            .arg(self.path("runroot"))
            .args(["rm", "-f", "-t", "0", "a"])
            .output();
        // runc leaves the parents that it made, one for each hierarchy.
        let own = self.cgroup.trim_start_matches('/');
        let hierarchies = std::fs::read_dir("/sys/fs/cgroup").into_iter().flatten();
        for hierarchy in hierarchies.flatten() {
            remove_cgroups(&hierarchy.path().join(own));
        }
        remove_cgroups(&Path::new("/sys/fs/cgroup").join(own));
    }
}

/// The container's server, by the host port at 127.0.0.1.
fn ask_http() -> std::io::Result<String> {
    let mut stream = TcpStream::connect("127.0.0.1:8080")?;
    stream.set_read_timeout(Some(std::time::Duration::from_secs(3)))?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

/// Remove cgroups that have no process any more, the inner ones first. Where a hierarchy is not
/// mounted, runc and conmon have made plain directories and files; those of a real one stay.
fn remove_cgroups(dir: &Path) {
    for child in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        if child.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_cgroups(&child.path());
        } else {
            let _ = std::fs::remove_file(child.path());
        }
    }
    let _ = std::fs::remove_dir(dir);
}

#[test]
fn podman_uses_our_plugins() {
    in_new_host(|| {
        let podman = Podman::new();
        let rootfs = podman.path("rootfs");
        let cgroup = format!("--cgroup-parent={}", podman.cgroup);
        podman.run(&[
            "run",
            "-d",
            "--name",
            "a",
            &cgroup,
            // Without CAP_SYS_RESOURCE podman's own cannot be set.
            "--ulimit",
            "nofile=1024:1024",
            "--ulimit",
            "nproc=1024:1024",
            "-p",
            "8080:80",
            "--ip",
            "10.88.0.77",
            "--mac-address",
            "02:11:22:33:44:55",
            "--rootfs",
            rootfs.to_str().expect("utf-8"),
            "/bin/busybox",
            "httpd",
            "-f",
            "-p",
            "80",
        ]);
        let shown = podman.run(&["exec", "a", "/bin/busybox", "ip", "addr", "show", "eth0"]);
        for wanted in ["10.88.0.77/16", "02:11:22:33:44:55"] {
            assert!(shown.contains(wanted), "{shown}");
        }
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
        let mut said = ask_http();
        while !said
            .as_ref()
            .is_ok_and(|text| text.starts_with("HTTP/1.1 "))
        {
            assert!(std::time::Instant::now() < deadline, "{said:?}");
            std::thread::sleep(std::time::Duration::from_millis(50));
            said = ask_http();
        }
        podman.run(&["rm", "-f", "-t", "0", "a"]);
        let rules = run("nft", &["list", "ruleset"]);
        assert!(!rules.contains("elements"), "{rules}");
        assert!(
            !podman.path("leases/own/10.88.0.77").exists(),
            "the lease is back"
        );
        assert!(!run("ip", &["-o", "link"]).contains("master cni-podman0"));
    });
}
