// SPDX-License-Identifier: Apache-2.0
//! Three nodes on one wire that others read, and pods' addresses behind each.
//!
//! `wg` of wireguard-tools looks at what is made, and does the damage.

use std::net::{IpAddr, UdpSocket};
use std::path::Path;
use std::time::{Duration, Instant};

use cni::overlay::{self, Backend, Kernel, OverlayError, Own, Peer, PublicKey, Report, Settings};

use crate::host::{at, inside, report};
use crate::overlay::{Node, far_peer, ip, nodes, ping, settings, traces};
use crate::place::{Dir, ask_udp, in_new_host, run, serve_udp};
use crate::stream::Stream;
use crate::wire::{Packet, UDP, Wire, packet, shows};

const PORT: u16 = 51820;
const SECRET: &[u8] = b"what a pod says to another";
const PATIENCE: Duration = Duration::from_secs(30);

/// A node with its part of the overlay.
struct Host {
    node: Node,
    settings: Settings,
    kernel: Kernel,
}

fn open(node: &Node, settings: &Settings) -> Kernel {
    let opened = inside(&node.netns, || Kernel::open(settings.clone()));
    opened.unwrap_or_else(|e| panic!("{}", report(&e)))
}

/// Nodes 1 to 3, whose keys are as old as they get after `rotation`.
fn hosts(dir: &Path, rotation: Option<Duration>) -> Vec<Host> {
    let with_keys = |node: Node| {
        let mut settings = settings(Backend::WireGuard);
        settings.wireguard.key_dir = dir.join(format!("keys-{}", node.own.name));
        settings.wireguard.rotation = rotation;
        let kernel = open(&node, &settings);
        Host {
            node,
            settings,
            kernel,
        }
    };
    nodes(dir).into_iter().map(with_keys).collect()
}

fn key(host: &Host) -> PublicKey {
    let said = host.kernel.announcement(&host.node.own).expect("a part");
    let key = said.public_key.expect("a key");
    key.parse().expect("a key")
}

fn peers(hosts: &[Host], of: usize) -> Vec<Peer> {
    let others = hosts.iter().enumerate().filter(|(index, _)| *index != of);
    others
        .map(|(_, host)| Peer {
            name: host.node.own.name.clone(),
            pod_cidrs: host.node.own.pod_cidrs.clone(),
            announcement: host.kernel.announcement(&host.node.own).expect("a part"),
        })
        .collect()
}

fn sync_with(host: &mut Host, peers: &[Peer]) -> Report {
    let (kernel, own) = (&mut host.kernel, &host.node.own);
    let synced = inside(&host.node.netns, || kernel.sync(own, peers));
    synced.unwrap_or_else(|e| panic!("{}", report(&e)))
}

fn sync(hosts: &mut [Host], of: usize) -> Report {
    let peers = peers(hosts, of);
    sync_with(&mut hosts[of], &peers)
}

fn sync_all(hosts: &mut [Host]) {
    for of in 0..hosts.len() {
        assert_eq!(sync(hosts, of).problems, []);
        assert_eq!(sync(hosts, of), Report::default(), "nothing is left to do");
    }
}

/// A handshake that is lost is tried again after five seconds.
fn reaches(from: &Host, to: u8) {
    for address in [format!("10.42.{to}.1"), format!("fd42:0:0:{to}::1")] {
        let begun = Instant::now();
        while !ping(&from.node, &address) {
            assert!(
                begun.elapsed() < PATIENCE,
                "{} to {address}",
                from.node.own.name
            );
        }
    }
}

fn all_reach_all(hosts: &[Host]) {
    for from in hosts {
        (1..=3).for_each(|to| reaches(from, to));
    }
}

fn wg(host: &Host, text: &str) -> String {
    inside(&host.node.netns, || {
        run("wg", &text.split(' ').collect::<Vec<_>>())
    })
}

/// A datagram with [`SECRET`] in it from a pod's address to another's, and what crosses the wire.
fn spoken(hosts: &[Host], client: &str, server: &str, port: u16) -> Vec<Vec<u8>> {
    let address = |text: &str, port| at(text.parse::<IpAddr>().expect(text), port);
    let there = address(server, port);
    inside(&hosts[1].node.netns, || serve_udp(there, "n2"));
    // Before, so that a handshake is among the frames but no wait for one.
    let wire = Wire::tap();
    let said = inside(&hosts[0].node.netns, || {
        let socket = UdpSocket::bind(address(client, 0)).expect("bind");
        socket.send_to(SECRET, there).expect("send");
        ask_udp(&socket, there)
    });
    assert_eq!(said.expect("an answer"), format!("n2 {client}"));
    wire.frames()
}

