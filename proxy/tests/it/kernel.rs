// SPDX-License-Identifier: Apache-2.0
//! Real connections through the rules.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::UdpSocket;
use std::path::PathBuf;

use proxy::apply::{self, Kernel};
use proxy::service::ServiceRules;
use proxy::state::State;
use serde_json::json;

use crate::host::{Host, at, inside, neighbour};
use crate::objects::{CLUSTER_IP, endpoint, key, ready, rules_of, service, settings, slice};
use crate::place::{ask_tcp, ask_udp, in_new_host, run, serve_tcp, serve_udp};

struct Scene {
    host: Host,
    outside: PathBuf,
    state: State,
    kernel: Kernel,
    pods: Vec<(PathBuf, std::net::IpAddr)>,
}

impl Scene {
    /// Three pods (a and b serve, c is a client), a neighbour, an empty table.
    fn new() -> Scene {
        let host = Host::new();
        let outside = neighbour(&host);
        run("ip", &["route", "add", "default", "via", "192.0.2.2"]);
        // So that the neighbour can try what nobody should answer.
        inside(&outside, || {
            run("ip", &["route", "add", "10.43.0.0/16", "via", "192.0.2.1"])
        });
        let pods: Vec<_> = ["a", "b", "c"]
            .map(|name| host.pod(name, &[]))
            .into_iter()
            .collect();
        for (index, name) in ["a", "b"].into_iter().enumerate() {
            let (netns, ip) = pods[index].clone();
            inside(&netns, || {
                serve_tcp(at(ip, 8080), name);
                serve_udp(at(ip, 5353), name);
            });
        }
        let mut state = State::new("pwt", settings());
        let mut kernel = Kernel::default();
        kernel
            .apply(&state.full().transaction)
            .expect("an empty table");
        Scene {
            host,
            outside,
            state,
            kernel,
            pods,
        }
    }

    fn set(&mut self, rules: Option<ServiceRules>) {
        let step = self.state.update(vec![(key(), rules)]);
        self.kernel
            .apply(&step.transaction)
            .unwrap_or_else(|e| panic!("{}\n{}", crate::host::report(&e), step.transaction));
        apply::forget(&step.udp, &self.state.settings().node_ports).expect("conntrack");
    }

    fn serve(&mut self, pods: &[usize]) {
        let ips: Vec<String> = pods.iter().map(|i| self.pods[*i].1.to_string()).collect();
        let ips: Vec<&str> = ips.iter().map(String::as_str).collect();
        self.set(Some(ready(json!({}), &ips)));
    }

    fn ip(&self, pod: usize) -> std::net::IpAddr {
        self.pods[pod].1
    }
}

fn cluster(port: u16) -> std::net::SocketAddr {
    at(
        CLUSTER_IP.parse::<std::net::IpAddr>().expect("an address"),
        port,
    )
}

fn node_port(port: u16) -> std::net::SocketAddr {
    at([192, 0, 2, 1], port)
}

/// Translated bridge traffic must work with and without br_netfilter's hooks.
fn both_ways(test: fn()) {
    for value in ["0", "1"] {
        in_new_host(move || {
            run("ip", &["link", "add", "dummybr", "type", "bridge"]);
            let sysctl = "/proc/sys/net/bridge/bridge-nf-call-iptables";
            if std::path::Path::new(sysctl).exists() {
                std::fs::write(sysctl, value).expect(sysctl);
            }
            run("ip", &["link", "del", "dummybr"]);
            test();
        });
    }
}

#[test]
fn a_cluster_ip_spreads_connections_and_keeps_the_pods_address() {
    both_ways(|| {
        let mut scene = Scene::new();
        scene.serve(&[0, 1]);
        let (client, ip) = scene.pods[2].clone();
        let answers: BTreeSet<String> = (0..40)
            .map(|_| inside(&client, || ask_tcp(cluster(80)).expect("an answer")))
            .collect();
        assert_eq!(
            answers,
            BTreeSet::from([format!("a {ip}"), format!("b {ip}")])
        );
        let socket = inside(&client, || UdpSocket::bind((ip, 0))).expect("bind");
        let said = ask_udp(&socket, cluster(53)).expect("UDP");
        assert!(said.ends_with(&format!(" {ip}")), "{said}");
        // The host itself is outside the pod network.
        let said = ask_tcp(cluster(80)).expect("from the host");
        assert!(said.ends_with(" 10.42.0.1"), "{said}");
        // So is a neighbour that routes to us.
        let said = inside(&scene.outside, || {
            ask_tcp(cluster(80)).expect("from outside")
        });
        assert!(said.ends_with(" 10.42.0.1"), "{said}");
    });
}

#[test]
fn a_pod_reaches_itself_through_its_service() {
    both_ways(|| {
        let mut scene = Scene::new();
        scene.serve(&[0]);
        let (a, _) = scene.pods[0].clone();
        assert_eq!(
            inside(&a, || ask_tcp(cluster(80)).expect("hairpin")),
            "a 10.42.0.1"
        );
        assert_eq!(
            inside(&a, || ask_tcp(node_port(30080)).expect("hairpin")),
            "a 10.42.0.1"
        );
    });
}

