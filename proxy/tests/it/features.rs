// SPDX-License-Identifier: Apache-2.0
//! What Services can ask for, by real clients, over IPv4 and IPv6.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::time::{Duration, Instant};

use cni::nft::{Family, Monitor};
use proxy::service::ServiceRules;
use serde_json::{Value, json};

use crate::host::{at, inside};
use crate::objects::{CLUSTER_IP, CLUSTER_IP6, endpoint, rules_of, service, slice};
use crate::place::{ask_tcp, ask_udp, in_new_host, run};
use crate::scene::Scene;

fn both_families(test: fn(Scene)) {
    for ipv4 in [true, false] {
        in_new_host(move || test(Scene::new(ipv4)));
    }
}

/// Service `s` of the scene's family, with more; endpoints are pods and the nodes they are said to
/// be on.
fn rules(scene: &Scene, extra: Value, endpoints: &[(usize, &str)]) -> ServiceRules {
    let ip = if scene.ipv4 { CLUSTER_IP } else { CLUSTER_IP6 };
    let mut all = json!({"clusterIP": ip, "clusterIPs": [ip]});
    let more = extra.as_object().expect("an object").clone();
    all.as_object_mut().expect("an object").extend(more);
    let endpoints: Vec<Value> = endpoints
        .iter()
        .map(|(pod, node)| endpoint(&scene.pod(*pod).to_string(), node, json!({"ready": true})))
        .collect();
    rules_of(&service(all), &[slice("s-1", &endpoints)])
}

fn serve(scene: &mut Scene, extra: Value, endpoints: &[(usize, &str)]) {
    let rules = rules(scene, extra, endpoints);
    scene.set(Some(rules));
}

const HERE: [(usize, &str); 2] = [(0, "n1"), (1, "n1")];

pub(crate) fn ask(from: &Path, address: SocketAddr) -> String {
    inside(from, || ask_tcp(address)).unwrap_or_else(|e| panic!("{address}: {e}"))
}

/// The servers that answer, with the client they see.
fn answers(from: &Path, address: SocketAddr) -> BTreeSet<String> {
    (0..30).map(|_| ask(from, address)).collect()
}

fn seen(servers: &[&str], client: impl std::fmt::Display) -> BTreeSet<String> {
    servers
        .iter()
        .map(|name| format!("{name} {client}"))
        .collect()
}

/// Nobody answers at all, not even to say no.
pub(crate) fn silent(from: &Path, address: SocketAddr) -> bool {
    let short = Duration::from_millis(400);
    let result = inside(from, || TcpStream::connect_timeout(&address, short));
    result.is_err_and(|e| e.kind() == ErrorKind::TimedOut)
}

fn refused(from: &Path, address: SocketAddr) -> bool {
    let result = inside(from, || ask_tcp(address));
    result.is_err_and(|e| e.kind() == ErrorKind::ConnectionRefused)
}

#[test]
fn cluster_ips_node_ports_and_hairpins_work() {
    both_families(|mut scene| {
        serve(&mut scene, json!({}), &HERE);
        let client = scene.pods[2].clone();
        let (a, c) = (scene.pod(0), scene.pod(2));
        assert_eq!(answers(&client, scene.cluster(80)), seen(&["a", "b"], c));
        let node_port = scene.node_port(30080);
        let from_outside = answers(&scene.outside, node_port);
        let names: Vec<&str> = from_outside.iter().map(|s| &s[..1]).collect();
        assert_eq!(names, ["a", "b"]);
        assert!(
            !from_outside
                .iter()
                .any(|s| s.contains("192.0.2.2") || s.contains("db8::2"))
        );
        serve(&mut scene, json!({}), &[(0, "n1")]);
        let itself = ask(&scene.pods[0], scene.cluster(80));
        assert!(
            itself.starts_with("a ") && !itself.ends_with(&format!(" {a}")),
            "{itself}"
        );
        let loopback = at(scene.pick("127.0.0.1", "::1"), 30080);
        assert!(ask_tcp(loopback).is_err());
        ask_tcp(scene.cluster(80)).expect("from the host");
        ask_tcp(node_port).expect("from the host");
        serve(&mut scene, json!({}), &[]);
        assert!(refused(&client, scene.cluster(80)) && refused(&scene.outside, node_port));
        serve(&mut scene, json!({}), &HERE);
        assert!(refused(&client, scene.cluster(81)), "no such port");
    });
}