#[test]
#[ignore = "needs WireGuard in the kernel: tests/node/guest.rs runs it"]
fn wireguard_joins_nodes_and_shows_the_wire_nothing() {
    in_new_host(|| {
        let dir = Dir::new();
        let mut hosts = hosts(dir.path(), None);
        sync_all(&mut hosts);
        all_reach_all(&hosts);
        let link = ip(&hosts[0].node, "-d link show pwt-wg");
        assert!(
            link.contains("mtu 1440") && link.contains("wireguard"),
            "{link}"
        );
        let shown = wg(&hosts[0], "show pwt-wg dump");
        let peer = format!("{}\t(none)\t192.0.2.2:{PORT}\t", key(&hosts[1]));
        assert!(shown.contains(&peer), "{shown}");
        assert!(shown.contains("10.42.2.0/24,fd42:0:0:2::/64"), "{shown}");
        assert_eq!(
            wg(&hosts[0], "show pwt-wg public-key").trim(),
            key(&hosts[0]).to_string()
        );

        for (client, server) in [
            ("10.42.1.1", "10.42.2.1"),
            ("fd42:0:0:1::1", "fd42:0:0:2::1"),
        ] {
            let frames = spoken(&hosts, client, server, 7001);
            assert!(!shows(&frames, SECRET), "{client}");
            let packets: Vec<Packet> = frames.iter().filter_map(|f| packet(f)).collect();
            let sealed = |packet: &Packet| {
                *packet
                    == Packet {
                        protocol: UDP,
                        ports: (PORT, PORT),
                    }
            };
            assert!(
                packets.len() >= 4 && packets.iter().all(sealed),
                "{packets:?}"
            );
        }
        // The same over VXLAN is there for all to read, so it would have been seen. What WireGuard
        // made goes, the key with it.
        let keys = hosts[0].settings.wireguard.key_dir.clone();
        assert!(keys.join("wireguard.key").exists());
        for host in &mut hosts {
            host.settings.backend = Backend::Vxlan;
            host.kernel = open(&host.node, &host.settings);
        }
        sync_all(&mut hosts);
        all_reach_all(&hosts);
        assert!(shows(
            &spoken(&hosts, "10.42.1.1", "10.42.2.1", 7002),
            SECRET
        ));
        assert!(
            !traces(&hosts[0].node).contains("wg"),
            "{}",
            traces(&hosts[0].node)
        );
        assert!(!keys.exists());
    });
}

#[test]
#[ignore = "needs WireGuard in the kernel: tests/node/guest.rs runs it"]
fn what_is_changed_by_hand_is_repaired_and_nothing_else_is_touched() {
    in_new_host(|| {
        let dir = Dir::new();
        let mut hosts = hosts(dir.path(), None);
        sync_all(&mut hosts);
        let (two, three) = (key(&hosts[1]), key(&hosts[2]));
        let other = dir.path().join("other");
        std::fs::write(&other, run("wg", &["genkey"])).expect("a key");
        let other = other.to_str().expect("utf-8");
        let stranger = "//////////////////////////////////////////8=";
        for damage in [
            format!("wg set pwt-wg peer {two} remove"),
            format!("wg set pwt-wg peer {two} allowed-ips 10.42.2.0/25"),
            format!("wg set pwt-wg peer {three} allowed-ips 10.42.2.0/24,10.42.3.0/24"),
            format!("wg set pwt-wg peer {two} preshared-key {other}"),
            format!("wg set pwt-wg peer {two} persistent-keepalive 1"),
            format!("wg set pwt-wg peer {stranger} allowed-ips 10.42.2.0/24"),
            format!("wg set pwt-wg private-key {other}"),
            "wg set pwt-wg private-key /dev/null".to_owned(),
            "wg set pwt-wg listen-port 4 fwmark 5".to_owned(),
            "ip route del 10.42.2.0/24".to_owned(),
            "ip -6 route del fd42:0:0:3::/64".to_owned(),
            "ip link set pwt-wg mtu 1300".to_owned(),
            "ip addr flush dev pwt-wg".to_owned(),
            "ip link set pwt-wg down".to_owned(),
            "ip link del pwt-wg".to_owned(),
        ] {
            let words: Vec<&str> = damage.split(' ').collect();
            inside(&hosts[0].node.netns, || run(words[0], &words[1..]));
            let repaired = sync(&mut hosts, 0);
            assert!(!repaired.done.is_empty(), "{damage}");
            assert_eq!(repaired.problems, [], "{damage}");
            assert_eq!(sync(&mut hosts, 0), Report::default(), "{damage}");
            (2..=3).for_each(|to| reaches(&hosts[0], to));
        }
        // Somebody takes the port; it is named, and the node goes on when it is free again.
        ip(&hosts[0].node, "link del pwt-wg");
        let taken = inside(&hosts[0].node.netns, || UdpSocket::bind("0.0.0.0:51820"));
        let problems = sync(&mut hosts, 0).problems;
        assert!(
            problems[0].text.contains("UDP port 51820 is taken"),
            "{problems:?}"
        );
        drop(taken);
        assert_eq!(sync(&mut hosts, 0).problems, []);
        (2..=3).for_each(|to| reaches(&hosts[0], to));
    });
}

