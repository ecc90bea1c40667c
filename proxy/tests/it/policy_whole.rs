// SPDX-License-Identifier: Apache-2.0
//! NetworkPolicies as they run: beside an API and a pod network, with pods that come and go, and a
//! table that somebody damages.

use std::net::{IpAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::api::Api;
use crate::host::{Host, at, inside};
use crate::place::{in_new_host, run, serve_tcp};
use crate::whole::within;

const TABLE: &str = "pwt-policy";
const PODS: &str = "/api/v1/pods";
const NAMESPACES: &str = "/api/v1/namespaces";
const POLICIES: &str = "/apis/networking.k8s.io/v1/networkpolicies";

struct Running {
    stop: CancellationToken,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.cancel();
        let ended = self.thread.take().map(std::thread::JoinHandle::join);
        assert!(matches!(ended, Some(Ok(()))) || std::thread::panicking());
    }
}

/// Start the component in the namespaces of this thread. Returns when it is ready, if `wait`.
fn start(api: &Api, host: &Host, wait: bool) -> Running {
    let stop = CancellationToken::new();
    let dir = host.dir.path().to_owned();
    let (ready, is_ready) = oneshot::channel();
    let (serving, stopping) = (api.clone(), stop.clone());
    let before = api.watches();
    let thread = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        runtime.expect("a runtime").block_on(async {
            let config = proxy::policy::Config {
                kubeconfig: serving.serve(&dir).await,
                node_name: "n1".into(),
                nft_table: "pwt".into(),
                bridge: "pwt0".into(),
                network_state: Some(dir.join("state")),
                known: cni::Known::default(),
                metrics: std::sync::Arc::default(),
            };
            let run = proxy::policy::run(config, ready, stopping);
            run.await.expect("it runs");
        });
    });
    if wait {
        is_ready.blocking_recv().expect("it serves");
        within("watches", || api.watches() == before + 3);
    }
    Running {
        stop,
        thread: Some(thread),
    }
}

fn pod(name: &str) -> Value {
    json!({
        "metadata": {"name": name, "namespace": "default", "uid": "u", "labels": {"app": name}},
        "spec": {"nodeName": "n1", "containers": []}, "status": {"phase": "Pending"}
    })
}

fn policy(spec: Value) -> Value {
    json!({"metadata": {"name": "p", "namespace": "default"}, "spec": spec})
}

fn fill(api: &Api, pods: &[&str]) {
    api.fill(PODS, pods.iter().map(|name| pod(name)).collect());
    api.fill(NAMESPACES, vec![json!({"metadata": {"name": "default"}})]);
    api.fill(POLICIES, vec![]);
}

fn reaches(from: &Path, ip: IpAddr) -> bool {
    let short = Duration::from_millis(100);
    inside(from, || TcpStream::connect_timeout(&at(ip, 8080), short)).is_ok()
}

/// A host with a pod that serves and one that asks.
fn host() -> (Host, (PathBuf, IpAddr), PathBuf) {
    let host = Host::new();
    let server = host.pod("a", &[]);
    inside(&server.0, || serve_tcp(at(server.1, 8080), "a"));
    let (client, _) = host.pod("c", &[]);
    (host, server, client)
}

fn listed() -> String {
    let out = std::process::Command::new("nft")
        .args(["list", "table", "inet", TABLE])
        .output();
    String::from_utf8_lossy(&out.expect("nft").stdout).into_owned()
}

