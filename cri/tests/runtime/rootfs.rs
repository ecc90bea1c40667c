// SPDX-License-Identifier: Apache-2.0
//! The root filesystem seen from inside: read-only, propagation, hidden paths.

use std::path::Path;

use cri::oci;
use nix::mount::MsFlags;
use serde_json::json;
use shim::plan::RootFs;

use crate::pod::{Pod, container};

/// The propagation tags of the mount at `path`, of the text of /proc/self/mountinfo.
fn tags(mountinfo: &str, path: &str) -> String {
    let line = mountinfo
        .lines()
        .find(|line| line.split(' ').nth(4) == Some(path));
    let line = line.unwrap_or_else(|| panic!("no {path} in {mountinfo}"));
    let tags = line.split(' ').skip(6).take_while(|tag| *tag != "-");
    let names = tags.map(|tag| tag.split(':').next().unwrap_or(tag));
    names.collect::<Vec<_>>().join(" ")
}

/// Runs the test with a mount namespace of its own, in which `/` is shared, as systemd leaves it.
fn in_shared_mounts(test: impl AsyncFnOnce()) {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).expect("needs root");
    let none: Option<&str> = None;
    for flags in [MsFlags::MS_PRIVATE, MsFlags::MS_SHARED] {
        nix::mount::mount(none, "/", none, flags | MsFlags::MS_REC, none).expect("changes");
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(test());
}

#[test]
fn the_roots_propagation_is_what_the_spec_says() {
    in_shared_mounts(async || {
        let pod = Pod::start().await;
        // A mount point of its own, as image layers often are.
        let root = pod.rootfs();
        let none: Option<&str> = None;
        nix::mount::mount(Some(&root), &root, none, MsFlags::MS_BIND, none).expect("binds");
        nix::mount::mount(none, &root, none, MsFlags::MS_SHARED, none).expect("shares");
        let data = pod.path("data");
        std::fs::create_dir(&data).expect("creates");
        let bind = json!([{"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/data", "source": data, "options": ["rbind"]}]);
        for (index, (word, at_root, at_bind)) in [
            ("", "", "master"),
            ("private", "", ""),
            ("rprivate", "", ""),
            ("slave", "master", "master"),
            ("rslave", "master", "master"),
            ("shared", "shared", "shared"),
            ("rshared", "shared", "shared"),
            ("unbindable", "unbindable", ""),
            ("runbindable", "unbindable", "unbindable"),
        ]
        .into_iter()
        .enumerate()
        {
            let id = format!("c{index}");
            let mut context = pod.context(&id);
            context.rootfs = RootFs::Dir(root.to_string_lossy().into_owned());
            context.sandbox_binds = Vec::new();
            let changes = [
                ("/linux/rootfsPropagation", json!(word)),
                ("/mounts", bind.clone()),
            ];
            let spec = container("cat /proc/self/mountinfo", &changes);
            pod.launch(&id, &spec, &context, pod.io(&id)).await;
            assert_eq!(pod.wait(&id).await.code, 0, "{}", pod.output(&id));
            let output = pod.output(&id);
            assert_eq!(tags(&output, "/"), at_root, "{word}: {output}");
            assert_eq!(tags(&output, "/data"), at_bind, "{word}: {output}");
        }
        // Nothing that was mounted in a container came back.
        let table = std::fs::read_to_string("/proc/self/mountinfo").expect("reads");
        let inside = format!(" {}/", root.display());
        assert!(!table.contains(&inside), "{table}");
        nix::mount::umount2(&root, nix::mount::MntFlags::MNT_DETACH).expect("unmounts");
        pod.stop().await;
    });
}

#[tokio::test]
async fn a_read_only_root_has_all_its_mount_points() {
    let pod = Pod::start().await;
    let root = json!({"path": "rootfs", "readonly": true});
    let mounts = json!([
        {"destination": "/proc", "type": "proc", "source": "proc"},
        {"destination": "/new/place", "type": "tmpfs", "source": "tmpfs"},
    ]);
    let script = "touch /x 2>&1; touch /new/x 2>&1; touch /new/place/x && echo written";
    let changes = [("/root", root), ("/mounts", mounts)];
    let (record, output) = pod.run("c", script, &changes).await;
    assert_eq!(record.code, 0, "{output}");
    assert_eq!(
        output.matches("Read-only file system").count(),
        2,
        "{output}"
    );
    assert!(output.ends_with("written\n"));
    pod.stop().await;
}

