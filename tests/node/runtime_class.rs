// SPDX-License-Identifier: Apache-2.0
//! Pods that name a RuntimeClass: from the node's configuration file to crun and the pod's cgroup.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tests::TestHost;
use tests::pods::condition;

const CRUN: &str = "/usr/bin/crun";

const CLASSES: &str = r#"
apiVersion: node.k8s.io/v1
kind: RuntimeClass
metadata: { name: outside }
handler: crun
overhead: { podFixed: { cpu: 100m, memory: 32Mi } }
scheduling: { nodeSelector: { kubernetes.io/os: linux } }
---
apiVersion: node.k8s.io/v1
kind: RuntimeClass
metadata: { name: nowhere }
handler: not-configured
---
apiVersion: node.k8s.io/v1
kind: RuntimeClass
metadata: { name: heavy }
handler: crun
overhead: { podFixed: { cpu: 1k } }
"#;

/// crun refuses hybrid cgroup mounts, and takes the directory of one for the mount itself. So the host
/// gets a directory of cgroup mounts without it.
const WITHOUT_HYBRID: &str = "
[ -d /sys/fs/cgroup/unified ] || exit 0
mkdir cgroups && mount -t tmpfs cgroups cgroups
for each in /sys/fs/cgroup/*/; do
  name=$(basename $each)
  [ $name = unified ] || { mkdir cgroups/$name && mount --bind $each cgroups/$name; }
done
mount --move cgroups /sys/fs/cgroup
";

fn pod(name: &str, class: &str, more: &Value) -> String {
    let mut pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {
        "runtimeClassName": class,
        "terminationGracePeriodSeconds": 1,
        "containers": [{"name": "main", "image": "localhost/busybox:1",
            "command": ["sh", "-c", "echo from-inside; exec sleep 1000"],
            "resources": {"limits": {"cpu": "200m", "memory": "64Mi"}}}]}});
    for (field, value) in more.as_object().into_iter().flatten() {
        pod["spec"][field] = value.clone();
    }
    pod.to_string()
}

/// Where the pods' external runtimes keep their state.
fn states(host: &TestHost) -> Result<Vec<PathBuf>> {
    let sandboxes = fs::read_dir(host.path().join("run/cri/sandboxes"))?;
    let states = sandboxes.flatten().map(|one| one.path().join("runtime"));
    Ok(states.filter(|state| state.is_dir()).collect())
}

/// The memory that the pod's cgroup may have.
fn memory_limit(host: &TestHost, pod: &Value) -> Result<String> {
    let uid = pod["metadata"]["uid"].as_str().context("a uid")?;
    let below = format!("{}/kubepods/pod{uid}", host.cgroup_parent);
    let files = [
        format!("/sys/fs/cgroup/memory{below}/memory.limit_in_bytes"),
        format!("/sys/fs/cgroup{below}/memory.max"),
    ];
    let found = files.iter().find_map(|file| fs::read_to_string(file).ok());
    let found = found.with_context(|| format!("none of {files:?}"))?;
    Ok(found.trim().to_owned())
}

#[test]
fn a_runtime_class_leads_to_its_handler_and_brings_its_overhead() -> Result<()> {
    if !PathBuf::from(CRUN).exists() {
        eprintln!("skipped: crun is not installed");
        return Ok(());
    }
    let host = TestHost::new()?;
    host.sh(WITHOUT_HYBRID)?;
    host.busybox_image()?;
    let config = format!("cri:\n  runtimes:\n    crun: {{path: {CRUN}}}\n");
    let config = host.write("node.yaml", &config)?;
    let server = host.server_with(&["--config", &config])?;

    // The node says what its runtime has.
    let node = host.get(&["node", &host.name])?;
    let handlers = node["status"]["runtimeHandlers"].as_array();
    let handlers = handlers.context("handlers")?;
    let names: Vec<_> = handlers.iter().filter_map(|h| h["name"].as_str()).collect();
    ensure!(names == ["", "crun", "podwright"], "{handlers:?}");
    let features = &handlers[1]["features"];
    ensure!(features["userNamespaces"] == true, "{handlers:?}");

    host.apply(CLASSES)?;
    let table = host.kubectl_ok(&["get", "runtimeclasses"])?;
    let words: Vec<Vec<&str>> = table
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    ensure!(words[0] == ["NAME", "HANDLER", "AGE"], "{table}");
    ensure!(words[1][..2] == ["heavy", "crun"], "{table}");
    ensure!(words[2][..2] == ["nowhere", "not-configured"], "{table}");
    ensure!(words[3][..2] == ["outside", "crun"], "{table}");

    // A pod of the class is crun's, with its overhead on top of its limits.
    host.apply(&pod("web", "outside", &json!({})))?;
    host.wait_pod_ready("web")?;
    let web = host.pod("web")?;
    ensure!(web["spec"]["overhead"] == json!({"cpu": "100m", "memory": "32Mi"}));
    let state = states(&host)?;
    ensure!(state.len() == 1, "{state:?}");
    let list = format!("{CRUN} --root {} list", state[0].display());
    let list = host.sh(&list)?;
    let running = list.lines().filter(|line| line.contains(" running "));
    ensure!(
        running.count() == 2,
        "pause and main are not crun's:\n{list}"
    );
    ensure!(memory_limit(&host, &web)? == (96 << 20).to_string());
    ensure!(host.kubectl_ok(&["logs", "web"])? == "from-inside\n");
    let inside = host.kubectl_ok(&["exec", "web", "--", "hostname"])?;
    ensure!(inside == "web\n", "{inside}");

    // Nobody has the handler: the pod waits and says why.
    host.apply(&pod("waits", "nowhere", &json!({})))?;
    let message = host.wait_event("waits", "FailedCreatePodSandBox")?;
    let why = "no runtime for \"not-configured\" is configured";
    ensure!(message.contains(why), "{message}");
    ensure!(host.pod("waits")?["status"]["phase"] == "Pending");
    let own_ids = json!({"hostUsers": false});
    host.apply(&pod("ids", "nowhere", &own_ids))?;
    let message = host.wait_event("ids", "FailedCreatePodSandBox")?;
    let why = "RuntimeClass handler \"not-configured\" does not support user namespaces";
    ensure!(message.contains(why), "{message}");

    // The scheduler counts overhead.
    host.apply(&pod("large", "heavy", &json!({})))?;
    let message = host.wait_event("large", "FailedScheduling")?;
    ensure!(message.contains("Insufficient cpu"), "{message}");

    // There is no such class, any more: refused; what runs goes on.
    host.kubectl_ok(&["delete", "runtimeclass", "outside"])?;
    let file = host.write("late.json", &pod("late", "outside", &json!({})))?;
    let refused = host.kubectl(&["apply", "-f", &file]).output()?;
    let said = String::from_utf8_lossy(&refused.stderr);
    let why = "pods \"late\" is forbidden: pod rejected: RuntimeClass \"outside\" not found";
    ensure!(said.contains(why), "{said}");
    let web = host.pod("web")?;
    ensure!(condition(&web, "Ready") == Some("True"), "{web}");

    host.kubectl_ok(&["delete", "pod", "web", "waits", "ids", "large"])?;
    ensure!(states(&host)?.is_empty(), "left: {:?}", states(&host)?);
    server.stop()?;
    host.down()
}
