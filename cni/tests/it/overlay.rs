// SPDX-License-Identifier: Apache-2.0
//! Three nodes on one wire, and pods' addresses behind each.

use std::net::{IpAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use cni::cidr::Cidr;
use cni::overlay::{
    self, Announcement, Backend, Kernel, OverlayError, Own, Peer, PublicKey, PublicKeys, Report,
    Settings, WireGuard,
};
use cni::{conntrack, netns};

use crate::host::{at, inside, report};
use crate::place::{Dir, ask_udp, in_new_host, run, serve_udp};

pub(crate) struct Node {
    pub(crate) netns: PathBuf,
    pub(crate) own: Own,
}

pub(crate) fn settings(backend: Backend) -> Settings {
    let cidr = |text: &str| text.parse::<Cidr>().expect(text);
    Settings {
        backend,
        link: "pwt-vxlan".into(),
        vni: 77,
        port: 8472,
        wireguard: WireGuard {
            link: "pwt-wg".into(),
            ..WireGuard::usual("/nonexistent")
        },
        cluster: vec![cidr("10.42.0.0/16"), cidr("fd42::/48")],
        bridge: "pwt0".into(),
        nft_table: "pwt".into(),
    }
}

/// Nodes 1 to 3 with both families. Pods' addresses are on a bridge without ports.
pub(crate) fn nodes(dir: &Path) -> Vec<Node> {
    run("ip", &["link", "add", "lan0", "type", "bridge"]);
    run("ip", &["link", "set", "lan0", "up"]);
    (1..=3).map(|number| node(dir, number)).collect()
}

fn node(dir: &Path, number: u8) -> Node {
    let path = dir.join(format!("n{number}"));
    netns::create(&path).expect("netns");
    let (file, port) = (path.to_str().expect("utf-8"), format!("port{number}"));
    let make = format!("link add {port} type veth peer name eth0 netns {file}");
    run("ip", &make.split(' ').collect::<Vec<_>>());
    run("ip", &["link", "set", &port, "master", "lan0", "up"]);
    let pod_cidrs = [
        format!("10.42.{number}.0/24"),
        format!("fd42:0:0:{number}::/64"),
    ];
    let addresses = [format!("192.0.2.{number}"), format!("2001:db8::{number}")];
    inside(&path, || {
        for name in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
            std::fs::write(format!("/proc/sys/net/{name}"), "1").expect(name);
        }
        let ip = |text: String| run("ip", &text.split(' ').collect::<Vec<_>>());
        ip(format!("addr add {}/24 dev eth0", addresses[0]));
        ip(format!("addr add {}/64 dev eth0 nodad", addresses[1]));
        ip("link set eth0 up".into());
        ip("link add pwt0 type bridge".into());
        ip(format!("addr add 10.42.{number}.1/24 dev pwt0"));
        ip(format!("addr add fd42:0:0:{number}::1/64 dev pwt0 nodad"));
        ip("link set pwt0 up".into());
    });
    Node {
        netns: path,
        own: Own {
            name: format!("n{number}"),
            addresses: addresses.map(|a| a.parse().expect("an address")).into(),
            pod_cidrs: pod_cidrs.map(|c| c.parse().expect("a range")).into(),
            keys: None,
        },
    }
}

fn peers(settings: &Settings, nodes: &[Node], of: usize) -> Vec<Peer> {
    let others = nodes.iter().enumerate().filter(|(index, _)| *index != of);
    others
        .map(|(_, node)| Peer {
            name: node.own.name.clone(),
            pod_cidrs: node.own.pod_cidrs.clone(),
            announcement: Announcement::of(settings, &node.own).expect("a part"),
        })
        .collect()
}

fn sync(settings: &Settings, nodes: &[Node], of: usize) -> Report {
    let peers = peers(settings, nodes, of);
    inside(&nodes[of].netns, || {
        let mut kernel = Kernel::open(settings.clone()).expect("a socket");
        let synced = kernel.sync(&nodes[of].own, &peers);
        synced.unwrap_or_else(|e| panic!("{}", report(&e)))
    })
}

