// SPDX-License-Identifier: Apache-2.0
//! A packet traced through a computed transaction, without a kernel: the rules and elements are
//! interpreted as nf_tables does.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use cni::nft::{
    CmpOp, Command, CtKey, Data, Expr, MetaKey, PayloadBase, Register, Reject, Transaction, Verdict,
};
use proxy::state::State;
use serde_json::json;

use crate::objects::{CLUSTER_IP, key, ready};

#[derive(Debug, Clone, Copy)]
struct Packet {
    src: Ipv4Addr,
    dst: Ipv4Addr,
    protocol: u8,
    dport: u16,
    /// Destination as the client sent it, once it has been translated.
    original: Option<(Ipv4Addr, u16)>,
    random: u32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Outcome {
    Accept,
    Drop,
    Masquerade,
    Reject(Reject),
    Dnat(Ipv4Addr, u16),
}

enum Step {
    Next,
    Verdict(Verdict),
    Done(Outcome),
}

#[derive(Default)]
struct Ruleset {
    rules: BTreeMap<String, Vec<Vec<Expr>>>,
    elements: BTreeMap<(String, Vec<u8>), Option<Data>>,
}

/// Sixteen registers of four bytes.
struct Registers([u8; 64]);

impl Registers {
    fn at(&self, register: Register) -> &[u8] {
        &self.0[usize::from(register.0) * 4..]
    }

    fn set(&mut self, register: Register, bytes: &[u8]) {
        let start = usize::from(register.0) * 4;
        self.0[start..start + bytes.len().next_multiple_of(4)].fill(0);
        self.0[start..start + bytes.len()].copy_from_slice(bytes);
    }
}

impl Ruleset {
    fn apply(&mut self, transaction: &Transaction) {
        for command in &transaction.commands {
            match command {
                Command::DeleteTable => *self = Ruleset::default(),
                Command::AddRule { chain, exprs } => {
                    self.rules
                        .entry(chain.clone())
                        .or_default()
                        .push(exprs.clone());
                }
                Command::AddElements { set, elements } => {
                    for e in elements {
                        let old = self
                            .elements
                            .insert((set.clone(), e.key.clone()), e.data.clone());
                        assert!(old.is_none() || old == Some(e.data.clone()), "EEXIST {e}");
                    }
                }
                Command::DeleteElements { set, keys } => {
                    for key in keys {
                        let old = self.elements.remove(&(set.clone(), key.clone()));
                        assert!(old.is_some(), "ENOENT {set} {key:?}");
                    }
                }
                _ => {}
            }
        }
    }

    fn trace(&self, chain: &str, packet: &Packet) -> Outcome {
        self.walk(chain, packet).unwrap_or(Outcome::Accept)
    }

    /// `None`: the chain came to its end.
    fn walk(&self, chain: &str, packet: &Packet) -> Option<Outcome> {
        for rule in &self.rules[chain] {
            match self.rule(rule, packet) {
                Step::Next => {}
                Step::Done(outcome) => return Some(outcome),
                Step::Verdict(Verdict::Accept) => return Some(Outcome::Accept),
                Step::Verdict(Verdict::Drop) => return Some(Outcome::Drop),
                Step::Verdict(Verdict::Return) => return None,
                Step::Verdict(Verdict::Goto(to)) => return self.walk(&to, packet),
                Step::Verdict(Verdict::Jump(to)) => {
                    if let Some(outcome) = self.walk(&to, packet) {
                        return Some(outcome);
                    }
                }
            }
        }
        None
    }

    /// The element whose key begins at a register; the keys of one set have one length.
    fn lookup(&self, set: &str, registers: &[u8]) -> Option<&Option<Data>> {
        let (_, first) = self.elements.keys().find(|(name, _)| name == set)?;
        self.elements
            .get(&(set.to_owned(), registers[..first.len()].to_vec()))
    }

    fn rule(&self, exprs: &[Expr], packet: &Packet) -> Step {
        let mut registers = Registers([0; 64]);
        for expr in exprs {
            match self.step(expr, packet, &mut registers) {
                None => {}
                Some(step) => return step,
            }
        }
        Step::Next
    }

