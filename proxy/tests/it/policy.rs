// SPDX-License-Identifier: Apache-2.0
//! What NetworkPolicies can ask for, by real clients, over IPv4 and IPv6. Pods a and b are in
//! namespace x, pod c is in y.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use proxy::apply::Kernel;
use proxy::policy::parse;
use proxy::policy::state::{Settings, State};
use proxy::policy::world::Change;
use serde_json::{Value, json};

use crate::features::{ask, silent};
use crate::host::{at, inside, report};
use crate::objects::{CLUSTER_IP, CLUSTER_IP6, endpoint, rules_of, service, slice};
use crate::place::{ask_tcp, ask_udp, in_new_host, run, serve_tcp};
use crate::scene::Scene;

const TABLE: &str = "pwt-policy";
const A: usize = 0;
const B: usize = 1;
const C: usize = 2;

struct Policed {
    scene: Scene,
    state: State,
    kernel: Kernel,
}

fn pod(index: usize) -> Value {
    let name = ["a", "b", "c"][index];
    let number = index + 1;
    json!({
        "metadata": {"name": name, "namespace": if index == C { "y" } else { "x" },
            "uid": name, "labels": {"app": name}},
        "spec": {"nodeName": "n1", "containers": [{"name": "c", "ports": [
            {"name": "web", "containerPort": 8080 + index},
            {"name": "dns", "containerPort": 5353, "protocol": "UDP"}]}]},
        "status": {"phase": "Running", "podIP": format!("10.42.{number}.2"),
            "podIPs": [{"ip": format!("10.42.{number}.2")}, {"ip": format!("fd42:{number}::2")}]}
    })
}

macro_rules! parsed {
    ($value:expr) => {
        serde_json::from_value($value).expect("an object")
    };
}

impl Policed {
    /// Three pods and no policy.
    fn new(scene: Scene) -> Policed {
        let settings = Settings {
            node: "n1".into(),
            bridge: "none0".into(),
            attachments: false,
        };
        for (index, name) in [(A, "a"), (B, "b")] {
            let address = at(scene.pod(index), 8081);
            inside(&scene.pods[index], || serve_tcp(address, name));
        }
        let outside = at(scene.pick("192.0.2.2", "2001:db8::2"), 7000);
        inside(&scene.outside, || serve_tcp(outside, "out"));
        let mut policed = Policed {
            scene,
            state: State::new(TABLE, &settings),
            kernel: Kernel::default(),
        };
        let full = policed.state.full();
        policed.apply(&full);
        let namespace = |name: &str, team: &str| {
            let object = json!({"metadata": {"name": name, "labels": {"team": team}}});
            Change::Namespace(name.into(), Some(parse::namespace(&parsed!(object))))
        };
        let mut changes = vec![namespace("x", "red"), namespace("y", "blue")];
        for index in [A, B, C] {
            let object = pod(index);
            let key = ["namespace", "name"].map(|field| text(&object["metadata"][field]));
            let info = parse::pod(&parsed!(object));
            changes.push(Change::Pod(key.into(), info));
        }
        policed.tell(changes);
        policed
    }

    fn apply(&mut self, transaction: &cni::nft::Transaction) {
        let applied = self.kernel.apply(transaction);
        applied.unwrap_or_else(|e| panic!("{}\n{transaction}", report(&e)));
    }

    fn tell(&mut self, changes: Vec<Change>) {
        let step = self.state.update(changes);
        self.apply(&step);
        // Whoever looks at the rules must be able to.
        run("nft", &["list", "table", "inet", TABLE]);
    }

    /// There is a policy of this name in a namespace, or there is none.
    fn set(&mut self, namespace: &str, name: &str, spec: Option<Value>) {
        let policy = spec.map(|spec| {
            let meta = json!({"name": name, "namespace": namespace});
            let object = json!({"metadata": meta, "spec": spec});
            let info = parse::policy(&parsed!(object)).expect("a policy");
            assert_eq!(info.problems, [""; 0]);
            info
        });
        let key = (namespace.to_owned(), name.to_owned());
        self.tell(vec![Change::Policy(key, policy)]);
    }

    /// Pod a may be reached by these alone.
    fn ingress_of_a(&mut self, rules: Value) {
        let selector = json!({"matchLabels": {"app": "a"}});
        let spec = json!({"podSelector": selector, "policyTypes": ["Ingress"], "ingress": rules});
        self.set("x", "a", Some(spec));
    }

