// SPDX-License-Identifier: Apache-2.0
//! Static pods over a real containerd: no API server anywhere.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Pod, PodStatus};
use kubelet::adapters::cri_client::CriClient;
use kubelet::ports::Runtime;
use kubelet::{Config, Handle};
use tokio_util::sync::CancellationToken;

use crate::containerd::{Containerd, IMAGE};

const PATIENCE: Duration = Duration::from_secs(60);

fn config(containerd: &Containerd) -> Config {
    let local = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let path = containerd.path();
    Config {
        kubeconfig: None,
        container_runtime_endpoint: containerd.endpoint(),
        pod_manifest_path: Some(path.join("manifests")),
        node_name: "n1".to_owned(),
        node_ips: vec![local],
        node_labels: BTreeMap::new(),
        register_with_taints: Vec::new(),
        data_dir: path.join("data"),
        run_dir: path.join("run"),
        pod_logs_dir: path.join("logs"),
        cgroup_parent: format!("/podwright-test-{}", std::process::id()),
        cluster_dns: Vec::new(),
        cluster_domain: String::new(),
        resolv_conf: "/etc/resolv.conf".into(),
        address: local,
        port: 0,
        healthz_port: 0,
        client_ca_file: None,
        tls_cert_file: None,
        tls_private_key_file: None,
        max_pods: 10,
        allowed_unsafe_sysctls: BTreeSet::new(),
        register_node: false,
        periods: kubelet::config::Periods::default(),
        eviction_hard: kubelet::node::Thresholds::default(),
        user_namespaces: kubelet::config::UserNamespaceSettings {
            ids_per_pod: 65536,
            subuid_file: path.join("subuid"),
            subgid_file: path.join("subgid"),
            passwd_file: "/etc/passwd".into(),
        },
    }
}

async fn until(
    handle: &Handle,
    name: &str,
    what: &str,
    fits: impl Fn(&PodStatus) -> bool,
) -> Arc<Pod> {
    let mut changes = handle.changes();
    let search = async {
        loop {
            let pods = handle.pods();
            let found = pods
                .into_iter()
                .find(|pod| pod.metadata.name.as_deref() == Some(name));
            if let Some(pod) = found.filter(|pod| pod.status.as_ref().is_some_and(&fits)) {
                return pod;
            }
            changes.changed().await.expect("the kubelet lives");
        }
    };
    let found = tokio::time::timeout(PATIENCE, search).await;
    found.unwrap_or_else(|_| panic!("{name} never {what}: {:#?}", handle.pods()))
}

