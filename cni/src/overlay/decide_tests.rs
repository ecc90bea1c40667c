// SPDX-License-Identifier: Apache-2.0
//! The core against a model of the kernel.

use super::super::Announcement;
use super::super::model::SeenVxlan;
use super::super::wireguard::{PublicKeys, SeenDevice, WireGuard};
use super::*;

#[path = "wireguard/decide_tests.rs"]
mod wireguard;

const UPLINK: u32 = 2;

fn cidr(text: &str) -> Cidr {
    text.parse().expect(text)
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect(text)
}

fn settings(backend: Backend) -> Settings {
    Settings {
        backend,
        link: Settings::LINK.into(),
        vni: 1,
        port: 8472,
        wireguard: WireGuard::usual("/nonexistent"),
        cluster: vec![cidr("10.42.0.0/16"), cidr("fd42::/48")],
        bridge: "pw0".into(),
        nft_table: "podwright".into(),
    }
}

fn node(number: u8) -> Own {
    Own {
        name: format!("n{number}"),
        addresses: vec![
            ip(&format!("192.0.2.{number}")),
            ip(&format!("2001:db8::{number}")),
        ],
        pod_cidrs: vec![
            cidr(&format!("10.42.{number}.0/24")),
            cidr(&format!("fd42:0:0:{number}::/64")),
        ],
        keys: Some(PublicKeys {
            current: key(number),
            next: None,
        }),
    }
}

fn key(number: u8) -> PublicKey {
    PublicKey([number; 32])
}

fn peer(settings: &Settings, node: &Own) -> Peer {
    Peer {
        name: node.name.clone(),
        pod_cidrs: node.pod_cidrs.clone(),
        announcement: Announcement::of(settings, node).expect("a part"),
    }
}

fn uplink() -> SeenLink {
    SeenLink {
        index: UPLINK,
        name: "eth0".into(),
        kind: String::new(),
        up: true,
        mtu: 1500,
        mac: None,
        vxlan: None,
    }
}

/// A host with an uplink and nothing else.
fn bare() -> Seen {
    Seen {
        uplink: Some(uplink()),
        addresses: vec![
            (UPLINK, cidr("192.0.2.1/24")),
            (UPLINK, cidr("2001:db8::1/64")),
        ],
        ..Seen::default()
    }
}

