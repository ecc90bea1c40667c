// SPDX-License-Identifier: Apache-2.0
//! The node API from outside: real TLS, a runtime that speaks CRI, log files.

pub(crate) mod fake_cri;

use std::fs;
use std::io::Write;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::*;
use crate::adapters::cri_client::CriClient;
use fake_cri::FakeCri;

struct OnePod;

impl PodLookup for OnePod {
    fn pods(&self) -> Vec<Arc<Pod>> {
        self.pod("ns", "web").into_iter().collect()
    }

    fn pod(&self, namespace: &str, name: &str) -> Option<Arc<Pod>> {
        let pod = json!({"metadata": {"name": "web", "namespace": "ns", "uid": "u-1"},
            "spec": {"containers": [{"name": "app"}, {"name": "waiting"}]},
            "status": {"containerStatuses": [
                {"name": "app", "image": "", "imageID": "", "ready": true, "restartCount": 0,
                 "containerID": "podwright://c1", "state": {"running": {}}},
                {"name": "waiting", "image": "", "imageID": "", "ready": false, "restartCount": 0,
                 "state": {"waiting": {"reason": "ContainerCreating"}}}]}});
        let pod: Pod = serde_json::from_value(pod).expect("a pod");
        ((namespace, name) == ("ns", "web")).then(|| Arc::new(pod))
    }
}

/// A certificate authority and what it signed, as files.
struct Certificates<'a> {
    dir: &'a Path,
    issuer: Issuer<'static, KeyPair>,
}

impl<'a> Certificates<'a> {
    fn new(dir: &'a Path) -> Self {
        let mut params = CertificateParams::new(vec![]).expect("valid");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        let ca = params.self_signed(&key).expect("signs");
        fs::write(dir.join("ca.crt"), ca.pem()).expect("writes");
        let issuer = Issuer::new(params, key);
        Self { dir, issuer }
    }

    fn issue(&self, file: &str, user: &str, group: &str) {
        let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).expect("valid");
        params.distinguished_name.push(DnType::CommonName, user);
        params
            .distinguished_name
            .push(DnType::OrganizationName, group);
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ClientAuth,
            ExtendedKeyUsagePurpose::ServerAuth,
        ];
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("signs");
        fs::write(self.dir.join(format!("{file}.crt")), certificate.pem()).expect("writes");
        fs::write(self.dir.join(format!("{file}.key")), key.serialize_pem()).expect("writes");
    }
}

struct Node {
    dir: TempDir,
    port: u16,
    cri: Arc<FakeCri>,
    stop: CancellationToken,
    server: JoinHandle<Result<(), ServerError>>,
}

