// SPDX-License-Identifier: Apache-2.0
//! Namespaces that a container makes, joins, or is refused, seen from inside.

use std::os::unix::fs::{MetadataExt, lchown};
use std::path::Path;

use oci_spec::runtime::Spec;
use serde_json::{Value, json};
use shim::plan::{IdMapping, IdMappings, UserNamespace};

use crate::container::link;
use crate::pod::{Pod, container};

/// Where the ids of the tests' user namespaces are on the host.
const BASE: u32 = 200_000;
const SIZE: u32 = 65_536;

fn mapping() -> Value {
    json!([{"containerID": 0, "hostID": BASE, "size": SIZE}])
}

fn users() -> UserNamespace {
    let range = IdMapping {
        container: 0,
        host: BASE,
        size: SIZE,
    };
    UserNamespace::New(IdMappings {
        uid: vec![range],
        gid: vec![range],
    })
}

/// Gives a tree to the root of the user namespace, as an image unpacked for it would be.
fn give(path: &Path) {
    lchown(path, Some(BASE), Some(BASE)).expect("chown");
    if path.symlink_metadata().expect("stat").is_dir() {
        for entry in std::fs::read_dir(path).expect("lists") {
            give(&entry.expect("an entry").path());
        }
    }
}

/// A container whose layers belong to the user namespace.
async fn launch(pod: &Pod, id: &str, spec: &Spec) -> u32 {
    let context = pod.context(id);
    give(&pod.rootfs());
    give(&pod.path(&format!("{id}-upper")));
    give(&pod.path(&format!("{id}-work")));
    pod.launch(id, spec, &context, pod.io(id)).await
}

fn own_users(script: &str, changes: &[(&str, Value)]) -> Spec {
    let spaces = json!([{"type": "user"}, {"type": "pid"}, {"type": "ipc"}, {"type": "uts"},
        {"type": "mount"}, {"type": "network"}, {"type": "cgroup"}]);
    let mut all = vec![
        ("/linux/namespaces", spaces),
        ("/linux/uidMappings", mapping()),
        ("/linux/gidMappings", mapping()),
    ];
    all.extend_from_slice(changes);
    container(script, &all)
}

#[tokio::test]
async fn root_of_a_user_namespace_is_nobody_on_the_host() {
    let pod = Pod::start().await;
    let script = "cat /proc/self/uid_map /proc/self/gid_map; id -u; id -G; echo $$; hostname; \
        touch /made; echo x > /dev/null && echo null; head -c 1 /dev/zero | wc -c; \
        echo out > /dev/stdout; cat /proc/sys/kernel/shmmni; cat /proc/self/oom_score_adj; \
        grep -E '^(CapEff|CapBnd)' /proc/self/status; \
        cat /proc/1/root/etc/passwd > /dev/null && echo own; \
        stat -c %u /proc/1 /dev/null; ls -n /proc/self/fd/1 | wc -l; echo end";
    let changes = [
        ("/hostname", json!("inside")),
        ("/linux/sysctl", json!({"kernel.shmmni": "77"})),
        ("/process/oomScoreAdj", json!(321)),
        (
            "/process/rlimits",
            json!([{"type": "RLIMIT_NOFILE", "soft": 64, "hard": 64}]),
        ),
    ];
    launch(&pod, "c", &own_users(script, &changes)).await;
    let record = pod.wait("c").await;
    let output = pod.output("c");
    assert_eq!(record.code, 0, "{output}");
    let map = format!("         0     {BASE}      {SIZE}\n");
    let expected = format!(
        "{map}{map}0\n0\n1\ninside\nnull\n1\nout\n77\n321\n\
         CapEff:\t00000000a80425fb\nCapBnd:\t00000000a80425fb\nown\n0\n65534\n1\nend\n"
    );
    let squeeze = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    assert_eq!(squeeze(&output), squeeze(&expected));
    let made = pod.path("c-upper/made").metadata().expect("was made");
    assert_eq!((made.uid(), made.gid()), (BASE, BASE));
    pod.stop().await;
}

