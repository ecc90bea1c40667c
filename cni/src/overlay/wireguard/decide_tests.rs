// SPDX-License-Identifier: Apache-2.0
//! Peers of a WireGuard link, against a model of it.

use std::net::SocketAddr;
use std::time::Duration;

use super::super::super::wireguard::{PeerSpec, SeenPeer};
use super::*;

/// A session is usable, or not any more.
const FRESH: Option<Duration> = Some(Duration::from_secs(100));
const STALE: Option<Duration> = Some(Duration::from_secs(200));

pub(super) fn device(seen: &mut Seen) -> &mut SeenDevice {
    seen.device.as_mut().expect("a WireGuard link")
}

/// What the kernel does: ranges that one peer gets are taken from the others.
pub(super) fn set_peer(seen: &mut Seen, spec: &PeerSpec) {
    let device = device(seen);
    for cidr in spec.allowed.iter().flatten() {
        for peer in device.peers.values_mut() {
            peer.allowed.remove(cidr);
        }
    }
    let peer = device.peers.entry(spec.key).or_default();
    if let Some(allowed) = &spec.allowed {
        peer.allowed.clone_from(allowed);
    }
    peer.endpoint = spec.endpoint.or(peer.endpoint);
    peer.adorned &= !spec.plain;
}

fn wireguard() -> Settings {
    settings(Backend::WireGuard)
}

/// Settled, with nodes 2 and 3.
fn whole() -> (Settings, Vec<Peer>, Seen) {
    let s = wireguard();
    let peers = vec![peer(&s, &node(2)), peer(&s, &node(3))];
    let mut seen = bare();
    assert_eq!(settle(&s, &node(1), &peers, &mut seen), []);
    (s, peers, seen)
}

fn seen_peer(seen: &mut Seen, number: u8) -> &mut SeenPeer {
    device(seen).peers.get_mut(&key(number)).expect("a peer")
}

fn endpoint(text: &str) -> Option<SocketAddr> {
    Some(text.parse().expect(text))
}

#[test]
fn a_link_and_its_peers_are_made_from_nothing() {
    let (_, _, mut seen) = whole();
    let link = seen.wireguard.clone().expect("a link");
    assert_eq!((link.mtu, link.up), (1440, true));
    assert!(seen.addresses.contains(&(8, cidr("10.42.1.0/32"))));
    assert!(seen.addresses.contains(&(8, cidr("fd42:0:0:1::/128"))));
    let expected = PathRoute {
        dst: cidr("10.42.2.0/24"),
        gateway: None,
        onlink: false,
        link: 8,
        source: Some(ip("10.42.1.0")),
    };
    assert!(seen.routes.contains(&expected) && seen.routes.len() == 4);
    let device = device(&mut seen);
    assert_eq!((device.key, device.port), (Some(key(1)), 51820));
    let node2 = &device.peers[&key(2)];
    assert_eq!(node2.endpoint, endpoint("192.0.2.2:51820"));
    let ranges = [cidr("10.42.2.0/24"), cidr("fd42:0:0:2::/64")];
    assert_eq!(node2.allowed, BTreeSet::from(ranges));
    assert!(!node2.adorned && device.peers.len() == 2);
}

#[test]
fn what_somebody_changes_is_changed_back_alone() {
    let (s, peers, whole) = whole();
    let check = |what: &str, damage: &dyn Fn(&mut Seen), steps: usize| {
        let mut seen = whole.clone();
        damage(&mut seen);
        let first = decide(&s, &node(1), &peers, &seen).steps;
        assert_eq!(first.len(), steps, "{what}: {first:?}");
        settle(&s, &node(1), &peers, &mut seen);
        seen.routes.sort();
        let mut expected = whole.clone();
        expected.routes.sort();
        assert_eq!(seen, expected, "{what}");
    };
    let stranger = SeenPeer {
        allowed: [cidr("10.42.2.0/24")].into(),
        ..SeenPeer::default()
    };
    check("no link", &|s| carry_out(s, &Step::DeleteLink(8, "")), 1);
    check("no peer", &|s| drop(device(s).peers.remove(&key(2))), 1);
    check("no key", &|s| device(s).key = None, 1);
    check("another key", &|s| device(s).key = Some(key(9)), 1);
    check("another port", &|s| device(s).port = 1, 1);
    check("a mark", &|s| device(s).mark = 1, 1);
    let some = cidr("10.42.2.0/24");
    check(
        "less",
        &|s| assert!(seen_peer(s, 2).allowed.remove(&some)),
        1,
    );
    check(
        "more",
        &|s| assert!(seen_peer(s, 2).allowed.insert(cidr("0.0.0.0/0"))),
        1,
    );
    check("a keepalive", &|s| seen_peer(s, 3).adorned = true, 1);
    check("no endpoint", &|s| seen_peer(s, 3).endpoint = None, 1);
    check("down", &|s| s.wireguard.as_mut().expect("it").up = false, 1);
    check("mtu", &|s| s.wireguard.as_mut().expect("it").mtu = 1500, 1);
    check(
        "a stranger",
        &|s| {
            seen_peer(s, 2).allowed.remove(&cidr("10.42.2.0/24"));
            device(s).peers.insert(key(66), stranger.clone());
        },
        2,
    );
}

