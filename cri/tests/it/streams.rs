// SPDX-License-Identifier: Apache-2.0
//! Exec, attach and port-forward over WebSocket, as kubectl and the API server speak it.

use cri::v1;
use futures::{SinkExt as _, StreamExt as _};
use http::StatusCode;
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::{Error, Message};

use crate::node::{Handle, PATIENCE, shell, test, words};

pub(crate) type Socket = WebSocketStream<TcpStream>;

pub(crate) async fn open(url: &str, protocol: &str) -> Result<Socket, Error> {
    let address = url
        .strip_prefix("http://")
        .unwrap()
        .split('/')
        .next()
        .unwrap();
    let stream = TcpStream::connect(address).await.unwrap();
    let mut request = url
        .replacen("http://", "ws://", 1)
        .into_client_request()
        .unwrap();
    request
        .headers_mut()
        .insert("Sec-WebSocket-Protocol", protocol.parse().unwrap());
    tokio_tungstenite::client_async(request, stream)
        .await
        .map(|(socket, _)| socket)
}

async fn next(socket: &mut Socket) -> Option<(u8, Vec<u8>)> {
    loop {
        let message = tokio::time::timeout(PATIENCE, socket.next())
            .await
            .expect("a message in time");
        match message? {
            Ok(Message::Binary(data)) if data.len() > 1 => {
                return Some((data[0], data[1..].to_vec()));
            }
            Ok(Message::Close(_)) | Err(_) => return None,
            Ok(_) => {}
        }
    }
}

async fn send(socket: &mut Socket, channel: u8, data: &[u8]) {
    let mut bytes = vec![channel];
    bytes.extend_from_slice(data);
    socket.send(Message::Binary(bytes.into())).await.unwrap();
}

/// Everything that came on stdout, and the last word.
async fn to_end(socket: &mut Socket) -> (String, serde_json::Value) {
    let (mut out, mut status) = (String::new(), serde_json::Value::Null);
    while let Some((channel, data)) = next(socket).await {
        match channel {
            1 => out.push_str(&String::from_utf8_lossy(&data)),
            3 => status = serde_json::from_slice(&data).unwrap(),
            other => panic!("channel {other}: {data:?}"),
        }
    }
    (out, status)
}

async fn exec_url(node: &Handle, id: &str, command: &str, tty: bool) -> String {
    let request = v1::ExecRequest {
        container_id: id.to_owned(),
        cmd: words(&["/bin/sh", "-c", command]),
        tty,
        stdin: true,
        stdout: true,
        stderr: !tty,
    };
    node.cri()
        .await
        .exec(request)
        .await
        .unwrap()
        .into_inner()
        .url
}

#[test]
fn exec_streams_have_an_end_and_a_code() {
    test(|node| async move {
        let pod = node.run_pod(node.pod("stream")).await;
        let id = node.launch(&pod, shell("main", "sleep 1000")).await;
        let url = exec_url(&node, &id, "cat; exit 4", false).await;
        let mut socket = open(&url, "v5.channel.k8s.io").await.unwrap();
        send(&mut socket, 0, b"typed").await;
        send(&mut socket, 255, &[0]).await;
        let (out, status) = to_end(&mut socket).await;
        assert_eq!(out, "typed");
        assert_eq!(status["reason"], "NonZeroExitCode");
        assert_eq!(status["details"]["causes"][0]["message"], "4");
        assert!(
            open(&url, "v5.channel.k8s.io").await.is_err(),
            "a token works once"
        );

        let url = exec_url(&node, &id, "echo four", false).await;
        let mut socket = open(&url, "v4.channel.k8s.io").await.unwrap();
        let (out, status) = to_end(&mut socket).await;
        assert_eq!(
            (out.as_str(), status["status"].as_str()),
            ("four\n", Some("Success"))
        );
    });
}