#[test]
fn a_client_keeps_its_endpoint_for_as_long_as_it_comes_back() {
    both_families(|mut scene| {
        let sticky = |seconds: u32| {
            json!({"sessionAffinity": "ClientIP",
                "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": seconds}}})
        };
        serve(&mut scene, sticky(600), &HERE);
        let client = scene.pods[2].clone();
        for address in [scene.cluster(80), scene.node_port(30080)] {
            assert_eq!(answers(&client, address).len(), 1, "{address}");
        }
        let first = ask(&client, scene.cluster(80));
        let other = usize::from(first.starts_with('a'));
        serve(&mut scene, sticky(600), &[(other, "n1")]);
        let moved = ask(&client, scene.cluster(80));
        assert_ne!(moved, first, "the endpoint is gone");
        serve(&mut scene, sticky(600), &HERE);
        assert_eq!(answers(&client, scene.cluster(80)), BTreeSet::from([moved]));
        // The kernel forgets a client that stays away.
        serve(&mut scene, sticky(1), &HERE);
        ask(&client, scene.cluster(80));
        let name = if scene.ipv4 { "learned4" } else { "learned6" };
        let deadline = Instant::now() + Duration::from_secs(20);
        let short = |text: &str| text.contains("timeout 1s");
        while short(&run("nft", &["list", "map", "inet", "pwt", name])) {
            assert!(Instant::now() < deadline, "still remembered");
            std::thread::sleep(Duration::from_millis(50));
        }
    });
}

#[test]
fn a_local_policy_keeps_clients_addresses_and_leads_pods_everywhere() {
    both_families(|mut scene| {
        let local = json!({"externalTrafficPolicy": "Local"});
        serve(&mut scene, local.clone(), &[(0, "n1"), (1, "n2")]);
        let outside = scene.pick("192.0.2.2", "2001:db8::2");
        let node_port = scene.node_port(30080);
        assert_eq!(answers(&scene.outside, node_port), seen(&["a"], outside));
        let client = scene.pods[2].clone();
        assert_eq!(answers(&client, node_port), seen(&["a", "b"], scene.pod(2)));
        ask_tcp(node_port).expect("from the host");
        serve(&mut scene, local, &[(1, "n2")]);
        assert!(silent(&scene.outside, node_port));
        assert_eq!(answers(&client, node_port), seen(&["b"], scene.pod(2)));
        let internal = json!({"internalTrafficPolicy": "Local"});
        serve(&mut scene, internal, &[(1, "n2")]);
        assert!(silent(&client, scene.cluster(80)));
    });
}

#[test]
fn external_addresses_and_a_balancers_sources_are_served() {
    both_families(|mut scene| {
        let external = scene.pick("198.51.100.1", "2001:db8:100::1");
        let balancer = scene.pick("198.51.100.2", "2001:db8:100::2");
        let proxied = scene.pick("198.51.100.3", "2001:db8:100::3");
        let wanted = |ranges: &[&str]| {
            json!({"type": "LoadBalancer", "externalIPs": [external.to_string()],
                "loadBalancerSourceRanges": ranges,
                "status": {"loadBalancer": {"ingress": [
                    {"ip": balancer.to_string()}, {"ip": proxied.to_string(), "ipMode": "Proxy"}]}}})
        };
        let outside = scene.outside.clone();
        serve(&mut scene, wanted(&[]), &HERE);
        for ip in [external, balancer] {
            assert_eq!(answers(&outside, at(ip, 80)).len(), 2);
            ask_tcp(at(ip, 80)).expect("from the host");
            ask(&scene.pods[2], at(ip, 80));
        }
        // What is no frontend goes back to the neighbour, whose route for it leads here.
        assert!(
            inside(&outside, || TcpStream::connect_timeout(
                &at(proxied, 80),
                Duration::from_millis(300)
            ))
            .is_err()
        );
        serve(
            &mut scene,
            wanted(&["192.0.2.0/30", "2001:db8::/64"]),
            &HERE,
        );
        ask(&outside, at(balancer, 80));
        serve(
            &mut scene,
            wanted(&["203.0.113.0/24", "2001:db8:f::/64"]),
            &HERE,
        );
        assert!(silent(&outside, at(balancer, 80)));
        ask(&outside, at(external, 80));
        ask(&outside, scene.node_port(30080));
        // Who may not is dropped, whether or not there are endpoints.
        serve(
            &mut scene,
            wanted(&["203.0.113.0/24", "2001:db8:f::/64"]),
            &[],
        );
        assert!(silent(&outside, at(balancer, 80)));
        serve(&mut scene, wanted(&[]), &[]);
        assert!(refused(&outside, at(balancer, 80)));
    });
}

