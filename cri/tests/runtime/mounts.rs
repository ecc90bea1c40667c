// SPDX-License-Identifier: Apache-2.0
//! Mounts seen from inside: every option, odd destinations, and what propagates.

use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};

use cri::oci;
use nix::mount::MsFlags;
use serde_json::{Value, json};
use shim::plan::RootFs;

use crate::pod::{Pod, container};

/// Runs a script in a container with these mounts besides the default ones; returns its output.
async fn run(pod: &Pod, id: &str, mounts: Value, script: &str) -> String {
    let spec = with_mounts(script, mounts, &[]);
    pod.launch(id, &spec, &pod.context(id), pod.io(id)).await;
    let code = pod.wait(id).await.code;
    assert_eq!(code, 0, "{}", pod.output(id));
    pod.output(id)
}

fn with_mounts(script: &str, more: Value, changes: &[(&str, Value)]) -> oci_spec::runtime::Spec {
    let spec = container(script, changes);
    let mut spec = serde_json::to_value(spec).expect("serialises");
    let mounts = spec["mounts"].as_array_mut().expect("mounts");
    mounts.extend(more.as_array().expect("an array").iter().cloned());
    serde_json::from_value(spec).expect("a spec")
}

/// Why a container with these mounts cannot be.
async fn refusal(pod: &Pod, id: &str, mounts: Value) -> String {
    let spec = with_mounts("true", mounts, &[]);
    match oci::compile(&spec, &pod.context(id)) {
        Err(error) => error.to_string(),
        Ok(plan) => {
            let refused = pod.shim.create(id, plan, pod.io(id)).await;
            refused.expect_err("refused").to_string()
        }
    }
}

fn dir(pod: &Pod, name: &str) -> PathBuf {
    let path = pod.path(name);
    std::fs::create_dir_all(&path).expect("creates");
    path
}

/// The options of the mount at `path`, of the text of /proc/self/mounts.
fn options<'a>(mounts: &'a str, path: &str) -> Vec<&'a str> {
    let line = mounts
        .lines()
        .rfind(|line| line.split(' ').nth(1) == Some(path))
        .unwrap_or_else(|| panic!("no mount at {path} in {mounts}"));
    line.split(' ')
        .nth(3)
        .expect("options")
        .split(',')
        .collect()
}

const TABLE: &str = "cat /proc/self/mounts";

#[tokio::test]
async fn every_attribute_is_set_and_cleared() {
    let pod = Pod::start().await;
    let source = dir(&pod, "data");
    let words = [
        ("ro", "ro"),
        ("nosuid", "nosuid"),
        ("nodev", "nodev"),
        ("noexec", "noexec"),
        ("noatime", "noatime"),
        ("nodiratime", "nodiratime"),
        ("nosymfollow", "nosymfollow"),
        ("relatime", "relatime"),
        ("rro", "ro"),
        ("rnosuid", "nosuid"),
        ("rnodev", "nodev"),
        ("rnoexec", "noexec"),
        ("rnoatime", "noatime"),
        ("rnodiratime", "nodiratime"),
        ("rnosymfollow", "nosymfollow"),
        ("rrelatime", "relatime"),
    ];
    let mut mounts = Vec::new();
    for (index, (word, _)) in words.iter().enumerate() {
        for (kind, source) in [
            ("bind", source.to_str().expect("utf-8")),
            ("tmpfs", "tmpfs"),
        ] {
            let bind = if kind == "bind" { "rbind" } else { "defaults" };
            mounts.push(
                json!({"destination": format!("/m/{kind}{index}"), "type": kind,
                "source": source, "options": [bind, word]}),
            );
        }
    }
    // The opposite word takes back what the one before said.
    let cleared = ["rw", "suid", "dev", "exec", "diratime", "symfollow"];
    let both = [
        "bind",
        "ro",
        "nosuid",
        "nodev",
        "noexec",
        "nodiratime",
        "nosymfollow",
    ];
    let both: Vec<&str> = both
        .into_iter()
        .chain(cleared)
        .chain(["strictatime"])
        .collect();
    mounts.push(json!({"destination": "/m/cleared", "source": source, "options": both}));
    let output = run(&pod, "c", json!(mounts), TABLE).await;
    for (index, (word, shown)) in words.iter().enumerate() {
        for kind in ["bind", "tmpfs"] {
            let found = options(&output, &format!("/m/{kind}{index}"));
            assert!(found.contains(shown), "{kind} {word}: {found:?}");
        }
    }
    let found = options(&output, "/m/cleared");
    for (_, shown) in &words {
        assert!(!found.contains(shown), "{found:?}");
    }
    pod.stop().await;
}

