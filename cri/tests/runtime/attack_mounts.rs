// SPDX-License-Identifier: Apache-2.0
//! Attacks by way of mounts: destinations that change while they are mounted on (CVE-2021-30465),
//! swapped masked paths and consoles (CVE-2025-31133, -52565), and a /proc that is none
//! (CVE-2025-52881).

use std::os::unix::fs::{FileTypeExt, MetadataExt, symlink};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use cri::oci;
use serde_json::{Value, json};

use crate::pod::{Pod, container};

const CORE_PATTERN: &str = "/proc/sys/kernel/core_pattern";

/// Swaps two names again and again, as a process in another container with the same volume can.
struct Swapper {
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<u64>>,
}

impl Swapper {
    fn new(one: PathBuf, other: PathBuf) -> Swapper {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            let mut swaps = 0;
            while !stopped.load(Ordering::Relaxed) {
                let flags = nix::fcntl::RenameFlags::RENAME_EXCHANGE;
                let here = nix::fcntl::AT_FDCWD;
                nix::fcntl::renameat2(here, &one, here, &other, flags).expect("swaps");
                swaps += 1;
            }
            swaps
        });
        Swapper {
            stop,
            thread: Some(thread),
        }
    }

    fn end(mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let swaps = self.thread.take().expect("runs").join().expect("ends");
        assert!(swaps > 100, "{swaps}");
    }
}

fn table() -> String {
    std::fs::read_to_string("/proc/self/mountinfo").expect("reads")
}

fn with_mounts(script: &str, mounts: &Value, changes: &[(&str, Value)]) -> oci_spec::runtime::Spec {
    let mut spec = serde_json::to_value(container(script, changes)).expect("serialises");
    let all = spec["mounts"].as_array_mut().expect("mounts");
    all.extend(mounts.as_array().expect("an array").iter().cloned());
    serde_json::from_value(spec).expect("a spec")
}

/// Why a container cannot be; a container that runs is a failure.
async fn refusal(pod: &Pod, id: &str, spec: &oci_spec::runtime::Spec) -> String {
    match oci::compile(spec, &pod.context(id)) {
        Err(error) => error.to_string(),
        Ok(plan) => {
            let made = pod.shim.create(id, plan, pod.io(id)).await;
            made.expect_err("refused").to_string()
        }
    }
}

#[tokio::test]
async fn a_destination_that_changes_while_it_is_mounted_on_leads_nowhere() {
    let pod = Pod::start().await;
    let (volume, outside) = (pod.path("volume"), pod.path("outside"));
    std::fs::create_dir_all(volume.join("dir/sub")).expect("creates");
    std::fs::create_dir_all(outside.join("sub")).expect("creates");
    let up = format!("{}{}", "../".repeat(20), outside.display());
    symlink(up, volume.join("link")).expect("links");
    let payload = pod.path("payload");
    std::fs::create_dir(&payload).expect("creates");
    std::fs::write(payload.join("evil"), "").expect("writes");
    let before = table();
    let swapper = Swapper::new(volume.join("dir"), volume.join("link"));
    let mounts = json!([
        {"destination": "/vol", "source": volume, "options": ["rbind"]},
        {"destination": "/vol/dir/sub", "source": payload, "options": ["bind"]},
        {"destination": "/vol/dir/new/deep", "type": "tmpfs", "source": "tmpfs"},
        {"destination": "/vol/dir", "type": "tmpfs", "source": "tmpfs", "options": ["tmpcopyup"]},
    ]);
    let script = format!("cat /proc/self/mountinfo; ls {}/marker", outside.display());
    std::fs::write(outside.join("marker"), "").expect("writes");
    let mut ran = 0;
    for round in 0..40 {
        let id = format!("c{round}");
        let spec = with_mounts(&script, &mounts, &[]);
        let plan = oci::compile(&spec, &pod.context(&id)).expect("compiles");
        // A path may be gone at that moment: that is an error, not an escape.
        if pod.shim.create(&id, plan, pod.io(&id)).await.is_ok() {
            pod.shim.start(&id).await.expect("starts");
            assert_ne!(pod.wait(&id).await.code, 0, "it sees the host's directory");
            ran += 1;
        }
        assert_eq!(table(), before, "nothing is mounted on the host");
        let found: Vec<_> = outside.read_dir().expect("reads").collect();
        assert_eq!(found.len(), 2, "nothing is made on the host: {found:?}");
        assert_eq!(outside.join("sub").read_dir().expect("reads").count(), 0);
    }
    swapper.end();
    assert!(ran > 0, "some got through the race");
    pod.stop().await;
}

