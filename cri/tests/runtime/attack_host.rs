// SPDX-License-Identifier: Apache-2.0
//! Attacks on the host's kernel settings and processes: sysctls (CVE-2022-0811), release_agent
//! (CVE-2022-0492), the shim seen from a pod that shares the host's processes, and what a name can
//! do to the terminal of whoever reads an error.

use cri::oci::spec::{SeccompProfile, seccomp};
use serde_json::json;

use crate::pod::{Pod, container, process};

const CORE_PATTERN: &str = "/proc/sys/kernel/core_pattern";

#[tokio::test]
async fn a_sysctl_changes_itself_only() {
    let pod = Pod::start().await;
    let read = |path: &str| std::fs::read_to_string(path).expect("reads");
    let (pattern, forwarding) = (read(CORE_PATTERN), read("/proc/sys/net/ipv4/ip_forward"));
    let attempts = [
        ("kernel.shm_rmid_forced", "1+kernel.core_pattern=|/evil #"),
        ("kernel.shm_rmid_forced", "1\nkernel.core_pattern=|/evil"),
        ("kernel.shm_rmid_forced=1+kernel.core_pattern", "|/evil"),
        ("kernel.shm_rmid_forced\nkernel.core_pattern", "|/evil"),
        ("kernel.core_pattern", "|/evil"),
        ("kernel/core_pattern", "|/evil"),
        ("net.ipv4/../../kernel.core_pattern", "|/evil"),
        ("net/ipv4/../../kernel/core_pattern", "|/evil"),
        ("net.ipv4.ip_forward\0", "1"),
        ("fs.mqueue.../../kernel.core_pattern", "|/evil"),
        ("fs/mqueue/../../kernel/core_pattern", "|/evil"),
    ];
    for (number, (name, value)) in attempts.into_iter().enumerate() {
        let id = format!("c{number}");
        let spec = container("true", &[("/linux/sysctl", json!({name: value}))]);
        if let Ok(plan) = cri::oci::compile(&spec, &pod.context(&id)) {
            let made = pod.shim.create(&id, plan, pod.io(&id)).await;
            if made.is_ok() {
                pod.shim.start(&id).await.expect("starts");
                pod.wait(&id).await;
            }
        }
        assert_eq!(read(CORE_PATTERN), pattern, "{name:?} = {value:?}");
    }
    assert_eq!(read("/proc/sys/net/ipv4/ip_forward"), forwarding);
    pod.stop().await;
}

/// Mounts a hierarchy, or uses the one that is there, and sets the program that the host runs.
const RELEASE_AGENT: &str = r#"
mkdir -p /tmp/c
for kind in memory rdma pids devices freezer cpu; do
  mount -t cgroup -o $kind cgroup /tmp/c && {
    echo /evil > /tmp/c/release_agent && echo ESCAPED
    mkdir /tmp/c/sub && echo 1 > /tmp/c/sub/notify_on_release && echo 0 > /tmp/c/sub/cgroup.procs && rmdir /tmp/c/sub
    umount /tmp/c
  }
