// SPDX-License-Identifier: Apache-2.0
//! Services as rules: whatever Services and endpoints do, packets that are traced through the rules
//! fare as the API promises.

pub mod meaning;
pub mod ruleset;

use std::collections::BTreeSet;
use std::net::IpAddr;

use cni::cidr::Cidr;
use proxy::compile::compile;
use proxy::parse::{EndpointInfo, PortInfo, ServiceInfo, SliceInfo};
use proxy::rules::{LocalDetect, Settings};
use proxy::service::{Node, Protocol, ServiceRules};
use proxy::state::{ServiceKey, State};

use super::input::Input;
use meaning::World;
use ruleset::{Fate, Packet, Ruleset, Tracked};

const SERVICES: usize = 4;
/// Decisions of one input, so that none takes long.
const STEPS: usize = 40;
const PROTOCOLS: [Protocol; 3] = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];

/// The input decides about the node, then changes Services and sends packets by turns.
pub fn check(data: &[u8]) {
    let mut input = Input(data);
    let mut world = World {
        node: Node {
            zone: ["", "z1", "z2"][input.below(3)].to_owned(),
            ..Node::named("n1", &[ip("192.0.2.1"), ip("2001:db8::1")])
        },
        settings: settings(&mut input),
        services: vec![None; SERVICES],
    };
    let mut state = State::new("t", world.settings.clone());
    let mut ruleset = Ruleset::default();
    ruleset.apply(&state.full().transaction);
    for _ in 0..STEPS {
        if input.is_empty() {
            break;
        }
        change(&mut input, &mut world, &mut state, &mut ruleset);
        for _ in 0..4 {
            probe(&mut input, &world, &ruleset);
        }
    }
    whole(&world, &mut state, &ruleset, &mut input);
}