/// A volume with another mounted in it, in a mount namespace of the calling thread. The shim is in
/// it as well, being started by this thread.
fn in_own_mounts(test: impl AsyncFnOnce()) {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).expect("needs root");
    let none: Option<&str> = None;
    let flags = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    nix::mount::mount(none, "/", none, flags, none).expect("private");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(test());
}

fn mount_tmpfs(at: &Path, flags: MsFlags) {
    std::fs::create_dir_all(at).expect("creates");
    let none: Option<&str> = None;
    nix::mount::mount(Some("tmpfs"), at, Some("tmpfs"), flags, none).expect("mounts");
}

/// With what is mounted in it. The pod's folder could not be removed otherwise.
fn unmount(at: &Path) {
    nix::mount::umount2(at, nix::mount::MntFlags::MNT_DETACH).expect("unmounts");
}

fn change(at: &Path, flags: MsFlags) {
    let none: Option<&str> = None;
    nix::mount::mount(none, at, none, flags, none).expect("changes");
}

#[test]
fn recursive_words_reach_the_mounts_below_and_plain_ones_do_not() {
    in_own_mounts(async || {
        let pod = Pod::start().await;
        let volume = dir(&pod, "volume");
        mount_tmpfs(&volume, MsFlags::empty());
        mount_tmpfs(&volume.join("sub"), MsFlags::MS_NOSUID);
        let bind = |at: &str, words: &[&str]| json!({"destination": at, "source": volume, "options": words});
        let mounts = json!([
            bind("/ro", &["rbind", "ro"]),
            bind("/rro", &["rbind", "rro"]),
            bind("/rsuid", &["rbind", "rsuid", "rnodev"]),
            bind("/rrw", &["rbind", "rro", "rrw"]),
            bind("/flat", &["bind", "rro"]),
        ]);
        let output = run(&pod, "c", mounts, TABLE).await;
        let has = |path: &str, word: &str| options(&output, path).contains(&word);
        assert!(has("/ro", "ro") && has("/ro/sub", "rw"), "{output}");
        assert!(has("/rro", "ro") && has("/rro/sub", "ro"), "{output}");
        assert!(!has("/rsuid/sub", "nosuid") && has("/rsuid/sub", "nodev"));
        assert!(has("/ro/sub", "nosuid"), "what the source has stays");
        assert!(has("/rrw", "rw") && has("/rrw/sub", "rw"), "{output}");
        assert!(!output.contains("/flat/sub"), "{output}");
        unmount(&volume);
        pod.stop().await;
    });
}

