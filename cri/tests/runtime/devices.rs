// SPDX-License-Identifier: Apache-2.0
//! Device nodes seen from inside.

use std::path::Path;

use cri::oci;
use serde_json::json;

use crate::pod::{Pod, container};

#[tokio::test]
async fn the_default_set_and_its_links_are_there() {
    let pod = Pod::start().await;
    let script = "for d in null zero full random urandom tty; do \
        stat -c '%n %F %t:%T %a %u:%g' /dev/$d; done; \
        for l in fd stdin stdout stderr ptmx core; do readlink /dev/$l; done; \
        head -c 4 /dev/zero | wc -c; echo x > /dev/null; ls /dev/pts";
    let (_, output) = pod.run("c", script, &[]).await;
    let lines: Vec<&str> = output.lines().collect();
    for (line, numbers) in lines.iter().zip(["1:3", "1:5", "1:7", "1:8", "1:9", "5:0"]) {
        let expected = format!("character special file {numbers} 666 0:0");
        assert!(line.ends_with(&expected), "{output}");
    }
    let mut links = vec![
        "/proc/self/fd",
        "/proc/self/fd/0",
        "/proc/self/fd/1",
        "/proc/self/fd/2",
        "pts/ptmx",
    ];
    if Path::new("/proc/kcore").exists() {
        links.push("/proc/kcore");
    }
    assert_eq!(lines[6..6 + links.len()], links);
    assert_eq!(lines[6 + links.len()..], ["4", "ptmx"]);
    pod.stop().await;
}

#[tokio::test]
async fn given_nodes_have_the_type_mode_and_owner_of_the_spec() {
    let pod = Pod::start().await;
    let devices = json!([
        {"path": "/dev/char", "type": "c", "major": 1, "minor": 3, "fileMode": 0o100_620, "uid": 5, "gid": 7},
        {"path": "/dev/unbuffered", "type": "u", "major": 1, "minor": 5},
        {"path": "/srv/deep/block", "type": "b", "major": 7, "minor": 300, "fileMode": 0o600},
        {"path": "/dev/pipe", "type": "p", "major": 0, "minor": 0, "fileMode": 0o666},
        {"path": "/dev/zero", "type": "c", "major": 1, "minor": 5, "fileMode": 0o444},
        {"path": "/dev/ptmx", "type": "c", "major": 5, "minor": 2},
    ]);
    let script = "stat -c '%F %t:%T %a %u:%g' /dev/char /dev/unbuffered /srv/deep/block \
        /dev/pipe /dev/zero; readlink /dev/ptmx";
    let (_, output) = pod.run("c", script, &[("/linux/devices", devices)]).await;
    let lines: Vec<&str> = output.lines().collect();
    assert_eq!(
        lines,
        [
            "character special file 1:3 620 5:7",
            "character special file 1:5 666 0:0",
            "block special file 7:12c 600 0:0",
            "fifo 0:0 666 0:0",
            "character special file 1:5 444 0:0",
            "pts/ptmx",
        ]
    );
    pod.stop().await;
}

#[tokio::test]
async fn a_node_that_is_there_stays_only_if_it_is_the_same() {
    let pod = Pod::start().await;
    let mounts = json!([{"destination": "/proc", "type": "proc", "source": "proc"}]);
    let root_dev = pod.rootfs().join("dev");
    std::fs::create_dir(&root_dev).expect("creates");
    let null = root_dev.join("null");
    let mode = nix::sys::stat::Mode::from_bits_truncate(0o600);
    let kind = nix::sys::stat::SFlag::S_IFCHR;
    nix::sys::stat::mknod(&null, kind, mode, nix::sys::stat::makedev(1, 3)).expect("makes");
    // An image's multiplexer would open terminals of the host.
    std::fs::write(root_dev.join("ptmx"), "").expect("writes");
    let script = "stat -c '%t:%T %a' /dev/null; readlink /dev/ptmx";
    let (_, output) = pod.run("a", script, &[("/mounts", mounts.clone())]).await;
    assert_eq!(output, "1:3 600\npts/ptmx\n");
    std::fs::remove_file(&null).expect("removes");
    std::fs::write(&null, "a file").expect("writes");
    let spec = container("true", &[("/mounts", mounts)]);
    let plan = oci::compile(&spec, &pod.context("b")).expect("compiles");
    let refused = pod.shim.create("b", plan, pod.io("b")).await;
    let error = refused.expect_err("refused").to_string();
    assert_eq!(error, "creating device node /dev/null: file exists");
    pod.stop().await;
}

#[tokio::test]
async fn a_dev_of_the_hosts_is_left_alone() {
    let pod = Pod::start().await;
    let dev = pod.path("dev");
    std::fs::create_dir(&dev).expect("creates");
    let mounts = json!([{"destination": "/proc", "type": "proc", "source": "proc"},
        {"destination": "/dev/", "source": dev, "options": ["rbind", "rw"]}]);
    let devices = json!([{"path": "/dev/mine", "type": "c", "major": 1, "minor": 3}]);
    let changes = [("/mounts", mounts), ("/linux/devices", devices)];
    let spec = container("ls /dev; echo done", &changes);
    let mut context = pod.context("c");
    context.sandbox_binds = Vec::new();
    pod.launch("c", &spec, &context, pod.io("c")).await;
    assert_eq!(pod.wait("c").await.code, 0);
    assert_eq!(pod.output("c"), "done\n");
    assert_eq!(dev.read_dir().expect("reads").count(), 0);
    pod.stop().await;
}
