// SPDX-License-Identifier: Apache-2.0
//! Scheduler and controllers against the real API server on loopback. The only fake is the kubelet:
//! it registers a node, keeps its lease, makes bound pods ready, and lets deleted ones go.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use controlplane_lite::Config;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{
    ConfigMap, Endpoints, Event, Namespace, Node, Pod, Service, ServiceAccount,
};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams, Preconditions};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Generous, because the machine may be busy; nothing waits this long when it works.
const DEADLINE: Duration = Duration::from_secs(60);
const NODE: &str = "n1";

/// A control plane of its own, stopped and removed when dropped.
struct Cluster {
    client: Client,
    stop: CancellationToken,
    tasks: Vec<JoinHandle<()>>,
    _data: TempDir,
}

impl Cluster {
    async fn start() -> Self {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let data = TempDir::new().expect("a temporary folder");
        let loopback = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let config = Config {
            data_dir: data.path().to_path_buf(),
            bind_address: loopback,
            https_listen_port: 0,
            advertise_address: loopback,
            cluster_cidr: "10.42.0.0/16,fd42::/48".into(),
            node_prefixes: controlplane_lite::NodePrefixes::default(),
            service_cidr: "10.43.0.0/16".into(),
            cluster_dns: Vec::new(),
            cluster_domain: "cluster.local".into(),
            tls_san: Vec::new(),
            write_kubeconfig: None,
            disable: Default::default(),
            server_version: "test".into(),
        };
        let kubeconfig = config.kubeconfig_path();
        let stop = CancellationToken::new();
        let (ready, is_ready) = tokio::sync::oneshot::channel();
        let token = stop.clone();
        let server = tokio::spawn(async move {
            controlplane_lite::run(config, ready, token)
                .await
                .expect("the control plane runs");
        });
        is_ready.await.expect("the control plane becomes ready");
        let kubeconfig = Kubeconfig::read_from(kubeconfig).expect("an admin kubeconfig");
        let options = KubeConfigOptions::default();
        let config = kube::Config::from_custom_kubeconfig(kubeconfig, &options).await;
        let client = Client::try_from(config.expect("a usable kubeconfig"));
        Self {
            client: client.expect("a client"),
            stop,
            tasks: vec![server],
            _data: data,
        }
    }

    async fn with_node() -> Self {
        let mut cluster = Self::start().await;
        cluster
            .join(NODE, json!({"cpu": "4", "memory": "4Gi", "pods": "30"}))
            .await;
        cluster
    }

    /// A node with a kubelet that behaves.
    async fn join(&mut self, name: &'static str, allocatable: Value) {
        let nodes: Api<Node> = Api::all(self.client.clone());
        let node = json!({"metadata": {"name": name}});
        let node = serde_json::from_value(node).expect("a node");
        nodes
            .create(&PostParams::default(), &node)
            .await
            .expect("the node is registered");
        let status = json!({"status": {
            "allocatable": allocatable, "capacity": allocatable,
            "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady"}],
        }});
        let patch = Patch::Strategic(&status);
        nodes
            .patch_status(name, &PatchParams::default(), &patch)
            .await
            .expect("its status is set");
        let (client, stop) = (self.client.clone(), self.stop.clone());
        self.tasks.push(tokio::spawn(async move {
            tokio::select! {
                () = kubelet(client, name) => {}
                () = stop.cancelled() => {}
            }
        }));
    }

    fn api<K>(&self, namespace: &str) -> Api<K>
    where
        K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), namespace)
    }

    async fn create<K>(&self, value: Value)
    where
        K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
            + serde::Serialize
            + DeserializeOwned
            + Clone
            + std::fmt::Debug,
    {
        let namespace = value.pointer("/metadata/namespace").and_then(Value::as_str);
        let api: Api<K> = self.api(namespace.unwrap_or("default"));
        let object = serde_json::from_value(value).expect("the object fits its type");
        api.create(&PostParams::default(), &object)
            .await
            .expect("the object is created");
    }

    async fn pods(&self, namespace: &str) -> Vec<Pod> {
        let pods: Api<Pod> = self.api(namespace);
        pods.list(&ListParams::default())
            .await
            .expect("pods are listed")
            .items
    }

    async fn stop(mut self) {
        self.stop.cancel();
        for task in self.tasks.drain(..) {
            task.await.expect("every task ends well");
        }
    }
}