/// What changes have made of the table is what is made from nothing, and it can be taken away.
fn whole(world: &World, state: &mut State, changed: &Ruleset, input: &mut Input<'_>) {
    let mut again = Ruleset::default();
    again.apply(&state.full().transaction);
    assert_eq!(again.count(), changed.count(), "elements are lost or left");
    for _ in 0..4 {
        probe(input, world, &again);
    }
    let gone = (0..SERVICES).map(|index| (key(index), None)).collect();
    again.apply(&state.update(gone).transaction);
    assert_eq!(again.count(), 0, "elements are left");
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn cidr(text: &str) -> Cidr {
    text.parse().expect("a CIDR")
}

fn key(index: usize) -> ServiceKey {
    ("ns".to_owned(), format!("s{index}"))
}

fn flag(input: &mut Input<'_>) -> bool {
    input.byte() % 2 == 1
}

fn rarely(input: &mut Input<'_>) -> bool {
    input.byte() % 4 == 1
}

fn settings(input: &mut Input<'_>) -> Settings {
    let local = match input.byte() % 5 {
        0 => LocalDetect::Cidrs(vec![]),
        1 => LocalDetect::Cidrs(vec![cidr("10.42.0.0/16")]),
        2 => LocalDetect::Interface("pw0".to_owned()),
        3 => LocalDetect::InterfacePrefix("pw".to_owned()),
        _ => LocalDetect::Cidrs(vec![cidr("10.42.0.0/16"), cidr("fd42::/16")]),
    };
    let node_ports = match input.byte() % 4 {
        0 => vec![cidr("0.0.0.0/0"), cidr("::/0")],
        1 => vec![cidr("192.0.0.0/8"), cidr("127.0.0.0/8")],
        _ => vec![cidr("192.0.2.1/32"), cidr("2001:db8::1/128")],
    };
    Settings {
        local,
        node_ports,
        masquerade_all: rarely(input),
        strict: rarely(input),
    }
}

fn change(input: &mut Input<'_>, world: &mut World, state: &mut State, ruleset: &mut Ruleset) {
    let mut changes = Vec::new();
    for _ in 0..=input.below(2) {
        let index = input.below(SERVICES);
        world.services[index] = match (input.byte() % 8, world.services[index].take()) {
            (0, _) => None,
            (1..4, Some((service, _))) => Some((service, slices(input))),
            _ => Some((service(input, index), slices(input))),
        };
        let rules = world.services[index]
            .as_ref()
            .map(|(service, slices)| compile(service, slices, &world.node));
        changes.push((key(index), rules));
    }
    let changes: Vec<(ServiceKey, Option<ServiceRules>)> = changes;
    ruleset.apply(&state.update(changes).transaction);
}

/// Addresses and ports of each Service are its own; conflicts have a test of their own.
fn service(input: &mut Input<'_>, index: usize) -> ServiceInfo {
    let both = |v4: String, v6: String, which: u8| -> Box<[IpAddr]> {
        match which % 3 {
            0 => [ip(&v4)].into(),
            1 => [ip(&v6)].into(),
            _ => [ip(&v4), ip(&v6)].into(),
        }
    };
    let some = |input: &mut Input<'_>, ips: [String; 3]| -> Box<[IpAddr]> {
        let wanted = input.byte();
        let chosen = ips
            .iter()
            .enumerate()
            .filter(|(bit, _)| wanted >> bit & 1 == 1);
        chosen.map(|(_, text)| ip(text)).collect()
    };
    let of = |last: usize| {
        [
            format!("198.51.100.1{index}{last}"),
            format!("2001:db8:100::{index}{last}"),
            format!("198.51.100.1{index}9"),
        ]
    };
    let ports = (0..=input.below(3)).map(|number| PortInfo {
        name: ["", "a", "b"][number].into(),
        protocol: PROTOCOLS[input.below(3)],
        port: u16::try_from(80 + number).expect("small"),
        node_port: flag(input).then(|| u16::try_from(30_000 + index * 10 + number).expect("small")),
    });
    let ports: Box<[PortInfo]> = ports.collect();
    ServiceInfo {
        ports,
        cluster_ips: both(
            format!("10.43.0.{index}"),
            format!("fd43::{index}"),
            input.byte(),
        ),
        external_ips: some(input, of(1)),
        balancer_ips: some(input, of(2)),
        sources: rarely(input).then(|| sources(input).into()),
        affinity: rarely(input).then(|| 1 + u32::from(input.byte() % 2)),
        internal_local: rarely(input),
        external_local: flag(input),
        health_port: None,
        problems: Vec::new(),
    }
}

fn sources(input: &mut Input<'_>) -> Vec<Cidr> {
    let all = [
        "203.0.113.0/24",
        "10.42.0.0/24",
        "192.0.2.0/24",
        "2001:db8:f::/48",
        "0.0.0.0/0",
    ];
    let wanted = input.byte();
    let chosen = all
        .iter()
        .enumerate()
        .filter(|(bit, _)| wanted >> bit & 1 == 1);
    chosen.map(|(_, text)| cidr(text)).collect()
}

fn slices(input: &mut Input<'_>) -> Vec<SliceInfo> {
    let mood = usize::from(input.byte());
    (0..input.below(4)).map(|_| slice(input, mood)).collect()
}

/// What slices say of an endpoint hangs on the endpoint and the mood of the moment, so that two
/// slices with the same one agree.
fn slice(input: &mut Input<'_>, mood: usize) -> SliceInfo {
    let v6 = flag(input);
    let protocol = PROTOCOLS[input.below(3)];
    let port = |name: &str, number| (Box::from(name), protocol, number);
    let ports = [port("", 8080), port("a", 8081), port("b", 8082)];
    let endpoint = |input: &mut Input<'_>| {
        let last = input.below(6);
        let local = last < 3;
        let text = if v6 {
            format!("fd42::{last}")
        } else {
            format!("10.42.0.{last}")
        };
        let state = (mood % 4 * last + mood / 4) % 4;
        let hints = |all: [&str; 2], which: u8| -> Box<[Box<str>]> {
            let chosen = all
                .into_iter()
                .enumerate()
                .filter(|(bit, _)| which >> bit & 1 == 1);
            chosen.map(|(_, name)| name.into()).collect()
        };
        let hint = if mood > 128 {
            last % 3 + mood / 16 % 2
        } else {
            0
        };
        let hint = u8::try_from(hint).expect("small");
        EndpointInfo {
            addr: ip(&text),
            local,
            ready: state < 2,
            fallback: state == 2,
            zones: hints(["z1", "z2"], hint),
            nodes: hints(["n1", "n2"], if hint == 3 { 1 } else { 0 }),
        }
    };
    let mut endpoints: Vec<EndpointInfo> = (0..input.below(5)).map(|_| endpoint(input)).collect();
    endpoints.sort_by_key(|e| e.addr);
    endpoints.dedup_by_key(|e| e.addr);
    SliceInfo {
        service: "s".into(),
        ports: ports.into(),
        endpoints: endpoints.into(),
    }
}