#[tokio::test]
async fn a_masked_path_is_covered_by_the_hosts_null_whatever_the_container_calls_so() {
    let pod = Pod::start().await;
    let dev = pod.path("dev");
    std::fs::create_dir_all(dev.join("pts")).expect("creates");
    symlink(CORE_PATTERN, dev.join("null")).expect("links");
    std::fs::write(pod.rootfs().join("tmp/real"), "secret").expect("writes");
    symlink("../tmp/real", pod.rootfs().join("etc/secret")).expect("links");
    let mounts = json!([{"destination": "/proc", "type": "proc", "source": "proc"},
        {"destination": "/dev", "source": dev, "options": ["rbind"]}]);
    let changes = [
        ("/mounts", mounts),
        (
            "/linux/maskedPaths",
            json!([
                "/proc/kcore",
                "/proc/keys",
                "/proc/timer_list",
                "/etc/secret"
            ]),
        ),
    ];
    let script = "for f in /proc/kcore /proc/keys /proc/timer_list /tmp/real; do \
        [ -e $f ] && stat -c '%t:%T' $f; done; cat /tmp/real; echo '|/evil' > /proc/keys; true";
    let mut context = pod.context("c");
    context.sandbox_binds = Vec::new();
    let before = std::fs::read_to_string(CORE_PATTERN).expect("reads");
    pod.launch("c", &container(script, &changes), &context, pod.io("c"))
        .await;
    assert_eq!(pod.wait("c").await.code, 0, "{}", pod.output("c"));
    let output = pod.output("c");
    assert!(
        !output.is_empty() && output.lines().all(|line| line == "1:3"),
        "{output}"
    );
    assert_eq!(
        std::fs::read_to_string(CORE_PATTERN).expect("reads"),
        before
    );
    pod.stop().await;
}

#[tokio::test]
async fn a_masked_path_that_is_swapped_is_masked_where_it_is_or_the_container_is_not() {
    let pod = Pod::start().await;
    let volume = pod.path("volume");
    std::fs::create_dir(&volume).expect("creates");
    std::fs::write(volume.join("a"), "").expect("writes");
    symlink(format!("/..{CORE_PATTERN}"), volume.join("b")).expect("links");
    let swapper = Swapper::new(volume.join("a"), volume.join("b"));
    let mounts = json!([{"destination": "/vol", "source": volume, "options": ["rbind"]}]);
    let changes = [
        ("/linux/maskedPaths", json!(["/vol/a"])),
        ("/linux/readonlyPaths", json!(["/vol/b"])),
    ];
    let before = table();
    for round in 0..15 {
        let id = format!("c{round}");
        let spec = with_mounts(
            "echo '|/evil' > /proc/sys/kernel/core_pattern",
            &mounts,
            &changes,
        );
        let plan = oci::compile(&spec, &pod.context(&id)).expect("compiles");
        if pod.shim.create(&id, plan, pod.io(&id)).await.is_ok() {
            let pattern = std::fs::metadata(CORE_PATTERN).expect("is there");
            assert!(pattern.file_type().is_file(), "the host's is as it was");
        }
        assert_eq!(table(), before);
    }
    swapper.end();
    pod.stop().await;
}

#[tokio::test]
async fn a_console_that_is_a_link_is_refused_and_nothing_is_mounted_behind_it() {
    let pod = Pod::start().await;
    let dev = pod.path("dev");
    std::fs::create_dir_all(dev.join("pts")).expect("creates");
    for (round, target) in [CORE_PATTERN, "/tmp/elsewhere", "null"]
        .into_iter()
        .enumerate()
    {
        let _ = std::fs::remove_file(dev.join("console"));
        symlink(target, dev.join("console")).expect("links");
        let mounts = json!([{"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "source": dev, "options": ["rbind"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
                "options": ["newinstance", "ptmxmode=0666"]}]);
        let changes = [("/mounts", mounts), ("/process/terminal", json!(true))];
        let id = format!("c{round}");
        let spec = container("true", &changes);
        let mut context = pod.context(&id);
        context.sandbox_binds = Vec::new();
        let plan = oci::compile(&spec, &context).expect("compiles");
        let made = pod.shim.create(&id, plan, pod.io(&id)).await;
        let error = made.expect_err("refused").to_string();
        assert_eq!(
            error,
            "opening a terminal: too many levels of symbolic links"
        );
    }
    pod.stop().await;
}