    fn netns(&self, pod: usize) -> PathBuf {
        self.scene.pods[pod].clone()
    }

    fn at(&self, pod: usize, port: u16) -> SocketAddr {
        at(self.scene.pod(pod), port)
    }

    fn open(&self, from: usize, to: usize, port: u16) {
        let said = ask(&self.netns(from), self.at(to, port));
        let expected = format!("{} {}", ["a", "b", "c"][to], self.scene.pod(from));
        assert_eq!(said, expected);
    }

    fn closed(&self, from: usize, to: usize, port: u16) {
        let address = self.at(to, port);
        assert!(silent(&self.netns(from), address), "{from} to {address}");
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn policed(test: fn(Policed)) {
    for ipv4 in [true, false] {
        in_new_host(move || test(Policed::new(Scene::new(ipv4))));
    }
}

#[test]
fn ingress_is_closed_but_for_whom_a_policy_names() {
    policed(|mut p| {
        p.ingress_of_a(json!([]));
        p.closed(B, A, 8080);
        p.closed(C, A, 8080);
        let outside = p.scene.outside.clone();
        assert!(silent(&outside, p.at(A, 8080)));
        ask_tcp(p.at(A, 8080)).expect("a probe of the node");
        p.open(C, B, 8080);
        p.open(A, B, 8080); // and the answers come back
        let pods = |label: &str| json!({"podSelector": {"matchLabels": {"app": label}}});
        let team = |team: &str| json!({"namespaceSelector": {"matchLabels": {"team": team}}});
        p.ingress_of_a(json!([{"from": [pods("b")]}]));
        p.open(B, A, 8080);
        p.closed(C, A, 8080);
        p.ingress_of_a(json!([{"from": [pods("c")]}]));
        p.closed(C, A, 8080); // of its own namespace only
        p.ingress_of_a(json!([{"from": [team("blue")]}]));
        p.open(C, A, 8080);
        p.closed(B, A, 8080);
        let both = |team: &str, label: &str| {
            json!({"namespaceSelector": {"matchExpressions": [
                {"key": "team", "operator": "In", "values": [team]}]},
                "podSelector": {"matchExpressions": [
                    {"key": "app", "operator": "NotIn", "values": [label]}]}})
        };
        p.ingress_of_a(json!([{"from": [both("blue", "c")]}, {"from": [both("red", "c")]}]));
        p.closed(C, A, 8080);
        p.open(B, A, 8080);
        // Policies add up.
        let spec = json!({"podSelector": {}, "ingress": [{"from": [team("blue")]}]});
        p.set("x", "more", Some(spec));
        p.open(C, A, 8080);
        p.open(C, B, 8080);
        p.closed(A, B, 8080);
        p.set("x", "more", None);
        p.ingress_of_a(json!([{"from": []}]));
        p.open(C, A, 8080);
        p.set("x", "a", None);
        p.open(C, A, 8080);
        ask(&outside, p.at(A, 8080));
    });
}

#[test]
fn labels_of_pods_and_namespaces_may_change() {
    policed(|mut p| {
        p.ingress_of_a(json!([{"from": [
            {"namespaceSelector": {"matchLabels": {"team": "green"}}},
            {"podSelector": {"matchLabels": {"app": "friend"}}}]}]));
        p.closed(B, A, 8080);
        p.closed(C, A, 8080);
        let mut friend = pod(B);
        friend["metadata"]["labels"]["app"] = "friend".into();
        let friend = parse::pod(&parsed!(friend));
        let green = json!({"metadata": {"name": "y", "labels": {"team": "green"}}});
        p.tell(vec![
            Change::Pod(("x".into(), "b".into()), friend),
            Change::Namespace("y".into(), Some(parse::namespace(&parsed!(green)))),
        ]);
        p.open(B, A, 8080);
        p.open(C, A, 8080);
        // A pod that has finished is no peer, whatever its status still says.
        let mut finished = pod(C);
        finished["status"]["phase"] = "Succeeded".into();
        assert!(parse::pod(&parsed!(finished)).is_none());
        p.tell(vec![Change::Pod(("y".into(), "c".into()), None)]);
        p.closed(C, A, 8080);
    });
}

#[test]
fn blocks_have_exceptions() {
    policed(|mut p| {
        let (net, host) = match p.scene.ipv4 {
            true => ("192.0.2.0/24", "192.0.2.2/32"),
            false => ("2001:db8::/64", "2001:db8::2/128"),
        };
        let everything = if p.scene.ipv4 { "0.0.0.0/0" } else { "::/0" };
        let outside = p.scene.outside.clone();
        let block = |cidr: &str, except: &[&str]| json!([{"from": [{"ipBlock": {"cidr": cidr, "except": except}}]}]);
        p.ingress_of_a(block(net, &[]));
        ask(&outside, p.at(A, 8080));
        p.closed(C, A, 8080);
        p.ingress_of_a(block(net, &[host]));
        assert!(silent(&outside, p.at(A, 8080)));
        p.ingress_of_a(block(everything, &[host]));
        assert!(silent(&outside, p.at(A, 8080)));
        p.open(C, A, 8080);
        // The exception of one policy is no exception of another.
        let spec = json!({"podSelector": {}, "ingress": block(net, &[])});
        p.set("x", "more", Some(spec));
        ask(&outside, p.at(A, 8080));
    });
}

#[test]
fn ports_have_numbers_ranges_and_names() {
    policed(|mut p| {
        let ports = |ports: Value| json!([{"ports": ports}]);
        p.ingress_of_a(ports(json!([{"port": 8080}])));
        p.open(C, A, 8080);
        p.closed(C, A, 8081);
        p.ingress_of_a(ports(json!([{"port": 8000, "endPort": 8080}])));
        p.open(C, A, 8080);
        p.closed(C, A, 8081);
        p.ingress_of_a(ports(json!([{"port": 8081, "endPort": 9000}, {"port": 1}])));
        p.closed(C, A, 8080);
        p.open(C, A, 8081);
        // Ports of another protocol are other ports.
        p.ingress_of_a(ports(json!([{"protocol": "UDP"}])));
        p.closed(C, A, 8080);
        let said = asked_udp(&p.netns(C), p.at(A, 5353));
        assert_eq!(said, Some(format!("a {}", p.scene.pod(C))));
        p.ingress_of_a(ports(json!([{"protocol": "SCTP"}, {"protocol": "TCP"}])));
        p.open(C, A, 8080);
        assert_eq!(asked_udp(&p.netns(C), p.at(A, 5353)), None);
        // Each pod has its own number for a name.
        let named = json!({"podSelector": {}, "ingress": [{"ports": [{"port": "web"}]}]});
        p.set("x", "a", Some(named));
        for (pod, open, closed) in [(A, 8080, 8081), (B, 8081, 8080)] {
            p.open(C, pod, open);
            p.closed(C, pod, closed);
        }
        // A name is of a protocol.
        p.ingress_of_a(ports(
            json!([{"port": "dns"}, {"port": "web", "protocol": "UDP"}]),
        ));
        p.closed(C, A, 8080);
    });
}

/// What a server answers to a datagram, if it does so soon.
fn asked_udp(from: &Path, address: SocketAddr) -> Option<String> {
    let any: std::net::IpAddr = match address {
        SocketAddr::V4(_) => std::net::Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => std::net::Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = inside(from, || UdpSocket::bind((any, 0))).expect("bind");
    ask_udp(&socket, address).ok()
}

#[test]
fn egress_is_closed_but_to_whom_a_policy_names() {
    policed(|mut p| {
        let outside = at(p.scene.pick("192.0.2.2", "2001:db8::2"), 7000);
        let egress = |p: &mut Policed, rules: Value| {
            let spec = json!({"podSelector": {}, "policyTypes": ["Egress"], "egress": rules});
            p.set("y", "c", Some(spec));
        };
        p.open(C, A, 8080);
        ask(&p.netns(C), outside);
        egress(&mut p, json!([]));
        p.closed(C, A, 8080);
        assert!(silent(&p.netns(C), outside));
        p.open(B, A, 8080);
        let red = json!({"namespaceSelector": {"matchLabels": {"team": "red"}}});
        egress(&mut p, json!([{"to": [red], "ports": [{"port": "web"}]}]));
        for (pod, open, closed) in [(A, 8080, 8081), (B, 8081, 8080)] {
            p.open(C, pod, open);
            p.closed(C, pod, closed);
        }
        assert!(silent(&p.netns(C), outside));
        let block = if p.scene.ipv4 {
            "192.0.2.2/32"
        } else {
            "2001:db8::2/128"
        };
        egress(
            &mut p,
            json!([{"to": [{"ipBlock": {"cidr": block}}], "ports": [{"port": 7000}]}]),
        );
        ask(&p.netns(C), outside);
        p.closed(C, A, 8080);
        egress(&mut p, json!([{"ports": [{"port": 8081}]}]));
        p.open(C, A, 8081);
        p.closed(C, B, 8080);
        // Both ends must allow.
        p.ingress_of_a(json!([{"ports": [{"port": 8080}]}]));
        p.closed(C, A, 8081);
        p.closed(C, A, 8080);
        p.open(C, B, 8081);
    });
}

/// Sends back what it gets, until the connection ends.
fn serve_echo(address: SocketAddr) {
    let listener = TcpListener::bind(address).expect("bind");
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let mut buffer = [0; 64];
                while let Ok(length @ 1..) = stream.read(&mut buffer) {
                    if stream.write_all(&buffer[..length]).is_err() {
                        return;
                    }
                }
            });
        }
    });
}