#[test]
fn terminals_have_a_size_and_die_with_their_client() {
    test(|node| async move {
        let pod = node.run_pod(node.pod("tty")).await;
        let id = node.launch(&pod, shell("main", "sleep 1000")).await;
        let url = exec_url(
            &node,
            &id,
            "read line; stty size; echo $line; sleep 4321",
            true,
        )
        .await;
        let mut socket = open(&url, "v5.channel.k8s.io").await.unwrap();
        send(&mut socket, 4, br#"{"Width":91,"Height":17}"#).await;
        send(&mut socket, 0, b"go\n").await;
        let mut out = String::new();
        while !out.contains("17 91\r\ngo") {
            let (channel, data) = next(&mut socket).await.unwrap();
            assert_eq!(channel, 1);
            out.push_str(&String::from_utf8_lossy(&data));
        }
        drop(socket);
        let start = std::time::Instant::now();
        while node.exec(&id, "ps | grep -c '[s]leep 4321'").await.0 != "0\n" {
            assert!(start.elapsed() < PATIENCE, "the exec outlived its client");
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
    });
}

#[test]
fn attaching_joins_the_container() {
    test(|node| async move {
        let pod = node.run_pod(node.pod("attach")).await;
        let mut config = shell("main", "while read line; do echo got $line; done; exit 0");
        config.stdin = true;
        config.stdin_once = true;
        let id = node.launch(&pod, config).await;
        let request = v1::AttachRequest {
            container_id: id.clone(),
            stdin: true,
            stdout: true,
            stderr: true,
            tty: false,
        };
        let url = node.attach_url(request).await;
        let mut socket = open(&url, "v5.channel.k8s.io").await.unwrap();
        send(&mut socket, 0, b"one\n").await;
        assert_eq!(next(&mut socket).await.unwrap(), (1, b"got one\n".to_vec()));
        send(&mut socket, 255, &[0]).await;
        let (_, status) = to_end(&mut socket).await;
        assert_eq!(status["status"], "Success");
        assert_eq!(node.ended(&id).await.exit_code, 0);
    });
}

#[test]
fn ports_are_forwarded_into_the_pod() {
    test(|node| async move {
        let pod = node.run_pod(node.pod("ports")).await;
        let server = node.launch(&pod, shell("main", ECHO_SERVER)).await;
        forwards_ports(&node, &pod, &server).await;
    });
}

/// What a container runs that [`forwards_ports`] talks to.
pub(crate) const ECHO_SERVER: &str = "nc -l -p 8080 -e cat";

/// Talks to the server through port-forward, and finds nobody at another port.
pub(crate) async fn forwards_ports(node: &Handle, pod: &str, server: &str) {
    node.exec(
        server,
        "while ! grep -q ':1F90' /proc/net/tcp /proc/net/tcp6; do sleep 0.05; done",
    )
    .await;
    let request = v1::PortForwardRequest {
        pod_sandbox_id: pod.to_owned(),
        port: vec![8080, 9],
    };
    let url = node.port_forward_url(request).await;
    let mut socket = open(&url, "v4.channel.k8s.io").await.unwrap();
    send(&mut socket, 0, b"echo me").await;
    let (mut echoed, mut refused) = (Vec::new(), String::new());
    while echoed != b"echo me" || refused.is_empty() {
        match next(&mut socket).await.unwrap() {
            (0, data) if data == 8080_u16.to_le_bytes() => {}
            (2, data) | (1, data) => assert_eq!(data.len(), 2),
            (0, data) => echoed.extend(data),
            (3, data) if data == 9_u16.to_le_bytes() => {}
            (3, data) => refused = String::from_utf8(data).unwrap(),
            (other, data) => panic!("channel {other}: {data:?}"),
        }
    }
    assert!(refused.contains("port 9"), "{refused}");
}

#[test]
fn what_is_not_spoken_is_refused_by_name() {
    test(|node| async move {
        let pod = node.run_pod(node.pod("spdy")).await;
        let request = v1::PortForwardRequest {
            pod_sandbox_id: pod,
            port: vec![80],
        };
        let url = node.port_forward_url(request).await;
        for protocol in ["SPDY/3.1+portforward.k8s.io", "v3.channel.k8s.io"] {
            let Err(Error::Http(answer)) = open(&url, protocol).await else {
                panic!("{protocol} was accepted");
            };
            assert_eq!(answer.status(), StatusCode::BAD_REQUEST);
            let text =
                String::from_utf8_lossy(answer.body().as_deref().unwrap_or_default()).into_owned();
            assert!(
                text.contains(protocol) && text.contains("v4.channel.k8s.io"),
                "{text}"
            );
        }
    });
}
