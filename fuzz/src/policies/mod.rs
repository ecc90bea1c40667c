// SPDX-License-Identifier: Apache-2.0
//! NetworkPolicies as rules: whatever pods, namespaces and policies do, packets that are traced
//! through the rules fare as the API promises.

pub mod meaning;

use std::collections::BTreeMap;
use std::net::IpAddr;

use cni::attached::Attached;
use cni::cidr::Cidr;
use proxy::policy::blocks::Block;
use proxy::policy::parse::{Namespaces, Peer, PodInfo, PolicyInfo, Port, Rule};
use proxy::policy::ports::Range;
use proxy::policy::selector::{Labels, Requirement, Selector};
use proxy::policy::state::{Settings, State};
use proxy::policy::world::{Change, Key};
use proxy::service::Protocol;

use super::input::Input;
use super::services::ruleset::{Outcome, Packet, Ruleset, Tracked};
use meaning::World;

const PODS: usize = 6;
const POLICIES: usize = 5;
const NAMESPACES: [&str; 3] = ["x", "y", "z"];
const PROTOCOLS: [Protocol; 3] = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];
const NUMBERS: [u16; 6] = [53, 80, 81, 443, 8080, 65535];
const NAMES: [&str; 2] = ["web", "dns"];
const BLOCKS: [&str; 7] = [
    "0.0.0.0/0",
    "10.42.0.0/24",
    "10.42.0.0/29",
    "203.0.113.0/24",
    "203.0.113.8/30",
    "::/0",
    "fd42::/125",
];
/// Decisions of one input, so that none takes long.
const STEPS: usize = 40;

/// The input changes pods, namespaces and policies, and sends packets by turns.
pub fn check(data: &[u8]) {
    let mut input = Input(data);
    let settings = Settings {
        node: "n1".to_owned(),
        bridge: "pw0".to_owned(),
        attachments: flag(&mut input),
    };
    let mut state = State::new("t", &settings);
    let mut world = World {
        settings,
        pods: BTreeMap::new(),
        namespaces: BTreeMap::new(),
        policies: BTreeMap::new(),
        attached: BTreeMap::new(),
    };
    let mut ruleset = Ruleset::default();
    ruleset.apply(&state.full());
    for _ in 0..STEPS {
        if input.is_empty() {
            break;
        }
        let changes = (0..=input.below(3)).map(|_| change(&mut input, &mut world));
        let changes: Vec<Change> = changes.collect();
        ruleset.apply(&state.update(changes));
        for _ in 0..8 {
            probe(&mut input, &world, &ruleset);
        }
    }
    whole(&world, &mut state, &ruleset, &mut input);
}

/// What changes have made of the table is what is made from nothing, and it can be taken away.
fn whole(world: &World, state: &mut State, changed: &Ruleset, input: &mut Input<'_>) {
    let mut again = Ruleset::default();
    again.apply(&state.full());
    assert_eq!(again.count(), changed.count(), "elements are lost or left");
    assert_eq!(told(state), changed.count(), "the metrics count otherwise");
    for _ in 0..8 {
        probe(input, world, &again);
    }
    let pods = world.pods.keys().map(|key| Change::Pod(key.clone(), None));
    let policies = world.policies.keys();
    let policies = policies.map(|key| Change::Policy(key.clone(), None));
    let gone: Vec<Change> = pods.chain(policies).collect();
    again.apply(&state.update(gone));
    assert_eq!(again.count(), 0, "elements are left");
    assert_eq!(told(state), 0);
}