#[test]
fn propagation_is_what_the_words_say() {
    in_own_mounts(async || {
        let pod = Pod::start().await;
        let volume = dir(&pod, "volume");
        mount_tmpfs(&volume, MsFlags::empty());
        mount_tmpfs(&volume.join("sub"), MsFlags::empty());
        change(&volume, MsFlags::MS_SHARED | MsFlags::MS_REC);
        let bind = |at: &str, words: &[&str]| json!({"destination": at, "source": volume, "options": words});
        let all = json!([
            bind("/default", &["rbind"]),
            bind("/rprivate", &["rbind", "rprivate"]),
            bind("/private", &["rbind", "private"]),
            bind("/shared", &["rbind", "rprivate", "shared"]),
            bind("/unbindable", &["rbind", "runbindable"]),
        ]);
        let script = "cat /proc/self/mountinfo; touch /tmp/ready; \
            while ! [ -e /default/late/x ]; do :; done; ls /rprivate/late /private/late";
        let spec = with_mounts(script, all, &[]);
        pod.launch("c", &spec, &pod.context("c"), pod.io("c")).await;
        let ready = pod.path("c-upper/tmp/ready");
        crate::pod::eventually("it has looked", || ready.exists()).await;
        // What the host mounts later arrives where the mount is a slave.
        std::fs::create_dir(volume.join("late")).expect("creates");
        mount_tmpfs(&volume.join("late"), MsFlags::empty());
        std::fs::write(volume.join("late/x"), "").expect("writes");
        assert_eq!(pod.wait("c").await.code, 0, "{}", pod.output("c"));
        let output = pod.output("c");
        let tags = |path: &str| -> String {
            let line = output
                .lines()
                .find(|line| line.split(' ').nth(4) == Some(path));
            let line = line.unwrap_or_else(|| panic!("no {path} in {output}"));
            let tags = line.split(' ').skip(6).take_while(|tag| *tag != "-");
            tags.map(|tag| tag.split(':').next().unwrap_or(tag))
                .collect::<Vec<_>>()
                .join(" ")
        };
        assert_eq!(tags("/default"), "master");
        assert_eq!(tags("/default/sub"), "master");
        assert_eq!(tags("/rprivate/sub"), "");
        assert_eq!(tags("/private"), "");
        assert_eq!(tags("/private/sub"), "master", "the word is not recursive");
        assert_eq!(tags("/shared"), "shared");
        assert_eq!(tags("/unbindable/sub"), "unbindable");
        assert!(!output.lines().any(|line| line == "x"), "{output}");
        unmount(&volume);
        pod.stop().await;
    });
}

#[tokio::test]
async fn a_tmpfs_takes_its_options_and_its_mode_from_what_it_covers() {
    let pod = Pod::start().await;
    let covered = pod.rootfs().join("covered");
    std::fs::create_dir(&covered).expect("creates");
    let mode = std::fs::Permissions::from_mode(0o2710);
    std::fs::set_permissions(&covered, mode).expect("changes the mode");
    let mounts = json!([
        {"destination": "/covered", "type": "tmpfs", "source": "tmpfs"},
        {"destination": "/new", "type": "tmpfs", "source": "tmpfs", "options": ["size=1m,nr_inodes=10"]},
        {"destination": "/given", "type": "tmpfs", "options": ["mode=0700", "size=64k", "uid=7", "gid=9"]},
    ]);
    let script = "stat -c '%a %u:%g' /covered /new /given; cat /proc/self/mounts";
    let output = run(&pod, "c", mounts, script).await;
    let modes: Vec<&str> = output.lines().take(3).collect();
    assert_eq!(modes, ["2710 0:0", "1777 0:0", "700 7:9"]);
    assert!(options(&output, "/new").contains(&"size=1024k"), "{output}");
    assert!(
        options(&output, "/new").contains(&"nr_inodes=10"),
        "{output}"
    );
    pod.stop().await;
}

#[tokio::test]
async fn filesystem_options_reach_proc_devpts_and_overlay() {
    let pod = Pod::start().await;
    let lower = dir(&pod, "lower");
    std::fs::write(lower.join("file"), "below").expect("writes");
    let upper = dir(&pod, "o-upper");
    // Longer than fsconfig(2) takes.
    let long: Vec<String> = (0..8)
        .map(|number| dir(&pod, &format!("layer-{number}-{}", "x".repeat(40))))
        .chain([lower])
        .map(|path| path.to_string_lossy().into_owned())
        .collect();
    let mounts = json!([
        {"destination": "/pts", "type": "devpts", "source": "devpts",
            "options": ["newinstance", "ptmxmode=0600", "mode=0600", "gid=5"]},
        {"destination": "/overlay", "type": "overlay", "source": "overlay", "options":
            [format!("lowerdir={}", long.join(":")), format!("upperdir={}", upper.display()),
             format!("workdir={}", dir(&pod, "o-work").display()), "nosuid"]},
    ]);
    let mut spec = with_mounts(
        "cat /overlay/file; echo new > /overlay/new; cat /proc/self/mounts",
        mounts,
        &[],
    );
    for mount in spec.mounts_mut().iter_mut().flatten() {
        if mount.destination() == Path::new("/proc") {
            let options = ["hidepid=2", "subset=pid"].map(str::to_owned);
            mount.set_options(Some(options.into()));
        }
    }
    // Without them, a proc of the pid subset has nothing to mask or write-protect.
    pod.launch("c", &spec, &pod.context("c"), pod.io("c")).await;
    assert_eq!(pod.wait("c").await.code, 0, "{}", pod.output("c"));
    let output = pod.output("c");
    assert!(output.starts_with("below"), "{output}");
    let proc_options = options(&output, "/proc").join(",");
    assert!(proc_options.contains("hidepid=invisible"), "{proc_options}");
    assert!(proc_options.contains("subset=pid"), "{proc_options}");
    assert!(options(&output, "/pts").contains(&"ptmxmode=600"));
    assert!(options(&output, "/overlay").contains(&"nosuid"));
    assert!(upper.join("new").exists());
    pod.stop().await;
}

