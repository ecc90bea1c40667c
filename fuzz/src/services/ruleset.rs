// SPDX-License-Identifier: Apache-2.0
//! A packet traced through computed transactions, without a kernel: rules and elements are
//! interpreted as nf_tables does, and a transaction that the kernel would refuse is a panic.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::IpAddr;

use cni::nft::{
    CmpOp, Command, CtDirection, CtKey, Data, DataType, DynamicOp, Expr, Interval, MetaKey,
    PayloadBase, Register, Reject, SetSpec, Transaction, Verdict,
};

/// What connection tracking knows of a packet's connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tracked {
    /// That the packet begins it.
    New,
    /// Source of its first packet, and where that was translated to.
    Known {
        src: IpAddr,
        dst: IpAddr,
        dport: u16,
    },
    /// There is none.
    Nothing,
}

/// A packet: the first one of a connection, unless `tracked` says more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packet {
    pub src: IpAddr,
    pub dst: IpAddr,
    pub protocol: u8,
    pub dport: u16,
    /// The link it came in by; empty for what a program of this host sends.
    pub iif: String,
    /// The link it goes out by, where that matters.
    pub oif: String,
    /// Is the source an address of this host?
    pub from_local: bool,
    /// Is the destination an address of this host?
    pub to_local: bool,
    /// Destination as the client sent it, once it has been translated.
    pub original: Option<(IpAddr, u16)>,
    pub tracked: Tracked,
    pub random: u32,
}

/// What a chain says of a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    Accept,
    Drop,
    Masquerade,
    Reject(Reject),
    Dnat(IpAddr, u16),
}

/// What becomes of a packet in the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    Dropped,
    Refused,
    /// Nothing is done with it.
    Passed,
    /// Translated; the source too?
    Led {
        to: (IpAddr, u16),
        masqueraded: bool,
    },
}

enum Step {
    Next,
    Verdict(Verdict),
    Done(Outcome),
}

/// The elements of one set or map: key, and data where it is a map.
type Elements = BTreeMap<Vec<u8>, Option<Data>>;

/// A table, as transactions have made it.
#[derive(Default)]
pub struct Ruleset {
    rules: BTreeMap<String, Vec<Vec<Expr>>>,
    key_lengths: BTreeMap<String, usize>,
    elements: RefCell<BTreeMap<String, Elements>>,
    intervals: BTreeMap<String, Vec<Interval>>,
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

fn key_length(fields: &[DataType]) -> usize {
    let width = |field: &DataType| usize::try_from(field.width()).expect("small");
    match fields {
        [one] => width(one),
        several => several.iter().map(|f| width(f).next_multiple_of(4)).sum(),
    }
}

impl Ruleset {
    /// Apply a transaction.
    pub fn apply(&mut self, transaction: &Transaction) {
        for command in &transaction.commands {
            self.command(command);
        }
    }