#[test]
fn a_node_port_answers_outside_the_host_and_pods() {
    both_ways(|| {
        let mut scene = Scene::new();
        scene.serve(&[0, 1]);
        let outside = scene.outside.clone();
        let answers: BTreeSet<String> = (0..40)
            .map(|_| inside(&outside, || ask_tcp(node_port(30080)).expect("an answer")))
            .collect();
        assert_eq!(
            answers,
            BTreeSet::from(["a 10.42.0.1".to_owned(), "b 10.42.0.1".to_owned()])
        );
        let socket = inside(&outside, || UdpSocket::bind("192.0.2.2:0")).expect("bind");
        assert!(
            ask_udp(&socket, node_port(30053))
                .expect("UDP")
                .ends_with(" 10.42.0.1")
        );
        ask_tcp(node_port(30080)).expect("from the host");
        inside(&scene.pods[2].0, || {
            ask_tcp(node_port(30080)).expect("from a pod")
        });
        // Not on loopback, and route_localnet stays as it was.
        assert!(ask_tcp(at([127, 0, 0, 1], 30080)).is_err());
        let sysctl =
            std::fs::read_to_string("/proc/sys/net/ipv4/conf/all/route_localnet").expect("read");
        assert_eq!(sysctl.trim(), "0");
    });
}

#[test]
fn a_local_policy_keeps_the_clients_address() {
    in_new_host(|| {
        let mut scene = Scene::new();
        let endpoints = [
            endpoint(&scene.ip(0).to_string(), "n1", json!({"ready": true})),
            endpoint(&scene.ip(1).to_string(), "n2", json!({"ready": true})),
        ];
        let wanted = service(json!({"externalTrafficPolicy": "Local"}));
        scene.set(Some(rules_of(&wanted, &[slice("s-1", &endpoints)])));
        for _ in 0..10 {
            let said = inside(&scene.outside, || {
                ask_tcp(node_port(30080)).expect("an answer")
            });
            assert_eq!(said, "a 192.0.2.2");
        }
    });
}

#[test]
fn without_endpoints_a_service_refuses_at_once() {
    both_ways(|| {
        let mut scene = Scene::new();
        scene.serve(&[]);
        let (client, ip) = scene.pods[2].clone();
        let refused = |result: std::io::Result<String>| {
            assert_eq!(
                result.expect_err("nobody serves").kind(),
                ErrorKind::ConnectionRefused
            );
        };
        refused(inside(&client, || ask_tcp(cluster(80))));
        refused(inside(&client, || ask_tcp(cluster(81))));
        refused(inside(&client, || ask_tcp(node_port(30080))));
        refused(inside(&scene.outside, || ask_tcp(node_port(30080))));
        refused(ask_tcp(cluster(80)));
        let socket = inside(&client, || UdpSocket::bind((ip, 0))).expect("bind");
        socket.connect(cluster(53)).expect("connect");
        socket
            .set_read_timeout(Some(std::time::Duration::from_secs(2)))
            .expect("timeout");
        socket.send(b"?").expect("send");
        refused(socket.recv(&mut [0; 9]).map(|_| String::new()));
        // And a port that the Service does not have, when it has endpoints.
        scene.serve(&[0]);
        refused(inside(&client, || ask_tcp(cluster(81))));
        inside(&client, || ask_tcp(cluster(80))).expect("served now");
    });
}

#[test]
fn a_removed_endpoint_gets_no_more_packets() {
    in_new_host(|| {
        let mut scene = Scene::new();
        let (client, ip) = scene.pods[2].clone();
        let socket = inside(&client, || UdpSocket::bind((ip, 0))).expect("bind");
        scene.serve(&[0]);
        assert_eq!(
            ask_udp(&socket, cluster(53)).expect("UDP"),
            format!("a {ip}")
        );
        scene.serve(&[1]);
        assert_eq!(
            ask_udp(&socket, cluster(53)).expect("the same flow"),
            format!("b {ip}")
        );
        for _ in 0..20 {
            assert_eq!(
                inside(&client, || ask_tcp(cluster(80)).expect("TCP")),
                format!("b {ip}")
            );
        }
        scene.set(None);
        let rules = run("nft", &["list", "table", "inet", "pwt"]);
        assert!(!rules.contains(CLUSTER_IP), "{rules}");
        assert!(inside(&client, || ask_tcp(cluster(80))).is_err());
    });
}

#[test]
fn a_lost_table_is_replaced_whole_and_removed_without_a_trace() {
    in_new_host(|| {
        let mut scene = Scene::new();
        scene.serve(&[0, 1]);
        let before = run("nft", &["list", "table", "inet", "pwt"]);
        run("nft", &["delete", "table", "inet", "pwt"]);
        scene
            .kernel
            .apply(&scene.state.full().transaction)
            .expect("replaced");
        let again = scene.kernel.apply(&scene.state.full().transaction);
        again.expect("replaced again");
        let sorted = |text: &str| {
            let mut lines: Vec<_> = text
                .split([',', '\n'])
                .map(|l| l.trim().to_owned())
                .collect();
            lines.sort();
            lines
        };
        let after = run("nft", &["list", "table", "inet", "pwt"]);
        assert_eq!(
            sorted(&before.replace("elements = {", "")),
            sorted(&after.replace("elements = {", ""))
        );
        let config = proxy::Config {
            kubeconfig: PathBuf::new(),
            node_name: "n1".into(),
            node_ips: vec![],
            cluster_cidr: String::new(),
            nft_table: "pwt".into(),
            bridge: "pwt0".into(),
            options: proxy::Options::default(),
            policies: None,
        };
        proxy::cleanup(&config).expect("cleanup");
        proxy::cleanup(&config).expect("and again");
        cni::cleanup("pwt0", "pwt").expect("cleanup");
        assert_eq!(run("nft", &["list", "ruleset"]), "");
        drop(scene.host);
    });
}