fn sync_all(settings: &Settings, nodes: &[Node]) {
    for of in 0..nodes.len() {
        assert_eq!(sync(settings, nodes, of).problems, []);
        let again = sync(settings, nodes, of);
        assert_eq!(again, Report::default(), "nothing is left to do");
    }
}

pub(crate) fn ping(from: &Node, to: &str) -> bool {
    let tool = if to.contains(':') { "ping6" } else { "ping" };
    inside(&from.netns, || {
        let mut command = std::process::Command::new("busybox");
        let output = command.args([tool, "-c", "1", "-W", "2", to]).output();
        output.expect("busybox").status.success()
    })
}

fn all_reach_all(nodes: &[Node]) {
    for from in nodes {
        for to in 1..=nodes.len() {
            for address in [format!("10.42.{to}.1"), format!("fd42:0:0:{to}::1")] {
                assert!(ping(from, &address), "{} to {address}", from.own.name);
            }
        }
    }
}

/// Pods' packets keep their source: what a server on one node sees of a client on another.
fn udp_keeps_its_source(nodes: &[Node]) {
    for (client, server) in [
        ("10.42.1.1", "10.42.2.1"),
        ("fd42:0:0:1::1", "fd42:0:0:2::1"),
    ] {
        let address = |text: &str| at(text.parse::<IpAddr>().expect(text), 0);
        let mut there = address(server);
        there.set_port(7001);
        inside(&nodes[1].netns, || serve_udp(there, "n2"));
        let said = inside(&nodes[0].netns, || {
            let socket = UdpSocket::bind(address(client)).expect("bind");
            ask_udp(&socket, there)
        });
        assert_eq!(said.expect("an answer"), format!("n2 {client}"));
    }
}

/// The kernel tracks connections where a rule asks for it.
fn track(node: &Node) {
    inside(&node.netns, || {
        run("nft", &["add table inet others"]);
        run(
            "nft",
            &["add chain inet others news { type filter hook forward priority 0 ; }"],
        );
        run("nft", &["add rule inet others news ct state new accept"])
    });
}

/// After pings through the overlay. Forgets them.
fn only_what_is_inside_is_tracked(node: &Node) {
    const ICMP: u8 = 1;
    let forget = |wanted: fn(&conntrack::Flow) -> bool| {
        inside(&node.netns, || conntrack::delete(wanted)).expect("a list")
    };
    let around = forget(|flow| flow.original.dport == Settings::PORT);
    let inside = forget(|flow| flow.original.protocol == ICMP);
    assert!(
        around == 0 && inside > 0,
        "{around} around, {inside} inside"
    );
}

pub(crate) fn ip(node: &Node, text: &str) -> String {
    inside(&node.netns, || {
        run("ip", &text.split(' ').collect::<Vec<_>>())
    })
}

/// What of the overlay is in a namespace, as ip(8) tells it.
pub(crate) fn traces(node: &Node) -> String {
    inside(&node.netns, || {
        let mut text = String::new();
        for kind in ["vxlan", "wireguard"] {
            text.push_str(&run("ip", &["-o", "link", "show", "type", kind]));
        }
        let tables = run("nft", &["list", "tables"]);
        text.extend(tables.lines().filter(|table| table.contains("pwt")));
        for family in ["-4", "-6"] {
            let list = ["route", "show", "table", "all", "proto", "112"];
            text.push_str(&run("ip", &[&[family], &list[..]].concat()));
        }
        text
    })
}