impl Node {
    async fn start() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let certificates = Certificates::new(dir.path());
        certificates.issue("server", "system:node:n1", "system:nodes");
        certificates.issue("admin", "kube-apiserver-kubelet-client", "system:masters");
        certificates.issue("node", "system:node:n1", "system:nodes");
        let socket = dir.path().join("cri.sock");
        let cri = FakeCri::start(&socket, dir.path().join("0.log")).await;
        let endpoint = format!("unix://{}", socket.display());
        let client = CriClient::new(&endpoint, Duration::from_secs(10)).expect("an endpoint");
        let options = ServerOptions {
            node_name: "n1".into(),
            address: IpAddr::from([127, 0, 0, 1]),
            port: 0,
            healthz_port: 0,
            client_ca_file: Some(dir.path().join("ca.crt")),
            tls_cert_file: Some(dir.path().join("server.crt")),
            tls_private_key_file: Some(dir.path().join("server.key")),
            data_dir: dir.path().to_owned(),
        };
        let (ready, bound) = oneshot::channel();
        let stop = CancellationToken::new();
        let server = run(
            options,
            Arc::new(OnePod),
            client.runtime(),
            client.images(),
            ready,
            stop.clone(),
        );
        let server = tokio::spawn(server);
        let port = bound.await.expect("it serves");
        Self {
            dir,
            port,
            cri,
            stop,
            server,
        }
    }

    fn log(&self, lines: &[&str]) {
        let mut file = fs::File::options()
            .append(true)
            .create(true)
            .open(&self.cri.log_path)
            .expect("opens");
        for line in lines {
            writeln!(file, "2026-01-01T00:00:01Z stdout {line}").expect("writes");
        }
    }

    async fn connect(&self, who: Option<&str>) -> TlsStream<TcpStream> {
        let mut roots = RootCertStore::empty();
        let ca = CertificateDer::from_pem_file(self.dir.path().join("ca.crt")).expect("a ca");
        roots.add(ca).expect("a ca");
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(roots);
        let config = match who {
            None => builder.with_no_client_auth(),
            Some(who) => {
                let file = |kind: &str| self.dir.path().join(format!("{who}.{kind}"));
                let certificate = CertificateDer::from_pem_file(file("crt")).expect("reads");
                let key = PrivateKeyDer::from_pem_file(file("key")).expect("reads");
                builder
                    .with_client_auth_cert(vec![certificate], key)
                    .expect("a pair")
            }
        };
        let stream = TcpStream::connect(("127.0.0.1", self.port))
            .await
            .expect("connects");
        let name = ServerName::from(IpAddr::from([127, 0, 0, 1]));
        let connector = TlsConnector::from(Arc::new(config));
        connector.connect(name, stream).await.expect("a handshake")
    }

    /// One request, and its whole answer: the status and what follows the headers.
    async fn ask(&self, who: Option<&str>, request: &str) -> (u16, String) {
        let mut stream = self.connect(who).await;
        let head = format!("{request} HTTP/1.1\r\nhost: n1\r\nconnection: close\r\n\r\n");
        stream.write_all(head.as_bytes()).await.expect("writes");
        let mut answer = Vec::new();
        let read = timeout(Duration::from_secs(20), stream.read_to_end(&mut answer));
        read.await.expect("an answer in time").expect("reads");
        let answer = String::from_utf8(answer).expect("text");
        let (head, body) = answer.split_once("\r\n\r\n").expect("headers");
        let status = head.split(' ').nth(1).and_then(|code| code.parse().ok());
        let chunked = head.contains("transfer-encoding: chunked");
        let body = if chunked {
            unchunk(body)
        } else {
            body.to_owned()
        };
        (status.expect("a status"), body)
    }

    async fn check(&self, request: &str, status: u16, body: &str) {
        let got = self.ask(Some("admin"), request).await;
        assert_eq!(got, (status, body.to_owned()), "{request}");
    }

    async fn end(self) {
        self.stop.cancel();
        let ended = timeout(Duration::from_secs(10), self.server).await;
        ended
            .expect("it stops in time")
            .expect("no panic")
            .expect("no error");
    }
}

fn unchunk(mut body: &str) -> String {
    let mut out = String::new();
    while let Some((size, rest)) = body.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).expect("a size");
        out.push_str(&rest[..size]);
        body = rest[size..].trim_start_matches("\r\n");
    }
    out
}

#[tokio::test]
async fn clients_are_told_apart_by_their_certificates() {
    let node = Node::start().await;
    let (status, body) = node.ask(None, "GET /pods").await;
    assert_eq!((status, body.as_str()), (401, "Unauthorized"));
    let (status, body) = node.ask(Some("node"), "GET /pods").await;
    assert_eq!(status, 403);
    assert_eq!(
        body,
        "Forbidden (user=system:node:n1, verb=get, resource=nodes, subresource(s)=[pods proxy])"
    );
    node.check("GET /healthz", 200, "ok").await;
    node.check("GET /spec", 404, "404: Page Not Found").await;
    node.check("DELETE /pods", 405, "405: Method Not Allowed")
        .await;
    node.end().await;
}