#[tokio::test]
async fn a_pods_containers_share_its_user_namespace_and_exec_enters_it() {
    let pod = Pod::start_with(|input| input.users = users()).await;
    let sandbox = pod.sandbox_pid.to_string();
    let uid = |pid: &str| {
        let metadata = std::fs::metadata(format!("/proc/{pid}")).expect("runs");
        (metadata.uid(), metadata.gid())
    };
    assert_eq!(uid(&sandbox), (BASE + 65535, BASE + 65535));
    let join = |name: &str| json!(format!("/proc/{sandbox}/ns/{name}"));
    let spaces = json!([{"type": "user", "path": join("user")}, {"type": "mount"},
        {"type": "ipc", "path": join("ipc")}, {"type": "network"}, {"type": "pid"},
        {"type": "uts"}, {"type": "cgroup"}]);
    let changes = [
        ("/linux/namespaces", spaces),
        ("/linux/uidMappings", mapping()),
        (
            "/process/user",
            json!({"uid": 1000, "gid": 1000, "additionalGids": [7]}),
        ),
    ];
    let script = "id -u; id -G; readlink /proc/self/ns/user; echo note > /dev/shm/note; \
        echo err > /dev/stderr; sleep 1000";
    let pid = launch(&pod, "c", &container(script, &changes)).await;
    let pid = pid.to_string();
    for name in ["user", "ipc"] {
        assert_eq!(link(&pid, name), link(&sandbox, name), "{name}");
    }
    assert_ne!(link(&sandbox, "user"), link("self", "user"));
    crate::pod::eventually("the script ran", || {
        pod.log("c").exists() && pod.output("c").contains("err")
    })
    .await;
    let expected = format!("1000\n1000 7\n{}\nerr\n", link(&sandbox, "user"));
    assert_eq!(pod.output("c"), expected);
    assert_eq!(uid(&pid), (BASE + 1000, BASE + 1000));
    for name in ["user", "pid", "mnt", "uts", "ipc", "net", "cgroup"] {
        let path = format!("/proc/self/ns/{name}");
        let (record, output) = pod
            .exec("c", &format!("e-{name}"), &["readlink", &path])
            .await;
        assert_eq!(
            (record.code, output.trim()),
            (0, &*link(&pid, name)),
            "{name}"
        );
    }
    let script =
        "id -u; cat /dev/shm/note; echo x > /dev/stdout; touch /by-exec; ls /proc/self/fd | wc -l";
    let (record, output) = pod.exec("c", "e", &["sh", "-c", script]).await;
    assert_eq!((record.code, &*output), (0, "0\nnote\nx\n4\n"));
    let made = pod.path("c-upper/by-exec").metadata().expect("was made");
    assert_eq!(made.uid(), BASE);
    pod.kill("c").await;
    pod.stop().await;
}

#[tokio::test]
async fn what_a_user_namespace_cannot_be_is_said() {
    let pod = Pod::start_with(|input| input.users = users()).await;
    let error = |changes: Vec<(&'static str, Value)>| {
        let spec = container("true", &changes);
        let plan = cri::oci::compile(&spec, &pod.context("c")).expect("compiles");
        let create = pod.shim.create("c", plan, pod.io("c"));
        async move { create.await.expect_err("refused").to_string() }
    };
    let spaces = |kind: &str, path: &str| json!([{"type": "mount"}, {"type": kind, "path": path}]);
    let wrong = format!("/proc/{}/ns/uts", pod.sandbox_pid);
    for (kind, path, expected) in [
        (
            "user",
            "/nosuch",
            "opening \"/nosuch\": no such file or directory",
        ),
        ("network", "/dev/null", "\"/dev/null\" is no namespace: "),
        ("ipc", &wrong, "is a namespace of another kind"),
        ("time", "/etc/passwd", "is no namespace"),
    ] {
        let message = error(vec![("/linux/namespaces", spaces(kind, path))]).await;
        let field = format!("linux.namespaces[{kind}].path is invalid: ");
        assert!(
            message.contains(&field) && message.contains(expected),
            "{message}"
        );
    }
    let own = format!("/proc/{}/ns/user", pod.sandbox_pid);
    let other = json!([{"containerID": 0, "hostID": 5, "size": 10}]);
    let message = error(vec![
        ("/linux/namespaces", spaces("user", &own)),
        ("/linux/uidMappings", other),
    ])
    .await;
    assert!(
        message.contains("linux.uidMappings is invalid"),
        "{message}"
    );
    let user = json!({"uid": 70_000, "gid": 0});
    let message = error(vec![
        ("/linux/namespaces", spaces("user", &own)),
        ("/process/user", user),
    ])
    .await;
    assert!(
        message.contains("user id 70000 does not exist"),
        "{message}"
    );
    pod.stop().await;
}