/// Waits until `look` finds what it wants, and tells the last state that it saw if it never does.
async fn eventually<F, Fut>(what: &str, look: F)
where
    F: Fn() -> Fut,
    Fut: Future<Output = Result<(), String>>,
{
    let end = Instant::now() + DEADLINE;
    loop {
        match look().await {
            Ok(()) => return,
            Err(state) if Instant::now() > end => panic!("{what}: {state}"),
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

fn is(condition: bool, state: impl std::fmt::Debug) -> Result<(), String> {
    if condition {
        Ok(())
    } else {
        Err(format!("{state:?}"))
    }
}

/// Level-triggered like the real one: each round brings every pod of the node one step on.
async fn kubelet(client: Client, node: &'static str) {
    let pods: Api<Pod> = Api::all(client.clone());
    let mut addresses: BTreeMap<String, usize> = BTreeMap::new();
    loop {
        renew(&client, node).await;
        let mine = ListParams::default().fields(&format!("spec.nodeName={node}"));
        for pod in pods
            .list(&mine)
            .await
            .map(|list| list.items)
            .unwrap_or_default()
        {
            let namespace = pod.metadata.namespace.clone().unwrap_or_default();
            let name = pod.metadata.name.clone().unwrap_or_default();
            let api: Api<Pod> = Api::namespaced(client.clone(), &namespace);
            if pod.metadata.deletion_timestamp.is_some() {
                let _ = api.delete(&name, &at_once(&pod)).await;
                continue;
            }
            let next = addresses.len() + 2;
            let uid = pod.metadata.uid.clone().unwrap_or_default();
            let index = *addresses.entry(uid).or_insert(next);
            let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref());
            if phase != Some("Running") {
                let ip = format!("10.42.0.{index}");
                let status = json!({"status": {
                    "phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}],
                    "conditions": [
                        {"type": "Ready", "status": "True"},
                        {"type": "ContainersReady", "status": "True"},
                    ],
                }});
                let patch = Patch::Strategic(&status);
                let _ = api
                    .patch_status(&name, &PatchParams::default(), &patch)
                    .await;
            }
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn at_once(pod: &Pod) -> DeleteParams {
    DeleteParams::default()
        .grace_period(0)
        .preconditions(Preconditions {
            uid: pod.metadata.uid.clone(),
            resource_version: None,
        })
}

async fn renew(client: &Client, node: &str) {
    let leases: Api<Lease> = Api::namespaced(client.clone(), "kube-node-lease");
    let now = k8s_openapi::jiff::Timestamp::now();
    let time = k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime(now);
    let lease = json!({
        "metadata": {"name": node},
        "spec": {"holderIdentity": node, "leaseDurationSeconds": 40, "renewTime": time},
    });
    let patched = leases
        .patch(node, &PatchParams::default(), &Patch::Merge(&lease))
        .await;
    if patched.is_err()
        && let Ok(lease) = serde_json::from_value(lease)
    {
        let _ = leases.create(&PostParams::default(), &lease).await;
    }
}

fn deployment(name: &str, replicas: i32, image: &str) -> Value {
    json!({
        "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": name}},
            "template": {
                "metadata": {"labels": {"app": name}},
                "spec": {"containers": [{
                    "name": "c", "image": image,
                    "ports": [{"name": "http", "containerPort": 8080}],
                }]},
            },
        },
    })
}

async fn rolled_out(cluster: &Cluster, name: &str, replicas: i32) {
    let api: Api<Deployment> = cluster.api("default");
    eventually("the rollout completes", || async {
        let deployment = api.get(name).await.map_err(|e| e.to_string())?;
        let status = deployment.status.clone().unwrap_or_default();
        let done = status.observed_generation == deployment.metadata.generation
            && status.updated_replicas.unwrap_or(0) == replicas
            && status.replicas.unwrap_or(0) == replicas
            && status.available_replicas.unwrap_or(0) == replicas;
        is(done, status)
    })
    .await;
}

fn active(pods: &[Pod]) -> usize {
    pods.iter()
        .filter(|p| p.metadata.deletion_timestamp.is_none())
        .count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deployment_rolls_out_scales_and_goes_with_all_it_owns() {
    let cluster = Cluster::with_node().await;
    cluster
        .create::<Deployment>(deployment("web", 3, "one"))
        .await;
    rolled_out(&cluster, "web", 3).await;

    let api: Api<Deployment> = cluster.api("default");
    let params = PatchParams::default();
    let scale = json!({"spec": {"replicas": 5}});
    api.patch("web", &params, &Patch::Merge(&scale))
        .await
        .expect("it is scaled");
    rolled_out(&cluster, "web", 5).await;
    assert_eq!(active(&cluster.pods("default").await), 5);

    let image =
        json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": "two"}]}}}});
    api.patch("web", &params, &Patch::Strategic(&image))
        .await
        .expect("it is changed");
    rolled_out(&cluster, "web", 5).await;
    let sets: Api<ReplicaSet> = cluster.api("default");
    let sets = sets
        .list(&ListParams::default())
        .await
        .expect("sets are listed")
        .items;
    assert_eq!(sets.len(), 2, "the old set is kept for a rollback");
    let live = api.get("web").await.expect("it is there");
    let annotations = live.metadata.annotations.unwrap_or_default();
    let revision = annotations
        .get("deployment.kubernetes.io/revision")
        .map(String::as_str);
    assert_eq!(revision, Some("2"));

    api.delete("web", &DeleteParams::background())
        .await
        .expect("it is deleted");
    eventually("nothing is left", || async {
        let sets: Api<ReplicaSet> = cluster.api("default");
        let sets = sets
            .list(&ListParams::default())
            .await
            .map_err(|e| e.to_string())?;
        let pods = cluster.pods("default").await;
        is(
            sets.items.is_empty() && pods.is_empty(),
            (sets.items.len(), pods.len()),
        )
    })
    .await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn foreground_deletion_waits_for_dependents_and_orphans_stay() {
    let cluster = Cluster::with_node().await;
    cluster
        .create::<Deployment>(deployment("front", 1, "one"))
        .await;
    cluster
        .create::<Deployment>(deployment("left", 1, "one"))
        .await;
    rolled_out(&cluster, "front", 1).await;
    rolled_out(&cluster, "left", 1).await;
    let api: Api<Deployment> = cluster.api("default");
    api.delete("front", &DeleteParams::foreground())
        .await
        .expect("it is deleted");
    api.delete("left", &DeleteParams::orphan())
        .await
        .expect("it is deleted");
    eventually("both deployments go, one with its set", || async {
        let left = api
            .list(&ListParams::default())
            .await
            .map_err(|e| e.to_string())?;
        let sets: Api<ReplicaSet> = cluster.api("default");
        let sets = sets
            .list(&ListParams::default())
            .await
            .map_err(|e| e.to_string())?
            .items;
        let names: Vec<_> = sets
            .iter()
            .filter_map(|s| s.metadata.name.clone())
            .collect();
        let free = sets
            .iter()
            .all(|s| s.metadata.owner_references.iter().flatten().count() == 0);
        let ok = left.items.is_empty() && free && names.len() == 1 && names[0].starts_with("left-");
        is(ok, (left.items.len(), names, free))
    })
    .await;
    assert_eq!(active(&cluster.pods("default").await), 1);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_namespace_is_emptied_and_goes() {
    let cluster = Cluster::with_node().await;
    let namespaces: Api<Namespace> = Api::all(cluster.client.clone());
    let namespace = serde_json::from_value(json!({"metadata": {"name": "away"}})).expect("valid");
    namespaces
        .create(&PostParams::default(), &namespace)
        .await
        .expect("it is created");
    let accounts: Api<ServiceAccount> = cluster.api("away");
    eventually("the default service account is made", || async {
        is(
            accounts.get_opt("default").await.is_ok_and(|a| a.is_some()),
            "missing",
        )
    })
    .await;
    let mut web = deployment("web", 2, "one");
    web["metadata"]["namespace"] = json!("away");
    cluster.create::<Deployment>(web).await;
    let map = json!({"metadata": {"name": "m", "namespace": "away"}, "data": {"k": "v"}});
    cluster.create::<ConfigMap>(map).await;
    eventually("pods run", || async {
        let pods = cluster.pods("away").await;
        is(pods.len() == 2, pods.len())
    })
    .await;
    namespaces
        .delete("away", &DeleteParams::default())
        .await
        .expect("it is deleted");
    eventually("the namespace goes", || async {
        let live = namespaces
            .get_opt("away")
            .await
            .map_err(|e| e.to_string())?;
        is(live.is_none(), live.map(|n| n.status))
    })
    .await;
    assert!(cluster.pods("away").await.is_empty());
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn endpoints_follow_the_pods_of_a_service() {
    let cluster = Cluster::with_node().await;
    let service = json!({
        "metadata": {"name": "web", "namespace": "default"},
        "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": "http"}]},
    });
    cluster.create::<Service>(service).await;
    cluster
        .create::<Deployment>(deployment("web", 2, "one"))
        .await;
    let expect = |count: usize| {
        let cluster = &cluster;
        eventually(
            "slices and endpoints show the ready pods",
            move || async move {
                let slices: Api<EndpointSlice> = cluster.api("default");
                let ours = ListParams::default().labels("kubernetes.io/service-name=web");
                let slices = slices.list(&ours).await.map_err(|e| e.to_string())?.items;
                let ready: Vec<_> = slices
                    .iter()
                    .flat_map(|slice| slice.endpoints.iter().flatten())
                    .filter(|e| e.conditions.as_ref().and_then(|c| c.ready) == Some(true))
                    .collect();
                let ports: Vec<_> = slices
                    .iter()
                    .flat_map(|s| s.ports.iter().flatten())
                    .map(|p| p.port)
                    .collect();
                let endpoints: Api<Endpoints> = cluster.api("default");
                let old = endpoints.get_opt("web").await.map_err(|e| e.to_string())?;
                let addresses = old
                    .iter()
                    .flat_map(|e| e.subsets.iter().flatten())
                    .flat_map(|s| s.addresses.iter().flatten())
                    .count();
                let numbers = count == 0 || ports == [Some(8080)];
                is(
                    ready.len() == count && addresses == count && numbers && slices.len() == 1,
                    (ready.len(), addresses, ports, slices.len()),
                )
            },
        )
    };
    expect(2).await;
    let api: Api<Deployment> = cluster.api("default");
    let none = json!({"spec": {"replicas": 0}});
    api.patch("web", &PatchParams::default(), &Patch::Merge(&none))
        .await
        .expect("it is scaled");
    expect(0).await;
    let services: Api<Service> = cluster.api("default");
    services
        .delete("web", &DeleteParams::default())
        .await
        .expect("it is deleted");
    eventually("slices and endpoints go with the service", || async {
        let slices: Api<EndpointSlice> = cluster.api("default");
        let ours = ListParams::default().labels("kubernetes.io/service-name=web");
        let slices = slices.list(&ours).await.map_err(|e| e.to_string())?.items;
        let endpoints: Api<Endpoints> = cluster.api("default");
        let old = endpoints.get_opt("web").await.map_err(|e| e.to_string())?;
        is(
            slices.is_empty() && old.is_none(),
            (slices.len(), old.is_some()),
        )
    })
    .await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_does_not_fit_waits_with_a_reason_until_a_node_comes() {
    let mut cluster = Cluster::with_node().await;
    let pod = json!({
        "metadata": {"name": "big", "namespace": "default"},
        "spec": {"containers": [{
            "name": "c", "image": "x", "resources": {"requests": {"cpu": "6"}},
        }]},
    });
    cluster.create::<Pod>(pod).await;
    let pods: Api<Pod> = cluster.api("default");
    eventually("the pod says why it waits", || async {
        let pod = pods.get("big").await.map_err(|e| e.to_string())?;
        let conditions = pod.status.and_then(|s| s.conditions).unwrap_or_default();
        let found = conditions.iter().find(|c| c.type_ == "PodScheduled");
        let message = found.and_then(|c| c.message.as_deref());
        is(
            message == Some("0/1 nodes are available: 1 Insufficient cpu."),
            &conditions,
        )
    })
    .await;
    let events: Api<Event> = cluster.api("default");
    eventually("an event says so, too", || async {
        let list = events
            .list(&ListParams::default())
            .await
            .map_err(|e| e.to_string())?;
        let reasons: Vec<_> = list.items.iter().filter_map(|e| e.reason.clone()).collect();
        is(reasons.iter().any(|r| r == "FailedScheduling"), reasons)
    })
    .await;
    cluster
        .join("n2", json!({"cpu": "8", "memory": "4Gi", "pods": "30"}))
        .await;
    eventually("the pod is bound to the new node", || async {
        let pod = pods.get("big").await.map_err(|e| e.to_string())?;
        let node = pod.spec.and_then(|s| s.node_name);
        is(node.as_deref() == Some("n2"), node)
    })
    .await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_get_ranges_that_do_not_overlap() {
    let mut cluster = Cluster::with_node().await;
    cluster.join("n2", json!({"cpu": "1", "pods": "10"})).await;
    let nodes: Api<Node> = Api::all(cluster.client.clone());
    eventually("each node has a range of its own", || async {
        let list = nodes
            .list(&ListParams::default())
            .await
            .map_err(|e| e.to_string())?;
        let mut ranges: Vec<_> = list
            .items
            .iter()
            .filter_map(|n| n.spec.as_ref()?.pod_cidrs.clone())
            .collect();
        ranges.sort();
        let expected = [
            ["10.42.0.0/24", "fd42::/64"],
            ["10.42.1.0/24", "fd42:0:0:1::/64"],
        ];
        is(ranges == expected, ranges)
    })
    .await;
    cluster.stop().await;
}
