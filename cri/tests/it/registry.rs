// SPDX-License-Identifier: Apache-2.0
//! A registry with one small image, on loopback: enough to be pulled from again and again, and to be
//! hung up on in the middle of a layer.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use cri::image::Digest;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

pub(crate) struct Registry {
    /// The image's reference.
    pub(crate) image: String,
    pub(crate) gate: Arc<Gate>,
    _connections: tokio::task::JoinSet<()>,
}

/// Where a registry may stop: while it is shut, half of a layer is sent, and then nothing.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    shut: AtomicBool,
    /// Halves that were sent.
    pub(crate) halves: AtomicUsize,
    /// Clients that hung up after half a layer.
    pub(crate) hung_up: AtomicUsize,
    /// Requests for the rest of a layer.
    pub(crate) resumed: AtomicUsize,
}

impl Gate {
    pub(crate) fn shut(&self, shut: bool) {
        self.shut.store(shut, Ordering::Relaxed);
    }

    /// Stands there until it opens, or the client hangs up; whether it is open.
    async fn wait(&self, stream: &mut TcpStream) -> bool {
        self.halves.fetch_add(1, Ordering::Relaxed);
        while self.shut.load(Ordering::Relaxed) {
            tokio::select! {
                // A client that waits for an answer says nothing.
                _ = stream.read_u8() => {
                    self.hung_up.fetch_add(1, Ordering::Relaxed);
                    return false;
                }
                () = tokio::time::sleep(Duration::from_millis(5)) => {}
            }
        }
        true
    }
}

/// What is at a path: its media type and its bytes.
type Content = HashMap<String, (&'static str, Vec<u8>)>;

impl Registry {
    pub(crate) async fn start() -> Registry {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let image = format!("{}/app:1", listener.local_addr().unwrap());
        let (content, gate) = (Arc::new(content()), Arc::new(Gate::default()));
        let gate_ = gate.clone();
        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(serve(stream, content.clone(), gate_.clone()));
                while connections.try_join_next().is_some() {}
            }
        });
        Registry {
            image,
            gate,
            _connections: tasks,
        }
    }
}

const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

fn content() -> Content {
    const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
    const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
    let layers: Vec<Vec<u8>> = (0..3u8).map(layer).collect();
    let config = json!({
        "architecture": "amd64", "os": "linux", "config": {},
        "rootfs": {"type": "layers",
            "diff_ids": layers.iter().map(|l| Digest::of(l)).collect::<Vec<_>>()},
    });
    let config = config.to_string().into_bytes();
    let describe = |kind: &str, bytes: &[u8]| json!({"mediaType": kind, "digest": Digest::of(bytes), "size": bytes.len()});
    let manifest = json!({
        "schemaVersion": 2, "mediaType": MANIFEST, "config": describe(CONFIG, &config),
        "layers": layers.iter().map(|l| describe(LAYER, l)).collect::<Vec<_>>(),
    });
    let mut content: Content = layers
        .into_iter()
        .map(|l| (format!("/v2/app/blobs/{}", Digest::of(&l)), (LAYER, l)))
        .collect();
    content.insert("/v2/".into(), ("application/json", b"{}".to_vec()));
    content.insert(
        format!("/v2/app/blobs/{}", Digest::of(&config)),
        (CONFIG, config),
    );
    content.insert(
        "/v2/app/manifests/1".into(),
        (MANIFEST, manifest.to_string().into_bytes()),
    );
    content
}

fn layer(number: u8) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    let bytes = vec![number; 300_000];
    let mut header = tar::Header::new_ustar();
    header.set_size(bytes.len() as u64);
    header.set_mode(0o644);
    tar.append_data(&mut header, format!("file{number}"), &bytes[..])
        .unwrap();
    tar.into_inner().unwrap()
}

/// One request after another. The client may go at any time.
async fn serve(mut stream: TcpStream, content: Arc<Content>, gate: Arc<Gate>) {
    while let Some(request) = request(&mut stream).await {
        let mut words = request.split_whitespace();
        let (method, path) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
        let (status, kind, body) = match content.get(path) {
            Some((kind, bytes)) => ("200 OK", *kind, &bytes[..]),
            None => ("404 Not Found", "application/json", &b"{}"[..]),
        };
        let (status, range, body) = match offset(&request).and_then(|from| body.get(from..)) {
            Some(rest) => {
                gate.resumed.fetch_add(1, Ordering::Relaxed);
                let (whole, from) = (body.len(), body.len() - rest.len());
                let range = format!("content-range: bytes {from}-{}/{whole}\r\n", whole - 1);
                ("206 Partial Content", range, rest)
            }
            None => (status, String::new(), body),
        };
        let head = format!(
            "HTTP/1.1 {status}\r\ncontent-type: {kind}\r\n{range}content-length: {}\r\n\r\n",
            body.len()
        );
        let body = if method == "HEAD" { &[][..] } else { body };
        let (first, second) = body.split_at(body.len() / 2);
        if stream.write_all(head.as_bytes()).await.is_err()
            || stream.write_all(first).await.is_err()
            || (kind == LAYER && !gate.wait(&mut stream).await)
            || stream.write_all(second).await.is_err()
        {
            return;
        }
    }
}

/// The head of the next request.
async fn request(stream: &mut TcpStream) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    Some(String::from_utf8_lossy(&head).into_owned())
}

/// From where on a layer is asked for.
fn offset(request: &str) -> Option<usize> {
    let range = request
        .lines()
        .find_map(|l| l.strip_prefix("range: bytes="))?;
    range.strip_suffix('-')?.parse().ok()
}