fn packet(input: &mut Input<'_>) -> Packet {
    let v6 = flag(input);
    let digit = input.below(SERVICES);
    let (pods, hosts, host) = if v6 {
        (
            format!("fd42::{}", input.below(6)),
            "2001:db8:f::9",
            "2001:db8::1",
        )
    } else {
        (
            format!("10.42.0.{}", input.below(6)),
            "203.0.113.9",
            "192.0.2.1",
        )
    };
    let cluster = |digit| {
        if v6 {
            format!("fd43::{digit}")
        } else {
            format!("10.43.0.{digit}")
        }
    };
    let loopback = if v6 { "::1" } else { "127.0.0.1" };
    let (src, iif) = match input.byte() % 8 {
        0..3 => (pods, ["pw0", "pw0123"][input.below(2)]),
        3..5 => (hosts.to_owned(), "eth0"),
        5 => (host.to_owned(), ""),
        6 => (loopback.to_owned(), ["", "eth0"][input.below(2)]),
        _ => (cluster(input.below(SERVICES)), ["eth0", ""][input.below(2)]),
    };
    let external = |last: usize| {
        if v6 {
            format!("2001:db8:100::{digit}{last}")
        } else {
            format!("198.51.100.1{digit}{last}")
        }
    };
    let dst = match input.byte() % 8 {
        0..2 => cluster(digit),
        2 => external(1),
        3 => external(2),
        4 => external(9),
        5 => loopback.to_owned(),
        _ => host.to_owned(),
    };
    let number = u16::try_from(input.below(3)).expect("small");
    let at_node = dst == host || dst == loopback;
    let node_port = 30_000 + u16::try_from(digit).expect("small") * 10 + number;
    Packet {
        from_local: src == host || src == loopback,
        to_local: at_node,
        src: ip(&src),
        dst: ip(&dst),
        protocol: PROTOCOLS[input.below(3)].number(),
        dport: if at_node { node_port } else { 80 + number },
        iif: iif.to_owned(),
        oif: String::new(),
        original: None,
        tracked: Tracked::New,
        random: 0,
    }
}

/// Send a packet, and then one for each endpoint that it may be led to.
fn probe(input: &mut Input<'_>, world: &World, ruleset: &Ruleset) {
    let packet = packet(input);
    let expected = world.fates(&packet);
    let of = |random| {
        ruleset.fate(&Packet {
            random,
            ..packet.clone()
        })
    };
    let count = u32::try_from(distinct(&expected).len()).expect("few");
    let fates: Vec<Fate> = (0..count).map(of).collect();
    for fate in &fates {
        assert!(
            expected.contains(fate),
            "{packet:?} is {fate:?}, not {expected:?}"
        );
    }
    let seen = distinct(&fates).len();
    if seen != distinct(&expected).len() {
        // Only one that keeps its endpoint sees less than all, and then it sees one.
        let keeps = world
            .services
            .iter()
            .flatten()
            .any(|(s, _)| s.affinity.is_some());
        assert!(
            keeps && seen == 1,
            "{packet:?} sees {fates:?} of {expected:?}"
        );
    }
}

fn distinct(fates: &[Fate]) -> BTreeSet<String> {
    fates.iter().map(|fate| format!("{fate:?}")).collect()
}
