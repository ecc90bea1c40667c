// SPDX-License-Identifier: Apache-2.0
//! A registry with one small image, on loopback: enough to be pulled from again and again.

use std::collections::HashMap;
use std::sync::Arc;

use cri::image::Digest;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

pub(crate) struct Registry {
    /// The image's reference.
    pub(crate) image: String,
    _connections: tokio::task::JoinSet<()>,
}

/// What is at a path: its media type and its bytes.
type Content = HashMap<String, (&'static str, Vec<u8>)>;

impl Registry {
    pub(crate) async fn start() -> Registry {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let image = format!("{}/app:1", listener.local_addr().unwrap());
        let content = Arc::new(content());
        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(serve(stream, content.clone()));
                while connections.try_join_next().is_some() {}
            }
        });
        Registry {
            image,
            _connections: tasks,
        }
    }
}

fn content() -> Content {
    const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
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
async fn serve(mut stream: TcpStream, content: Arc<Content>) {
    let mut request = Vec::new();
    loop {
        request.clear();
        while !request.ends_with(b"\r\n\r\n") {
            match stream.read_u8().await {
                Ok(byte) => request.push(byte),
                Err(_) => return,
            }
        }
        let text = String::from_utf8_lossy(&request);
        let mut words = text.split_whitespace();
        let (method, path) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
        let (status, kind, body) = match content.get(path) {
            Some((kind, bytes)) => ("200 OK", *kind, &bytes[..]),
            None => ("404 Not Found", "application/json", &b"{}"[..]),
        };
        let head = format!(
            "HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        let body = if method == "HEAD" { &[][..] } else { body };
        if stream.write_all(head.as_bytes()).await.is_err() || stream.write_all(body).await.is_err()
        {
            return;
        }
    }
}