#[test]
fn a_peer_is_left_where_its_packets_come_from() {
    let (s, peers, whole) = whole();
    let steps = |change: &dyn Fn(&mut Seen)| {
        let mut seen = whole.clone();
        change(&mut seen);
        decide(&s, &node(1), &peers, &seen).steps.len()
    };
    let roams = |s: &mut Seen, handshake| {
        let peer = seen_peer(s, 2);
        (peer.endpoint, peer.handshake) = (endpoint("198.51.100.7:4000"), handshake);
    };
    assert_eq!(steps(&|s| roams(s, FRESH)), 0);
    assert_eq!(steps(&|s| roams(s, STALE)), 1);
    assert_eq!(steps(&|s| roams(s, None)), 1);
    // After a restart nobody knows what it was told.
    let forgotten = |handshake| {
        steps(&|s| {
            s.told.clear();
            roams(s, handshake);
        })
    };
    assert_eq!((forgotten(FRESH), forgotten(STALE)), (0, 1));
    // The node says that it is elsewhere, with or without a session.
    for handshake in [FRESH, STALE, None] {
        let mut moved = node(2);
        moved.addresses[0] = ip("192.0.2.77");
        let peers = [peer(&s, &moved), peers[1].clone()];
        let mut seen = whole.clone();
        seen_peer(&mut seen, 2).handshake = handshake;
        let steps = decide(&s, &node(1), &peers, &seen).steps;
        assert!(matches!(&steps[..], [Step::SetPeer(8, _)]), "{steps:?}");
        settle(&s, &node(1), &peers, &mut seen);
        assert_eq!(
            seen_peer(&mut seen, 2).endpoint,
            endpoint("192.0.2.77:51820")
        );
    }
}

#[test]
fn a_next_key_waits_without_ranges_until_its_node_uses_it() {
    let (s, peers, mut seen) = whole();
    let mut rotating = node(2);
    let keys = rotating.keys.as_mut().expect("keys");
    keys.next = Some(key(22));
    let both = [peer(&s, &rotating), peers[1].clone()];
    settle(&s, &node(1), &both, &mut seen);
    assert_eq!(seen_peer(&mut seen, 2).allowed.len(), 2);
    let waiting = seen_peer(&mut seen, 22).clone();
    assert_eq!(
        (waiting.allowed.len(), waiting.endpoint),
        (0, endpoint("192.0.2.2:51820"))
    );
    // The node uses it: seen before it is heard, in one batch of peers.
    let ranges = seen_peer(&mut seen, 2).allowed.clone();
    seen_peer(&mut seen, 22).handshake = FRESH;
    let steps = decide(&s, &node(1), &both, &seen).steps;
    assert!(
        matches!(&steps[..], [Step::SetPeer(8, first), Step::SetPeer(8, second)]
            if first.key == key(22) && second.key == key(2)),
        "{steps:?}"
    );
    settle(&s, &node(1), &both, &mut seen);
    assert_eq!(seen_peer(&mut seen, 22).allowed, ranges);
    assert!(seen_peer(&mut seen, 2).allowed.is_empty());
    // And heard.
    rotating.keys = Some(PublicKeys {
        current: key(22),
        next: None,
    });
    let done = [peer(&s, &rotating), peers[1].clone()];
    let steps = decide(&s, &node(1), &done, &seen).steps;
    assert!(
        matches!(&steps[..], [Step::DeletePeer(8, gone)] if *gone == key(2)),
        "{steps:?}"
    );
    // Heard before it is seen: the new one first, then the old one goes.
    let (_, _, mut seen) = whole_with(&both);
    let steps = decide(&s, &node(1), &done, &seen).steps;
    assert!(
        matches!(&steps[..], [Step::SetPeer(8, new), Step::DeletePeer(8, old)]
            if new.key == key(22) && *old == key(2)),
        "{steps:?}"
    );
    settle(&s, &node(1), &done, &mut seen);
    assert_eq!(seen_peer(&mut seen, 22).allowed, ranges);
}

