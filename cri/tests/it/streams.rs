// SPDX-License-Identifier: Apache-2.0
//! Exec, attach and port-forward over WebSocket and SPDY/3.1, as kubectl and crictl speak them.

use std::collections::HashMap;
use std::time::Duration;

use cri::streaming::spdy::frame::Frame;
use cri::v1;
use futures::{SinkExt as _, StreamExt as _};
use http::StatusCode;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::{Error, Message};

use crate::node::{Handle, PATIENCE, shell, test, words};
use crate::spdy::{self, Spdy, Wire};

pub(crate) type Socket = WebSocketStream<Box<dyn Wire>>;

pub(crate) async fn open(url: &str, protocol: &str) -> Result<Socket, Error> {
    let stream = spdy::connect(url).await;
    let mut request = url.replacen("http", "ws", 1).into_client_request().unwrap();
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
        execs_with_streams(&node, &pod).await;
    });
}

/// Execs of a pod's container have streams of their own, an end and a code.
pub(crate) async fn execs_with_streams(node: &Handle, pod: &str) {
    let id = node.launch(pod, shell("main", "sleep 1000")).await;
    let url = exec_url(node, &id, "cat; exit 4", false).await;
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

    let url = exec_url(node, &id, "echo four", false).await;
    let mut socket = open(&url, "v4.channel.k8s.io").await.unwrap();
    let (out, status) = to_end(&mut socket).await;
    assert_eq!(
        (out.as_str(), status["status"].as_str()),
        ("four\n", Some("Success"))
    );
}

#[test]
fn terminals_have_a_size_and_die_with_their_client() {
    test(|node| async move {
        let pod = node.run_pod(node.pod("tty")).await;
        execs_with_a_terminal(&node, &pod).await;
    });
}

/// An exec's terminal has a size, which can be changed, and what runs in it dies with its client.
pub(crate) async fn execs_with_a_terminal(node: &Handle, pod: &str) {
    let id = node.launch(pod, shell("tty", "sleep 1000")).await;
    let command = "read line; stty size; echo $line; sleep 4321";
    let url = exec_url(node, &id, command, true).await;
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
    gone(node, &id, "[s]leep 4321").await;
}

#[test]
fn attaching_joins_the_container() {
    test(|node| async move {
        let pod = node.run_pod(node.pod("attach")).await;
        attaches(&node, &pod).await;
    });
}

/// A client that is attached to all of a container's streams. A terminal has one for all output.
async fn attached(node: &Handle, container: &str, tty: bool) -> Socket {
    let request = v1::AttachRequest {
        container_id: container.to_owned(),
        stdin: true,
        stdout: true,
        stderr: !tty,
        tty,
    };
    let url = node.attach_url(request).await;
    open(&url, "v5.channel.k8s.io").await.unwrap()
}

/// Attaching joins a container's streams, and its stdin ends with the client's.
pub(crate) async fn attaches(node: &Handle, pod: &str) {
    let mut config = shell("reads", "while read line; do echo got $line; done; exit 0");
    config.stdin = true;
    config.stdin_once = true;
    let id = node.launch(pod, config).await;
    let mut socket = attached(node, &id, false).await;
    send(&mut socket, 0, b"one\n").await;
    assert_eq!(next(&mut socket).await.unwrap(), (1, b"got one\n".to_vec()));
    send(&mut socket, 255, &[0]).await;
    let (_, status) = to_end(&mut socket).await;
    assert_eq!(status["status"], "Success");
    assert_eq!(node.ended(&id).await.exit_code, 0);
}