/// What the kernel does with a step.
fn carry_out(seen: &mut Seen, step: &Step) {
    match step {
        Step::DeleteLink(index, _) => {
            for link in [&mut seen.own, &mut seen.wireguard] {
                link.take_if(|link| link.index == *index);
            }
            if seen.wireguard.is_none() {
                seen.device = None;
            }
            seen.addresses.retain(|(at, _)| at != index);
            seen.routes.retain(|r| r.link != *index);
            seen.neighbours.clear();
            seen.forward.clear();
        }
        Step::SetUntracked(port) => {
            seen.untracked = port.map(untracked::chains).unwrap_or_default();
        }
        Step::AddVxlan(spec) => {
            seen.own = Some(SeenLink {
                index: 9,
                name: spec.name.clone(),
                kind: "vxlan".into(),
                up: false,
                mtu: spec.mtu,
                mac: Some(spec.mac),
                vxlan: Some(SeenVxlan {
                    vni: spec.vni,
                    port: spec.port,
                    local: Some(spec.local),
                    learning: false,
                }),
            });
        }
        Step::AddWireGuard(name, mtu) => {
            seen.wireguard = Some(SeenLink {
                index: 8,
                name: name.clone(),
                kind: "wireguard".into(),
                up: false,
                mtu: *mtu,
                mac: None,
                vxlan: None,
            });
            seen.device = Some(SeenDevice::default());
        }
        Step::SetKey(_, key) => wireguard::device(seen).key = Some(*key),
        Step::SetSocket(_, port) => {
            let device = wireguard::device(seen);
            (device.port, device.mark) = (*port, 0);
        }
        Step::SetPeer(_, spec) => wireguard::set_peer(seen, spec),
        Step::DeletePeer(_, key) => {
            wireguard::device(seen).peers.remove(key);
        }
        Step::SetMtu(index, mtu) => {
            let links = [&mut seen.own, &mut seen.wireguard, &mut seen.bridge];
            for link in links.into_iter().flatten().filter(|l| l.index == *index) {
                link.mtu = *mtu;
            }
        }
        Step::SetMac(_, mac) => seen.own.as_mut().expect("a link").mac = Some(*mac),
        Step::SetUp(index) => {
            let links = [&mut seen.own, &mut seen.wireguard];
            for link in links.into_iter().flatten().filter(|l| l.index == *index) {
                link.up = true;
            }
        }
        Step::AddAddress(link, cidr) => seen.addresses.push((*link, *cidr)),
        Step::DeleteAddress(link, cidr) => seen.addresses.retain(|a| *a != (*link, *cidr)),
        Step::SetNeighbour(_, new) => {
            seen.neighbours.retain(|n| n.address != new.address);
            seen.neighbours.push(*new);
        }
        Step::DeleteNeighbour(_, old) => seen.neighbours.retain(|n| n != old),
        Step::SetForward(_, new) => {
            if let Some(first) = seen.forward.iter_mut().find(|e| e.mac == new.mac) {
                *first = *new;
            } else {
                seen.forward.push(*new);
            }
        }
        Step::DeleteForward(_, old) => seen.forward.retain(|e| e != old),
        Step::AddRoute(route) => {
            assert!(!seen.routes.iter().any(|r| r.dst == route.dst), "{route}");
            seen.routes.push(*route);
        }
        Step::DeleteRoute(route) => seen.routes.retain(|r| r != route),
    }
}

/// Decides and carries out until nothing is left, which takes few rounds, and returns the problems.
fn settle(settings: &Settings, own: &Own, peers: &[Peer], seen: &mut Seen) -> Vec<Problem> {
    for _ in 0..4 {
        let decision = decide(settings, own, peers, seen);
        if decision.steps.is_empty() {
            return decision.problems;
        }
        for step in &decision.steps {
            carry_out(seen, step);
        }
        seen.told = decision.told;
    }
    panic!(
        "still steps: {:?}",
        decide(settings, own, peers, seen).steps
    );
}

#[test]
fn vxlan_is_made_from_nothing_and_then_left_alone() {
    let s = settings(Backend::Vxlan);
    let peers = [peer(&s, &node(2)), peer(&s, &node(3))];
    let mut seen = bare();
    assert_eq!(settle(&s, &node(1), &peers, &mut seen), []);
    let link = seen.own.as_ref().expect("a link");
    assert_eq!(
        (link.mtu, link.up, link.mac),
        (1450, true, Some(mac_of("n1")))
    );
    assert!(seen.addresses.contains(&(9, cidr("10.42.1.0/32"))));
    assert!(seen.addresses.contains(&(9, cidr("fd42:0:0:1::/128"))));
    assert_eq!((seen.routes.len(), seen.neighbours.len()), (4, 4));
    let expected = PathRoute {
        dst: cidr("10.42.2.0/24"),
        gateway: Some(ip("10.42.2.0")),
        onlink: true,
        link: 9,
        source: Some(ip("10.42.1.0")),
    };
    assert!(seen.routes.contains(&expected), "{:?}", seen.routes);
    let node3 = ForwardEntry {
        mac: mac_of("n3"),
        node: ip("192.0.2.3"),
    };
    assert!(seen.forward.contains(&node3) && seen.forward.len() == 2);
}

