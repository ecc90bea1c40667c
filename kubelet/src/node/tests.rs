// SPDX-License-Identifier: Apache-2.0
//! The node's loops against an API server in memory and a runtime that speaks CRI.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use k8s_openapi::api::core::v1::ObjectReference;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use super::*;
use crate::adapters::cri_client::CriClient;
use crate::server::FakeCri;

const NODE: &str = "/api/v1/nodes/n1";
const LEASE: &str = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/n1";

/// Objects by path. Merge patches replace lists; that is all that one writer needs.
#[derive(Default)]
struct Objects {
    by_path: BTreeMap<String, Value>,
    revision: u64,
    lease_writes: usize,
    down: bool,
}

type Shared = Arc<Mutex<Objects>>;

impl Objects {
    fn serve(&mut self, method: &Method, path: &str, body: &Value) -> (StatusCode, Value) {
        if self.down {
            return failure(StatusCode::SERVICE_UNAVAILABLE);
        }
        let name = body["metadata"]["name"].as_str().unwrap_or_default();
        let object_path = match method {
            &Method::POST => format!("{path}/{name}"),
            _ => path.trim_end_matches("/status").to_owned(),
        };
        let found = self.by_path.get(&object_path).cloned();
        let object = match (method, found) {
            (&Method::GET, Some(found)) => return (StatusCode::OK, found),
            (&Method::POST, Some(_)) => return failure(StatusCode::CONFLICT),
            (&Method::POST, None) => body.clone(),
            (_, None) => return failure(StatusCode::NOT_FOUND),
            (&Method::PATCH, Some(mut found)) => {
                merge(&mut found, body);
                found
            }
            (_, Some(found)) => {
                if found["metadata"]["resourceVersion"] != body["metadata"]["resourceVersion"] {
                    return failure(StatusCode::CONFLICT);
                }
                body.clone()
            }
        };
        self.lease_writes += usize::from(object_path == LEASE);
        (StatusCode::OK, self.put(&object_path, object))
    }

    fn put(&mut self, path: &str, mut object: Value) -> Value {
        self.revision += 1;
        object["metadata"]["resourceVersion"] = json!(self.revision.to_string());
        object["metadata"]["uid"] = json!("uid-of-n1");
        self.by_path.insert(path.to_owned(), object.clone());
        object
    }
}