#[tokio::test]
async fn pods_stats_and_metrics_are_served() {
    let node = Node::start().await;
    let (_, body) = node.ask(Some("admin"), "GET /pods").await;
    let pods: Value = serde_json::from_str(&body).expect("json");
    assert_eq!(
        (
            pods["kind"].as_str(),
            pods["items"][0]["metadata"]["name"].as_str()
        ),
        (Some("PodList"), Some("web"))
    );
    let (_, body) = node.ask(Some("admin"), "GET /runningpods/").await;
    let pods: Value = serde_json::from_str(&body).expect("json");
    assert_eq!(pods["items"][0]["spec"]["containers"][0]["name"], "app");
    let (status, body) = node.ask(Some("admin"), "GET /stats/summary").await;
    let summary: Value = serde_json::from_str(&body).expect("json");
    assert_eq!(
        (status, summary["node"]["nodeName"].as_str()),
        (200, Some("n1"))
    );
    let (_, body) = node.ask(Some("admin"), "GET /metrics").await;
    assert!(
        body.contains("kubelet_running_containers{container_state=\"running\"} 1"),
        "{body}"
    );
    let (_, body) = node.ask(Some("admin"), "GET /metrics/resource").await;
    assert!(body.contains("node_memory_working_set_bytes "), "{body}");
    node.end().await;
}

#[tokio::test]
async fn logs_are_read_and_failures_say_why() {
    let node = Node::start().await;
    let logs = "GET /containerLogs/ns/web/app";
    let (status, body) = node.ask(Some("admin"), logs).await;
    assert!(
        status == 400 && body.starts_with("failed to open log file"),
        "{body}"
    );
    node.log(&["F one", "P tw", "F o", "F three"]);
    node.check(logs, 200, "one\ntwo\nthree\n").await;
    node.check(&format!("{logs}?tailLines=2"), 200, "two\nthree\n")
        .await;
    node.check(&format!("{logs}?limitBytes=5"), 200, "one\nt")
        .await;
    node.check(&format!("{logs}?sinceTime=2027-01-01T00:00:00Z"), 200, "")
        .await;
    node.check(
        &format!("{logs}?tailLines=1&timestamps=true"),
        200,
        "2026-01-01T00:00:01.000000000Z three\n",
    )
    .await;
    node.check(
        &format!("{logs}?tailLines=x"),
        400,
        "{\"message\": \"Unable to decode query.\"}",
    )
    .await;
    node.check(
        &format!("{logs}?sinceSeconds=0"),
        422,
        "{\"message\": \"Invalid request.\"}",
    )
    .await;
    node.check(
        &format!("{logs}?previous=true"),
        400,
        "previous terminated container \"app\" in pod \"web\" not found",
    )
    .await;
    node.check(
        "GET /containerLogs/ns/web/waiting",
        400,
        "container \"waiting\" in pod \"web\" is waiting to start: ContainerCreating",
    )
    .await;
    node.check(
        "GET /containerLogs/ns/web/nope",
        404,
        "container \"nope\" not found in pod \"web\"",
    )
    .await;
    node.check(
        "GET /containerLogs/ns/nope/app",
        404,
        "pod \"nope\" does not exist",
    )
    .await;
    node.end().await;
}

#[tokio::test]
async fn a_followed_log_ends_with_its_container() {
    let node = Node::start().await;
    node.log(&["F one"]);
    let follow = node.ask(Some("admin"), "GET /containerLogs/ns/web/app?follow=true");
    let container = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        node.log(&["F two"]);
        node.cri.running.store(false, Ordering::SeqCst);
    };
    let ((status, body), ()) = tokio::join!(follow, container);
    assert_eq!((status, body.as_str()), (200, "one\ntwo\n"));
    node.end().await;
}