#[test]
fn vxlan_joins_nodes_in_both_families_and_heals() {
    in_new_host(|| {
        let dir = Dir::new();
        let (mut nodes, settings) = (nodes(dir.path()), settings(Backend::Vxlan));
        nodes.iter().for_each(track);
        sync_all(&settings, &nodes);
        all_reach_all(&nodes);
        udp_keeps_its_source(&nodes);
        nodes.iter().for_each(only_what_is_inside_is_tracked);
        let seen = ip(&nodes[0], "-d link show pwt-vxlan");
        for expected in ["mtu 1450", "vxlan id 77", "dstport 8472", "nolearning"] {
            assert!(seen.contains(expected), "{seen}");
        }
        let fdb = inside(&nodes[0].netns, || {
            run("bridge", &["fdb", "show", "dev", "pwt-vxlan"])
        });
        assert!(!fdb.contains("00:00:00:00:00:00"), "nothing floods: {fdb}");
        ip(
            &nodes[0],
            "route add 10.99.0.0/24 via 192.0.2.2 proto static",
        );

        for damage in [
            "route del 10.42.2.0/24",
            "-6 route del fd42:0:0:3::/64",
            "neigh flush dev pwt-vxlan nud permanent",
            "link set pwt-vxlan mtu 1400",
            "link set pwt-vxlan down",
            "addr flush dev pwt-vxlan",
            "link del pwt-vxlan",
        ] {
            ip(&nodes[0], damage);
            assert_eq!(sync(&settings, &nodes, 0).problems, [], "{damage}");
            assert_eq!(sync(&settings, &nodes, 0), Report::default(), "{damage}");
            all_reach_all(&nodes);
        }
        for damage in ["flush", "delete"] {
            let nft = || run("nft", &[damage, "table", "inet", "pwt-overlay"]);
            inside(&nodes[0].netns, nft);
            assert_eq!(sync(&settings, &nodes, 0).done.len(), 1, "{damage}");
            assert_eq!(sync(&settings, &nodes, 0), Report::default(), "{damage}");
            all_reach_all(&nodes);
            only_what_is_inside_is_tracked(&nodes[0]);
        }
        assert!(
            ip(&nodes[0], "route").contains("10.99.0.0/24"),
            "left alone"
        );

        // Node 3 comes back with another address.
        ip(&nodes[2], "addr del 192.0.2.3/24 dev eth0");
        ip(&nodes[2], "addr add 192.0.2.33/24 dev eth0");
        nodes[2].own.addresses[0] = "192.0.2.33".parse().expect("an address");
        sync_all(&settings, &nodes);
        all_reach_all(&nodes);

        // And goes.
        let gone = nodes.pop().expect("three");
        sync_all(&settings, &nodes);
        assert!(
            !traces(&nodes[0]).contains("10.42.3."),
            "{}",
            traces(&nodes[0])
        );
        all_reach_all(&nodes);
        for node in nodes.iter().chain([&gone]) {
            inside(&node.netns, || overlay::cleanup(&settings)).expect("cleanup");
            inside(&node.netns, || overlay::cleanup(&settings)).expect("twice");
            assert_eq!(traces(node), "");
        }
    });
}

#[test]
fn host_gw_joins_nodes_in_both_families() {
    in_new_host(|| {
        let dir = Dir::new();
        let nodes = nodes(dir.path());
        sync_all(&settings(Backend::Vxlan), &nodes);
        let settings = settings(Backend::HostGw);
        sync_all(&settings, &nodes);
        all_reach_all(&nodes);
        assert!(
            !traces(&nodes[0]).contains("vxlan"),
            "{}",
            traces(&nodes[0])
        );
        inside(&nodes[0].netns, || overlay::cleanup(&settings)).expect("cleanup");
        assert_eq!(traces(&nodes[0]), "");
    });
}

#[test]
fn a_kernel_without_wireguard_is_named() {
    match overlay::supported(Backend::WireGuard) {
        Ok(()) => println!("this kernel has it"),
        Err(OverlayError::NoWireGuard) => {
            let dir = Dir::new();
            let settings = Settings {
                wireguard: WireGuard::usual(dir.path().join("keys")),
                ..settings(Backend::WireGuard)
            };
            let error = Kernel::open(settings.clone()).expect_err("no WireGuard");
            assert!(error.to_string().contains("modprobe wireguard"), "{error}");
            assert!(!settings.wireguard.key_dir.exists(), "no key was made");
        }
        Err(error) => panic!("{}", report(&error)),
    }
    for backend in [Backend::Vxlan, Backend::HostGw, Backend::None] {
        overlay::supported(backend).expect("needs nothing");
    }
}