#[tokio::test]
async fn nothing_but_a_proc_is_mounted_on_proc_and_nothing_of_a_stranger_in_it() {
    let pod = Pod::start().await;
    let fake = pod.path("fake");
    std::fs::create_dir_all(fake.join("self/attr")).expect("creates");
    std::fs::write(fake.join("file"), "fake").expect("writes");
    let root = pod.rootfs();
    symlink("proc", root.join("also")).expect("links");
    symlink("/proc/self/attr", root.join("attr")).expect("links");
    symlink("/proc/sys/kernel/core_pattern", root.join("pattern")).expect("links");
    for (id, mount, expected) in [
        (
            "a",
            json!({"destination": "/proc", "type": "tmpfs"}),
            "not of type proc",
        ),
        (
            "b",
            json!({"destination": "/proc", "source": fake, "options": ["rbind"]}),
            "not of type proc",
        ),
        (
            "c",
            json!({"destination": "/also", "type": "tmpfs"}),
            "not of type proc",
        ),
        (
            "d",
            json!({"destination": "/x/../proc/.", "source": fake, "options": ["rbind"]}),
            "not of type proc",
        ),
        (
            "e",
            json!({"destination": "/proc/self/attr", "source": fake, "options": ["rbind"]}),
            "inside /proc",
        ),
        (
            "f",
            json!({"destination": "/x/../proc/sys", "type": "tmpfs"}),
            "inside /proc",
        ),
        (
            "g",
            json!({"destination": "/attr", "source": fake, "options": ["rbind"]}),
            "inside /proc",
        ),
        (
            "h",
            json!({"destination": "/pattern", "source": fake.join("file"), "options": ["bind"]}),
            "inside /proc",
        ),
        (
            "i",
            json!({"destination": "/also/self/attr", "type": "tmpfs"}),
            "inside /proc",
        ),
        (
            "j",
            json!({"destination": "/also", "type": "proc"}),
            "ordinary directory",
        ),
        (
            "k",
            json!({"destination": "/also", "type": "sysfs"}),
            "ordinary directory",
        ),
    ] {
        let spec = with_mounts("true", &json!([mount]), &[]);
        let error = refusal(&pod, id, &spec).await;
        assert!(error.contains(expected), "{id}: {error}");
    }
    // What lxcfs emulates may be covered, by any name.
    let mounts = json!([
        {"destination": "/proc/uptime", "source": fake.join("file"), "options": ["bind"]},
        {"destination": "/also/loadavg", "source": fake.join("file"), "options": ["bind"]}]);
    let spec = with_mounts("cat /proc/uptime /proc/loadavg", &mounts, &[]);
    pod.launch("l", &spec, &pod.context("l"), pod.io("l")).await;
    assert_eq!(pod.wait("l").await.code, 0, "{}", pod.output("l"));
    assert_eq!(pod.output("l").trim(), "fakefake");
    pod.stop().await;
}

#[tokio::test]
async fn an_image_whose_proc_is_a_link_gets_no_proc_there() {
    let pod = Pod::start().await;
    std::fs::create_dir(pod.rootfs().join("trap")).expect("creates");
    symlink("trap", pod.rootfs().join("proc")).expect("links");
    let error = refusal(&pod, "c", &container("true", &[])).await;
    assert!(
        error.contains("must be mounted on ordinary directory"),
        "{error}"
    );
    pod.stop().await;
}

#[tokio::test]
async fn sysctls_go_to_the_kernel_and_not_to_the_images_proc() {
    let pod = Pod::start().await;
    const NAME: &str = "sys/net/ipv4/ip_unprivileged_port_start";
    let fake = pod.rootfs().join("proc").join(NAME);
    std::fs::create_dir_all(fake.parent().expect("a parent")).expect("creates");
    std::fs::write(&fake, "fake").expect("writes");
    let changes = [
        (
            "/mounts",
            json!([{"destination": "/kernel", "type": "proc", "source": "proc"}]),
        ),
        ("/linux/maskedPaths", json!([])),
        ("/linux/readonlyPaths", json!([])),
        (
            "/linux/sysctl",
            json!({"net.ipv4.ip_unprivileged_port_start": "77"}),
        ),
    ];
    let script = format!("cat /proc/{NAME}; echo; cat /kernel/{NAME}");
    let (record, output) = pod.run("c", &script, &changes).await;
    assert_eq!(record.code, 0, "{output}");
    assert_eq!(output, "fake\n77\n");
    assert!(!pod.path("c-upper/proc").join(NAME).exists());
    pod.stop().await;
}

#[tokio::test]
async fn the_hosts_null_is_not_among_the_streams() {
    let pod = Pod::start().await;
    // The root of the container could change the mode of the host's file through it.
    let (_, output) = pod
        .run(
            "c",
            "stat -L -c '%d:%i %t:%T' /proc/self/fd/0 /dev/null",
            &[],
        )
        .await;
    let host = std::fs::metadata("/dev/null").expect("is there");
    assert!(host.file_type().is_char_device());
    let lines: Vec<&str> = output.lines().collect();
    assert_eq!(lines[0], lines[1], "{output}");
    let host = format!("{}:{} 1:3", host.dev(), host.ino());
    assert!(lines[0].ends_with(" 1:3") && lines[0] != host, "{output}");
    pod.stop().await;
}
