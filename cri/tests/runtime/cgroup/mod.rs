// SPDX-License-Identifier: Apache-2.0
//! Control groups of this kernel, in a subtree that each test removes. What a test expects on v1
//! and on v2 stands side by side; which of them runs is this kernel's choice.

mod devices;
mod freezer;
mod limits;
mod oom;
mod stats;
mod systemd;
mod update;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use cri::cgroup::{self, CgroupError, CgroupPath, Manager};
use cri::oci;
use serde_json::Value;

use crate::pod::{Pod, container, eventually};

/// A subtree of one test's own.
pub(crate) struct Subtree {
    pub(crate) manager: Arc<dyn Manager>,
    pub(crate) path: CgroupPath,
}

impl Subtree {
    pub(crate) fn new() -> Subtree {
        let name = format!("podwright-test-{:08x}", rand::random::<u32>());
        let manager = cgroup::detect(Path::new("/sys/fs/cgroup")).expect("cgroups are mounted");
        Subtree {
            manager,
            path: CgroupPath::new(&name).expect("a plain name"),
        }
    }

    /// A cgroup in it, with limits in the spec's form.
    fn child(&self, name: &str, resources: &Value) -> CgroupPath {
        let path = self.path.child(name).expect("a plain name");
        self.manager.create(&path).expect("creates");
        self.apply(&path, resources).expect("applies");
        path
    }

    fn apply(&self, path: &CgroupPath, resources: &Value) -> Result<(), CgroupError> {
        let resources = serde_json::from_value(resources.clone()).expect("resources");
        let limits = oci::update_limits(&resources).expect("compiles");
        self.manager.apply(path, &limits)
    }

    /// What the kernel says in a file: `controller/file`; on v2 the controller is left out.
    fn value(&self, path: &CgroupPath, file: &str) -> String {
        let (controller, name) = file.split_once('/').expect("controller/file");
        let path = match self.manager.is_v2() {
            true => Path::new("/sys/fs/cgroup").join(path.as_str()).join(name),
            false => Path::new("/sys/fs/cgroup")
                .join(controller)
                .join(path.as_str())
                .join(name),
        };
        let text = std::fs::read_to_string(&path);
        let text = text.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        text.trim().to_owned()
    }

    /// Starts a container with a shell script in a cgroup of this subtree.
    pub(crate) async fn launch(&self, pod: &Pod, id: &str, path: &CgroupPath, script: &str) {
        let mut context = pod.context(id);
        context.cgroup = self.manager.join(path);
        context.cgroup_v2 = self.manager.is_v2();
        pod.launch(id, &container(script, &[]), &context, pod.io(id))
            .await;
    }

    /// Has a container print its own cgroup's files, and returns what it saw, line by line.
    async fn seen(&self, pod: &Pod, id: &str, path: &CgroupPath, files: &[&str]) -> Vec<String> {
        let names = files.iter().map(|file| match self.manager.is_v2() {
            true => file.split_once('/').map_or(*file, |(_, name)| name),
            false => file,
        });
        let names: Vec<&str> = names.collect();
        let script = format!(
            "cd /sys/fs/cgroup; for f in {}; do echo $f: $(cat $f); done",
            names.join(" ")
        );
        self.launch(pod, id, path, &script).await;
        pod.wait(id).await;
        let output = pod.output(id);
        output.lines().map(str::to_owned).collect()
    }
}

impl Drop for Subtree {
    fn drop(&mut self) {
        let killed = self.manager.kill(&self.path);
        let removed = self.manager.remove(&self.path);
        if !std::thread::panicking() {
            killed.expect("kills");
            removed.expect("removes");
            assert!(!self.manager.exists(&self.path), "something is left");
        }
    }
}

/// Waits until a container has written this to its log.
async fn printed(pod: &Pod, id: &str, text: &str) {
    let seen = || pod.log(id).exists() && pod.output(id).contains(text);
    eventually(text, seen).await;
}

/// The first disk of this machine, as `major:minor`.
fn disk() -> String {
    let mut found: Vec<PathBuf> = std::fs::read_dir("/sys/block")
        .expect("lists")
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.join("device").exists())
        .collect();
    found.sort();
    let dev = found.first().expect("a disk").join("dev");
    let dev = std::fs::read_to_string(dev).expect("reads");
    dev.trim().to_owned()
}

#[test]
fn what_is_gone_can_be_killed_thawed_and_removed() {
    let tree = Subtree::new();
    tree.manager.kill(&tree.path).expect("kills nobody");
    tree.manager.remove(&tree.path).expect("removes nothing");
    assert!(!tree.manager.exists(&tree.path));
    assert!(!tree.manager.frozen(&tree.path).expect("is not frozen"));
    assert!(tree.manager.summary(&tree.path).is_err());
    assert!(tree.manager.freeze(&tree.path).is_err());
}

#[test]
fn a_cgroup_is_removed_with_those_below_it() {
    let tree = Subtree::new();
    for name in ["a/b/c", "a/d"] {
        let path = tree.path.child(name).expect("a plain name");
        tree.manager.create(&path).expect("creates");
        tree.manager.create(&path).expect("is idempotent");
    }
    let path = tree.path.child("a").expect("a plain name");
    assert_eq!(tree.manager.children(&path).expect("lists"), ["b", "d"]);
    tree.manager.remove(&path).expect("removes");
    assert!(!tree.manager.exists(&path));
}

#[test]
fn paths_cannot_leave_the_hierarchy() {
    for bad in ["", "/", "../x", "a/../b", "a//b", "./a"] {
        assert!(CgroupPath::new(bad).is_err(), "{bad:?}");
    }
    let path = CgroupPath::new("/a/b").expect("a leading slash is dropped");
    assert_eq!(path.as_str(), "a/b");
}