#[tokio::test]
async fn tmpcopyup_keeps_owners_modes_links_and_content() {
    let pod = Pod::start().await;
    let source = pod.rootfs().join("seed");
    std::fs::create_dir_all(source.join("dir/deep")).expect("creates");
    std::fs::write(source.join("dir/deep/file"), "x".repeat(100_000)).expect("writes");
    chown(source.join("dir/deep/file"), Some(12), Some(34)).expect("changes the owner");
    let mode = std::fs::Permissions::from_mode(0o4751);
    std::fs::set_permissions(source.join("dir/deep/file"), mode).expect("changes the mode");
    let mode = std::fs::Permissions::from_mode(0o1777);
    std::fs::set_permissions(source.join("dir"), mode).expect("changes the mode");
    symlink("/no/where", source.join("link")).expect("links");
    nix::unistd::mkfifo(&source.join("fifo"), nix::sys::stat::Mode::S_IRWXU).expect("creates");
    for number in 0..300 {
        std::fs::write(source.join(format!("dir/many-{number}")), "").expect("writes");
    }
    let mounts = json!([{"destination": "/seed", "type": "tmpfs", "source": "tmpfs",
        "options": ["tmpcopyup", "size=4m"]}]);
    let script = "stat -c '%a %u:%g %s' /seed/dir/deep/file /seed/dir; readlink /seed/link; \
        stat -c %F /seed/fifo; ls /seed/dir | wc -l; echo changed > /seed/dir/many-0";
    let output = run(&pod, "c", mounts, script).await;
    let lines: Vec<&str> = output.lines().collect();
    assert_eq!(lines[0], "4751 12:34 100000");
    assert!(lines[1].starts_with("1777 0:0"), "{output}");
    assert_eq!(lines[2..], ["/no/where", "fifo", "301"]);
    // It was a copy.
    assert!(!pod.path("c-upper/seed/dir/many-0").exists());
    pod.stop().await;
}

#[tokio::test]
async fn files_links_and_odd_destinations_end_beneath_the_root() {
    let pod = Pod::start().await;
    let file = pod.path("file");
    std::fs::write(&file, "bound").expect("writes");
    let root = pod.rootfs();
    symlink("/tmp/foo/bar", root.join("jump")).expect("links");
    symlink("/jump/baz/hosts", root.join("etc/hosts")).expect("links");
    symlink("../../../../../../tmp/up", root.join("etc/up")).expect("links");
    let to = |at: &str| json!({"destination": at, "source": file, "options": ["bind"]});
    let mounts = json!([
        to("/etc/hosts"),
        to("relative/file"),
        to("/a/../../../b/c"),
        to("/etc/up/x"),
        to("/etc/passwd"),
    ]);
    let script = "cat /tmp/foo/bar/baz/hosts /relative/file /b/c /tmp/up/x /etc/passwd";
    let output = run(&pod, "c", mounts, script).await;
    assert_eq!(output.trim(), "bound".repeat(5));
    let upper = |path: &str| pod.path("c-upper").join(path);
    assert!(upper("b/c").exists() && upper("tmp/up/x").exists());
    assert!(!Path::new("/b/c").exists() && !Path::new("/tmp/up").exists());
    pod.stop().await;
}