done
for file in $(find /sys/fs/cgroup -name release_agent) /sys/fs/cgroup/cgroup.procs /sys/fs/cgroup/*/cgroup.procs; do
  echo /evil > $file && echo ESCAPED $file
done"#;

#[tokio::test]
async fn cgroups_offer_no_way_out() {
    let pod = Pod::start().await;
    let inner = format!("({RELEASE_AGENT}) 2>/dev/null; echo done");
    for (id, script) in [
        ("plain", inner.clone()),
        (
            "user",
            format!("unshare -Urm sh -c '{inner}'; unshare -UrmC sh -c '{inner}'; echo done"),
        ),
    ] {
        for filtered in [true, false] {
            let id = format!("{id}-{filtered}");
            let mut context = pod.context(&id);
            if filtered {
                let profile = seccomp(&SeccompProfile::RuntimeDefault, 0xa804_25fb);
                context.seccomp = profile.expect("compiles");
            }
            let spec = container(&script, &[]);
            pod.launch(&id, &spec, &context, pod.io(&id)).await;
            pod.wait(&id).await;
            let output = pod.output(&id);
            assert!(
                output.contains("done") && !output.contains("ESCAPED"),
                "{id}: {output}"
            );
        }
    }
    pod.stop().await;
}

/// A pod with the host's processes (hostPID) sees the shim, and can do nothing with it.
#[tokio::test]
async fn the_shim_cannot_be_looked_into_or_killed() {
    let pod = Pod::start().await;
    let shim = pod.shim.state().await.expect("answers").shim_pid;
    let script = format!(
        r#"cat /proc/{shim}/comm
        for f in exe cwd root fd/0 fd/3 ns/mnt; do readlink /proc/{shim}/$f && echo REACHED $f; done
        for f in environ maps mem auxv; do head -c 1 /proc/{shim}/$f >/dev/null && echo REACHED $f; done
        ls /proc/{shim}/root/ && echo REACHED root
        echo x > /proc/{shim}/mem && echo REACHED mem
        [ "$(id -u)" = 0 ] || {{ kill -9 {shim} && echo KILLED; }}"#
    );
    for (id, uid) in [("root", 0), ("user", 1000)] {
        let changes = [
            (
                "/linux/namespaces",
                json!([{"type": "mount"}, {"type": "ipc"}]),
            ),
            ("/process/user", json!({"uid": uid, "gid": uid})),
        ];
        let (_, output) = pod
            .run(id, &format!("({script}) 2>/dev/null"), &changes)
            .await;
        assert_eq!(output, "podwright-shim\n", "{id}");
    }
    pod.stop().await;
}

/// Containers that share a pid namespace are strangers to each other unless their users are equal.
#[tokio::test]
async fn another_user_of_the_pod_cannot_be_looked_into() {
    let pod = Pod::start().await;
    let user = |uid: u32| ("/process/user", json!({"uid": uid, "gid": uid}));
    let victim = container("SECRET=1 exec sleep 1000", &[user(2000)]);
    let pid = pod
        .launch("victim", &victim, &pod.context("victim"), pod.io("victim"))
        .await;
    let join = json!([{"type": "mount"}, {"type": "pid", "path": format!("/proc/{pid}/ns/pid")}]);
    let script = "(cat /proc/1/environ && echo REACHED; ls /proc/1/root/ && echo REACHED; readlink /proc/1/fd/0 && echo REACHED; \
        head -c 1 /proc/1/mem && echo REACHED; kill -9 1 && echo KILLED) 2>/dev/null; echo done";
    let changes = [("/linux/namespaces", join), user(1000)];
    let (_, output) = pod.run("c", script, &changes).await;
    assert_eq!(output, "done\n");
    let state = pod.shim.signal(&process("victim"), 9, false).await;
    state.expect("it lives until now");
    pod.stop().await;
}

#[tokio::test]
async fn a_name_cannot_drive_the_terminal_of_whoever_reads_the_error() {
    let pod = Pod::start().await;
    let evil = "/\u{1b}]0;owned\u{7}\u{1b}[2J\nlevel=error msg=forged";
    let changes = [
        ("/process/args", json!([evil])),
        ("/process/cwd", json!(evil)),
        ("/linux/sysctl", json!({evil: "1"})),
        (
            "/linux/devices",
            json!([{"path": format!("/dev{evil}/x"), "type": "c", "major": -1, "minor": 1}]),
        ),
        (
            "/mounts",
            json!([{"destination": evil, "type": "bind", "source": evil, "options": ["bind"]}]),
        ),
        (
            "/mounts",
            json!([{"destination": "/x", "type": evil, "source": evil}]),
        ),
        ("/linux/rootfsPropagation", json!(evil)),
    ];
    for (number, change) in changes.into_iter().enumerate() {
        let spec = container("true", &[change]);
        let id = format!("c{number}");
        let message = match cri::oci::compile(&spec, &pod.context(&id)) {
            Err(error) => error.to_string(),
            Ok(plan) => match pod.shim.create(&id, plan, pod.io(&id)).await {
                Err(error) => error.to_string(),
                Ok(_) => continue,
            },
        };
        assert!(!message.chars().any(char::is_control), "{message:?}");
    }
    pod.stop().await;
}

/// Nobody can reach a shim but through its socket file: abstract names belong to the network
/// namespace and are open to all in it (CVE-2020-15257).
#[tokio::test]
async fn the_shim_listens_in_the_file_system_only() {
    use std::os::unix::fs::{FileTypeExt, MetadataExt};
    let pod = Pod::start().await;
    let shim = pod.shim.state().await.expect("answers").shim_pid;
    let mut inodes = Vec::new();
    for entry in std::fs::read_dir(format!("/proc/{shim}/fd")).expect("lists") {
        let target = std::fs::read_link(entry.expect("lists").path()).unwrap_or_default();
        let target = target.to_string_lossy().into_owned();
        inodes.extend(
            target
                .strip_prefix("socket:[")
                .map(|rest| rest.trim_end_matches(']').to_owned()),
        );
    }
    assert!(!inodes.is_empty(), "the shim has a socket");
    let table = std::fs::read_to_string(format!("/proc/{shim}/net/unix")).expect("reads");
    for line in table.lines() {
        let fields: Vec<&str> = line.split_whitespace().collect();
        if fields
            .get(6)
            .is_some_and(|inode| inodes.iter().any(|own| own == inode))
        {
            assert!(
                !fields.get(7).is_some_and(|name| name.starts_with('@')),
                "{line}"
            );
        }
    }
    let socket = std::fs::symlink_metadata(pod.dir.join("shim.sock")).expect("is there");
    assert!(socket.file_type().is_socket());
    assert_eq!(socket.mode() & 0o777, 0o600);
    pod.stop().await;
}