#[test]
#[ignore = "needs WireGuard in the kernel: tests/node/guest.rs runs it"]
fn nodes_restart_move_roam_and_go() {
    in_new_host(|| {
        let dir = Dir::new();
        let mut hosts = hosts(dir.path(), None);
        sync_all(&mut hosts);
        all_reach_all(&hosts);

        // A restart changes nothing: neither key nor sessions.
        let (before, shaken) = (
            key(&hosts[0]),
            wg(&hosts[0], "show pwt-wg latest-handshakes"),
        );
        hosts[0].kernel = open(&hosts[0].node, &hosts[0].settings);
        assert_eq!(sync(&mut hosts, 0), Report::default());
        assert_eq!(key(&hosts[0]), before);
        assert_eq!(wg(&hosts[0], "show pwt-wg latest-handshakes"), shaken);

        // Node 3 comes back with another address, and says so.
        ip(&hosts[2].node, "addr del 192.0.2.3/24 dev eth0");
        ip(&hosts[2].node, "addr add 192.0.2.33/24 dev eth0");
        hosts[2].node.own.addresses[0] = "192.0.2.33".parse().expect("an address");
        sync_all(&mut hosts);
        let endpoints = |hosts: &[Host]| wg(&hosts[0], "show pwt-wg endpoints");
        assert!(endpoints(&hosts).contains("192.0.2.33:51820"));
        all_reach_all(&hosts);

        // It sends from an address that it does not announce: that is where the others reach it.
        ip(&hosts[2].node, "addr add 192.0.2.44/24 dev eth0");
        for to in ["192.0.2.1", "192.0.2.2"] {
            ip(
                &hosts[2].node,
                &format!("route add {to}/32 dev eth0 src 192.0.2.44"),
            );
        }
        // A session remembers its source, so it needs a new one.
        ip(&hosts[2].node, "link del pwt-wg");
        sync(&mut hosts, 2);
        (1..=2).for_each(|to| reaches(&hosts[2], to));
        assert!(
            endpoints(&hosts).contains("192.0.2.44:51820"),
            "{}",
            endpoints(&hosts)
        );
        assert_eq!(sync(&mut hosts, 0), Report::default(), "it is left there");
        reaches(&hosts[0], 3);

        // And goes.
        let gone = hosts.pop().expect("three");
        sync_all(&mut hosts);
        assert!(!traces(&hosts[0].node).contains("10.42.3."));
        assert!(!wg(&hosts[0], "show pwt-wg peers").contains(&key(&gone).to_string()));
        for host in hosts.iter().chain([&gone]) {
            assert_ne!(traces(&host.node), "");
            let clean = || inside(&host.node.netns, || overlay::cleanup(&host.settings));
            clean().expect("cleanup");
            clean().expect("twice");
            assert_eq!(traces(&host.node), "");
            assert!(!host.settings.wireguard.key_dir.exists());
        }
    });
}

/// The nodes hear of each other as often as this.
const NEWS: Duration = Duration::from_millis(20);