#[test]
fn whatever_is_taken_away_comes_back_alone() {
    let s = settings(Backend::Vxlan);
    let peers = [peer(&s, &node(2)), peer(&s, &node(3))];
    let mut whole = bare();
    settle(&s, &node(1), &peers, &mut whole);
    let check = |what: &str, damage: &dyn Fn(&mut Seen), steps: usize| {
        let mut seen = whole.clone();
        damage(&mut seen);
        let first = decide(&s, &node(1), &peers, &seen).steps.len();
        assert_eq!(first, steps, "{what}");
        settle(&s, &node(1), &peers, &mut seen);
        let sorted = |seen: &Seen| {
            let mut seen = seen.clone();
            seen.routes.sort();
            seen.forward.sort();
            seen.neighbours.sort();
            seen.addresses.sort();
            seen
        };
        assert_eq!(sorted(&seen), sorted(&whole), "{what}");
    };
    check(
        "a route",
        &|s| {
            s.routes.pop();
        },
        1,
    );
    check(
        "a neighbour",
        &|s| {
            s.neighbours.pop();
        },
        1,
    );
    check(
        "an entry",
        &|s| {
            s.forward.pop();
        },
        1,
    );
    check(
        "an address",
        &|s| {
            s.addresses.pop();
        },
        1,
    );
    check("the link", &|s| carry_out(s, &Step::DeleteLink(9, "")), 1);
    check("its mtu", &|s| s.own.as_mut().expect("it").mtu = 1500, 1);
    check("up", &|s| s.own.as_mut().expect("it").up = false, 1);
    check(
        "its address",
        &|s| s.own.as_mut().expect("it").mac = None,
        1,
    );
    let flood = ForwardEntry {
        mac: Mac([0; 6]),
        node: ip("192.0.2.66"),
    };
    check("no flooding", &|s| s.forward.push(flood), 1);
    let learning = |s: &mut Seen| {
        let link = s.own.as_mut().expect("it");
        link.vxlan.as_mut().expect("parameters").learning = true;
    };
    check("no learning", &learning, 2);
    check("a rule", &|s| drop(s.untracked.pop()), 1);
}

#[test]
fn a_node_that_moves_is_followed_and_one_that_goes_is_forgotten() {
    let s = settings(Backend::Vxlan);
    let mut moved = node(2);
    let mut seen = bare();
    settle(&s, &node(1), &[peer(&s, &moved)], &mut seen);
    moved.addresses[0] = ip("192.0.2.77");
    let peers = [peer(&s, &moved)];
    let steps = decide(&s, &node(1), &peers, &seen).steps;
    assert!(matches!(steps[..], [Step::SetForward(9, _)]), "{steps:?}");
    settle(&s, &node(1), &peers, &mut seen);
    assert_eq!(seen.forward[0].node, ip("192.0.2.77"));
    settle(&s, &node(1), &[], &mut seen);
    assert!(seen.routes.is_empty() && seen.forward.is_empty() && seen.neighbours.is_empty());
}

#[test]
fn host_gw_routes_to_the_node_and_refuses_far_ones() {
    let s = settings(Backend::HostGw);
    let mut far = node(3);
    far.addresses[0] = ip("198.51.100.3");
    let peers = [peer(&s, &node(2)), peer(&s, &far)];
    let mut seen = bare();
    let problems = settle(&s, &node(1), &peers, &mut seen);
    assert_eq!(problems.len(), 1);
    assert_eq!(
        problems[0].to_string(),
        "node n3: its address 198.51.100.3 is on none of this node's subnets; host-gw needs a common one, vxlan and wireguard do not"
    );
    let gateways: Vec<_> = seen.routes.iter().filter_map(|r| r.gateway).collect();
    assert!(gateways.contains(&ip("192.0.2.2")) && gateways.contains(&ip("2001:db8::2")));
    // The far node's IPv6 address is near.
    assert_eq!(gateways.len(), 3);
    assert!(seen.own.is_none());
}

#[test]
fn another_back_end_takes_away_what_the_last_one_made() {
    let (vxlan, direct, none) = (
        settings(Backend::Vxlan),
        settings(Backend::HostGw),
        settings(Backend::None),
    );
    let mut seen = bare();
    settle(&vxlan, &node(1), &[peer(&vxlan, &node(2))], &mut seen);
    settle(&direct, &node(1), &[peer(&direct, &node(2))], &mut seen);
    assert!(seen.own.is_none() && seen.routes.len() == 2);
    settle(&none, &node(1), &[peer(&direct, &node(2))], &mut seen);
    assert_eq!(seen, bare());
}

