// SPDX-License-Identifier: Apache-2.0
//! As much of an API server as a node's network talks to: lists, and watches that say what the test wants.
//! It can be paused by nobody and forgets nothing, so what goes wrong is its client's.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use axum::body::Body;
use axum::extract::{Query, State};
use axum::http::{StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use futures::StreamExt;
use serde_json::{Value, json};
use tokio::sync::mpsc;

pub(crate) const SERVICES: &str = "/api/v1/services";
pub(crate) const SLICES: &str = "/apis/discovery.k8s.io/v1/endpointslices";
pub(crate) const NODES: &str = "/api/v1/nodes";

type Watchers = Vec<(String, mpsc::UnboundedSender<String>)>;

#[derive(Default)]
struct Inner {
    objects: HashMap<String, Vec<Value>>,
    watchers: Watchers,
    version: u64,
}

#[derive(Clone, Default)]
pub(crate) struct Api(Arc<Mutex<Inner>>);

impl Api {
    /// With these objects of a path.
    pub(crate) fn fill(&self, path: &str, objects: Vec<Value>) {
        let mut inner = self.0.lock().expect("no panic");
        inner.objects.insert(path.to_owned(), objects);
    }

    /// Tell all watches of a path that an object changed.
    pub(crate) fn say(&self, path: &str, kind: &str, mut object: Value) {
        let mut inner = self.0.lock().expect("no panic");
        inner.version += 1;
        object["metadata"]["resourceVersion"] = json!((100 + inner.version).to_string());
        let line = format!("{}\n", json!({"type": kind, "object": object}));
        let to = |(watched, sender): &(String, mpsc::UnboundedSender<String>)| {
            watched != path || sender.send(line.clone()).is_ok()
        };
        inner.watchers.retain(to);
    }

    /// How many watches there are.
    pub(crate) fn watches(&self) -> usize {
        self.0.lock().expect("no panic").watchers.len()
    }

    /// Serve on loopback, in a runtime, and return a kubeconfig for it.
    pub(crate) async fn serve(&self, dir: &Path) -> PathBuf {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await;
        let listener = listener.expect("bind");
        let address = listener.local_addr().expect("an address");
        let app = axum::Router::new()
            .fallback(answer)
            .with_state(self.clone());
        tokio::spawn(async move { axum::serve(listener, app).await });
        kubeconfig(dir, address)
    }
}

fn kubeconfig(dir: &Path, address: SocketAddr) -> PathBuf {
    let path = dir.join("kubeconfig");
    let text = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{"name": "c", "cluster": {"server": format!("http://{address}")}}],
        "users": [{"name": "c", "user": {}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "c"}}]
    });
    std::fs::write(&path, text.to_string()).expect("write");
    path
}

async fn answer(
    State(api): State<Api>,
    uri: Uri,
    Query(query): Query<HashMap<String, String>>,
) -> Response {
    let path = uri.path().to_owned();
    let mut inner = api.0.lock().expect("no panic");
    let Some(objects) = inner.objects.get(&path) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    if !query.contains_key("watch") {
        let json = [("content-type", "application/json")];
        return (json, page(objects, &query).to_string()).into_response();
    }
    let (sender, mut lines) = mpsc::unbounded_channel();
    inner.watchers.push((path, sender));
    let stream = futures::stream::poll_fn(move |context| lines.poll_recv(context));
    Body::from_stream(stream.map(Ok::<_, std::convert::Infallible>)).into_response()
}

/// A list, or the page of it that `limit` and `continue` ask for.
fn page(objects: &[Value], query: &HashMap<String, String>) -> Value {
    let number = |name: &str| query.get(name).and_then(|text| text.parse().ok());
    let first = number("continue").unwrap_or(0).min(objects.len());
    let rest = &objects[first..];
    let items = &rest[..number("limit").unwrap_or(rest.len()).min(rest.len())];
    let mut meta = json!({"resourceVersion": "100"});
    if items.len() < rest.len() {
        meta["continue"] = json!((first + items.len()).to_string());
    }
    json!({"kind": "List", "apiVersion": "v1", "metadata": meta, "items": items})
}