fn echoes(stream: &mut TcpStream, within: Duration) -> bool {
    stream.set_read_timeout(Some(within)).expect("timeout");
    let mut byte = [0];
    stream.write_all(&[7]).is_ok() && stream.read_exact(&mut byte).is_ok()
}

#[test]
fn living_connections_are_cut_and_let_pass_again() {
    const SHORT: Duration = Duration::from_millis(500);
    const LONG: Duration = Duration::from_secs(20);
    policed(|mut p| {
        let (server, client) = (p.netns(A), p.netns(C));
        let address = p.at(A, 7);
        inside(&server, || serve_echo(address));
        let connect = || TcpStream::connect(address).expect("connect");
        let mut stream = inside(&client, connect);
        let any = p.scene.pick("0.0.0.0", "::");
        let socket = inside(&client, || UdpSocket::bind((any, 0))).expect("bind");
        let dns = p.at(A, 5353);
        let asks = |socket: &UdpSocket| ask_udp(socket, dns).is_ok();
        assert!(echoes(&mut stream, LONG) && asks(&socket));
        p.ingress_of_a(json!([]));
        assert!(!echoes(&mut stream, SHORT) && !asks(&socket));
        p.set("x", "a", None);
        // The byte that was lost is sent again, and its echo is one more.
        assert!(echoes(&mut stream, LONG) && asks(&socket));
        let egress = json!({"podSelector": {}, "policyTypes": ["Egress"]});
        p.set("y", "c", Some(egress.clone()));
        let mut other = stream.try_clone().expect("clone");
        assert!(!asks(&socket));
        p.set("y", "c", None);
        assert!(echoes(&mut other, LONG) && asks(&socket));
        // What answers needs no leave to send.
        p.set("x", "a", Some(egress));
        assert!(echoes(&mut other, LONG) && asks(&socket));
        p.closed(A, B, 8080);
    });
}

