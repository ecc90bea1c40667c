// SPDX-License-Identifier: Apache-2.0
//! A host with pods, each on a link of its own, and a neighbour outside; all have both families.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use cni::netns;
use proxy::apply::{self, Kernel};
use proxy::service::ServiceRules;
use proxy::state::State;

use crate::host::{at, inside, report};
use crate::objects::{key, settings};
use crate::place::{Dir, run, serve_tcp, serve_udp};

/// Pods a and b serve, c is a client.
const PODS: [&str; 3] = ["a", "b", "c"];

pub(crate) struct Scene {
    _dir: Dir,
    pub(crate) ipv4: bool,
    pub(crate) pods: Vec<PathBuf>,
    pub(crate) outside: PathBuf,
    pub(crate) state: State,
    pub(crate) kernel: Kernel,
}

fn sysctl(name: &str, value: &str) {
    std::fs::write(format!("/proc/sys/net/{name}"), value).expect(name);
}

impl Scene {
    /// In the namespaces of this thread, with an empty table.
    pub(crate) fn new(ipv4: bool) -> Scene {
        let dir = Dir::new();
        sysctl("ipv4/ip_forward", "1");
        sysctl("ipv6/conf/all/forwarding", "1");
        let make = |name: &str, ips: [&str; 2], peers: [&str; 2]| {
            let path = dir.path().join(name);
            netns::create(&path).expect("netns");
            wire(&path, name, ips, peers);
            path
        };
        let pods = (1..).zip(PODS).map(|(index, name)| {
            let v4 = [format!("10.42.{index}.1/24"), format!("10.42.{index}.2/24")];
            let v6 = [format!("fd42:{index}::1/64"), format!("fd42:{index}::2/64")];
            make(name, [&v4[0], &v6[0]], [&v4[1], &v6[1]])
        });
        let pods: Vec<PathBuf> = pods.collect();
        let here = ["192.0.2.1/24", "2001:db8::1/64"];
        let outside = make("out", here, ["192.0.2.2/24", "2001:db8::2/64"]);
        run("ip", &["route", "add", "default", "via", "192.0.2.2"]);
        run(
            "ip",
            &["-6", "route", "add", "default", "via", "2001:db8::2"],
        );
        let mut scene = Scene {
            _dir: dir,
            ipv4,
            pods,
            outside,
            state: State::new("pwt", settings()),
            kernel: Kernel::default(),
        };
        for (index, name) in [(0, "a"), (1, "b")] {
            let ip = scene.pod(index);
            inside(&scene.pods[index], || {
                serve_tcp(at(ip, 8080), name);
                serve_udp(at(ip, 5353), name);
            });
        }
        let full = scene.state.full().transaction;
        let applied = scene.kernel.apply(&full);
        applied.unwrap_or_else(|e| panic!("{}\n{full}", report(&e)));
        scene
    }

    /// A pod's address.
    pub(crate) fn pod(&self, index: usize) -> IpAddr {
        let number = index + 1;
        self.pick(&format!("10.42.{number}.2"), &format!("fd42:{number}::2"))
    }

    pub(crate) fn pick(&self, v4: &str, v6: &str) -> IpAddr {
        let text = if self.ipv4 { v4 } else { v6 };
        text.parse().expect("an address")
    }

    pub(crate) fn cluster(&self, port: u16) -> SocketAddr {
        at(
            self.pick(crate::objects::CLUSTER_IP, crate::objects::CLUSTER_IP6),
            port,
        )
    }

    pub(crate) fn node_port(&self, port: u16) -> SocketAddr {
        at(self.pick("192.0.2.1", "2001:db8::1"), port)
    }

    pub(crate) fn set(&mut self, rules: Option<ServiceRules>) {
        let step = self.state.update(vec![(key(), rules)]);
        let applied = self.kernel.apply(&step.transaction);
        applied.unwrap_or_else(|e| panic!("{}\n{}", report(&e), step.transaction));
        apply::forget(&step.udp, &self.state.settings().node_ports).expect("conntrack");
    }
}

/// A link between this namespace and that one, whose default route it becomes.
fn wire(path: &std::path::Path, name: &str, ours: [&str; 2], theirs: [&str; 2]) {
    let file = path.to_str().expect("utf-8");
    let here = format!("v{name}");
    run(
        "ip",
        &[
            "link", "add", &here, "type", "veth", "peer", "name", "eth0", "netns", file,
        ],
    );
    let up = |link: &str, ips: [&str; 2]| {
        for ip in ips {
            let nodad: &[&str] = if ip.contains(':') { &["nodad"] } else { &[] };
            run("ip", &[&["addr", "add", ip, "dev", link], nodad].concat());
        }
        run("ip", &["link", "set", link, "up"]);
    };
    up(&here, ours);
    inside(path, || {
        run("ip", &["link", "set", "lo", "up"]);
        up("eth0", theirs);
        for gateway in ours {
            let gateway = gateway.split('/').next().unwrap_or_default();
            let family = if gateway.contains(':') { "-6" } else { "-4" };
            run("ip", &[family, "route", "add", "default", "via", gateway]);
        }
    });
}