    /// `None`: go on with the next expression.
    fn step(&self, expr: &Expr, packet: &Packet, registers: &mut Registers) -> Option<Step> {
        match expr {
            Expr::InSet { set, sreg } => self
                .lookup(set, registers.at(*sreg))
                .is_none()
                .then_some(Step::Next),
            Expr::Map { map, sreg, dreg } => match self.lookup(map, registers.at(*sreg)) {
                Some(Some(Data::Value(value))) => {
                    let value = value.clone();
                    registers.set(*dreg, &value);
                    None
                }
                _ => Some(Step::Next),
            },
            Expr::VerdictMap { map, sreg } => match self.lookup(map, registers.at(*sreg)) {
                Some(Some(Data::Verdict(verdict))) => Some(Step::Verdict(verdict.clone())),
                _ => Some(Step::Next),
            },
            Expr::Nat { addr, port, .. } => {
                let (a, p) = (registers.at(*addr), registers.at(*port));
                let addr = Ipv4Addr::new(a[0], a[1], a[2], a[3]);
                Some(Step::Done(Outcome::Dnat(
                    addr,
                    u16::from_be_bytes([p[0], p[1]]),
                )))
            }
            Expr::Masquerade => Some(Step::Done(Outcome::Masquerade)),
            Expr::Reject(how) => Some(Step::Done(Outcome::Reject(*how))),
            Expr::Verdict(verdict) => Some(Step::Verdict(verdict.clone())),
            Expr::Cmp { op, sreg, data } => {
                let equal = registers.at(*sreg).starts_with(data);
                (equal != (*op == CmpOp::Eq)).then_some(Step::Next)
            }
            Expr::Mask { sreg, dreg, mask } => {
                let bytes = registers
                    .at(*sreg)
                    .iter()
                    .zip(mask)
                    .map(|(r, m)| r & m)
                    .collect::<Vec<_>>();
                registers.set(*dreg, &bytes);
                None
            }
            load => {
                let (dreg, bytes) = loaded(load, packet);
                registers.set(dreg, &bytes);
                None
            }
        }
    }
}

/// What an expression loads from an IPv4 packet, and where to.
fn loaded(expr: &Expr, packet: &Packet) -> (Register, Vec<u8>) {
    let (dst, dport) = packet.original.unwrap_or((packet.dst, packet.dport));
    let word = |bits: u32| bits.to_ne_bytes().to_vec();
    match expr {
        Expr::Meta {
            key: MetaKey::NfProto,
            dreg,
        } => (*dreg, vec![2]),
        Expr::Meta {
            key: MetaKey::L4Proto,
            dreg,
        } => (*dreg, vec![packet.protocol]),
        Expr::Payload {
            base: PayloadBase::Network,
            offset: 12,
            dreg,
            ..
        } => (*dreg, packet.src.octets().to_vec()),
        Expr::Payload {
            base: PayloadBase::Network,
            offset: 16,
            dreg,
            ..
        } => (*dreg, packet.dst.octets().to_vec()),
        Expr::Payload {
            base: PayloadBase::Transport,
            offset: 2,
            dreg,
            ..
        } => (*dreg, packet.dport.to_be_bytes().to_vec()),
        Expr::Ct {
            key: CtKey::State,
            dreg,
            ..
        } => (*dreg, word(8)),
        Expr::Ct {
            key: CtKey::Status,
            dreg,
            ..
        } => (
            *dreg,
            word(if packet.original.is_some() { 0x20 } else { 0 }),
        ),
        Expr::Ct {
            key: CtKey::DstIp,
            dreg,
            ..
        } => (*dreg, dst.octets().to_vec()),
        Expr::Ct {
            key: CtKey::ProtoDst,
            dreg,
            ..
        } => (*dreg, dport.to_be_bytes().to_vec()),
        Expr::Random { modulus, dreg } => (*dreg, word(packet.random % modulus)),
        other => panic!("{other} is not interpreted here"),
    }
}

const POD: &str = "10.42.0.9";
const OUTSIDE: &str = "198.51.100.7";
const NODE: &str = "192.0.2.1";

fn packet(src: &str, dst: &str, protocol: u8, dport: u16) -> Packet {
    let ip = |text: &str| text.parse().expect("an address");
    Packet {
        src: ip(src),
        dst: ip(dst),
        protocol,
        dport,
        original: None,
        random: 0,
    }
}

/// The packet after its destination was translated.
fn translated(packet: Packet, dst: &str, dport: u16) -> Packet {
    let original = Some((packet.dst, packet.dport));
    Packet {
        dst: dst.parse().expect("an address"),
        dport,
        original,
        ..packet
    }
}

fn served(ips: &[&str]) -> (State, Ruleset) {
    let mut state = State::new("t", &["10.42.0.0/16".parse().expect("a CIDR")]);
    let mut ruleset = Ruleset::default();
    ruleset.apply(&state.full().transaction);
    ruleset.apply(
        &state
            .update(vec![(key(), Some(ready(json!({}), ips)))])
            .transaction,
    );
    (state, ruleset)
}

fn dnat(ip: &str, port: u16) -> Outcome {
    Outcome::Dnat(ip.parse().expect("an address"), port)
}

#[test]
fn every_slot_leads_to_its_endpoint() {
    let (_, ruleset) = served(&["10.42.0.2", "10.42.0.3", "10.42.1.4"]);
    for chain in ["prerouting", "nat-output"] {
        for (random, ip) in [
            (0, "10.42.0.2"),
            (1, "10.42.0.3"),
            (2, "10.42.1.4"),
            (3, "10.42.0.2"),
        ] {
            for (dst, tcp, udp) in [(CLUSTER_IP, 80, 53), (NODE, 30080, 30053)] {
                let asked = Packet {
                    random,
                    ..packet(POD, dst, 6, tcp)
                };
                assert_eq!(ruleset.trace(chain, &asked), dnat(ip, 8080));
                let asked = Packet {
                    random,
                    ..packet(POD, dst, 17, udp)
                };
                assert_eq!(ruleset.trace(chain, &asked), dnat(ip, 5353));
            }
        }
    }
    // Neither the other protocol, nor the node port elsewhere, nor the Service's port on the node.
    for (dst, protocol, port) in [(CLUSTER_IP, 17, 80), ("127.0.0.1", 6, 30080), (NODE, 6, 80)] {
        let stray = packet(POD, dst, protocol, port);
        assert_eq!(ruleset.trace("prerouting", &stray), Outcome::Accept);
    }
}

#[test]
fn sources_are_replaced_only_where_the_answer_would_go_astray() {
    let (_, ruleset) = served(&["10.42.0.2"]);
    for (src, dst, port, expected) in [
        (POD, CLUSTER_IP, 80, Outcome::Accept),
        (NODE, CLUSTER_IP, 80, Outcome::Masquerade),
        (OUTSIDE, CLUSTER_IP, 80, Outcome::Masquerade),
        (OUTSIDE, NODE, 30080, Outcome::Masquerade),
        (POD, NODE, 30080, Outcome::Masquerade),
        ("10.42.0.2", CLUSTER_IP, 80, Outcome::Masquerade),
    ] {
        let sent = translated(packet(src, dst, 6, port), "10.42.0.2", 8080);
        assert_eq!(
            ruleset.trace("postrouting", &sent),
            expected,
            "{src} to {dst}:{port}"
        );
    }
    let plain = packet(POD, OUTSIDE, 6, 443);
    assert_eq!(
        ruleset.trace("postrouting", &plain),
        Outcome::Accept,
        "not ours"
    );
}

#[test]
fn a_service_without_endpoints_refuses_and_recovers() {
    let (mut state, mut ruleset) = served(&[]);
    let tcp = packet(POD, CLUSTER_IP, 6, 80);
    let udp = packet(POD, CLUSTER_IP, 17, 53);
    let node_port = packet(OUTSIDE, NODE, 6, 30080);
    assert_eq!(ruleset.trace("prerouting", &tcp), Outcome::Accept);
    assert_eq!(
        ruleset.trace("forward", &tcp),
        Outcome::Reject(Reject::TcpReset)
    );
    assert_eq!(
        ruleset.trace("filter-output", &udp),
        Outcome::Reject(Reject::PortUnreachable)
    );
    assert_eq!(
        ruleset.trace("input", &node_port),
        Outcome::Reject(Reject::TcpReset)
    );
    let back = state.update(vec![(key(), Some(ready(json!({}), &["10.42.0.2"])))]);
    ruleset.apply(&back.transaction);
    assert_eq!(ruleset.trace("prerouting", &tcp), dnat("10.42.0.2", 8080));
    assert_eq!(ruleset.trace("input", &node_port), Outcome::Accept);
    let wrong = packet(POD, CLUSTER_IP, 6, 81);
    assert_eq!(
        ruleset.trace("forward", &wrong),
        Outcome::Reject(Reject::TcpReset),
        "no such port"
    );
    ruleset.apply(&state.update(vec![(key(), None)]).transaction);
    assert_eq!(ruleset.elements.len(), 0);
    assert_eq!(ruleset.trace("forward", &wrong), Outcome::Accept);
}