    fn command(&mut self, command: &Command) {
        let elements = self.elements.get_mut();
        match command {
            Command::AddTable | Command::AddOwnedTable => {}
            Command::DeleteTable => *self = Ruleset::default(),
            Command::AddChain { name, .. } => drop(self.rules.entry(name.clone()).or_default()),
            Command::Flush { chain } => {
                let chain = chain.as_ref().expect("one chain");
                self.rules.get_mut(chain).expect("a chain").clear();
            }
            Command::AddRule { chain, exprs, .. } => {
                let rules = self.rules.get_mut(chain);
                rules.expect("a chain").push(exprs.clone());
            }
            Command::AddSet(spec) | Command::AddDynamicMap { spec, .. } => {
                let SetSpec { name, key, .. } = spec;
                self.key_lengths.insert(name.clone(), key_length(key));
                elements.entry(name.clone()).or_default();
            }
            Command::AddIntervalSet(SetSpec { name, key, .. }) => {
                self.key_lengths.insert(name.clone(), key_length(key));
                self.intervals.entry(name.clone()).or_default();
            }
            Command::AddIntervals { set, intervals } => {
                let known = self.intervals.get_mut(set).expect("a set");
                for new in intervals {
                    assert_eq!(new.first.len(), self.key_lengths[set], "key of {set}");
                    let apart = known
                        .iter()
                        .all(|i| !within(i, &new.first) && !within(new, &i.first));
                    assert!(apart, "EEXIST {new}");
                    known.push(new.clone());
                }
            }
            Command::DeleteIntervals { set, intervals } => {
                let known = self.intervals.get_mut(set).expect("a set");
                for old in intervals {
                    let same = |i: &Interval| i.first == old.first && i.last == old.last;
                    let at = known.iter().position(same);
                    known.remove(at.unwrap_or_else(|| panic!("ENOENT {set} {old}")));
                }
            }
            Command::AddElements { set, elements: new } => {
                let known = elements.get_mut(set).expect("a set");
                for e in new {
                    assert_eq!(e.key.len(), self.key_lengths[set], "key of {set}");
                    let old = known.insert(e.key.clone(), e.data.clone());
                    assert!(old.is_none() || old == Some(e.data.clone()), "EEXIST {e}");
                }
            }
            Command::DeleteElements { set, keys } => {
                let known = elements.get_mut(set).expect("a set");
                for key in keys {
                    assert!(known.remove(key).is_some(), "ENOENT {set} {key:?}");
                }
            }
        }
    }

    /// How many elements there are of Services.
    pub fn count(&self) -> usize {
        let elements = self.elements.borrow();
        let constant = [
            "entries",
            "picks",
            "source-lists",
            "masquerades",
            "refusals",
        ];
        let of_services = elements
            .iter()
            .filter(|(set, _)| !constant.contains(&set.as_str()) && !set.starts_with("learned"));
        let intervals: usize = self.intervals.values().map(Vec::len).sum();
        let elements: usize = of_services.map(|(_, elements)| elements.len()).sum();
        elements + intervals
    }

    /// What a chain says.
    pub fn trace(&self, chain: &str, packet: &Packet) -> Outcome {
        self.walk(chain, packet).unwrap_or(Outcome::Accept)
    }