async fn stream(node: &Node, request: &str) -> String {
    let mut stream = node.connect(Some("admin")).await;
    let head = format!(
        "{request} HTTP/1.1\r\nhost: n1\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\
         authorization: Bearer secret\r\nsec-websocket-protocol: v5.channel.k8s.io\r\n\r\nearly "
    );
    stream.write_all(head.as_bytes()).await.expect("writes");
    stream.write_all(b"late").await.expect("writes");
    // The end of input; output must still come.
    stream.shutdown().await.expect("shuts down");
    let mut answer = Vec::new();
    let read = timeout(Duration::from_secs(20), stream.read_to_end(&mut answer));
    read.await.expect("an answer in time").expect("reads");
    let answer = String::from_utf8(answer).expect("text");
    let (head, body) = answer.split_once("\r\n\r\n").expect("headers");
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    assert!(
        head.to_lowercase()
            .contains("sec-websocket-protocol: v5.channel.k8s.io"),
        "{head}"
    );
    body.to_owned()
}

#[tokio::test]
async fn streams_are_handed_through_with_their_half_closes() {
    let node = Node::start().await;
    let exec = "POST /exec/ns/web/app?command=sh&command=-c&input=1&output=1";
    assert_eq!(
        stream(&node, exec).await,
        "[post /exec?cmd=sh+-c http/1.1]got early late"
    );
    let attach = "GET /attach/ns/web/u-1/app?stdin=true&stdout=true";
    assert_eq!(
        stream(&node, attach).await,
        "[get /attach http/1.1]got early late"
    );
    let forward = "GET /portForward/ns/web?port=80";
    assert_eq!(
        stream(&node, forward).await,
        "[get /portforward/s1 http/1.1]got early late"
    );
    node.end().await;
}

#[tokio::test]
async fn bad_streams_are_refused() {
    let node = Node::start().await;
    let exec = |rest: &str| format!("GET /exec/ns/{rest}");
    node.check(
        &exec("web/app?command=x&output=1"),
        400,
        "Upgrade request required",
    )
    .await;
    node.check(
        &exec("web/app?command=x"),
        400,
        "you must specify at least 1 of stdin, stdout, stderr",
    )
    .await;
    node.check(
        &exec("nope/app?command=x&output=1"),
        404,
        "pod does not exist",
    )
    .await;
    node.check(
        &exec("web/other-uid/app?command=x&output=1"),
        404,
        "pod does not exist",
    )
    .await;
    node.check(
        &exec("web/waiting?command=x&output=1"),
        500,
        "container not found (\"waiting\")",
    )
    .await;
    node.check(
        "GET /portForward/ns/web?port=99999",
        400,
        "invalid port \"99999\"",
    )
    .await;
    node.check("POST /run/ns/web/app?cmd=echo+hi", 200, "echo|hi")
        .await;
    node.check(
        "POST /run/ns/web/app?cmd=false",
        500,
        "falsecommand terminated with exit code 1\n",
    )
    .await;
    node.end().await;
}

#[tokio::test]
async fn stopping_ends_streams_and_followers() {
    let node = Node::start().await;
    node.log(&["F one"]);
    let mut follower = node.connect(Some("admin")).await;
    let head = "GET /containerLogs/ns/web/app?follow=true HTTP/1.1\r\nhost: n1\r\n\r\n";
    follower.write_all(head.as_bytes()).await.expect("writes");
    let mut first = [0; 16];
    follower.read_exact(&mut first).await.expect("reads");
    node.end().await;
}

#[tokio::test]
async fn files_that_are_no_certificates_are_named() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut options = ServerOptions {
        node_name: "n1".into(),
        address: IpAddr::from([127, 0, 0, 1]),
        port: 0,
        healthz_port: 0,
        client_ca_file: Some(dir.path().join("gone.crt")),
        tls_cert_file: None,
        tls_private_key_file: None,
        data_dir: dir.path().to_owned(),
    };
    let error = tls::server_config(&options)
        .map(drop)
        .map_err(|e| e.to_string());
    assert!(error.is_err_and(|text| text.contains("gone.crt")));
    options.client_ca_file = None;
    assert!(
        tls::server_config(&options).is_ok(),
        "a self-signed certificate will do"
    );
    options.tls_cert_file = Some(dir.path().join("only.crt"));
    assert!(matches!(tls::server_config(&options), Err(TlsError::Pair)));
}