#[test]
fn udp_flows_follow_their_endpoints() {
    both_families(|mut scene| {
        let (client, outside) = (scene.pods[2].clone(), scene.outside.clone());
        let any = scene.pick("0.0.0.0", "::");
        let bind = |netns: &Path| inside(netns, || UdpSocket::bind((any, 0))).expect("bind");
        let (inner, outer) = (bind(&client), bind(&outside));
        let said = |scene: &Scene| {
            let (cluster, node) = (scene.cluster(53), scene.node_port(30053));
            // The first datagram on a link may be late while its neighbours are looked for.
            let ask = |socket: &UdpSocket, address| {
                socket.set_nonblocking(true).expect("nonblocking");
                while socket.recv(&mut [0; 9]).is_ok() {}
                socket.set_nonblocking(false).expect("blocking");
                let mut said = (0..5).filter_map(|_| ask_udp(socket, address).ok());
                said.next().expect("UDP")
            };
            let (inner, outer) = (ask(&inner, cluster), ask(&outer, node));
            (inner[..1].to_owned(), outer[..1].to_owned())
        };
        for (pod, name) in [(0, "a"), (1, "b"), (0, "a")] {
            serve(&mut scene, json!({}), &[(pod, "n1")]);
            assert_eq!(said(&scene), (name.to_owned(), name.to_owned()));
        }
    });
}

#[test]
fn sctp_is_translated_like_the_rest() {
    both_families(|mut scene| {
        // Whether or not the kernel has SCTP's sockets, its rules must take the elements.
        let ports = json!({"ports": [{"name": "sig", "port": 2905, "protocol": "SCTP"}]});
        serve(&mut scene, ports, &HERE);
        let name = if scene.ipv4 { "services4" } else { "services6" };
        let map = run("nft", &["list", "map", "inet", "pwt", name]);
        assert!(map.contains("sctp") || map.contains("132"), "{map}");
    });
}

/// CVE-2020-8558: a neighbour that routes 127.0.0.1 to us reaches what listens on loopback only,
/// where `route_localnet` is on.
#[test]
fn loopback_is_not_reached_from_outside() {
    in_new_host(|| {
        let mut scene = Scene::new(true);
        let listener = TcpListener::bind("127.0.0.1:9000").expect("bind");
        std::fs::write("/proc/sys/net/ipv4/conf/all/route_localnet", "1").expect("sysctl");
        let target: SocketAddr = "127.0.0.1:9000".parse().expect("an address");
        inside(&scene.outside, || {
            std::fs::write("/proc/sys/net/ipv4/conf/all/route_localnet", "1").expect("sysctl");
            run("ip", &["addr", "del", "127.0.0.1/8", "dev", "lo"]);
            run("ip", &["link", "set", "lo", "down"]);
            run(
                "ip",
                &[
                    "route",
                    "add",
                    "127.0.0.1/32",
                    "via",
                    "192.0.2.1",
                    "src",
                    "192.0.2.2",
                ],
            );
        });
        assert!(silent(&scene.outside, target), "guarded");
        TcpStream::connect(target).expect("the host itself");
        run("nft", &["delete", "table", "inet", "pwt"]);
        let open = inside(&scene.outside, || {
            TcpStream::connect_timeout(&target, Duration::from_secs(3))
        });
        open.expect("the hole is there without the guard");
        drop(listener);
        scene
            .kernel
            .apply(&scene.state.full().transaction)
            .expect("back");
    });
}

