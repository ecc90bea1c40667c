// SPDX-License-Identifier: Apache-2.0
//! What a spec says of its seen from inside.

use std::path::Path;

use serde_json::{Value, json};

use crate::pod::{Pod, container};

/// How `create` is refused.
async fn refusal(pod: &Pod, id: &str, changes: &[(&str, Value)]) -> String {
    let plan = cri::oci::compile(&container("true", changes), &pod.context(id)).expect("compiles");
    let created = pod.shim.create(id, plan, pod.io(id)).await;
    created.expect_err("refused").to_string()
}

/// Fields of /proc/<pid>/stat after the name: nice is 16, the real-time priority 37, the policy 38.
const STAT: &str = "stat=$(cat /proc/self/stat); set -- ${stat##*) }; shift 16; echo nice $1; \
    shift 21; echo priority $1 policy $2";

#[tokio::test]
async fn it_is_scheduled_as_the_spec_says() {
    let pod = Pod::start().await;
    for (id, scheduler, expected) in [
        (
            "batch",
            json!({"policy": "SCHED_BATCH", "nice": 7}),
            "nice 7\npriority 0 policy 3\n",
        ),
        (
            "idle",
            json!({"policy": "SCHED_IDLE"}),
            "nice 0\npriority 0 policy 5\n",
        ),
        (
            "other",
            json!({"policy": "SCHED_OTHER", "nice": -5}),
            "nice -5\npriority 0 policy 0\n",
        ),
        (
            "fifo",
            json!({"policy": "SCHED_FIFO", "priority": 3}),
            "nice 0\npriority 3 policy 1\n",
        ),
    ] {
        let (_, output) = pod
            .run(id, STAT, &[("/process/scheduler", scheduler)])
            .await;
        assert_eq!(output, expected, "{id}");
    }
    // The kernel admits a deadline task only where its bandwidth is there and the run time fits.
    let impossible = json!({"policy": "SCHED_DEADLINE", "runtime": 20_000_000,
        "deadline": 10_000_000, "period": 10_000_000});
    let error = refusal(&pod, "deadline", &[("/process/scheduler", impossible)]).await;
    assert!(error.contains("process.scheduler"), "{error}");
    pod.stop().await;
}

#[tokio::test]
async fn it_has_its_io_priority_personality_and_umask() {
    let pod = Pod::start().await;
    let changes = [
        (
            "/process/ioPriority",
            json!({"class": "IOPRIO_CLASS_BE", "priority": 6}),
        ),
        ("/linux/personality", json!({"domain": "LINUX32"})),
        ("/process/user", json!({"uid": 0, "gid": 0, "umask": 23})),
    ];
    let script = "busybox ionice; busybox uname -m; umask; sleep 1000";
    let spec = container(script, &changes);
    pod.launch("c", &spec, &pod.context("c"), pod.io("c")).await;
    let done = || pod.log("c").exists() && pod.output("c").lines().count() == 3;
    crate::pod::eventually("the script ran", done).await;
    assert_eq!(pod.output("c"), "best-effort: prio 6\ni686\n0027\n");
    // The spec's personality is that of all processes of the container.
    let command = json!({"user": {"uid": 0, "gid": 0}, "cwd": "/", "env": ["PATH=/bin"],
        "args": ["busybox", "uname", "-m"]});
    let command = serde_json::from_value(command).expect("a process");
    let plan = cri::oci::compile_exec(&spec, &command, None, "c", "").expect("compiles");
    let (_, output) = pod.execute("c", "e", plan).await;
    assert_eq!(output, "i686\n");
    pod.kill("c").await;
    pod.stop().await;
}

#[tokio::test]
async fn an_exec_runs_on_the_processors_that_it_names() {
    let pod = Pod::start().await;
    let affinity = json!({"initial": "0", "final": "0"});
    let changes = [("/process/execCPUAffinity", affinity.clone())];
    let spec = container(
        "grep Cpus_allowed_list /proc/self/status; sleep 1000",
        &changes,
    );
    pod.launch("c", &spec, &pod.context("c"), pod.io("c")).await;
    let done = || pod.log("c").exists() && pod.output("c").lines().count() == 1;
    crate::pod::eventually("the script ran", done).await;
    let own = std::fs::read_to_string("/proc/self/status").expect("reads");
    let own = own
        .lines()
        .find(|line| line.starts_with("Cpus_allowed_list"));
    // It is not applicable to the container's own process.
    assert_eq!(pod.output("c").lines().next(), own);
    let exec = |affinity: Value| {
        let command = json!({"user": {"uid": 0, "gid": 0}, "cwd": "/", "env": ["PATH=/bin"],
            "args": ["grep", "Cpus_allowed_list", "/proc/self/status"],
            "execCPUAffinity": affinity});
        let command = serde_json::from_value(command).expect("a process");
        cri::oci::compile_exec(&spec, &command, None, "c", "").expect("compiles")
    };
    let (_, output) = pod.execute("c", "e", exec(affinity)).await;
    assert_eq!(output, "Cpus_allowed_list:\t0\n");
    let absent = exec(json!({"final": "8000"}));
    let error = pod
        .try_execute("c", "f", absent)
        .await
        .expect_err("refused");
    assert!(error.contains("process.execCPUAffinity"), "{error}");
    pod.kill("c").await;
    pod.stop().await;
}