fn whole_with(peers: &[Peer]) -> (Settings, Vec<Peer>, Seen) {
    let s = wireguard();
    let mut seen = bare();
    assert_eq!(settle(&s, &node(1), peers, &mut seen), []);
    (s, peers.to_vec(), seen)
}

#[test]
fn keys_that_cannot_be_are_refused_by_name() {
    let s = wireguard();
    let says = |change: &dyn Fn(&mut Announcement)| {
        let mut wrong = peer(&s, &node(4));
        change(&mut wrong.announcement);
        let peers = [peer(&s, &node(3)), wrong];
        let mut seen = bare();
        let problems = settle(&s, &node(1), &peers, &mut seen);
        assert_eq!(device(&mut seen).peers.len(), 1, "the other is reached");
        assert_eq!(seen.routes.len(), 2);
        assert_eq!(problems.len(), 1, "{problems:?}");
        problems[0].to_string()
    };
    let said = |text: String| move |a: &mut Announcement| a.public_key = Some(text.clone());
    let next = |text: String| move |a: &mut Announcement| a.next_public_key = Some(text.clone());
    for (change, expected) in [
        (
            &(|a: &mut Announcement| a.public_key = None) as &dyn Fn(&mut Announcement),
            "\"\" is not a WireGuard key",
        ),
        (
            &said("rubbish".into()),
            "\"rubbish\" is not a WireGuard key",
        ),
        (&said(PublicKey([0; 32]).to_string()), "not all zero"),
        (&said(key(1).to_string()), "is that of node n1"),
        (&said(key(3).to_string()), "is that of node n3"),
        (&next(key(1).to_string()), "is that of node n1"),
        (&next(key(3).to_string()), "is that of node n3"),
        (&next("AAAA".into()), "\"AAAA\" is not a WireGuard key"),
        (&|a| a.port = None, "says no port"),
        (&|a| a.port = Some(0), "says no port"),
        (
            &|a| a.backend = "vxlan".into(),
            "uses the back end \"vxlan\"",
        ),
        (&|a| a.addresses = vec![ip("192.0.2.1")], "this node's own"),
        (&|a| a.addresses.truncate(0), "has no IPv4 address"),
    ] {
        let said = says(change);
        assert!(
            said.contains(expected) && said.starts_with("node n4: "),
            "{said}"
        );
    }
    // Another port is another node's own business.
    let mut other = peer(&s, &node(2));
    other.announcement.port = Some(7);
    let mut seen = bare();
    assert_eq!(settle(&s, &node(1), &[other], &mut seen), []);
    assert_eq!(seen_peer(&mut seen, 2).endpoint, endpoint("192.0.2.2:7"));
}

#[test]
fn each_back_end_takes_away_what_the_others_made() {
    let all = [
        Backend::Vxlan,
        Backend::WireGuard,
        Backend::HostGw,
        Backend::None,
    ];
    for from in all {
        for to in all.into_iter().filter(|to| *to != from) {
            let (before, after) = (settings(from), settings(to));
            let peers = |s: &Settings| -> Vec<Peer> {
                let said = Announcement::of(s, &node(2));
                let announced = said.map(|announcement| Peer {
                    name: "n2".into(),
                    pod_cidrs: node(2).pod_cidrs,
                    announcement,
                });
                announced.into_iter().collect()
            };
            let (mut seen, mut fresh) = (bare(), bare());
            settle(&before, &node(1), &peers(&before), &mut seen);
            settle(&after, &node(1), &peers(&after), &mut seen);
            settle(&after, &node(1), &peers(&after), &mut fresh);
            assert_eq!(seen, fresh, "{from} to {to}");
        }
    }
}

#[test]
fn a_foreign_link_of_wireguards_name_is_left_alone() {
    let s = wireguard();
    let mut seen = bare();
    seen.wireguard = Some(SeenLink {
        name: s.wireguard.link.clone(),
        kind: "bridge".into(),
        ..uplink()
    });
    let decision = decide(&s, &node(1), &[peer(&s, &node(2))], &seen);
    assert_eq!(decision.steps, []);
    assert!(decision.problems[0].text.contains("not a WireGuard link"));
    let keyless = Own {
        keys: None,
        ..node(1)
    };
    let decision = decide(&s, &keyless, &[], &bare());
    assert!(decision.steps.is_empty() && decision.problems.len() == 1);
}

/// Numbers that look random (an xorshift generator), the same for the same seed.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u8) -> u8 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        u8::try_from(self.0 % u64::from(sides)).expect("fewer sides")
    }

    fn is(&mut self, one_of: u8) -> bool {
        self.roll(one_of) == 0
    }
}