#[test]
#[ignore = "needs WireGuard in the kernel: tests/node/guest.rs runs it"]
fn keys_are_replaced_below_living_connections() {
    in_new_host(|| {
        let dir = Dir::new();
        let mut hosts = hosts(dir.path(), Some(Duration::from_secs(3)));
        sync_all(&mut hosts);
        all_reach_all(&hosts);
        let first: Vec<PublicKey> = hosts.iter().map(key).collect();
        let ways = [
            ("10.42.1.1", 0, "10.42.2.1", 1),
            ("fd42:0:0:2::1", 1, "fd42:0:0:3::1", 2),
        ];
        let streams = ways.map(|(from, sender, to, receiver)| {
            let (sender, receiver) = (&hosts[sender].node.netns, &hosts[receiver].node.netns);
            Stream::start((from, sender), (to, receiver))
        });
        let begun = Instant::now();
        // Until each node has had three keys.
        let mut seen: Vec<Vec<PublicKey>> = first.iter().map(|key| vec![*key]).collect();
        let mut slowest = Duration::ZERO;
        while seen.iter().any(|keys| keys.len() < 3) {
            let round = Instant::now();
            for of in 0..hosts.len() {
                let peers = peers(&hosts, of);
                hosts[of].kernel.rotate(true).expect("a key");
                assert_eq!(sync_with(&mut hosts[of], &peers).problems, []);
                let now = key(&hosts[of]);
                if seen[of].last() != Some(&now) {
                    seen[of].push(now);
                }
            }
            assert!(
                begun.elapsed() < 4 * PATIENCE,
                "keys are as they were: {seen:?}"
            );
            std::thread::sleep(NEWS);
            slowest = slowest.max(round.elapsed());
        }
        // The last one to turn has told nobody yet.
        sync_all(&mut hosts);
        for ((from, _, to, _), stream) in ways.iter().zip(streams) {
            let flow = stream.end();
            println!("{from} to {to}, news every {slowest:?} at the latest: {flow:?}");
            assert_eq!(flow.received, flow.sent, "every byte, and in order");
            // Five seconds are the wait for a handshake that nobody answered. What is lost until the
            // other node hears, TCP sends again, later each time.
            let longest = Duration::from_secs(4) + 4 * slowest;
            assert!(flow.gap < longest, "{flow:?}");
        }
    });
}

const MANY: u32 = 300;

#[test]
#[ignore = "needs WireGuard in the kernel: tests/node/guest.rs runs it"]
fn many_peers_are_programmed_and_compared_quickly() {
    in_new_host(|| {
        let dir = Dir::new();
        let mut hosts = hosts(dir.path(), None);
        hosts[0].settings.cluster = Vec::new();
        hosts[0].kernel = open(&hosts[0].node, &hosts[0].settings);
        let far = |number| far_peer(&hosts[0].settings, number);
        // More than one message's. An emulated processor needs ten milliseconds for each key.
        let peers: Vec<Peer> = (0..MANY).map(far).collect();
        let begun = Instant::now();
        let made = sync_with(&mut hosts[0], &peers);
        let (first, begun) = (begun.elapsed(), Instant::now());
        assert_eq!(made.problems, []);
        assert_eq!(sync_with(&mut hosts[0], &peers), Report::default());
        println!("{MANY} peers: {first:?}, compared in {:?}", begun.elapsed());
        assert_eq!(wg(&hosts[0], "show pwt-wg peers").lines().count(), 300);
        assert_eq!(sync_with(&mut hosts[0], &[]).problems, []);
        assert_eq!(wg(&hosts[0], "show pwt-wg peers"), "");
    });
}

/// In the guest, where it must not be missing.
#[test]
#[ignore = "needs WireGuard in the kernel: tests/node/guest.rs runs it"]
fn this_kernel_has_wireguard() {
    in_new_host(|| {
        let links = run("ip", &["-o", "link"]);
        let tried: Result<(), OverlayError> = overlay::supported(Backend::WireGuard);
        tried.unwrap_or_else(|e| panic!("{}", report(&e)));
        assert_eq!(run("ip", &["-o", "link"]), links, "nothing is left of it");
        let own = Own::default();
        let settings = settings(Backend::None);
        let kernel = Kernel::open(settings).expect("a socket");
        assert_eq!(kernel.announcement(&own), None);
    });
}