/// How many elements there are, as the metrics tell it.
fn told(state: &State) -> usize {
    let sizes = state.sizes();
    let counts = sizes.elements.iter().map(|(_, count)| *count);
    usize::try_from(counts.sum::<u64>()).expect("few")
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn flag(input: &mut Input<'_>) -> bool {
    input.byte() % 2 == 1
}

fn rarely(input: &mut Input<'_>) -> bool {
    input.byte() % 4 == 1
}

fn pick<T: Copy>(input: &mut Input<'_>, all: &[T]) -> T {
    all[input.below(all.len())]
}

fn change(input: &mut Input<'_>, world: &mut World) -> Change {
    match input.byte() % 8 {
        0..3 => {
            let index = input.below(PODS);
            let key = pod_key(index);
            let pod = (!rarely(input)).then(|| pod(input, index));
            match &pod {
                Some(pod) => drop(world.pods.insert(key.clone(), pod.clone())),
                None => drop(world.pods.remove(&key)),
            }
            Change::Pod(key, pod)
        }
        3 => {
            let name = pick(input, &NAMESPACES).to_owned();
            let labels = (!rarely(input)).then(|| labels(input));
            match &labels {
                Some(labels) => drop(world.namespaces.insert(name.clone(), labels.clone())),
                None => drop(world.namespaces.remove(&name)),
            }
            Change::Namespace(name, labels)
        }
        4 => {
            let index = input.below(PODS);
            let name = format!("c{index}-eth0");
            let attached = (!rarely(input)).then(|| attached(input, index));
            match &attached {
                Some(attached) => drop(world.attached.insert(name.clone(), attached.clone())),
                None => drop(world.attached.remove(&name)),
            }
            Change::Attachment(name, attached)
        }
        _ => {
            let index = input.below(POLICIES);
            let key = (NAMESPACES[index % 2].to_owned(), format!("p{index}"));
            let policy = (!rarely(input)).then(|| policy(input, &key.0));
            match &policy {
                Some(policy) => drop(world.policies.insert(key.clone(), policy.clone())),
                None => drop(world.policies.remove(&key)),
            }
            Change::Policy(key, policy)
        }
    }
}

fn pod_key(index: usize) -> Key {
    (NAMESPACES[index % 3].to_owned(), format!("pod{index}"))
}

/// Addresses of a pod are its own; conflicts have a test of their own.
fn addresses(input: &mut Input<'_>, index: usize) -> Vec<IpAddr> {
    let all = [
        format!("10.42.0.{}", index + 2),
        format!("fd42::{}", index + 2),
    ];
    let wanted = input.byte();
    let chosen = all
        .iter()
        .enumerate()
        .filter(|(bit, _)| wanted >> bit & 1 == 0);
    chosen.map(|(_, text)| ip(text)).collect()
}

fn labels(input: &mut Input<'_>) -> Labels {
    let pair = |input: &mut Input<'_>, key: &str| {
        let value = pick(input, &["", "a", "b"]);
        (!value.is_empty()).then(|| (key.into(), value.into()))
    };
    [pair(input, "app"), pair(input, "tier")]
        .into_iter()
        .flatten()
        .collect()
}

fn pod(input: &mut Input<'_>, index: usize) -> PodInfo {
    let mut ports: Vec<(Protocol, Box<str>, u16)> = (0..input.below(3))
        .map(|_| {
            (
                pick(input, &PROTOCOLS),
                pick(input, &NAMES).into(),
                pick(input, &NUMBERS),
            )
        })
        .collect();
    ports.sort_unstable();
    ports.dedup();
    PodInfo {
        uids: ["u0".into()].into(),
        node: pick(input, &["n1", "n1", "n2", ""]).into(),
        labels: labels(input),
        ips: addresses(input, index).into(),
        ports: ports.into(),
    }
}

fn attached(input: &mut Input<'_>, index: usize) -> Attached {
    let (pod_namespace, pod_name) = pod_key(index);
    Attached {
        pod_namespace,
        pod_name,
        pod_uid: pick(input, &["u0", "u0", "u0", "gone"]).to_owned(),
        ips: addresses(input, index),
    }
}

fn selector(input: &mut Input<'_>) -> Selector {
    let mut selector = Selector::default();
    if flag(input) {
        let key = pick(input, &["app", "tier"]).into();
        selector.equal = [(key, pick(input, &["a", "b"]).into())].into();
    }
    if rarely(input) {
        let values = || -> Box<[Box<str>]> { ["a".into()].into() };
        let requirement = match input.byte() % 4 {
            0 => Requirement::In(values()),
            1 => Requirement::NotIn(values()),
            2 => Requirement::Exists,
            _ => Requirement::DoesNotExist,
        };
        selector.rules = [(pick(input, &["app", "tier"]).into(), requirement)].into();
    }
    selector
}