fn merge(into: &mut Value, patch: &Value) {
    match (into, patch) {
        (Value::Object(into), Value::Object(patch)) => {
            for (key, value) in patch {
                merge(into.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
        (into, patch) => *into = patch.clone(),
    }
}

fn failure(code: StatusCode) -> (StatusCode, Value) {
    let reason = match code {
        StatusCode::NOT_FOUND => "NotFound",
        StatusCode::CONFLICT => "Conflict",
        _ => "",
    };
    let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": "no", "reason": reason, "code": code.as_u16()});
    (code, status)
}

fn client(objects: Shared) -> Client {
    let service = tower::service_fn(move |request: Request<kube::client::Body>| {
        let objects = Arc::clone(&objects);
        async move {
            let (parts, body) = request.into_parts();
            let body = body.collect().await.expect("a body").to_bytes();
            let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
            let (status, answer) = {
                let mut objects = objects.lock().expect("lock");
                objects.serve(&parts.method, parts.uri.path(), &body)
            };
            let body = Full::new(Bytes::from(answer.to_string()));
            let mut response = Response::new(body);
            *response.status_mut() = status;
            Ok::<_, Infallible>(response)
        }
    });
    Client::new(service, "default")
}

#[derive(Default)]
struct Recorded(Mutex<Vec<String>>);

impl Events for Recorded {
    fn record(&self, about: ObjectReference, _: EventType, reason: &str, _: String) {
        assert_eq!(about.uid.as_deref(), Some("n1"));
        self.0.lock().expect("lock").push(reason.to_owned());
    }
}

struct Lab {
    _dir: TempDir,
    cri: Arc<FakeCri>,
    objects: Shared,
    events: Arc<Recorded>,
    stop: CancellationToken,
    node: JoinHandle<Result<(), NodeError>>,
}

impl Lab {
    async fn start() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let socket = dir.path().join("cri.sock");
        let cri = FakeCri::start(&socket, dir.path().join("0.log")).await;
        cri.network_ready.store(false, Ordering::SeqCst);
        let endpoint = format!("unix://{}", socket.display());
        let runtime = CriClient::new(&endpoint, Duration::from_secs(5)).expect("an endpoint");
        let options = NodeOptions {
            name: "n1".into(),
            ips: vec![[10, 0, 0, 1].into()],
            labels: BTreeMap::new(),
            taints: vec![],
            max_pods: 110,
            port: 10250,
            data_dir: dir.path().to_owned(),
            status_update_frequency: Duration::from_millis(100),
            status_report_frequency: Duration::from_secs(300),
            lease_duration: Duration::from_millis(400),
            eviction_hard: super::Thresholds::default(),
        };
        let (objects, events, stop) = (
            Shared::default(),
            Arc::new(Recorded::default()),
            CancellationToken::new(),
        );
        let node = run(
            options,
            client(Arc::clone(&objects)),
            runtime.runtime(),
            runtime.images(),
            Arc::clone(&events) as Arc<dyn Events>,
            stop.clone(),
        );
        let node = tokio::spawn(node);
        Self {
            _dir: dir,
            cri,
            objects,
            events,
            stop,
            node,
        }
    }

    /// Waits until the Node in the API satisfies `done`.
    async fn until(&self, what: &str, done: impl Fn(&Value) -> bool) {
        let look = async {
            loop {
                let node = self
                    .objects
                    .lock()
                    .expect("lock")
                    .by_path
                    .get(NODE)
                    .cloned();
                if node.as_ref().is_some_and(&done) {
                    return;
                }
                sleep(Duration::from_millis(10)).await;
            }
        };
        if timeout(Duration::from_secs(20), look).await.is_err() {
            let objects = self.objects.lock().expect("lock");
            panic!("{what}: {:#?}", objects.by_path.get(NODE));
        }
    }

    async fn end(self) {
        self.stop.cancel();
        let ended = timeout(Duration::from_secs(10), self.node).await;
        ended
            .expect("it stops")
            .expect("no panic")
            .expect("no error");
    }
}

fn ready(node: &Value) -> Option<(&str, &str)> {
    let conditions = node["status"]["conditions"].as_array()?;
    let ready = conditions
        .iter()
        .find(|condition| condition["type"] == "Ready")?;
    Some((ready["status"].as_str()?, ready["message"].as_str()?))
}

const IS_READY: Option<(&str, &str)> = Some(("True", "kubelet is posting ready status"));

#[tokio::test]
async fn a_node_registers_and_follows_its_runtime() {
    let lab = Lab::start().await;
    let text = "container runtime network not ready: NetworkReady=false \
        reason:NetworkPluginNotReady message:no network";
    lab.until("not ready", |node| ready(node) == Some(("False", text)))
        .await;
    lab.cri.network_ready.store(true, Ordering::SeqCst);
    let asked = Instant::now();
    lab.until("ready", |node| ready(node) == IS_READY).await;
    assert!(
        asked.elapsed() < Duration::from_secs(2),
        "Ready follows at once"
    );
    lab.until("described", |node| {
        node["status"]["nodeInfo"]["containerRuntimeVersion"] == "podwright://0.1.0"
            && node["metadata"]["labels"]["kubernetes.io/hostname"] == "n1"
    })
    .await;
    {
        let objects = lab.objects.lock().expect("lock");
        let lease = &objects.by_path[LEASE];
        assert_eq!(lease["spec"]["holderIdentity"], "n1");
        assert_eq!(lease["metadata"]["ownerReferences"][0]["uid"], "uid-of-n1");
    }
    let events = lab.events.0.lock().expect("lock").clone();
    assert_eq!(events.first().map(String::as_str), Some("Starting"));
    assert_eq!(events.last().map(String::as_str), Some("NodeReady"));
    lab.end().await;
}

#[tokio::test]
async fn an_unchanged_status_is_not_written_and_the_lease_is() {
    let lab = Lab::start().await;
    lab.cri.network_ready.store(true, Ordering::SeqCst);
    lab.until("ready", |node| ready(node) == IS_READY).await;
    // The first report follows the registration, whatever that said.
    let reported = |_: &Value| {
        let events = lab.events.0.lock().expect("lock");
        events.iter().any(|reason| reason == "NodeReady")
    };
    lab.until("reported", reported).await;
    let seen = |lab: &Lab| {
        let objects = lab.objects.lock().expect("lock");
        (
            objects.by_path[NODE]["metadata"]["resourceVersion"].clone(),
            objects.lease_writes,
        )
    };
    let before = seen(&lab);
    sleep(Duration::from_millis(600)).await;
    let after = seen(&lab);
    assert_eq!(before.0, after.0, "the node was written again");
    assert!(after.1 >= before.1 + 2, "the lease was not renewed");
    lab.end().await;
}

#[tokio::test]
async fn what_others_did_to_the_node_is_put_right() {
    let lab = Lab::start().await;
    lab.cri.network_ready.store(true, Ordering::SeqCst);
    lab.until("ready", |node| ready(node) == IS_READY).await;
    // The API server was away for so long that the lease controller gave up on the node.
    {
        let mut objects = lab.objects.lock().expect("lock");
        let mut node = objects.by_path[NODE].clone();
        for condition in node["status"]["conditions"].as_array_mut().expect("a list") {
            condition["status"] = json!("Unknown");
        }
        objects.put(NODE, node);
        objects.down = true;
    }
    sleep(Duration::from_millis(300)).await;
    lab.objects.lock().expect("lock").down = false;
    lab.until("ready again", |node| ready(node) == IS_READY)
        .await;
    // And somebody deletes it.
    lab.objects.lock().expect("lock").by_path.remove(NODE);
    lab.until("registered again", |node| ready(node) == IS_READY)
        .await;
    lab.end().await;
}
