// SPDX-License-Identifier: Apache-2.0
//! A server for one test, and a client that shows codes and bodies as they are.

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use controlplane_lite::Config;
use futures::StreamExt;
use http::{Method, Request};
use kube::{
    Client,
    client::Body,
    config::{KubeConfigOptions, Kubeconfig},
};
use serde_json::Value;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Time for anything that should take milliseconds, on a machine that is busy.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A configuration that listens on a free port and starts nothing but the API server.
pub(crate) fn config(data_dir: &Path) -> Config {
    let loopback = IpAddr::from([127, 0, 0, 1]);
    Config {
        data_dir: data_dir.to_owned(),
        bind_address: loopback,
        https_listen_port: 0,
        advertise_address: loopback,
        cluster_cidr: "10.42.0.0/16".to_owned(),
        node_prefixes: controlplane_lite::NodePrefixes::default(),
        service_cidr: "10.43.0.0/24".to_owned(),
        cluster_dns: Vec::new(),
        cluster_domain: "cluster.local".to_owned(),
        tls_san: Vec::new(),
        write_kubeconfig: None,
        disable: ["scheduler", "controllers"].map(str::to_owned).into(),
        server_version: "test".to_owned(),
    }
}

/// A client for a kubeconfig file.
pub(crate) async fn client(kubeconfig: &Path) -> Client {
    let kubeconfig = Kubeconfig::read_from(kubeconfig).expect("a kubeconfig");
    let options = KubeConfigOptions::default();
    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &options).await;
    Client::try_from(config.expect("a usable kubeconfig")).expect("a client")
}

/// A running server and a client of its admin.
pub(crate) struct Host {
    pub(crate) client: Client,
    pub(crate) dir: tempfile::TempDir,
    stop: CancellationToken,
    server: JoinHandle<Result<(), controlplane_lite::Error>>,
}

impl Host {
    pub(crate) async fn start() -> Self {
        Self::start_in(tempfile::tempdir().expect("a folder")).await
    }

    pub(crate) async fn start_in(dir: tempfile::TempDir) -> Self {
        Self::start_with(dir, |_| {}).await
    }

    /// With a configuration that is changed first.
    pub(crate) async fn start_with(
        dir: tempfile::TempDir,
        change: impl FnOnce(&mut Config),
    ) -> Self {
        let mut config = config(dir.path());
        change(&mut config);
        let kubeconfig = config.kubeconfig_path();
        let stop = CancellationToken::new();
        let (ready, is_ready) = tokio::sync::oneshot::channel();
        let server = tokio::spawn(controlplane_lite::run(config, ready, stop.clone()));
        tokio::time::timeout(PATIENCE, is_ready)
            .await
            .expect("the server is ready in time")
            .expect("the server starts");
        Self {
            client: client(&kubeconfig).await,
            dir,
            stop,
            server,
        }
    }

    /// Stops the server and gives its folder back.
    pub(crate) async fn stop(self) -> tempfile::TempDir {
        drop(self.client);
        self.stop.cancel();
        let ended = tokio::time::timeout(PATIENCE, self.server).await;
        ended
            .expect("it stops in time")
            .expect("it does not panic")
            .expect("it stops well");
        self.dir
    }

    /// A client of a node called `name`.
    pub(crate) async fn node_client(&self, name: &str) -> Client {
        let admin = self.dir.path().join("server/kubeconfig.yaml");
        let text = std::fs::read_to_string(admin).expect("the admin's kubeconfig");
        let url = text
            .lines()
            .find_map(|l| l.trim().strip_prefix("server: "))
            .expect("a server");
        let ips = [IpAddr::from([127, 0, 0, 1])];
        let files = controlplane_lite::agent_credentials(self.dir.path(), name, &ips, url);
        let path: PathBuf = files.expect("credentials").kubelet_kubeconfig;
        client(&path).await
    }

    pub(crate) async fn send(&self, method: Method, path: &str, body: Value) -> (u16, Value) {
        send(&self.client, method, path, "application/json", body).await
    }

    pub(crate) async fn get(&self, path: &str) -> (u16, Value) {
        self.send(Method::GET, path, Value::Null).await
    }

    /// Creates an object that must be accepted.
    pub(crate) async fn create(&self, path: &str, body: Value) -> Value {
        let (code, value) = self.send(Method::POST, path, body).await;
        assert_eq!(code, 201, "{value}");
        value
    }

    pub(crate) async fn patch(&self, path: &str, kind: &str, body: Value) -> (u16, Value) {
        let kind = format!("application/{kind}+json");
        send(&self.client, Method::PATCH, path, &kind, body).await
    }

    /// Opens a watch.
    pub(crate) async fn watch(&self, path: &str) -> Watch {
        let request = Request::get(path).body(Body::empty()).expect("a request");
        let response = self.client.send(request).await.expect("an answer");
        assert_eq!(response.status(), 200);
        let frames = http_body_util::BodyStream::new(response.into_body());
        Watch {
            frames: Box::pin(frames.filter_map(async |f| f.ok()?.into_data().ok())),
            rest: Vec::new(),
        }
    }
}

/// Sends a request as some client.
pub(crate) async fn send(
    client: &Client,
    method: Method,
    path: &str,
    kind: &str,
    body: Value,
) -> (u16, Value) {
    let bytes = if body.is_null() {
        Vec::new()
    } else {
        body.to_string().into_bytes()
    };
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("content-type", kind)
        .body(Body::from(bytes))
        .expect("a request");
    let response = client.send(request).await.expect("an answer");
    let code = response.status().as_u16();
    let bytes = response.into_body().collect_bytes().await.expect("a body");
    let value = serde_json::from_slice(&bytes)
        .unwrap_or_else(|_| Value::from(String::from_utf8_lossy(&bytes).into_owned()));
    (code, value)
}

/// An open watch.
pub(crate) struct Watch {
    frames: std::pin::Pin<Box<dyn futures::Stream<Item = bytes::Bytes> + Send>>,
    rest: Vec<u8>,
}

impl Watch {
    /// The next event: its type and object. Nothing at the end.
    pub(crate) async fn next(&mut self) -> Option<(String, Value)> {
        loop {
            if let Some(end) = self.rest.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = self.rest.drain(..=end).collect();
                let mut event: Value = serde_json::from_slice(&line).expect("a line is JSON");
                let kind = event["type"].as_str().expect("a type").to_owned();
                return Some((kind, event["object"].take()));
            }
            let frame = tokio::time::timeout(PATIENCE, self.frames.next());
            self.rest
                .extend_from_slice(&frame.await.expect("an event in time")?);
        }
    }

    /// The next event as type, name and revision.
    pub(crate) async fn brief(&mut self) -> (String, String) {
        let (kind, object) = self.next().await.expect("an event");
        (
            kind,
            object["metadata"]["name"].as_str().unwrap_or("").to_owned(),
        )
    }
}