#[test]
fn services_are_judged_by_their_pods() {
    policed(|mut p| {
        let ip = if p.scene.ipv4 {
            CLUSTER_IP
        } else {
            CLUSTER_IP6
        };
        let served = service(json!({"clusterIP": ip, "clusterIPs": [ip]}));
        let ready = json!({"ready": true});
        let endpoints = [endpoint(&p.scene.pod(A).to_string(), "n1", ready)];
        p.scene
            .set(Some(rules_of(&served, &[slice("s-1", &endpoints)])));
        let (cluster, node_port) = (p.scene.cluster(80), p.scene.node_port(30080));
        let (c, b, outside) = (p.netns(C), p.netns(B), p.scene.outside.clone());
        // The port is the pod's, not the Service's.
        let blue = json!({"namespaceSelector": {"matchLabels": {"team": "blue"}}});
        p.ingress_of_a(json!([{"from": [blue], "ports": [{"port": 8080}]}]));
        assert_eq!(ask(&c, cluster), format!("a {}", p.scene.pod(C)));
        ask(&c, node_port);
        assert!(silent(&b, cluster) && silent(&outside, node_port));
        ask_tcp(cluster).expect("from the node");
        let cidr = if p.scene.ipv4 {
            "192.0.2.0/24"
        } else {
            "2001:db8::/64"
        };
        p.ingress_of_a(json!([{"from": [{"ipBlock": {"cidr": cidr}}]}]));
        ask(&outside, node_port);
        assert!(silent(&c, cluster));
        // A pod always reaches itself.
        let nothing = json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"]});
        p.set("x", "a", Some(nothing));
        ask(&p.netns(A), cluster);
        assert!(silent(&p.netns(A), p.at(B, 8080)));
    });
}

