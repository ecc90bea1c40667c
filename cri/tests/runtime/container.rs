// SPDX-License-Identifier: Apache-2.0
//! A container seen from inside.

use cri::oci::spec::{SeccompProfile, seccomp};
use serde_json::json;
use shim::plan::RootFs;

use crate::pod::{Pod, container};

pub(crate) fn link(pid: &str, namespace: &str) -> String {
    std::fs::read_link(format!("/proc/{pid}/ns/{namespace}"))
        .expect("a namespace")
        .to_string_lossy()
        .into_owned()
}

#[tokio::test]
async fn it_has_namespaces_of_its_own() {
    let pod = Pod::start().await;
    let script = "for n in pid mnt uts ipc net cgroup; do readlink /proc/self/ns/$n; done; echo $$";
    let hostname = [("/hostname", json!("inside"))];
    let (record, output) = pod
        .run("c", &format!("{script}; hostname"), &hostname)
        .await;
    assert_eq!(record.code, 0, "{output}");
    let lines: Vec<&str> = output.lines().collect();
    for (line, name) in lines
        .iter()
        .zip(["pid", "mnt", "uts", "ipc", "net", "cgroup"])
    {
        assert_ne!(*line, link("self", name), "{name}");
    }
    assert_eq!(lines[6..], ["1", "inside"]);
    pod.stop().await;
}

#[tokio::test]
async fn it_joins_the_sandboxes_namespaces_and_shared_memory() {
    let pod = Pod::start().await;
    let join = format!("/proc/{}/ns/ipc", pod.sandbox_pid);
    let spaces = json!([{"type": "mount"}, {"type": "pid"}, {"type": "ipc", "path": join}]);
    let changes = [("/linux/namespaces", spaces)];
    let script = "readlink /proc/self/ns/ipc; echo shared > /dev/shm/note";
    let (_, output) = pod.run("a", script, &changes).await;
    assert_eq!(output.trim(), link(&pod.sandbox_pid.to_string(), "ipc"));
    let (_, output) = pod.run("b", "cat /dev/shm/note", &changes).await;
    assert_eq!(output, "shared\n");
    pod.stop().await;
}

#[tokio::test]
async fn its_privileges_are_what_the_spec_says() {
    let pod = Pod::start().await;
    let spec = container(
        "grep -E '^(Cap|NoNewPrivs|Seccomp:)' /proc/self/status; id -u; id -G; umask; echo $HOME",
        &[
            ("/process/noNewPrivileges", json!(true)),
            (
                "/process/user",
                json!({"uid": 1000, "gid": 1000, "additionalGids": [7, 9], "umask": 63}),
            ),
        ],
    );
    let mut context = pod.context("c");
    context.seccomp = seccomp(&SeccompProfile::RuntimeDefault, 0xa804_25fb).expect("compiles");
    pod.launch("c", &spec, &context, pod.io("c")).await;
    assert_eq!(pod.wait("c").await.code, 0, "{}", pod.output("c"));
    let output = pod.output("c");
    for expected in [
        "CapInh:\t0000000000000000",
        // No capability survives exec by a user that is not root, and none is ambient.
        "CapEff:\t0000000000000000",
        "CapBnd:\t00000000a80425fb",
        "CapAmb:\t0000000000000000",
        "NoNewPrivs:\t1",
        "Seccomp:\t2",
        "1000",
        "1000 7 9",
        "0077",
        "/srv/app",
    ] {
        assert!(
            output.lines().any(|line| line == expected),
            "{expected}: {output}"
        );
    }
    pod.stop().await;
}

#[tokio::test]
async fn the_default_seccomp_profile_works_without_no_new_privs() {
    let pod = Pod::start().await;
    let script = "grep -E '^(CapEff|Seccomp:)' /proc/self/status; mkdir /m && mount -t tmpfs x /m || echo refused";
    let spec = container(script, &[]);
    let mut context = pod.context("c");
    context.seccomp = seccomp(&SeccompProfile::RuntimeDefault, 0xa804_25fb).expect("compiles");
    pod.launch("c", &spec, &context, pod.io("c")).await;
    pod.wait("c").await;
    let output = pod.output("c");
    assert!(
        output.contains("CapEff:\t00000000a80425fb\nSeccomp:\t2"),
        "{output}"
    );
    assert!(output.contains("refused"), "{output}");
    pod.stop().await;
}