#[test]
fn a_pod_is_cut_off_until_it_is_known_and_no_longer() {
    in_new_host(|| {
        let (host, (_, ip), client) = host();
        assert!(reaches(&client, ip));
        let api = Api::default();
        fill(&api, &["a"]);
        let running = start(&api, &host, true);
        assert!(!reaches(&client, ip), "nobody has said who c is");
        TcpStream::connect(at(ip, 8080)).expect("the node itself");
        api.say(PODS, "ADDED", pod("c"));
        within("c is known", || reaches(&client, ip));
        // The usual order: the API knows of a pod, then it is attached, then it runs.
        let mut worst = Duration::ZERO;
        for round in 0..10 {
            let name = format!("new{round}");
            api.say(PODS, "ADDED", pod(&name));
            let (new, new_ip) = host.pod(&name, &[]);
            let begun = Instant::now();
            within("a new pod is let in", || reaches(&new, ip));
            worst = worst.max(begun.elapsed());
            assert!(listed().contains(&new_ip.to_string()));
            let attachment = host.attachment(&name, &[]);
            host.run(host.network.del(&attachment)).expect("del");
            within("its address is forgotten", || {
                !listed().contains(&format!("{new_ip} "))
            });
        }
        println!("let in {worst:?} after its attachment at most");
        // One that had the same name is somebody else.
        let mut other = pod("other");
        other["metadata"]["uid"] = "not-u".into();
        api.say(PODS, "ADDED", other);
        let (stranger, _) = host.pod("other", &[]);
        assert!(!reaches(&stranger, ip));
        // A static pod is attached by its own uid, and the API has its mirror.
        let mut mirror = pod("other");
        mirror["metadata"]["uid"] = "mirror".into();
        mirror["metadata"]["annotations"] = json!({"kubernetes.io/config.mirror": "u"});
        api.say(PODS, "MODIFIED", mirror);
        within("a static pod is let in", || reaches(&stranger, ip));
        drop(running);
    });
}

#[test]
fn without_an_api_nothing_is_opened_and_what_holds_goes_on_holding() {
    in_new_host(|| {
        let (host, (_, ip), client) = host();
        // An API that knows no pods at all.
        let lost = Api::default();
        let running = start(&lost, &host, false);
        within("pods are cut off", || !reaches(&client, ip));
        drop(running);
        let api = Api::default();
        fill(&api, &["a", "c"]);
        drop(start(&api, &host, true));
        assert!(reaches(&client, ip), "rules stay");
        let running = start(&lost, &host, false);
        std::thread::sleep(Duration::from_millis(300));
        assert!(reaches(&client, ip), "and are not replaced by nothing");
        drop(running);
        proxy::policy::cleanup("pwt").expect("cleanup");
        proxy::policy::cleanup("pwt").expect("and again");
        assert_eq!(listed(), "");
        assert!(reaches(&client, ip));
    });
}

#[test]
fn policies_come_and_go_and_a_damaged_table_is_mended() {
    in_new_host(|| {
        let (host, (_, ip), client) = host();
        let api = Api::default();
        fill(&api, &["a", "c"]);
        let running = start(&api, &host, true);
        assert!(reaches(&client, ip));
        api.say(POLICIES, "ADDED", policy(json!({"podSelector": {}})));
        within("it is closed", || !reaches(&client, ip));
        run("nft", &["add", "table", "inet", "other"]);
        run("nft", &["add", "chain", "inet", "other", "c"]);
        for damage in [
            "flush chain inet pwt-policy forward",
            "flush table inet pwt-policy",
            "delete table inet pwt-policy",
        ] {
            let whole = listed().lines().count();
            run("nft", &damage.split(' ').collect::<Vec<_>>());
            let took = within(damage, || listed().lines().count() == whole);
            assert!(took < Duration::from_secs(5), "{damage}: {took:?}");
            assert!(!reaches(&client, ip), "after {damage}");
        }
        run("nft", &["list", "chain", "inet", "other", "c"]);
        let from = json!({"podSelector": {"matchLabels": {"app": "c"}}});
        let allowing = policy(json!({"podSelector": {}, "ingress": [{"from": [from]}]}));
        api.say(POLICIES, "MODIFIED", allowing.clone());
        within("it is open", || reaches(&client, ip));
        let mut odd = allowing.clone();
        odd["spec"]["ingress"][0]["from"] = json!([{"ipBlock": {"cidr": "10.0.0.0/99"}}]);
        api.say(POLICIES, "MODIFIED", odd);
        within("what cannot be read allows nothing", || {
            !reaches(&client, ip)
        });
        api.say(POLICIES, "DELETED", allowing);
        within("it is open again", || reaches(&client, ip));
        drop(running);
    });
}