#[test]
fn what_others_have_is_left_alone_and_named() {
    in_new_host(|| {
        let dir = Dir::new();
        let (nodes, settings) = (nodes(dir.path()), settings(Backend::Vxlan));
        ip(
            &nodes[0],
            "route add 10.42.2.0/24 via 192.0.2.3 proto static",
        );
        let problems = sync(&settings, &nodes, 0).problems;
        assert_eq!(problems.len(), 1, "{problems:?}");
        let text = problems[0].to_string();
        assert!(
            text.starts_with("somebody else has a route to 10.42.2.0/24"),
            "{text}"
        );
        assert!(
            ip(&nodes[0], "route").contains("10.42.2.0/24 via 192.0.2.3 dev eth0 proto static")
        );

        ip(
            &nodes[1],
            "link add flannel.77 type vxlan id 77 dstport 8472 nolearning",
        );
        ip(&nodes[1], "link set flannel.77 up");
        let text = format!("{:?}", sync(&settings, &nodes, 1).problems);
        assert!(text.contains("vni 77 on port 8472"), "{text}");
        ip(&nodes[2], "link add pwt-vxlan type bridge");
        let text = format!("{:?}", sync(&settings, &nodes, 2).problems);
        assert!(text.contains("not a VXLAN link"), "{text}");
    });
}

#[test]
fn the_mtu_of_pods_follows_the_uplink() {
    in_new_host(|| {
        let dir = Dir::new();
        let (nodes, settings) = (nodes(dir.path()), settings(Backend::Vxlan));
        let mtu = |outer: &str, backend| {
            let outer = outer.parse().expect("an address");
            inside(&nodes[0].netns, || overlay::pod_mtu(backend, outer)).expect("an answer")
        };
        assert_eq!(mtu("192.0.2.1", Backend::Vxlan), Some(1450));
        assert_eq!(mtu("2001:db8::1", Backend::Vxlan), Some(1430));
        assert_eq!(mtu("192.0.2.99", Backend::Vxlan), None);
        assert_eq!(mtu("192.0.2.1", Backend::None), None);
        ip(&nodes[0], "link set eth0 mtu 9000");
        assert_eq!(mtu("192.0.2.1", Backend::Vxlan), Some(8950));
        assert_eq!(mtu("192.0.2.1", Backend::WireGuard), Some(8940));
        assert_eq!(mtu("192.0.2.1", Backend::HostGw), Some(9000));
        sync(&settings, &nodes, 0);
        for link in ["pwt-vxlan", "pwt0"] {
            assert!(
                ip(&nodes[0], &format!("link show {link}")).contains("mtu 8950"),
                "{link}"
            );
        }
    });
}

#[test]
fn a_thousand_nodes_are_programmed_and_compared_quickly() {
    in_new_host(|| {
        let dir = Dir::new();
        let here = node_alone(dir.path());
        let settings = Settings {
            cluster: Vec::new(),
            ..settings(Backend::Vxlan)
        };
        let peers: Vec<Peer> = (0..1000_u32)
            .map(|number| far_peer(&settings, number))
            .collect();
        inside(&here.netns, || {
            let mut kernel = Kernel::open(settings).expect("a socket");
            let begun = Instant::now();
            let report = kernel.sync(&here.own, &peers).expect("a report");
            let (first, begun) = (begun.elapsed(), Instant::now());
            assert_eq!(report.problems, []);
            assert_eq!(
                kernel.sync(&here.own, &peers).expect("a report"),
                Report::default()
            );
            println!("1000 nodes: {first:?}, compared in {:?}", begun.elapsed());
            assert!(begun.elapsed() < Duration::from_secs(1));
        });
    });
}

fn node_alone(dir: &Path) -> Node {
    run("ip", &["link", "add", "lan0", "type", "bridge"]);
    node(dir, 1)
}

pub(crate) fn far_peer(settings: &Settings, number: u32) -> Peer {
    let (high, low) = (number / 250, number % 250 + 1);
    let mut key = [7; 32];
    key[..4].copy_from_slice(&number.to_ne_bytes());
    let own = Own {
        name: format!("far{number}"),
        addresses: vec![
            format!("192.0.{}.{low}", 10 + high)
                .parse()
                .expect("an address"),
        ],
        pod_cidrs: vec![
            format!("10.{}.{low}.0/24", 100 + high)
                .parse()
                .expect("a range"),
        ],
        keys: Some(PublicKeys {
            current: PublicKey(key),
            next: None,
        }),
    };
    Peer {
        name: own.name.clone(),
        pod_cidrs: own.pod_cidrs.clone(),
        announcement: Announcement::of(settings, &own).expect("a part"),
    }
}