#[tokio::test]
async fn the_root_can_be_read_only_and_paths_are_hidden() {
    let pod = Pod::start().await;
    let script = "touch /x 2>/dev/null || echo read-only; \
        cat /proc/kcore 2>/dev/null | wc -c; ls /sys/firmware | wc -l; \
        echo 1 2>/dev/null > /proc/sys/net/ipv4/ip_forward || echo protected; \
        echo text > /dev/null && echo null-works; ls -l /dev/stdout | grep -c proc";
    let changes = [("/root", json!({"path": "rootfs", "readonly": true}))];
    let (_, output) = pod.run("c", script, &changes).await;
    assert_eq!(output, "read-only\n0\n0\nprotected\nnull-works\n1\n");
    pod.stop().await;
}

#[tokio::test]
async fn mounts_cannot_be_led_out_of_the_root_by_symbolic_links() {
    let pod = Pod::start().await;
    let outside = pod.path("outside");
    std::fs::create_dir(&outside).expect("creates");
    // The image's /data points at a directory of the host, by absolute path.
    std::os::unix::fs::symlink(&outside, pod.rootfs().join("data")).expect("links");
    let source = pod.path("source");
    std::fs::create_dir(&source).expect("creates");
    std::fs::write(source.join("file"), "content").expect("writes");
    let mut spec = container("cat /data/sub/file", &[]);
    let bind = json!({"destination": "/data/sub", "type": "bind", "source": source,
        "options": ["rbind", "ro"]});
    let bind = serde_json::from_value(bind).expect("a mount");
    spec.mounts_mut().get_or_insert_default().push(bind);
    let mut context = pod.context("c");
    context.rootfs = RootFs::Dir(pod.rootfs().to_string_lossy().into_owned());
    let plan = cri::oci::compile(&spec, &context).expect("compiles");
    // Either outcome is safe: refused, or made beneath the root. Nothing may appear outside.
    if pod.shim.create("c", plan, pod.io("c")).await.is_ok() {
        pod.shim.start("c").await.expect("starts");
        pod.wait("c").await;
    }
    assert_eq!(std::fs::read_dir(&outside).expect("lists").count(), 0);
    pod.stop().await;
}

#[tokio::test]
async fn a_missing_program_is_reported_before_start() {
    let pod = Pod::start().await;
    let spec = container("", &[("/process/args", json!(["nosuch"]))]);
    let plan = cri::oci::compile(&spec, &pod.context("c")).expect("compiles");
    let error = pod.shim.create("c", plan, pod.io("c")).await;
    let message = error.expect_err("refused").to_string();
    assert_eq!(
        message,
        "exec: \"nosuch\": executable file not found in $PATH"
    );
    pod.stop().await;
}

#[tokio::test]
async fn exec_joins_everything_and_returns_its_exit_code() {
    let pod = Pod::start().await;
    let spec = container("sleep 1000", &[]);
    let pid = pod.launch("c", &spec, &pod.context("c"), pod.io("c")).await;
    for name in ["pid", "mnt", "uts", "ipc", "net", "cgroup"] {
        let path = format!("/proc/self/ns/{name}");
        let (record, output) = pod
            .exec("c", &format!("e-{name}"), &["readlink", &path])
            .await;
        assert_eq!(record.code, 0);
        assert_eq!(output.trim(), link(&pid.to_string(), name), "{name}");
    }
    let (record, output) = pod
        .exec("c", "e", &["sh", "-c", "ls /proc/self/fd | wc -l; exit 7"])
        .await;
    // 0, 1, 2 and the listing's own: no other descriptor came in.
    assert_eq!((record.code, output.trim()), (7, "4"));
    let record = pod.kill("c").await;
    assert_eq!((record.code, record.signal), (137, 9));
    pod.stop().await;
}