#[tokio::test]
async fn its_memory_comes_from_the_nodes_that_the_spec_names() {
    let pod = Pod::start().await;
    let policy = json!({"mode": "MPOL_BIND", "nodes": "0", "flags": ["MPOL_F_STATIC_NODES"]});
    let changes = [("/linux/memoryPolicy", policy)];
    if Path::new("/proc/self/numa_maps").exists() {
        let script =
            "while read -r a policy rest; do echo $policy; break; done < /proc/self/numa_maps";
        let (_, output) = pod.run("c", script, &changes).await;
        assert_eq!(output, "bind=static:0\n");
    } else {
        let error = refusal(&pod, "c", &changes).await;
        assert!(error.contains("linux.memoryPolicy"), "{error}");
    }
    let nowhere = json!({"mode": "MPOL_BIND", "nodes": "1000"});
    let error = refusal(&pod, "d", &[("/linux/memoryPolicy", nowhere)]).await;
    assert!(error.contains("linux.memoryPolicy"), "{error}");
    pod.stop().await;
}

#[tokio::test]
async fn labels_are_refused_where_the_kernel_has_no_such_module() {
    let pod = Pod::start().await;
    let enabled = std::fs::read_to_string("/sys/module/apparmor/parameters/enabled");
    let profile = [("/process/apparmorProfile", json!("podwright-test-nosuch"))];
    let error = refusal(&pod, "a", &profile).await;
    match enabled.is_ok_and(|text| text.starts_with('Y')) {
        // Nobody has loaded it: what is asked for is not passed over.
        true => assert!(error.contains("\"podwright-test-nosuch\""), "{error}"),
        false => assert!(
            error.contains("process.apparmorProfile is not supported: AppArmor is not enabled"),
            "{error}"
        ),
    }
    let unconfined = [("/process/apparmorProfile", json!("unconfined"))];
    assert_eq!(pod.run("u", "exit 3", &unconfined).await.0.code, 3);
    if !Path::new("/sys/fs/selinux/enforce").exists() {
        let label = json!("system_u:system_r:container_t:s0");
        let error = refusal(&pod, "s", &[("/process/selinuxLabel", label)]).await;
        assert!(
            error.contains("process.selinuxLabel is not supported: SELinux is not enabled"),
            "{error}"
        );
    }
    pod.stop().await;
}

#[tokio::test]
async fn its_session_keyring_is_its_own() {
    let pod = Pod::start().await;
    if !Path::new("/proc/keys").exists() {
        return pod.stop().await;
    }
    let script = "grep -o '_ses[^:]*' /proc/keys; echo end";
    for id in ["one", "two"] {
        let spec = container(script, &[("/linux/maskedPaths", json!([]))]);
        let mut plan = cri::oci::compile(&spec, &pod.context(id)).expect("compiles");
        plan.process.session_keyring = Some(cri::oci::session_keyring(id));
        pod.shim
            .create(id, plan, pod.io(id))
            .await
            .expect("creates");
        pod.shim.start(id).await.expect("starts");
        pod.wait(id).await;
        let output = pod.output(id);
        assert!(output.contains(&format!("_ses.{id}\n")), "{output}");
    }
    pod.stop().await;
}

#[tokio::test]
async fn all_five_capability_sets_are_what_the_spec_says() {
    let pod = Pod::start().await;
    let sets = json!({
        "bounding": ["CAP_CHOWN", "CAP_KILL", "CAP_NET_RAW"],
        "permitted": ["CAP_CHOWN", "CAP_KILL"],
        "effective": ["CAP_CHOWN"],
        "inheritable": ["CAP_CHOWN"],
        "ambient": ["CAP_CHOWN"],
    });
    let changes = [
        ("/process/capabilities", sets),
        ("/process/user", json!({"uid": 1000, "gid": 1000})),
        ("/process/noNewPrivileges", json!(true)),
    ];
    let (_, output) = pod.run("c", "grep ^Cap /proc/self/status", &changes).await;
    let expected = "CapInh:\t0000000000000001\nCapPrm:\t0000000000000001\n\
        CapEff:\t0000000000000001\nCapBnd:\t0000000000002021\nCapAmb:\t0000000000000001\n";
    assert_eq!(output, expected);
    pod.stop().await;
}
