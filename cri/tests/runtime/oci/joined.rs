// SPDX-License-Identifier: Apache-2.0
//! A container whose mount namespace is there before it, and what must not come of that.

use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

use super::{Bundle, wait_for};
use crate::container::link;
use crate::pod::make_rootfs;

/// A process with a mount namespace of its own, in which a script has run.
struct Elsewhere(Child);

impl Elsewhere {
    fn with(bundle: &Bundle, script: &str) -> Elsewhere {
        let script = format!("set -e\n{script}\ntouch ready\nexec sleep 1000");
        let child = Command::new("unshare")
            .args(["-m", "--propagation", "private", "sh", "-c", &script])
            .current_dir(bundle.bundle())
            .stdin(Stdio::null())
            .spawn()
            .expect("starts");
        wait_for("the namespace is ready", || bundle.path("ready").exists());
        Elsewhere(child)
    }

    fn pid(&self) -> String {
        self.0.id().to_string()
    }
}

impl Drop for Elsewhere {
    fn drop(&mut self) {
        // Both fail only when it has ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn bind(source: &Path, destination: &str) -> Value {
    json!({"type": "bind", "source": source, "destination": destination, "options": ["rbind"]})
}

/// Another config.json for a bundle: joined mounts, and one more of its own.
fn join(bundle: &Bundle, namespace: &str, mount: Option<Value>) {
    let path = bundle.path("config.json");
    let text = std::fs::read(&path).expect("reads");
    let mut spec: Value = serde_json::from_slice(&text).expect("json");
    let spaces = spec["linux"]["namespaces"].as_array_mut().expect("a list");
    spaces.retain(|space| space["type"] != "mount");
    spaces.push(json!({"type": "mount", "path": namespace}));
    let mounts = spec["mounts"].as_array_mut().expect("a list");
    mounts.extend(mount);
    std::fs::write(path, spec.to_string()).expect("writes");
}

fn of(process: &Elsewhere) -> String {
    format!("/proc/{}/ns/mnt", process.pid())
}

fn mounts(pid: &str) -> String {
    std::fs::read_to_string(format!("/proc/{pid}/mountinfo")).expect("reads")
}

/// The root and the sources are the namespace's: on the host, nothing is at these paths.
#[test]
fn a_mount_namespace_is_joined_by_path() {
    let script = "ls /marker; cat /data/file; readlink /proc/self/ns/mnt; \
        grep -c '^[0-9]* [0-9]* [^ ]* [^ ]* / ' /proc/self/mountinfo; sleep 1000";
    let bundle = Bundle::new(
        &format!(
            "({script}) > /tmp/out.new 2>&1 & \
            until grep -q . /tmp/out.new && [ $(wc -l < /tmp/out.new) = 4 ]; do sleep 0.01; done; \
            busybox mv /tmp/out.new /tmp/out; wait"
        ),
        &[],
    );
    for name in ["other", "data"] {
        std::fs::create_dir(bundle.path(name)).expect("creates");
    }
    make_rootfs(&bundle.path("other"));
    std::fs::write(bundle.path("other/marker"), "").expect("writes");
    let before = mounts("self");
    let there = Elsewhere::with(
        &bundle,
        "mount --bind other rootfs; mount -t tmpfs none data; echo there > data/file",
    );
    let name = link(&there.pid(), "mnt");
    join(
        &bundle,
        &of(&there),
        Some(bind(&bundle.path("data"), "/data")),
    );
    bundle.ok(&["create", "-b", bundle.bundle(), &bundle.id]);
    bundle.ok(&["start", &bundle.id]);
    let out = bundle.path("other/tmp/out");
    wait_for("the script ran", || out.exists());
    let out = std::fs::read_to_string(out).expect("utf-8");
    assert_eq!(out, format!("/marker\nthere\n{name}\n1\n"));
    // As with runc, it is the root of everyone there.
    assert!(Path::new(&format!("/proc/{}/root/marker", there.pid())).exists());
    let seen = bundle.ok(&["exec", &bundle.id, "readlink", "/proc/self/ns/mnt"]);
    assert_eq!(seen.trim(), name);
    assert_eq!(mounts("self"), before, "the host's mounts stay");
    bundle.ok(&["delete", "--force", &bundle.id]);
    bundle.nothing_left();
}

/// It would change the root of every process of this machine.
#[test]
fn the_hosts_mount_namespace_is_not_joined() {
    // Where process 1 is another machine's, it may not even be looked at.
    for (namespace, expected) in [
        ("/proc/self/ns/mnt", "is the host's"),
        ("/proc/1/ns/mnt", ""),
    ] {
        let bundle = Bundle::new("true", &[]);
        join(&bundle, namespace, None);
        let said = bundle.refused(1, &["run", "-b", bundle.bundle(), &bundle.id]);
        let field = "linux.namespaces[mount].path is invalid";
        assert!(said.contains(field) && said.contains(expected), "{said}");
        bundle.nothing_left();
    }
}

/// Who is in the namespace exchanges a source for a link of /proc, behind which is the host's root.
#[test]
fn a_source_in_a_joined_namespace_leads_nowhere_else() {
    let bundle = Bundle::new("true", &[]);
    let there = Elsewhere::with(&bundle, "");
    let target = format!("/proc/{}/root/etc", std::process::id());
    std::os::unix::fs::symlink(target, bundle.path("link")).expect("links");
    join(
        &bundle,
        &of(&there),
        Some(bind(&bundle.path("link"), "/data")),
    );
    let before = mounts(&there.pid());
    let said = bundle.refused(1, &["run", "-b", bundle.bundle(), &bundle.id]);
    assert!(said.contains("of the joined mount namespace"), "{said}");
    assert_eq!(mounts(&there.pid()), before);
    bundle.nothing_left();
}

/// A set-up that fails half-way leaves the namespace its root.
#[test]
fn what_fails_in_a_joined_namespace_is_taken_back() {
    let bundle = Bundle::new("true", &[]);
    let there = Elsewhere::with(&bundle, "");
    let mount = json!({"type": "nosuch", "source": "none", "destination": "/x"});
    join(&bundle, &of(&there), Some(mount));
    let roots = || {
        let all = mounts(&there.pid());
        let mut points: Vec<_> = all
            .lines()
            .filter_map(|line| line.split(' ').nth(4).map(str::to_owned))
            .collect();
        points.sort();
        points
    };
    let before = roots();
    let said = bundle.refused(1, &["run", "-b", bundle.bundle(), &bundle.id]);
    assert!(said.contains("/x"), "{said}");
    wait_for("its mounts are gone", || roots() == before);
    bundle.nothing_left();
}