#[test]
fn without_ports_every_protocol_is_meant() {
    policed(|mut p| {
        let address = p.scene.pod(A).to_string();
        let answers = |p: &Policed| {
            let ping = || {
                std::process::Command::new("ping")
                    .args(["-c", "1", "-W", "2", &address])
                    .output()
                    .is_ok_and(|out| out.status.success())
            };
            inside(&p.netns(C), ping)
        };
        if !answers(&p) {
            eprintln!("no ping here");
            return;
        }
        p.ingress_of_a(json!([{"ports": [{"protocol": "TCP"}, {"protocol": "UDP"}]}]));
        assert!(!answers(&p));
        p.ingress_of_a(json!([{}]));
        assert!(answers(&p));
        p.ingress_of_a(json!([]));
        assert!(!answers(&p));
    });
}

#[test]
fn two_claims_to_an_address_are_settled() {
    policed(|mut p| {
        let friend = json!([{"from": [{"podSelector": {"matchLabels": {"app": "late"}}}]}]);
        p.ingress_of_a(friend);
        // A pod elsewhere that claims the address of one of ours is not believed.
        let mut thief = pod(B);
        thief["metadata"]["name"] = "late".into();
        thief["metadata"]["labels"]["app"] = "late".into();
        thief["spec"]["nodeName"] = "n2".into();
        let told = |object: &Value| parse::pod(&parsed!(object.clone()));
        let key = ("x".to_owned(), "late".to_owned());
        p.tell(vec![Change::Pod(key.clone(), told(&thief))]);
        p.closed(B, A, 8080);
        // On this node the last one counts: the one before is gone, and its object will be.
        thief["spec"]["nodeName"] = "n1".into();
        p.tell(vec![Change::Pod(key.clone(), told(&thief))]);
        p.open(B, A, 8080);
        p.tell(vec![Change::Pod(key, None)]);
        p.closed(B, A, 8080);
    });
}

#[test]
fn a_change_is_fast_with_many_pods() {
    in_new_host(|| {
        let settings = Settings {
            node: "n1".into(),
            bridge: "none0".into(),
            attachments: false,
        };
        let mut state = State::new(TABLE, &settings);
        let mut kernel = Kernel::default();
        kernel.apply(&state.full()).expect("the table");
        let pods = (0..500_u32).map(|index| {
            let [_, _, high, low] = index.to_be_bytes();
            let object = json!({
                "metadata": {"name": format!("p{index}"), "namespace": "x", "uid": index.to_string(),
                    "labels": {"app": format!("a{}", index % 5)}},
                "spec": {"nodeName": "n1", "containers": []},
                "status": {"podIP": format!("10.42.{high}.{low}")}
            });
            let key = ("x".to_owned(), format!("p{index}"));
            Change::Pod(key, parse::pod(&parsed!(object)))
        });
        kernel.apply(&state.update(pods)).expect("pods");
        let policy = |spec: Value| {
            let meta = json!({"name": "p", "namespace": "x"});
            let info = parse::policy(&parsed!(json!({"metadata": meta, "spec": spec})));
            vec![Change::Policy(("x".into(), "p".into()), info)]
        };
        let from = |app: &str| json!([{"from": [{"podSelector": {"matchLabels": {"app": app}}}]}]);
        for (what, spec) in [
            ("closed", json!({"podSelector": {}})),
            ("opened", json!({"podSelector": {}, "ingress": from("a1")})),
            ("changed", json!({"podSelector": {}, "ingress": from("a2")})),
        ] {
            let begun = Instant::now();
            let step = state.update(policy(spec));
            kernel.apply(&step).expect("a change");
            println!("{what}: {:?}", begun.elapsed());
            assert!(begun.elapsed() < Duration::from_secs(2), "{what}");
        }
    });
}
