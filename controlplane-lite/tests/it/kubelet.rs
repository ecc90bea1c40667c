// SPDX-License-Identifier: Apache-2.0
//! Logs and streams through the API server. The other side is a small TLS server with a
//! kubelet's certificate, which shows what reached it.

use std::{net::SocketAddr, path::Path, sync::Arc};

use rustls::{
    RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
    server::WebPkiClientVerifier,
};
use serde_json::json;
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::host::{Host, PATIENCE};

fn roots(dir: &Path) -> Arc<RootCertStore> {
    let mut roots = RootCertStore::empty();
    let ca = CertificateDer::from_pem_file(dir.join("server/pki/ca.crt")).expect("the authority");
    roots.add(ca).expect("a usable authority");
    Arc::new(roots)
}

fn pair(cert: &Path, key: &Path) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
    let cert = CertificateDer::from_pem_file(cert).expect("a certificate");
    (
        vec![cert],
        PrivateKeyDer::from_pem_file(key).expect("a key"),
    )
}

/// Reads a request's head and returns its first line.
async fn head(socket: &mut (impl AsyncRead + Unpin)) -> String {
    let mut reader = BufReader::with_capacity(1, socket);
    let (mut first, mut line) = (String::new(), String::new());
    while reader.read_line(&mut line).await.expect("a line") > 0 && line != "\r\n" {
        if first.is_empty() {
            first = line.trim_end().to_owned();
        }
        line.clear();
    }
    first
}

/// Answers one request: a log shows the request line, anything else becomes an echo.
async fn answer(mut socket: impl AsyncRead + AsyncWrite + Unpin) {
    let first = head(&mut socket).await;
    if first.contains("/containerLogs/") {
        let text = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n\r\n{first}",
            first.len()
        );
        socket.write_all(text.as_bytes()).await.expect("written");
        return;
    }
    let switching = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Protocol: v5.channel.k8s.io\r\n\r\n";
    let _ = socket
        .write_all(format!("{switching}{first}\n").as_bytes())
        .await;
    let (mut read, mut write) = tokio::io::split(socket);
    let _ = tokio::io::copy(&mut read, &mut write).await;
}

/// Serves as the kubelet of `n1` and registers the node and a pod on it.
async fn start_kubelet(host: &Host) -> SocketAddr {
    let dir = host.dir.path();
    let ips = [[127, 0, 0, 1].into()];
    let files = controlplane_lite::agent_credentials(dir, "n1", &ips, "https://127.0.0.1:1");
    let files = files.expect("credentials");
    let (cert, key) = pair(&files.kubelet_cert, &files.kubelet_key);
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(roots(dir), provider.clone())
        .build()
        .expect("a verifier");
    let tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_client_cert_verifier(verifier)
        .with_single_cert(cert, key)
        .expect("a pair");
    let tls = TlsAcceptor::from(Arc::new(tls));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let socket = tls
                .accept(socket)
                .await
                .expect("the API server shows its certificate");
            tokio::spawn(answer(socket));
        }
    });
    let node = json!({"metadata": {"name": "n1"}, "status": {
        "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": address.port()}}}});
    host.create("/api/v1/nodes", node).await;
    let pod = json!({"metadata": {"name": "p"}, "spec": {"nodeName": "n1",
        "containers": [{"name": "c", "image": "x"}]}});
    host.create("/api/v1/namespaces/default/pods", pod).await;
    address
}

#[tokio::test]
async fn logs_come_from_the_node_of_the_pod() {
    let host = Host::start().await;
    start_kubelet(&host).await;
    let logs = "/api/v1/namespaces/default/pods/p/log";
    let (code, text) = host
        .get(&format!("{logs}?tailLines=5&timestamps=true"))
        .await;
    assert_eq!(code, 200);
    assert_eq!(
        text,
        "GET /containerLogs/default/p/c?timestamps=true&tailLines=5 HTTP/1.1"
    );
    let (code, error) = host.get(&format!("{logs}?container=nope")).await;
    assert_eq!(code, 400);
    assert_eq!(error["message"], "container nope is not valid for pod p");
    host.stop().await;
}

#[tokio::test]
async fn an_upgraded_connection_is_passed_through_untouched() {
    let host = Host::start().await;
    start_kubelet(&host).await;
    let dir = host.dir.path();
    let pki = dir.join("server/pki");
    let (cert, key) = pair(&pki.join("admin.crt"), &pki.join("admin.key"));
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots(dir))
        .with_client_auth_cert(cert, key)
        .expect("a pair");
    let text = std::fs::read_to_string(dir.join("server/kubeconfig.yaml")).expect("a kubeconfig");
    let server = text
        .lines()
        .find_map(|l| l.trim().strip_prefix("server: https://"));
    let socket = TcpStream::connect(server.expect("a server"))
        .await
        .expect("connected");
    let name = ServerName::try_from("127.0.0.1").expect("an address");
    let mut socket = TlsConnector::from(Arc::new(tls))
        .connect(name, socket)
        .await
        .expect("TLS");
    let request = "GET /api/v1/namespaces/default/pods/p/exec?command=sh&command=-c&command=a%20b&stdin=true&stdout=true HTTP/1.1\r\n\
        Host: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: abc\r\nSec-WebSocket-Version: 13\r\n\
        Sec-WebSocket-Protocol: v5.channel.k8s.io\r\n\r\n";
    socket.write_all(request.as_bytes()).await.expect("written");
    let exchange = async {
        assert_eq!(head(&mut socket).await, "HTTP/1.1 101 Switching Protocols");
        let expected = b"GET /exec/default/p/c?input=1&output=1&command=sh&command=-c&command=a%20b HTTP/1.1\n";
        let mut found = vec![0; expected.len()];
        socket
            .read_exact(&mut found)
            .await
            .expect("the request line");
        assert_eq!(
            String::from_utf8_lossy(&found),
            String::from_utf8_lossy(expected)
        );
        let sent: Vec<u8> = (0..=255).cycle().take(100_000).collect();
        let (mut read, mut write) = tokio::io::split(&mut socket);
        let mut echoed = vec![0; sent.len()];
        let (written, read) = tokio::join!(write.write_all(&sent), read.read_exact(&mut echoed));
        written.expect("written");
        read.expect("echoed");
        assert!(echoed == sent, "every byte comes back");
    };
    tokio::time::timeout(PATIENCE, exchange)
        .await
        .expect("in time");
    drop(socket);
    host.stop().await;
}