#[tokio::test]
async fn a_time_namespace_has_its_own_clocks() {
    let pod = Pod::start().await;
    let mut spaces = vec![json!({"type": "time"})];
    for kind in ["pid", "ipc", "uts", "mount", "network", "cgroup"] {
        spaces.push(json!({"type": kind}));
    }
    let script =
        "cat /proc/self/timens_offsets; readlink /proc/self/ns/time; cat /proc/uptime; sleep 1000";
    let changes = [
        ("/linux/namespaces", json!(spaces)),
        (
            "/linux/timeOffsets",
            json!({"boottime": {"secs": 1_000_000_000}, "monotonic": {"secs": 5, "nanosecs": 7}}),
        ),
    ];
    let spec = container(script, &changes);
    let pid = pod.launch("c", &spec, &pod.context("c"), pod.io("c")).await;
    let done = || pod.log("c").exists() && pod.output("c").lines().count() == 4;
    crate::pod::eventually("the script ran", done).await;
    let output = pod.output("c");
    let lines: Vec<Vec<&str>> = output
        .lines()
        .map(|l| l.split_whitespace().collect())
        .collect();
    assert_eq!(lines[0], ["monotonic", "5", "7"]);
    assert_eq!(lines[1], ["boottime", "1000000000", "0"]);
    assert_ne!(lines[2][0], link("self", "time"));
    let uptime: f64 = lines[3][0].parse().expect("a number");
    assert!(uptime > 1e9, "{output}");
    let (_, output) = pod
        .exec("c", "e", &["readlink", "/proc/self/ns/time"])
        .await;
    assert_eq!(output.trim(), link(&pid.to_string(), "time"));
    pod.kill("c").await;
    pod.stop().await;
}

#[tokio::test]
async fn every_kind_can_be_joined_by_path() {
    let pod = Pod::start().await;
    let kinds = ["pid", "ipc", "uts", "network", "cgroup", "time"];
    let mut spaces: Vec<Value> = kinds.iter().map(|kind| json!({"type": kind})).collect();
    spaces.push(json!({"type": "mount"}));
    let changes = [("/linux/namespaces", json!(spaces))];
    let spec = container("sleep 1000", &changes);
    let first = pod.launch("a", &spec, &pod.context("a"), pod.io("a")).await;
    let name = |kind: &str| match kind {
        "network" => "net".to_owned(),
        other => other.to_owned(),
    };
    let path = |kind: &str| format!("/proc/{first}/ns/{}", name(kind));
    let joined = kinds
        .iter()
        .map(|kind| json!({"type": kind, "path": path(kind)}));
    let mut spaces: Vec<Value> = joined.collect();
    spaces.push(json!({"type": "mount"}));
    let script = "for n in pid ipc uts net cgroup time; do readlink /proc/self/ns/$n; done";
    let (record, output) = pod
        .run("b", script, &[("/linux/namespaces", json!(spaces))])
        .await;
    assert_eq!(record.code, 0, "{output}");
    let first = first.to_string();
    let expected = kinds.map(|kind| link(&first, &name(kind)) + "\n").concat();
    assert_eq!(output, expected);
    pod.kill("a").await;
    pod.stop().await;
}