fn policy(input: &mut Input<'_>, own: &str) -> PolicyInfo {
    let rules = |input: &mut Input<'_>| -> Option<Box<[Rule]>> {
        flag(input).then(|| (0..input.below(3)).map(|_| rule(input, own)).collect())
    };
    PolicyInfo {
        ingress: rules(input),
        egress: rules(input),
        pods: (!rarely(input) || flag(input)).then(|| selector(input)),
        problems: Vec::new(),
    }
}

fn rule(input: &mut Input<'_>, own: &str) -> Rule {
    let peers: Vec<Peer> = (0..input.below(3)).map(|_| peer(input, own)).collect();
    let ports = flag(input).then(|| (0..input.below(3)).map(|_| port(input)).collect());
    Rule {
        peers: if peers.is_empty() && flag(input) {
            [Peer::Everyone].into()
        } else {
            peers.into()
        },
        ports,
    }
}

fn peer(input: &mut Input<'_>, own: &str) -> Peer {
    match input.byte() % 4 {
        0 => Peer::Pods(Namespaces::One(own.into()), selector(input)),
        1 => Peer::Pods(Namespaces::Selected(selector(input)), selector(input)),
        _ => {
            let cidr =
                |input: &mut Input<'_>| pick(input, &BLOCKS).parse::<Cidr>().expect("a CIDR");
            Peer::Block(Block {
                cidr: cidr(input),
                except: (0..input.below(3)).map(|_| cidr(input)).collect(),
            })
        }
    }
}

fn port(input: &mut Input<'_>) -> Port {
    let protocol = pick(input, &PROTOCOLS);
    let range = |first: u16, last: u16| {
        Port::Numbers(Range {
            protocol,
            first: first.min(last),
            last: first.max(last),
        })
    };
    match input.byte() % 4 {
        0 => Port::Named(protocol, pick(input, &NAMES).into()),
        1 => range(pick(input, &NUMBERS), pick(input, &NUMBERS)),
        2 => range(0, u16::MAX),
        _ => {
            let number = pick(input, &NUMBERS);
            range(number, number)
        }
    }
}

fn probe(input: &mut Input<'_>, world: &World, ruleset: &Ruleset) {
    let v6 = rarely(input);
    let end = |input: &mut Input<'_>| {
        let pod = input.below(PODS + 1) + 2;
        let (pod, outside) = if v6 {
            (format!("fd42::{pod}"), ["2001:db8::9", "fd42::1"])
        } else {
            (format!("10.42.0.{pod}"), ["203.0.113.9", "198.51.100.7"])
        };
        ip(if rarely(input) {
            pick(input, &outside)
        } else {
            &pod
        })
    };
    let (src, dst) = (end(input), end(input));
    let protocol = pick(input, &[6, 6, 17, 132, 1]);
    // Translated on its way: the header has another address than the connection will have.
    let dport = pick(input, &NUMBERS);
    let answer = flag(input);
    let tracked = if input.byte().is_multiple_of(16) {
        Tracked::Nothing
    } else {
        Tracked::Known { src, dst, dport }
    };
    let link = |input: &mut Input<'_>| pick(input, &["eth0", "eth0", "pw0"]).to_owned();
    let packet = Packet {
        src: if answer { dst } else { src },
        dst: if answer { src } else { dst },
        protocol,
        dport: if answer { 40_000 } else { dport },
        iif: link(input),
        oif: link(input),
        from_local: false,
        to_local: false,
        original: None,
        tracked,
        random: 0,
    };
    let outcome = ruleset.trace("forward", &packet);
    let expected = if world.passes(&packet) {
        Outcome::Accept
    } else {
        Outcome::Drop
    };
    assert_eq!(outcome, expected, "{packet:?}");
}