#[tokio::test]
async fn mounts_stack_in_the_order_of_the_list() {
    let pod = Pod::start().await;
    let source = |name: &str, inner: &str| {
        let path = dir(&pod, name);
        std::fs::create_dir(path.join(inner)).expect("creates");
        std::fs::write(path.join("name"), name).expect("writes");
        path
    };
    let bind = |from: PathBuf, at: &str, more: &str| json!({"destination": at, "source": from, "options": ["rbind", more]});
    let root = pod.rootfs();
    let mut context = pod.context("c");
    context.rootfs = RootFs::Dir(root.to_string_lossy().into_owned());
    let mounts = json!([
        bind(source("a", "x"), "/mnt", "ro"),
        bind(source("b", "y"), "/mnt/x", "rw"),
        bind(source("c", "z"), "/mnt/x/y", "rw"),
        // A mount over a mount.
        bind(source("d", "w"), "/mnt/x/y", "rw"),
        // What is mounted by then, by its path on the host.
        bind(root.join("mnt"), "/final", "rw"),
    ]);
    let script = "cat /mnt/name /mnt/x/name /mnt/x/y/name; echo; cat /final/x/y/name; \
        touch /mnt/new 2>&1; touch /mnt/x/new && echo; echo written";
    let spec = with_mounts(script, mounts, &[]);
    pod.launch("c", &spec, &context, pod.io("c")).await;
    assert_eq!(pod.wait("c").await.code, 0, "{}", pod.output("c"));
    let output = pod.output("c");
    assert!(output.starts_with("abd\nd"), "{output}");
    assert!(output.contains("Read-only file system"), "{output}");
    assert!(output.ends_with("written\n"), "{output}");
    pod.stop().await;
}

#[tokio::test]
async fn remount_changes_what_is_mounted() {
    let pod = Pod::start().await;
    let mounts = json!([
        {"destination": "/t", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid"]},
        {"destination": "/t", "type": "none", "source": "none",
            "options": ["bind", "remount", "ro", "noexec"]},
    ]);
    let output = run(&pod, "c", mounts, TABLE).await;
    let found = options(&output, "/t");
    for word in ["ro", "noexec", "nosuid"] {
        assert!(found.contains(&word), "{found:?}");
    }
    let error = refusal(
        &pod,
        "r",
        json!([{"destination": "/etc", "options": ["bind", "remount", "ro"], "source": "/etc"}]),
    );
    let error = error.await;
    assert!(
        error.contains("/etc") && error.contains("invalid argument"),
        "{error}"
    );
    pod.stop().await;
}

#[tokio::test]
async fn what_cannot_be_mounted_is_named() {
    let pod = Pod::start().await;
    symlink("/", pod.rootfs().join("slash")).expect("links");
    let file = pod.path("file");
    std::fs::write(&file, "").expect("writes");
    for (id, mount, expected) in [
        (
            "a",
            json!({"destination": "/x", "source": "/no/such", "options": ["bind"]}),
            "error mounting to rootfs at \"/x\": binding \"/no/such\": no such file or directory",
        ),
        (
            "b",
            json!({"destination": "/x", "type": "nosuchfs"}),
            "no such device",
        ),
        (
            "c",
            json!({"destination": "/x", "type": "tmpfs", "options": ["bogus=1"]}),
            "invalid argument",
        ),
        (
            "d",
            json!({"destination": "/slash", "source": "/etc", "options": ["bind"]}),
            "on the top of rootfs",
        ),
        (
            "e",
            json!({"destination": "/etc", "source": file, "options": ["bind"]}),
            "not a directory",
        ),
        (
            "f",
            json!({"destination": "/etc/passwd", "type": "tmpfs"}),
            "not a directory",
        ),
    ] {
        let error = refusal(&pod, id, json!([mount])).await;
        assert!(error.contains(expected), "{error}");
    }
    pod.stop().await;
}

#[tokio::test]
async fn a_read_only_dev_is_filled_first() {
    let pod = Pod::start().await;
    let mut spec = container("ls /dev; touch /dev/x 2>&1", &[]);
    for mount in spec.mounts_mut().iter_mut().flatten() {
        if mount.destination() == Path::new("/dev") {
            mount
                .options_mut()
                .get_or_insert_default()
                .push("ro".into());
        }
    }
    pod.launch("c", &spec, &pod.context("c"), pod.io("c")).await;
    pod.wait("c").await;
    let output = pod.output("c");
    assert!(
        output.contains("null\n") && output.contains("ptmx\n"),
        "{output}"
    );
    assert!(output.contains("Read-only file system"), "{output}");
    pod.stop().await;
}