/// The same for a container with a terminal, whose size the client sets.
pub(crate) async fn attaches_to_a_terminal(node: &Handle, pod: &str) {
    let mut config = shell("terminal", "read line; stty size; echo $line; exit 6");
    (config.tty, config.stdin) = (true, true);
    let id = node.launch(pod, config).await;
    let mut socket = attached(node, &id, true).await;
    send(&mut socket, 4, br#"{"Width":93,"Height":19}"#).await;
    send(&mut socket, 0, b"go\n").await;
    let (out, _) = to_end(&mut socket).await;
    assert!(out.contains("19 93\r\ngo"), "{out:?}");
    assert_eq!(node.ended(&id).await.exit_code, 6);
}

#[test]
fn attaching_to_a_terminal_sets_its_size() {
    test(|node| async move {
        let pod = node.run_pod(node.pod("terminal")).await;
        attaches_to_a_terminal(&node, &pod).await;
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
        let pod = node.run_pod(node.pod("refused")).await;
        let request = v1::PortForwardRequest {
            pod_sandbox_id: pod,
            port: vec![80],
        };
        let url = node.port_forward_url(request).await;
        let Err(Error::Http(answer)) = open(&url, "v3.channel.k8s.io").await else {
            panic!("it was accepted");
        };
        assert_eq!(answer.status(), StatusCode::FORBIDDEN);
        let text = String::from_utf8_lossy(answer.body().as_deref().unwrap_or_default());
        assert!(
            text.contains("v3.channel.k8s.io") && text.contains("v4.channel.k8s.io"),
            "{text}"
        );
        let wrong = "Upgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: v4.channel.k8s.io";
        let (head, _) = spdy::upgrade(&url, wrong).await;
        assert!(head.starts_with("HTTP/1.1 403"), "{head}");
        let accepted = "x-accepted-stream-protocol-versions: portforward.k8s.io";
        assert!(head.contains(accepted), "{head}");
        // The token was not used up by that.
        let (chosen, _) = Spdy::open(&url, "portforward.k8s.io").await;
        assert_eq!(chosen, "portforward.k8s.io");
    });
}

/// The streams of an exec: error, stdin, stdout, stderr.
async fn exec_streams(client: &mut Spdy) -> [u32; 4] {
    let mut streams = [0; 4];
    let kinds = ["error", "stdin", "stdout", "stderr"];
    for (stream, kind) in streams.iter_mut().zip(kinds) {
        *stream = client.sender.stream(&[("streamtype", kind)]).await;
    }
    streams
}

fn text_of(streams: &HashMap<u32, Vec<u8>>, stream: u32) -> String {
    let bytes = streams.get(&stream).cloned().unwrap_or_default();
    String::from_utf8(bytes).unwrap()
}

#[test]
fn spdy_exec_has_streams_with_an_end_and_a_code() {
    test(|node| async move {
        let pod = node.run_pod(node.pod("spdy")).await;
        let id = node.launch(&pod, shell("main", "sleep 1000")).await;
        let all = "v5.channel.k8s.io, v4.channel.k8s.io, v3.channel.k8s.io, channel.k8s.io";
        for (asked, chosen, failure) in [
            (all, "v4.channel.k8s.io", "NonZeroExitCode"),
            ("v2.channel.k8s.io", "v2.channel.k8s.io", "exit status 4"),
        ] {
            let url = exec_url(&node, &id, "cat; echo bad >&2; exit 4", false).await;
            let (protocol, mut client) = Spdy::open(&url, asked).await;
            assert_eq!(protocol, chosen);
            let [error, stdin, stdout, stderr] = exec_streams(&mut client).await;
            client.sender.data(stdin, b"typed", false).await;
            client.sender.data(stdin, b" twice", true).await;
            let said = client.until_closed(&[error, stdout, stderr]).await;
            assert_eq!(text_of(&said, stdout), "typed twice");
            assert_eq!(text_of(&said, stderr), "bad\n");
            let last = text_of(&said, error);
            assert!(last.contains(failure), "{last}");
            assert_eq!(last.starts_with('{'), chosen.starts_with("v4"), "{last}");
        }
    });
}

#[test]
fn spdy_terminals_have_a_size_and_die_with_their_client() {
    test(|node| async move {
        let pod = node.run_pod(node.pod("spdytty")).await;
        let id = node.launch(&pod, shell("main", "sleep 1000")).await;
        let url = exec_url(&node, &id, "read line; stty size; sleep 4322", true).await;
        let (_, mut client) = Spdy::open(&url, "v4.channel.k8s.io").await;
        let mut streams = [0; 4];
        let kinds = ["error", "stdin", "stdout", "resize"];
        for (stream, kind) in streams.iter_mut().zip(kinds) {
            *stream = client.sender.stream(&[("streamtype", kind)]).await;
        }
        let [_, stdin, stdout, resize] = streams;
        let sizes = b"{\"Width\":90,\"Height\":16}\n{\"Width\":91,\"Height\":17}\n";
        client.sender.data(resize, sizes, false).await;
        client.sender.data(stdin, b"go\n", false).await;
        let mut out = Vec::new();
        while !String::from_utf8_lossy(&out).contains("17 91\r\n") {
            match client.receiver.next().await.expect("more") {
                Frame::Data { stream, data, .. } if stream == stdout => {
                    out.extend_from_slice(&data)
                }
                Frame::SynReply { .. } => {}
                other => panic!("{other:?}"),
            }
        }
        drop(client);
        gone(&node, &id, "[s]leep 4322").await;
    });
}

pub(crate) async fn gone(node: &Handle, id: &str, pattern: &str) {
    let start = std::time::Instant::now();
    let count = format!("ps | grep -c '{pattern}'");
    while node.exec(id, &count).await.0 != "0\n" {
        assert!(start.elapsed() < PATIENCE, "the exec outlived its client");
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
}

#[test]
fn several_clients_attach_to_one_container() {
    test(|node| async move {
        let pod = node.run_pod(node.pod("attached")).await;
        let mut config = shell("main", "while read line; do echo got $line; done");
        config.stdin = true;
        let id = node.launch(&pod, config).await;
        let request = v1::AttachRequest {
            container_id: id.clone(),
            stdin: true,
            stdout: true,
            stderr: true,
            tty: false,
        };
        let url = node.attach_url(request.clone()).await;
        let (_, mut one) = Spdy::open(&url, "v4.channel.k8s.io").await;
        let [_, stdin, stdout, _] = exec_streams(&mut one).await;
        let url = node.attach_url(request).await;
        let mut two = open(&url, "v4.base64.channel.k8s.io").await.unwrap();
        // Both are there before anything is said.
        for _ in 0..4 {
            let reply = one.receiver.next().await;
            assert!(matches!(reply, Some(Frame::SynReply { .. })), "{reply:?}");
        }
        next_text(&mut two, "1").await;
        node.exec(&id, "true").await;
        one.sender.data(stdin, b"one\n", false).await;
        let said = next_data(&mut one, stdout).await;
        assert_eq!(said, b"got one\n");
        // "got one\n" and "two\n" in base64.
        next_text(&mut two, "1Z290IG9uZQo=").await;
        two.send(Message::Text("0dHdvCg==".into())).await.unwrap();
        next_text(&mut two, "1Z290IHR3bwo=").await;
        assert_eq!(next_data(&mut one, stdout).await, b"got two\n");
    });
}

async fn next_text(socket: &mut Socket, wanted: &str) {
    loop {
        let message = tokio::time::timeout(PATIENCE, socket.next()).await;
        match message
            .expect("in time")
            .expect("a message")
            .expect("no error")
        {
            Message::Text(text) => return assert_eq!(text.as_str(), wanted),
            Message::Ping(_) => {}
            other => panic!("{other:?}"),
        }
    }
}

async fn next_data(client: &mut Spdy, wanted: u32) -> Vec<u8> {
    loop {
        match client.receiver.next().await.expect("more") {
            Frame::Data { stream, data, .. } if stream == wanted => return data.to_vec(),
            Frame::Ping { .. } => {}
            other => panic!("{other:?}"),
        }
    }
}

/// How many connections each way of speaking makes, on two ports.
const CONNECTIONS: usize = 40;

#[test]
fn many_connections_share_one_client_over_both_families() {
    test(|node| async move {
        let pod = node.run_pod(node.pod("spdyports")).await;
        let netns = node.config().run_dir.join("cri/netns").join(&pod);
        for address in ["127.0.0.1:8080", "[::1]:8081"] {
            let listener = cni::netns::run(&netns, || std::net::TcpListener::bind(address));
            tokio::spawn(echo(listener.unwrap().unwrap()));
        }
        for tunnelled in [false, true] {
            // Which ports there will be is said by the client, as by kubectl.
            let request = v1::PortForwardRequest {
                pod_sandbox_id: pod.clone(),
                port: vec![],
            };
            let url = node.port_forward_url(request).await;
            let mut client = if tunnelled {
                Spdy::tunnelled(&url).await
            } else {
                Spdy::open(&url, "portforward.k8s.io").await.1
            };
            talk_to_many(&mut client).await;
            nobody_listens(&mut client).await;
        }
    });
}

/// Sends back what each client sends, and ends when it does.
async fn echo(listener: std::net::TcpListener) {
    listener.set_nonblocking(true).unwrap();
    let listener = tokio::net::TcpListener::from_std(listener).unwrap();
    while let Ok((mut client, _)) = listener.accept().await {
        tokio::spawn(async move {
            let (mut reader, mut writer) = client.split();
            let _ = tokio::io::copy(&mut reader, &mut writer).await;
        });
    }
}

async fn talk_to_many(client: &mut Spdy) {
    let mut pairs = Vec::new();
    for number in 0..CONNECTIONS {
        let port = 8080 + (number % 2) as u16;
        pairs.push(client.sender.pair(&number.to_string(), port).await);
    }
    for (number, (error, data)) in pairs.iter().enumerate() {
        client.sender.data(*error, b"", true).await;
        let text = format!("echo {number}");
        client.sender.data(*data, text.as_bytes(), true).await;
    }
    let all: Vec<u32> = pairs.iter().flat_map(|(e, d)| [*e, *d]).collect();
    let said = client.until_closed(&all).await;
    for (number, (error, data)) in pairs.iter().enumerate() {
        assert_eq!(text_of(&said, *error), "", "connection {number}");
        assert_eq!(text_of(&said, *data), format!("echo {number}"));
    }
}

/// A refused connection is said on its error stream, and the next one works.
async fn nobody_listens(client: &mut Spdy) {
    let (error, data) = client.sender.pair("none", 9).await;
    let said = client.until_closed(&[error, data]).await;
    let text = text_of(&said, error);
    assert!(
        text.contains("port 9") && text.contains("refused"),
        "{text}"
    );
    let (error, data) = client.sender.pair("again", 8080).await;
    client.sender.data(data, b"still", true).await;
    let said = client.until_closed(&[error, data]).await;
    assert_eq!(text_of(&said, data), "still");
}

#[test]
fn streams_are_served_over_tls() {
    test(|node| async move {
        let mut settings = (*node.config().settings.get()).clone();
        settings.streaming.enable_tls = true;
        node.restart_with(settings).await;
        let pod = node.run_pod(node.pod("tls")).await;
        let id = node.launch(&pod, shell("main", "sleep 1000")).await;
        let url = exec_url(&node, &id, "cat", false).await;
        assert!(url.starts_with("https://127.0.0.1:"), "{url}");
        let (_, mut client) = Spdy::open(&url, "v4.channel.k8s.io").await;
        let [error, stdin, stdout, stderr] = exec_streams(&mut client).await;
        client.sender.data(stdin, b"secret", true).await;
        let said = client.until_closed(&[error, stdout, stderr]).await;
        assert_eq!(text_of(&said, stdout), "secret");
        let url = exec_url(&node, &id, "echo also", false).await;
        let mut socket = open(&url, "v5.channel.k8s.io").await.unwrap();
        assert_eq!(to_end(&mut socket).await.0, "also\n");
    });
}

#[test]
fn idle_streams_and_clients_that_open_too_little_are_ended() {
    test(|node| async move {
        let mut settings = (*node.config().settings.get()).clone();
        settings.streaming.idle_timeout = Duration::from_millis(300);
        settings.streaming.creation_timeout = Duration::from_millis(300);
        node.config().settings.reload(settings.clone());
        let pod = node.run_pod(node.pod("idle")).await;
        let id = node.launch(&pod, shell("main", "sleep 1000")).await;
        let url = exec_url(&node, &id, "sleep 4323", false).await;
        let mut socket = open(&url, "v5.channel.k8s.io").await.unwrap();
        let last = loop {
            let message = tokio::time::timeout(PATIENCE, socket.next()).await;
            match message.expect("it ends").expect("a message") {
                Ok(Message::Close(last)) => break last.expect("a reason"),
                Ok(_) => {}
                Err(error) => panic!("{error}"),
            }
        };
        assert_eq!(u16::from(last.code), 1000);
        assert_eq!(last.reason.as_str(), "idle for too long");
        gone(&node, &id, "[s]leep 4323").await;
        settings.streaming.idle_timeout = PATIENCE;
        node.config().settings.reload(settings);
        let url = exec_url(&node, &id, "cat", false).await;
        let (_, mut client) = Spdy::open(&url, "v4.channel.k8s.io").await;
        let error = client.sender.stream(&[("streamtype", "error")]).await;
        let said = client.until_closed(&[error]).await;
        assert!(text_of(&said, error).contains("timed out"), "{said:?}");
    });
}

#[test]
fn a_slow_client_misses_nothing() {
    test(|node| async move {
        let pod = node.run_pod(node.pod("slow")).await;
        let id = node.launch(&pod, shell("main", "sleep 1000")).await;
        let size = 8 << 20;
        let command = format!("dd if=/dev/zero bs=64k count={}", size >> 16);
        let url = exec_url(&node, &id, &command, false).await;
        let (_, mut client) = Spdy::open(&url, "v4.channel.k8s.io").await;
        let [error, _, stdout, stderr] = exec_streams(&mut client).await;
        // The process has long ended when the client begins to read.
        node.exec(
            &id,
            "while ps | grep -q '[b]s=64k'; do sleep 0.05; done & sleep 1",
        )
        .await;
        let said = client.until_closed(&[error, stdout, stderr]).await;
        assert_eq!(said[&stdout].len(), size);
        assert!(text_of(&said, error).contains("Success"));
    });
}