/// Nodes that announce what they like: keys and ranges of others, no keys, next keys, other ports.
fn announced(dice: &mut Dice, s: &Settings) -> Vec<Peer> {
    let mut peers = Vec::new();
    for number in 2..2 + dice.roll(6) {
        let mut other = node(number);
        let keys = other.keys.as_mut().expect("keys");
        if dice.is(3) {
            keys.next = Some(key(20 + dice.roll(8)));
        }
        if dice.is(5) {
            keys.current = key(1 + dice.roll(8));
        }
        if dice.is(6) {
            other.pod_cidrs = node(1 + dice.roll(8)).pod_cidrs;
        }
        if dice.is(8) {
            other.pod_cidrs.truncate(1);
        }
        if dice.is(6) {
            other.addresses[0] = ip(&format!("192.0.2.{}", 1 + dice.roll(9)));
        }
        let mut peer = peer(s, &other);
        if dice.is(8) {
            peer.announcement.public_key = Some("rubbish".into());
        }
        if dice.is(8) {
            peer.announcement.port = Some(u16::from(dice.roll(3)));
        }
        peers.push(peer);
    }
    peers
}

/// What may happen to a link between two looks.
fn disturb(dice: &mut Dice, seen: &mut Seen) {
    if dice.is(12) {
        carry_out(seen, &Step::DeleteLink(8, ""));
    }
    seen.routes.retain(|_| !dice.is(9));
    if dice.is(6) {
        seen.told.clear();
    }
    let Some(device) = &mut seen.device else {
        return;
    };
    if dice.is(9) {
        device.key = Some(key(dice.roll(9)));
    }
    if dice.is(9) {
        let stranger = SeenPeer {
            allowed: [cidr("10.42.3.0/24")].into(),
            ..SeenPeer::default()
        };
        for peer in device.peers.values_mut() {
            peer.allowed.remove(&cidr("10.42.3.0/24"));
        }
        device.peers.insert(key(99), stranger);
    }
    device.peers.retain(|_, _| !dice.is(9));
    for peer in device.peers.values_mut() {
        match dice.roll(8) {
            0 => peer.endpoint = endpoint("198.51.100.7:4000"),
            1 => peer.endpoint = None,
            2 => peer.allowed.clear(),
            3 => {
                peer.allowed.insert(cidr("10.99.0.0/16"));
            }
            4 => peer.adorned = true,
            5 => peer.handshake = FRESH,
            6 => peer.handshake = STALE,
            _ => {}
        }
    }
}

/// What must hold whatever the nodes say: every range has one peer, every route leads to a range
/// of a peer, and of each node at most one peer has ranges.
fn check(seen: &Seen, peers: &[Peer], problems: &[Problem]) {
    let device = seen.device.as_ref().expect("a link");
    let ranges: Vec<Cidr> = device
        .peers
        .values()
        .flat_map(|peer| peer.allowed.iter().copied())
        .collect();
    let unique: BTreeSet<Cidr> = ranges.iter().copied().collect();
    assert_eq!(unique.len(), ranges.len(), "{device:?}");
    for (index, one) in ranges.iter().enumerate() {
        let others = ranges.iter().skip(index + 1);
        assert!(others.clone().all(|other| !overlaps(*one, *other)));
    }
    let routed: BTreeSet<Cidr> = seen.routes.iter().map(|route| route.dst).collect();
    assert_eq!(routed, unique);
    assert_eq!(device.key, Some(key(1)));
    assert!(!device.peers.contains_key(&key(1)));
    assert!(device.peers.values().all(|peer| !peer.adorned));
    let with_ranges = device.peers.values().filter(|p| !p.allowed.is_empty());
    let refused: BTreeSet<_> = problems.iter().filter_map(|p| p.peer.clone()).collect();
    assert_eq!(with_ranges.count() + refused.len(), peers.len());
}

#[test]
fn random_worlds_settle_and_no_range_has_two_peers() {
    let s = wireguard();
    for seed in 1..=1_000_u64 {
        let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let mut seen = bare();
        for _ in 0..6 {
            let peers = announced(&mut dice, &s);
            let problems = settle(&s, &node(1), &peers, &mut seen);
            check(&seen, &peers, &problems);
            let again = decide(&s, &node(1), &peers, &seen);
            assert_eq!(again.steps, [], "seed {seed}");
            disturb(&mut dice, &mut seen);
        }
        settle(&settings(Backend::None), &node(1), &[], &mut seen);
        seen.told.clear();
        assert_eq!(seen, bare(), "seed {seed}");
    }
}