    /// All hooks that a packet passes.
    pub fn fate(&self, packet: &Packet) -> Fate {
        let out = packet.iif.is_empty();
        let (guard, nat) = if out {
            ("guard-output", "nat-output")
        } else {
            ("guard", "prerouting")
        };
        if self.trace(guard, packet) == Outcome::Drop {
            return Fate::Dropped;
        }
        let mut packet = packet.clone();
        if let Outcome::Dnat(addr, port) = self.trace(nat, &packet) {
            packet.original = Some((packet.dst, packet.dport));
            (packet.dst, packet.dport, packet.to_local) = (addr, port, false);
        }
        let filter = match (out, packet.to_local) {
            (true, _) => "filter-output",
            (false, true) => "input",
            (false, false) => "forward",
        };
        match self.trace(filter, &packet) {
            Outcome::Drop => return Fate::Dropped,
            Outcome::Reject(how) => {
                let reset = packet.protocol == 6;
                assert_eq!(how == Reject::TcpReset, reset, "how {packet:?} is refused");
                return Fate::Refused;
            }
            _ => {}
        }
        let masqueraded = self.trace("postrouting", &packet) == Outcome::Masquerade;
        match packet.original {
            Some(_) => Fate::Led {
                to: (packet.dst, packet.dport),
                masqueraded,
            },
            None => {
                assert!(!masqueraded, "{packet:?} is none of ours");
                Fate::Passed
            }
        }
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

    /// The element whose key begins at a register.
    fn lookup(&self, set: &str, registers: &[u8]) -> Option<Option<Data>> {
        let key = &registers[..self.key_lengths[set]];
        if let Some(intervals) = self.intervals.get(set) {
            let found = intervals.iter().find(|i| within(i, key));
            return found.map(|i| i.data.clone());
        }
        self.elements.borrow()[set].get(key).cloned()
    }

    fn rule(&self, exprs: &[Expr], packet: &Packet) -> Step {
        let mut registers = Registers([0xa5; 64]);
        for expr in exprs {
            if let Some(step) = self.step(expr, packet, &mut registers) {
                return step;
            }
        }
        Step::Next
    }

    /// `None`: go on with the next expression.
    fn step(&self, expr: &Expr, packet: &Packet, registers: &mut Registers) -> Option<Step> {
        match expr {
            Expr::InSet { set, sreg } => {
                let found = self.lookup(set, registers.at(*sreg));
                found.is_none().then_some(Step::Next)
            }
            Expr::Map { map, sreg, dreg } => match self.lookup(map, registers.at(*sreg)) {
                Some(Some(Data::Value(value))) => {
                    registers.set(*dreg, &value);
                    None
                }
                _ => Some(Step::Next),
            },
            Expr::VerdictMap { map, sreg } => match self.lookup(map, registers.at(*sreg)) {
                Some(Some(Data::Verdict(verdict))) => Some(Step::Verdict(verdict)),
                _ => Some(Step::Next),
            },
            Expr::Nat {
                ipv4, addr, port, ..
            } => {
                let port = registers.at(*port);
                let port = u16::from_be_bytes([port[0], port[1]]);
                let to = Outcome::Dnat(address(*ipv4, registers.at(*addr)), port);
                Some(Step::Done(to))
            }
            Expr::Masquerade => Some(Step::Done(Outcome::Masquerade)),
            Expr::Reject(how) => Some(Step::Done(Outcome::Reject(*how))),
            Expr::Verdict(verdict) => Some(Step::Verdict(verdict.clone())),
            Expr::Cmp { op, sreg, data } => {
                let equal = registers.at(*sreg).starts_with(data);
                (equal != (*op == CmpOp::Eq)).then_some(Step::Next)
            }
            Expr::Mask { sreg, dreg, mask } => {
                let masked = registers.at(*sreg).iter().zip(mask).map(|(r, m)| r & m);
                let bytes: Vec<u8> = masked.collect();
                registers.set(*dreg, &bytes);
                None
            }
            Expr::Dynamic {
                op, map, key, data, ..
            } => {
                self.dynamic(*op, map, registers.at(*key), data.map(|d| registers.at(d)));
                None
            }
            load => {
                let Some((dreg, bytes)) = loaded(load, packet) else {
                    return Some(Step::Next);
                };
                registers.set(dreg, &bytes);
                None
            }
        }
    }

    fn dynamic(&self, op: DynamicOp, map: &str, key: &[u8], data: Option<&[u8]>) {
        let key = key[..self.key_lengths[map]].to_vec();
        let mut elements = self.elements.borrow_mut();
        let elements = elements.get_mut(map).expect("a map");
        match op {
            DynamicOp::Delete => drop(elements.remove(&key)),
            // The data of one that is there stays.
            DynamicOp::Update => {
                let data = data.map(|row| Data::Value(row[..key.len() + 4].to_vec()));
                elements.entry(key).or_insert(data);
            }
        }
    }
}

/// Of several fields each is in its own range; none that has ranges is longer than a register.
fn within(interval: &Interval, key: &[u8]) -> bool {
    let width = if interval.concatenated { 4 } else { key.len() };
    let ends = interval
        .first
        .chunks(width)
        .zip(interval.last.chunks(width));
    key.chunks(width)
        .zip(ends)
        .all(|(field, (first, last))| first <= field && field <= last)
}

fn address(ipv4: bool, bytes: &[u8]) -> IpAddr {
    if ipv4 {
        <[u8; 4]>::try_from(&bytes[..4]).expect("four").into()
    } else {
        <[u8; 16]>::try_from(&bytes[..16]).expect("sixteen").into()
    }
}

fn octets(addr: IpAddr) -> Vec<u8> {
    match addr {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

/// What an expression loads from a packet, and where to.
fn loaded(expr: &Expr, packet: &Packet) -> Option<(Register, Vec<u8>)> {
    let (dst, dport) = packet.original.unwrap_or((packet.dst, packet.dport));
    let word = |bits: u32| bits.to_ne_bytes().to_vec();
    let address_type = |local: bool| word(if local { 2 } else { 1 });
    let link = |name: &str| {
        let mut name = name.as_bytes().to_vec();
        name.resize(16, 0);
        name
    };
    let (dreg, bytes) = match expr {
        Expr::Meta { key, dreg } => {
            let bytes = match key {
                MetaKey::NfProto => vec![if packet.src.is_ipv4() { 2 } else { 10 }],
                MetaKey::L4Proto => vec![packet.protocol],
                MetaKey::Mark => vec![0; 4],
                // None for what a program of this host sends: the rule does not match.
                MetaKey::InputLink if packet.iif.is_empty() => return None,
                MetaKey::InputLink => word(if packet.iif == "lo" { 1 } else { 2 }),
                MetaKey::IifName => link(&packet.iif),
                MetaKey::OifName => link(&packet.oif),
            };
            (dreg, bytes)
        }
        Expr::Payload {
            base, offset, dreg, ..
        } => {
            let bytes = match (base, offset) {
                (PayloadBase::Network, 12 | 8) => octets(packet.src),
                (PayloadBase::Network, 16 | 24) => octets(packet.dst),
                (PayloadBase::Transport, 2) => packet.dport.to_be_bytes().to_vec(),
                _ => panic!("{expr} is not interpreted here"),
            };
            (dreg, bytes)
        }
        Expr::FibDaddrType { dreg } => (dreg, address_type(packet.to_local)),
        Expr::FibSaddrType { dreg } => (dreg, address_type(packet.from_local)),
        Expr::Ct {
            key,
            direction,
            dreg,
        } if packet.tracked != Tracked::New => (dreg, of_connection(packet, *key, *direction)?),
        Expr::Ct { key, dreg, .. } => {
            let translated = if packet.original.is_some() { 0x20 } else { 0 };
            let bytes = match key {
                CtKey::State => word(8),
                CtKey::Status => word(translated),
                CtKey::DstIp | CtKey::DstIp6 => octets(dst),
                CtKey::ProtoDst => dport.to_be_bytes().to_vec(),
                _ => panic!("{expr} is not interpreted here"),
            };
            (dreg, bytes)
        }
        Expr::Random { modulus, dreg } => (dreg, word(packet.random % modulus)),
        other => panic!("{other} is not interpreted here"),
    };
    Some((*dreg, bytes))
}

/// `None`: there is no connection, or not that of it.
fn of_connection(packet: &Packet, key: CtKey, direction: Option<CtDirection>) -> Option<Vec<u8>> {
    const INVALID: u32 = 1;
    const ESTABLISHED: u32 = 2;
    let Tracked::Known { src, dst, dport } = packet.tracked else {
        return (key == CtKey::State).then(|| INVALID.to_ne_bytes().to_vec());
    };
    match (key, direction) {
        (CtKey::State, _) => Some(ESTABLISHED.to_ne_bytes().to_vec()),
        (CtKey::Protocol, _) => Some(vec![packet.protocol]),
        (CtKey::SrcIp | CtKey::SrcIp6, Some(direction)) => {
            let addr = if direction == CtDirection::Original {
                src
            } else {
                dst
            };
            ((key == CtKey::SrcIp) == addr.is_ipv4()).then(|| octets(addr))
        }
        (CtKey::ProtoSrc, Some(CtDirection::Reply)) => Some(dport.to_be_bytes().to_vec()),
        _ => panic!("{key:?} {direction:?} is not interpreted here"),
    }
}
