// SPDX-License-Identifier: Apache-2.0
//! Much data through exec and port-forward: every byte arrives, and the daemon does not grow.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use cri::streaming::spdy::frame::Frame;
use cri::v1;

use crate::node::{Handle, shell, test_apart, words};
use crate::spdy::{Receiver, Sender, Spdy};
use crate::streams::ECHO_SERVER;

/// How much is sent and comes back; `PODWRIGHT_TEST_STREAM_MIB` says otherwise.
const MIB: u64 = 1024;
/// One write.
const PIECE: usize = 32 << 10;
/// What the daemon may grow by, whatever the size.
const GROWTH_KIB: u64 = 12 << 10;

#[test]
fn what_goes_through_exec_and_port_forward_comes_back_in_constant_memory() {
    test_apart(|node| async move {
        let mib = std::env::var("PODWRIGHT_TEST_STREAM_MIB").map_or(MIB, |n| n.parse().unwrap());
        let pod = node.run_pod(node.pod("torrent")).await;
        let id = node.launch(&pod, shell("main", ECHO_SERVER)).await;
        let up = "while ! grep -q ':1F90' /proc/net/tcp /proc/net/tcp6; do sleep 0.05; done";
        node.exec(&id, up).await;
        let request = v1::ExecRequest {
            container_id: id.clone(),
            cmd: words(&["/bin/cat"]),
            stdin: true,
            stdout: true,
            ..Default::default()
        };
        let url = node
            .cri()
            .await
            .exec(request)
            .await
            .unwrap()
            .into_inner()
            .url;
        let (_, mut client) = Spdy::open(&url, "v4.channel.k8s.io").await;
        let mut streams = [0; 3];
        for (stream, kind) in streams.iter_mut().zip(["error", "stdin", "stdout"]) {
            *stream = client.sender.stream(&[("streamtype", kind)]).await;
        }
        through(&node, "exec", client, streams[1], streams[2], mib << 20).await;
        let request = v1::PortForwardRequest {
            pod_sandbox_id: pod,
            port: vec![],
        };
        let url = node.port_forward_url(request).await;
        let mut client = Spdy::tunnelled(&url).await;
        let (_, data) = client.sender.pair("1", 8080).await;
        through(&node, "port-forward", client, data, data, mib << 20).await;
    });
}

async fn through(node: &Handle, what: &str, client: Spdy, to: u32, from: u32, size: u64) {
    let Spdy { sender, receiver } = client;
    let daemon = node.daemon_pid().await;
    let (before, start) = (anonymous_kib(daemon), Instant::now());
    let most = AtomicU64::new(before);
    let watching = async {
        loop {
            tokio::time::sleep(Duration::from_millis(20)).await;
            let now = anonymous_kib(daemon);
            if most.fetch_max(now, Ordering::Relaxed).max(now) - before > GROWTH_KIB {
                return now;
            }
        }
    };
    let both = async {
        let receiving = tokio::spawn(receive(receiver, from, size));
        tokio::join!(send(sender, to, size), receiving).1.unwrap();
    };
    tokio::select! {
        () = both => {}
        now = watching => panic!("{what}: the daemon grew from {before} to {now} KiB"),
    }
    println!(
        "{what}: {} MiB there and back in {:.1} s, the daemon at {before} to {} KiB",
        size >> 20,
        start.elapsed().as_secs_f64(),
        most.into_inner(),
    );
}

/// A piece that no other is equal to: its number, and bytes that repeat nowhere within.
fn piece(number: u64) -> Vec<u8> {
    static REST: OnceLock<Vec<u8>> = OnceLock::new();
    let rest = REST.get_or_init(|| {
        let words = (0..PIECE as u64 / 8).map(|word| word.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        words.flat_map(u64::to_le_bytes).collect()
    });
    let mut piece = rest.clone();
    piece[..8].copy_from_slice(&number.to_le_bytes());
    piece
}

async fn send(mut sender: Sender, stream: u32, size: u64) {
    let pieces = size / PIECE as u64;
    for number in 0..pieces {
        sender
            .data(stream, &piece(number), number + 1 == pieces)
            .await;
    }
}

async fn receive(mut receiver: Receiver, wanted: u32, size: u64) {
    let (mut received, mut expected) = (0, Vec::new());
    while let Some(frame) = receiver.next().await {
        let Frame::Data { stream, fin, data } = frame else {
            continue;
        };
        if stream != wanted {
            continue;
        }
        let mut data = data.as_ref();
        while !data.is_empty() {
            let at = usize::try_from(received % PIECE as u64).unwrap();
            if at == 0 {
                expected = piece(received / PIECE as u64);
            }
            let count = data.len().min(PIECE - at);
            assert!(
                data[..count] == expected[at..at + count],
                "at byte {received}"
            );
            received += count as u64;
            data = &data[count..];
        }
        if fin {
            break;
        }
    }
    assert_eq!(received, size);
}

fn anonymous_kib(process: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status
        .lines()
        .find_map(|l| l.strip_prefix("RssAnon:"))
        .unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}