fn is_ready(status: &PodStatus) -> bool {
    let conditions = status.conditions.as_deref().unwrap_or_default();
    conditions
        .iter()
        .any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

fn container_id(pod: &Pod) -> Option<String> {
    let status = pod.status.as_ref()?;
    status
        .container_statuses
        .as_ref()?
        .first()?
        .container_id
        .clone()
}

/// The cgroups that runc made for the pods: empty now, and ours to remove.
fn remove_cgroups(parent: &str) {
    let Ok(controllers) = std::fs::read_dir("/sys/fs/cgroup") else {
        return;
    };
    for controller in controllers.flatten() {
        let root = controller.path().join(parent.trim_start_matches('/'));
        remove_tree(&root);
    }
}

fn remove_tree(path: &std::path::Path) {
    for entry in std::fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            remove_tree(&entry.path());
        }
    }
    let _ = std::fs::remove_dir(path);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn static_pods_run_survive_the_agent_and_leave_no_trace() {
    let containerd = Containerd::start();
    let config = config(&containerd);
    let manifests = containerd.path().join("manifests");
    std::fs::create_dir(&manifests).expect("creates");
    let web = format!(
        r#"
apiVersion: v1
kind: Pod
metadata: {{name: web}}
spec:
  terminationGracePeriodSeconds: 2
  initContainers:
  - {{name: init, image: "{IMAGE}", command: [sh, -c, "echo hello > /v/f"], volumeMounts: [{{name: v, mountPath: /v}}]}}
  containers:
  - name: app
    image: "{IMAGE}"
    command: [sh, -c, "echo started $POD; sleep 3600"]
    env: [{{name: POD, valueFrom: {{fieldRef: {{fieldPath: metadata.name}}}}}}]
    readinessProbe: {{exec: {{command: [cat, /v/f]}}, periodSeconds: 1}}
    volumeMounts: [{{name: v, mountPath: /v}}]
  volumes: [{{name: v, emptyDir: {{}}}}]
"#
    );
    std::fs::write(manifests.join("web.yaml"), web).expect("writes");
    let job = format!(
        r#"{{"apiVersion": "v1", "kind": "Pod", "metadata": {{"name": "job"}}, "spec": {{"restartPolicy": "Never",
        "containers": [{{"name": "c", "image": "{IMAGE}", "command": ["sh", "-c", "echo bye > /dev/termination-log; exit 7"]}}]}}}}"#
    );
    std::fs::write(manifests.join("job.json"), job).expect("writes");
    std::fs::write(
        manifests.join("bad.yaml"),
        "kind: Pod\nspec: {contaners: []}\n",
    )
    .expect("writes");

    let stop = CancellationToken::new();
    let handle = kubelet::start(config.clone(), stop.clone())
        .await
        .expect("the kubelet starts");
    let pod = until(&handle, "web-n1", "ready", is_ready).await;
    let first = container_id(&pod);
    assert!(
        first
            .as_deref()
            .is_some_and(|id| id.starts_with("containerd://")),
        "{first:?}"
    );
    let job = until(&handle, "job-n1", "failed", |status| {
        status.phase.as_deref() == Some("Failed")
    })
    .await;
    let statuses = job
        .status
        .as_ref()
        .and_then(|status| status.container_statuses.clone())
        .unwrap_or_default();
    let end = statuses[0]
        .state
        .clone()
        .and_then(|state| state.terminated)
        .expect("it ended");
    assert_eq!(
        (end.exit_code, end.message.as_deref(), end.reason.as_deref()),
        (7, Some("bye\n"), Some("Error"))
    );
    let uid = pod.metadata.uid.clone().unwrap_or_default();
    let log = config
        .pod_logs_dir
        .join(format!("default_web-n1_{uid}/app/0.log"));
    let text = std::fs::read_to_string(&log).expect("the log is there");
    assert!(text.contains("stdout F started web-n1"), "{text}");

    // The agent goes and comes back; the container does not notice.
    stop.cancel();
    handle.wait().await.expect("stops");
    let stop = CancellationToken::new();
    let handle = kubelet::start(config.clone(), stop.clone())
        .await
        .expect("the kubelet starts again");
    let pod = until(&handle, "web-n1", "ready again", is_ready).await;
    assert_eq!(container_id(&pod), first);

    // The manifests go, and so does everything else.
    for file in ["web.yaml", "job.json"] {
        std::fs::remove_file(manifests.join(file)).expect("removes");
    }
    let runtime =
        CriClient::new(&containerd.endpoint(), Duration::from_secs(10)).expect("a socket");
    let begin = tokio::time::Instant::now();
    loop {
        let left = runtime.list().await.expect("lists");
        if left.is_empty() && handle.pods().is_empty() {
            break;
        }
        assert!(begin.elapsed() < PATIENCE, "left over: {left:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let pods = std::fs::read_dir(config.root_dir().join("pods"))
        .map(|entries| entries.count())
        .unwrap_or(0);
    assert_eq!(pods, 0, "pod directories are gone");
    let logs = std::fs::read_dir(&config.pod_logs_dir)
        .map(|entries| entries.count())
        .unwrap_or(0);
    assert_eq!(logs, 0, "logs are gone");
    stop.cancel();
    handle.wait().await.expect("stops");
    drop(containerd);
    remove_cgroups(&config.cgroup_parent);
}
