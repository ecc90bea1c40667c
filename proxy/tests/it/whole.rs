// SPDX-License-Identifier: Apache-2.0
//! The proxy as it runs: beside an API, its servers asked, its table damaged.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use proxy::{Config, Options};
use serde_json::{Value, json};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::api::{Api, NODES, SERVICES, SLICES};
use crate::objects::{endpoint, service, slice};
use crate::place::{Dir, in_new_host, run};

struct Running {
    api: Api,
    stop: CancellationToken,
    thread: Option<std::thread::JoinHandle<()>>,
    _dir: Dir,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.cancel();
        let ended = self.thread.take().map(std::thread::JoinHandle::join);
        assert!(matches!(ended, Some(Ok(()))) || std::thread::panicking());
    }
}

fn one_slice(endpoints: &[Value]) -> Value {
    serde_json::to_value(slice("s-1", endpoints)).expect("JSON")
}

fn endpoints(ips: &[&str]) -> Value {
    let ready = |ip: &&str| endpoint(ip, "n1", json!({"ready": true}));
    one_slice(&ips.iter().map(ready).collect::<Vec<_>>())
}

/// Start a proxy in the namespaces of this thread, and wait until it serves.
fn start(extra: Value, ips: &[&str]) -> Running {
    run("ip", &["addr", "add", "192.0.2.1/32", "dev", "lo"]);
    let dir = Dir::new();
    let (api, stop) = (Api::default(), CancellationToken::new());
    let service = serde_json::to_value(service(extra)).expect("JSON");
    api.fill(SERVICES, vec![service]);
    api.fill(SLICES, vec![endpoints(ips)]);
    api.fill(NODES, vec![json!({"metadata": {"name": "n1"}, "spec": {}})]);
    let options = Options {
        healthz: Some("127.0.0.1:10256".parse().expect("an address")),
        metrics: Some("127.0.0.1:10249".parse().expect("an address")),
        ..Options::default()
    };
    let config = move |kubeconfig| Config {
        kubeconfig,
        node_name: "n1".into(),
        node_ips: vec!["192.0.2.1".parse().expect("an address")],
        cluster_cidr: "10.42.0.0/16".into(),
        nft_table: "pwt".into(),
        bridge: "pwt0".into(),
        options,
        policies: None,
    };
    let (ready, is_ready) = oneshot::channel();
    let (path, serving, stopping) = (dir.path().to_owned(), api.clone(), stop.clone());
    let thread = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        runtime.expect("a runtime").block_on(async {
            let kubeconfig = serving.serve(&path).await;
            proxy::run(config(kubeconfig), ready, stopping)
                .await
                .expect("it runs");
        });
    });
    is_ready.blocking_recv().expect("it serves");
    let running = Running {
        api,
        stop,
        thread: Some(thread),
        _dir: dir,
    };
    within("watches", || running.api.watches() == 3);
    running
}

pub(crate) fn within(what: &str, mut done: impl FnMut() -> bool) -> Duration {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < Duration::from_secs(20), "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
    begun.elapsed()
}

pub(crate) fn get(address: &str, path: &str) -> (u16, String) {
    let address: SocketAddr = address.parse().expect("an address");
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(5)).expect("connect");
    write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").expect("write");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("an answer");
    let status = text.split(' ').nth(1).and_then(|s| s.parse().ok());
    let body = text.split_once("\r\n\r\n").map(|(_, body)| body.to_owned());
    (status.expect("a status"), body.unwrap_or_default())
}

fn map(name: &str) -> String {
    run("nft", &["list", "map", "inet", "pwt", name])
}