#[test]
fn the_mtu_follows_the_uplink_on_link_and_bridge() {
    let s = settings(Backend::Vxlan);
    let mut seen = bare();
    seen.bridge = Some(SeenLink {
        index: 5,
        kind: "bridge".into(),
        ..uplink()
    });
    settle(&s, &node(1), &[], &mut seen);
    seen.uplink.as_mut().expect("it").mtu = 9000;
    settle(&s, &node(1), &[], &mut seen);
    assert_eq!(seen.own.expect("it").mtu, 8950);
    assert_eq!(seen.bridge.expect("it").mtu, 8950);
}

#[test]
fn nodes_that_cannot_be_are_refused_by_name() {
    let s = settings(Backend::Vxlan);
    let says = |change: &dyn Fn(&mut Peer)| {
        let mut wrong = peer(&s, &node(2));
        change(&mut wrong);
        let mut seen = bare();
        let good = peer(&s, &node(3));
        let problems = settle(&s, &node(1), &[good, wrong], &mut seen);
        assert_eq!(seen.forward.len(), 1, "the other node is reached");
        assert_eq!(problems.len(), 1);
        problems[0].to_string()
    };
    let range = |text: &'static str| move |p: &mut Peer| p.pod_cidrs = vec![cidr(text)];
    for (change, expected) in [
        (
            &range("0.0.0.0/0") as &dyn Fn(&mut Peer),
            "in none of the cluster's",
        ),
        (&range("10.42.1.128/25"), "overlaps 10.42.1.0/24 of node n1"),
        (
            &|p: &mut Peer| p.announcement.backend = "host-gw".into(),
            "uses the back end \"host-gw\"",
        ),
        (
            &|p: &mut Peer| p.announcement.vni = Some(7),
            "uses vni 7 on port 8472",
        ),
        (
            &|p: &mut Peer| p.announcement.mac = None,
            "is not a hardware address",
        ),
        (
            &|p: &mut Peer| p.announcement.mac = Some(mac_of("n1").to_string()),
            "is that of node n1",
        ),
        (
            &|p: &mut Peer| p.announcement.addresses = vec![ip("192.0.2.1")],
            "this node's own",
        ),
        (
            &|p: &mut Peer| p.announcement.addresses = vec![ip("127.0.0.1")],
            "no node's",
        ),
        (
            &|p: &mut Peer| p.announcement.addresses = vec![ip("2001:db8::2")],
            "has no IPv4 address",
        ),
        (
            &|p: &mut Peer| p.announcement.addresses = vec![ip("10.42.2.5")],
            "contains node address 10.42.2.5",
        ),
    ] {
        let said = says(change);
        assert!(
            said.contains(expected) && said.starts_with("node n2: "),
            "{said}"
        );
    }
    // The second of two with one range, by name.
    let mut twin = node(4);
    twin.pod_cidrs = node(2).pod_cidrs;
    let peers = [peer(&s, &twin), peer(&s, &node(2))];
    let problems = settle(&s, &node(1), &peers, &mut bare());
    assert!(
        problems[0]
            .to_string()
            .starts_with("node n4: its pod range")
    );
}

#[test]
fn a_foreign_link_of_the_name_is_left_alone() {
    let s = settings(Backend::Vxlan);
    let mut seen = bare();
    seen.own = Some(SeenLink {
        name: s.link.clone(),
        kind: "bridge".into(),
        ..uplink()
    });
    let decision = decide(&s, &node(1), &[peer(&s, &node(2))], &seen);
    assert_eq!(decision.steps, []);
    assert!(decision.problems[0].text.contains("not a VXLAN link"));
    let none = decide(&settings(Backend::None), &node(1), &[], &seen);
    assert_eq!(none, Decision::default());
}