#[test]
fn hidden_paths_are_hidden_with_all_that_is_below() {
    in_shared_mounts(async || {
        let pod = Pod::start().await;
        let data = pod.path("data");
        std::fs::create_dir_all(data.join("sub")).expect("creates");
        let none: Option<&str> = None;
        let flags = MsFlags::empty();
        nix::mount::mount(Some("t"), &data.join("sub"), Some("tmpfs"), flags, none)
            .expect("mounts");
        std::fs::write(pod.rootfs().join("etc/secret"), "secret").expect("writes");
        let mounts = json!([{"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/data", "source": data, "options": ["rbind"]}]);
        let changes = [
            ("/mounts", mounts),
            (
                "/linux/maskedPaths",
                json!(["/etc/secret", "/bin/../tmp", "/no/such", "/tmp"]),
            ),
            (
                "/linux/readonlyPaths",
                json!(["/data", "/etc/passwd", "/no/such"]),
            ),
        ];
        let script = "cat /etc/secret; ls -a /tmp | wc -l; touch /tmp/x 2>&1; \
            touch /data/x 2>&1; touch /data/sub/x 2>&1; echo x 2>&1 >> /etc/passwd; \
            echo x > /etc/secret; cat /etc/secret; stat -c '%t:%T' /etc/secret";
        let (_, output) = pod.run("c", script, &changes).await;
        assert!(!output.contains("secret\n"), "{output}");
        assert!(output.starts_with("2\n"), "{output}");
        assert!(
            output.matches("Read-only file system").count() >= 3,
            "{output}"
        );
        assert!(output.ends_with("1:3\n"), "{output}");
        let detach = nix::mount::MntFlags::MNT_DETACH;
        nix::mount::umount2(&data.join("sub"), detach).expect("unmounts");
        pod.stop().await;
    });
}

#[tokio::test]
async fn a_mount_label_needs_selinux() {
    if Path::new("/sys/fs/selinux/enforce").exists() {
        return;
    }
    let pod = Pod::start().await;
    let label = json!("system_u:object_r:container_file_t:s0:c1,c2");
    let spec = container("true", &[("/linux/mountLabel", label)]);
    let plan = oci::compile(&spec, &pod.context("c")).expect("compiles");
    let refused = pod.shim.create("c", plan, pod.io("c")).await;
    let error = refused.expect_err("refused").to_string();
    assert!(
        error.contains("linux.mountLabel: SELinux is not enabled"),
        "{error}"
    );
    pod.stop().await;
}

#[tokio::test]
async fn without_pivot_root_the_old_root_is_out_of_reach_as_well() {
    let pod = Pod::start().await;
    let marker = pod.path("marker");
    std::fs::write(&marker, "").expect("writes");
    let script = format!(
        "ls {m} 2>&1; ls /../../{m} 2>&1; cat /proc/self/mounts; echo; ls /",
        m = marker.display()
    );
    let spec = container(&script, &[]);
    let mut plan = oci::compile(&spec, &pod.context("c")).expect("compiles");
    plan.no_pivot = true;
    pod.shim
        .create("c", plan, pod.io("c"))
        .await
        .expect("creates");
    pod.shim.start("c").await.expect("starts");
    assert_eq!(pod.wait("c").await.code, 0, "{}", pod.output("c"));
    let output = pod.output("c");
    assert_eq!(output.matches("No such file").count(), 2, "{output}");
    assert!(output.contains("overlay / overlay"), "{output}");
    pod.stop().await;
}

#[tokio::test]
async fn a_cgroup_mount_shows_what_the_machine_has() {
    let pod = Pod::start().await;
    let mut context = pod.context("c");
    let v2 = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    context.cgroup_v2 = v2;
    let hierarchies: Vec<String> = std::fs::read_dir("/sys/fs/cgroup")
        .expect("cgroups")
        .filter_map(|entry| entry.ok())
        .filter(|entry| entry.path().join("cgroup.procs").exists() && !v2)
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path().to_string_lossy().into_owned())
        .collect();
    let (unified, v1): (Vec<_>, Vec<_>) = hierarchies
        .into_iter()
        .partition(|dir| dir.ends_with("/unified"));
    let mounts = json!([
        {"destination": "/proc", "type": "proc", "source": "proc"},
        {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
            "options": ["ro", "nosuid", "noexec", "nodev"]}]);
    let script = "cat /proc/self/mounts; for f in /sys/fs/cgroup/*; do echo $f; done; \
        mkdir /sys/fs/cgroup/x 2>&1; for d in /sys/fs/cgroup/*/; do mkdir $d/x 2>&1; done";
    let spec = container(script, &[("/mounts", mounts)]);
    // The test itself stays in the root of every hierarchy: only the view is looked at.
    let mut plan = {
        context.cgroup.v1.clone_from(&v1);
        context.cgroup.unified = unified.first().cloned();
        oci::compile(&spec, &context).expect("compiles")
    };
    plan.cgroup = shim::plan::CgroupJoin::default();
    pod.shim
        .create("c", plan, pod.io("c"))
        .await
        .expect("creates");
    pod.shim.start("c").await.expect("starts");
    pod.wait("c").await;
    let output = pod.output("c");
    assert!(output.contains("Read-only file system"), "{output}");
    assert!(!output.contains("cgroup rw"), "{output}");
    if v2 {
        assert!(output.contains("/sys/fs/cgroup/cgroup.procs"), "{output}");
    }
    for dir in &v1 {
        let name = dir.rsplit('/').next().expect("a name");
        for part in name.split(',').chain([name]) {
            assert!(
                output.contains(&format!("\n/sys/fs/cgroup/{part}\n")),
                "{output}"
            );
        }
        assert!(
            output.contains(&format!("/sys/fs/cgroup/{name} cgroup ro,")),
            "{output}"
        );
    }
    pod.stop().await;
}