#[test]
fn a_strict_cluster_ip_is_for_the_cluster() {
    both_families(|mut scene| {
        serve(&mut scene, json!({}), &HERE);
        ask(&scene.outside, scene.cluster(80));
        scene.state.settings_mut().strict = true;
        scene
            .kernel
            .apply(&scene.state.full().transaction)
            .expect("the table");
        assert!(silent(&scene.outside, scene.cluster(80)));
        ask(&scene.pods[2], scene.cluster(80));
        ask_tcp(scene.cluster(80)).expect("from the host");
        ask(&scene.outside, scene.node_port(30080));
    });
}

#[test]
fn pods_are_known_by_their_links_too() {
    both_families(|mut scene| {
        for local in [
            proxy::rules::LocalDetect::Interface("vc".to_owned()),
            proxy::rules::LocalDetect::InterfacePrefix("v".to_owned()),
        ] {
            let everybody = local == proxy::rules::LocalDetect::InterfacePrefix("v".to_owned());
            scene.state.settings_mut().local = local;
            scene
                .kernel
                .apply(&scene.state.full().transaction)
                .expect("the table");
            serve(&mut scene, json!({}), &[(1, "n1")]);
            let kept =
                |netns: &Path, ip: IpAddr| ask(netns, scene.cluster(80)) == format!("b {ip}");
            assert!(kept(&scene.pods[2], scene.pod(2)));
            assert_eq!(kept(&scene.pods[0], scene.pod(0)), everybody);
        }
    });
}

#[test]
fn node_ports_answer_where_they_are_asked_to() {
    both_families(|mut scene| {
        let other = scene.pick("10.42.3.1", "fd42:3::1");
        let client = scene.pods[2].clone();
        serve(&mut scene, json!({}), &HERE);
        assert!(
            refused(&client, at(other, 30080)),
            "another address of the node"
        );
        for cidrs in [["0.0.0.0/0", "::/0"], ["10.42.3.0/24", "fd42:3::/64"]] {
            let all = cidrs[0] == "0.0.0.0/0";
            let parsed = cidrs.map(|text| text.parse().expect("a CIDR"));
            scene.state.settings_mut().node_ports = parsed.to_vec();
            scene
                .kernel
                .apply(&scene.state.full().transaction)
                .expect("the table");
            ask(&client, at(other, 30080));
            let primary = scene.node_port(30080);
            assert_eq!(inside(&scene.outside, || ask_tcp(primary)).is_ok(), all);
            assert!(ask_tcp(at(scene.pick("127.0.0.1", "::1"), 30080)).is_err());
            let foreign = at(scene.pick("198.51.100.77", "2001:db8:100::77"), 30080);
            assert!(
                inside(&client, || TcpStream::connect_timeout(
                    &foreign,
                    Duration::from_millis(300)
                ))
                .is_err()
            );
        }
    });
}

#[test]
fn only_what_others_do_to_the_table_is_heard() {
    in_new_host(|| {
        let mut scene = Scene::new(true);
        let port = scene.kernel.port().expect("a socket");
        let monitor = Monitor::open(port).expect("a monitor");
        let heard = || monitor.changed(Family::Inet, "pwt").expect("reads");
        serve(&mut scene, json!({}), &HERE);
        scene
            .kernel
            .apply(&scene.state.full().transaction)
            .expect("the table");
        run("nft", &["add", "table", "inet", "pwt-cni"]);
        run("nft", &["list", "ruleset"]);
        assert!(!heard());
        for command in [
            "flush chain inet pwt prerouting",
            "delete element inet pwt cluster-ips4 { 10.43.0.10 }",
            "flush map inet pwt services4",
            "flush table inet pwt",
            "flush ruleset",
        ] {
            run("nft", &command.split(' ').collect::<Vec<_>>());
            assert!(heard(), "{command}");
            assert!(!heard(), "once");
        }
    });
}