#[test]
fn a_change_of_the_api_is_a_change_of_the_kernel() {
    in_new_host(|| {
        let running = start(json!({}), &["10.42.0.2"]);
        assert!(map("endpoints4").contains("10.42.0.2"));
        let mut moved = endpoints(&["10.42.0.7"]);
        moved["metadata"]["annotations"] =
            json!({"endpoints.kubernetes.io/last-change-trigger-time": "2024-01-01T00:00:00Z"});
        running.api.say(SLICES, "MODIFIED", moved);
        within("the new endpoint", || {
            map("endpoints4").contains("10.42.0.7")
        });
        assert!(!map("endpoints4").contains("10.42.0.2"));
        // Counted just after the kernel has it.
        for line in [
            "kubeproxy_sync_full_proxy_rules_duration_seconds_count{ip_family=\"IPv4\"} 1",
            "kubeproxy_sync_partial_proxy_rules_duration_seconds_count{ip_family=\"IPv4\"} 1",
            "kubeproxy_network_programming_duration_seconds_count{ip_family=\"IPv4\"} 1",
            "kubeproxy_sync_proxy_rules_endpoint_changes_total 2",
        ] {
            within(line, || get("127.0.0.1:10249", "/metrics").1.contains(line));
        }
        assert_eq!(
            get("127.0.0.1:10249", "/proxyMode"),
            (200, "nftables".to_owned())
        );
        assert_eq!(get("127.0.0.1:10256", "/healthz").0, 200);
        let taint = json!({"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule"});
        let leaving = json!({"metadata": {"name": "n1"}, "spec": {"taints": [taint]}});
        running.api.say(NODES, "MODIFIED", leaving);
        within("the node's end", || {
            get("127.0.0.1:10256", "/healthz").0 == 503
        });
        assert_eq!(get("127.0.0.1:10256", "/livez").0, 200);
        assert_eq!(get("127.0.0.1:10256", "/else").0, 404);
        drop(running);
        assert!(map("endpoints4").contains("10.42.0.7"), "rules stay");
    });
}

const FULL_SYNCS: &str =
    "kubeproxy_sync_full_proxy_rules_duration_seconds_count{ip_family=\"IPv4\"}";

#[test]
fn a_damaged_table_is_mended_and_nobody_elses_is_touched() {
    in_new_host(|| {
        let running = start(json!({}), &["10.42.0.2"]);
        run("nft", &["add", "table", "inet", "other"]);
        run("nft", &["add", "chain", "inet", "other", "c"]);
        let whole = || {
            let text = std::process::Command::new("nft")
                .args(["list", "table", "inet", "pwt"])
                .output()
                .expect("nft");
            let text = String::from_utf8_lossy(&text.stdout).into_owned();
            text.contains("10.42.0.2")
                && text.contains("vmap @entries")
                && text.contains("10.43.0.10")
        };
        assert!(whole());
        let count_of = |name: &str| {
            let (_, page) = get("127.0.0.1:10249", "/metrics");
            let line = page.lines().find(|line| line.starts_with(name));
            let count = line.and_then(|line| line.rsplit(' ').next()?.parse::<u32>().ok());
            count.expect("a count")
        };
        let before = count_of(FULL_SYNCS);
        for (count, damage) in (1..).zip([
            "flush chain inet pwt prerouting",
            "flush map inet pwt services4",
            "flush table inet pwt",
            "delete table inet pwt",
        ]) {
            run("nft", &damage.split(' ').collect::<Vec<_>>());
            // Each on its own: what comes before a repair is done is mended with the one before.
            let took = within(damage, || count_of(FULL_SYNCS) == before + count && whole());
            assert!(took < Duration::from_secs(5), "{damage}: {took:?}");
        }
        run("nft", &["list", "chain", "inet", "other", "c"]);
        // One may be heard of in two parts.
        assert!(count_of("kubeproxy_nftables_foreign_changes_total") >= 4);
        drop(running);
    });
}

#[test]
fn a_balancer_learns_where_endpoints_are() {
    in_new_host(|| {
        let local = json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": 32123});
        let running = start(local, &["10.42.0.2", "10.42.0.3"]);
        let health = || get("192.0.2.1:32123", "/");
        within("the port", || TcpStream::connect("192.0.2.1:32123").is_ok());
        let (status, body) = health();
        assert_eq!(status, 200);
        let body: Value = serde_json::from_str(&body).expect("JSON");
        let expected = json!({"service": {"namespace": "d", "name": "s"}, "localEndpoints": 2, "serviceProxyHealthy": true});
        assert_eq!(body, expected);
        let far = endpoint("10.42.1.2", "n2", json!({"ready": true}));
        running.api.say(SLICES, "MODIFIED", one_slice(&[far]));
        within("none here", || health().0 == 503);
        let gone = serde_json::to_value(service(json!({}))).expect("JSON");
        running.api.say(SERVICES, "DELETED", gone);
        within("the port's end", || {
            TcpStream::connect("192.0.2.1:32123").is_err()
        });
    });
}
