// SPDX-License-Identifier: Apache-2.0
//! The table: constant rules that look packets up, and the elements that they find.
//!
//! A packet is judged by its connection: by the source of the connection's first packet, by the
//! destination that it was translated to, and by the port there. So answers pass when questions do,
//! an ICMP error passes when what it tells of does, and every packet is judged anew.
//!
//! Only the addresses of pods, their classes and lists of ports are elements. A packet costs a fixed
//! number of lookups. No map holds verdicts (docs/network.md says why).

use std::net::IpAddr;

use cni::nft::{
    ChainKind, CmpOp, Command, CtDirection, CtKey, Data, DataType, Element, Expr, Family, Hook,
    Interval, MapData, MetaKey, Register, SetSpec, Transaction, Verdict,
};

use super::classes::ALL;
use super::ports::Range;

/// Where `filter` chains are, by custom.
const FILTER: i32 = 0;
const BOTH: [bool; 2] = [true, false];

/// A set or map.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Set {
    /// Address of a pod of this node → 0 . class for egress . class for ingress
    Pods(bool),
    /// Address of a restricted pod of this node, twice
    Itself(bool),
    /// Address of a pod → 0 . its class as a peer
    Peers(bool),
    /// Interval of addresses → 0 . their class as peers
    Blocks(bool),
    /// Class of a peer . class of a pod → 0 . list of ports
    Pairs,
    /// Class of a pod → 0 . list of ports that it may reach, or be reached at, whoever is at the
    /// other end
    Anyone,
    /// List . protocol . port
    Ports,
    /// The same, with intervals of ports
    Ranges,
}

impl std::fmt::Display for Set {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (name, ipv4) = match self {
            Set::Pods(ipv4) => ("pods", Some(*ipv4)),
            Set::Itself(ipv4) => ("itself", Some(*ipv4)),
            Set::Peers(ipv4) => ("peers", Some(*ipv4)),
            Set::Blocks(ipv4) => ("blocks", Some(*ipv4)),
            Set::Pairs => ("pairs", None),
            Set::Anyone => ("anyone", None),
            Set::Ports => ("ports", None),
            Set::Ranges => ("ranges", None),
        };
        f.write_str(name)?;
        ipv4.map_or(Ok(()), |ipv4| f.write_str(digit(ipv4)))
    }
}

fn digit(ipv4: bool) -> &'static str {
    if ipv4 { "4" } else { "6" }
}

fn octets(addr: IpAddr) -> Vec<u8> {
    match addr {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

/// Data of a map: see [`placeholder`] for its first word.
fn numbers(numbers: &[u32]) -> Option<Data> {
    Some(Data::Value(words(&[&[0], numbers].concat())))
}

/// An element of a set without intervals: key and data.
pub type Entry = (Set, Vec<u8>, Option<Data>);

/// A pod of this node with its classes.
pub fn pod(addr: IpAddr, egress: u32, ingress: u32) -> Entry {
    let data = numbers(&[egress, ingress]);
    (Set::Pods(addr.is_ipv4()), octets(addr), data)
}

/// A restricted pod of this node reaches itself all the same.
pub fn itself(addr: IpAddr) -> Entry {
    (Set::Itself(addr.is_ipv4()), octets(addr).repeat(2), None)
}

/// A pod at the other end.
pub fn peer(addr: IpAddr, class: u32) -> Entry {
    (Set::Peers(addr.is_ipv4()), octets(addr), numbers(&[class]))
}

/// What a class may do with a class of peers.
pub fn pair(peer: u32, class: u32, list: u32) -> Entry {
    (Set::Pairs, words(&[peer, class]), numbers(&[list]))
}

/// What a class may do with anyone.
pub fn anyone(class: u32, list: u32) -> Entry {
    (Set::Anyone, words(&[class]), numbers(&[list]))
}

fn port_key(list: u32, range: &Range, port: u16) -> Vec<u8> {
    let mut key = words(&[list]);
    key.extend([range.protocol.number(), 0, 0, 0]);
    key.extend(port.to_be_bytes());
    key.extend([0, 0]);
    key
}

/// A single port of a list.
pub fn port(list: u32, range: &Range) -> Entry {
    (Set::Ports, port_key(list, range, range.first), None)
}

/// Several ports of a list.
pub fn range(list: u32, range: &Range) -> (Set, Interval) {
    let interval = Interval {
        first: port_key(list, range, range.first),
        last: port_key(list, range, range.last),
        concatenated: true,
        data: None,
    };
    (Set::Ranges, interval)
}

/// An interval of addresses at the other end.
pub fn block(first: IpAddr, last: IpAddr, class: u32) -> (Set, Interval) {
    let interval = Interval {
        first: octets(first),
        last: octets(last),
        concatenated: false,
        data: numbers(&[class]),
    };
    (Set::Blocks(first.is_ipv4()), interval)
}

/// Replace the whole table, in one transaction: rules and empty sets. Pods that nothing is known of
/// are those on this bridge that are in no set.
pub fn skeleton(table: &str, bridge: &str) -> Transaction {
    let mut t = Transaction::new(Family::Inet, table);
    t.commands
        .extend([Command::AddTable, Command::DeleteTable, Command::AddTable]);
    sets(&mut t);
    t.base_chain("forward", ChainKind::Filter, Hook::Forward, FILTER);
    let chains = ["from-bridge", "to-bridge", "untracked", "ingress"];
    chains.iter().for_each(|chain| t.chain(chain));
    for ipv4 in BOTH {
        t.chain(&of("egress", ipv4));
        t.chain(&of("ingress", ipv4));
    }
    known_pods(&mut t, bridge);
    untracked(&mut t);
    gates(&mut t);
    for ipv4 in BOTH {
        judge(&mut t, ipv4, true);
        judge(&mut t, ipv4, false);
    }
    t
}

/// Changes nothing where the table is; refused where it is not.
pub fn probe(table: &str) -> Transaction {
    let mut t = Transaction::new(Family::Inet, table);
    let key = [DataType::Mark, DataType::Mark];
    t.commands.push(Command::AddSet(spec(Set::Pairs, &key, 2)));
    t
}

fn of(chain: &str, ipv4: bool) -> String {
    format!("{chain}{}", digit(ipv4))
}

fn spec(set: Set, key: &[DataType], words: usize) -> SetSpec {
    SetSpec {
        name: set.to_string(),
        key: key.to_vec(),
        data: (words > 0).then(|| MapData::Fields(vec![DataType::Mark; words])),
    }
}

fn sets(t: &mut Transaction) {
    use DataType::{InetProto, InetService, Ipv4Addr, Ipv6Addr, Mark};
    for (ipv4, addr) in [(true, Ipv4Addr), (false, Ipv6Addr)] {
        t.commands.extend([
            Command::AddSet(spec(Set::Pods(ipv4), &[addr], 3)),
            Command::AddSet(spec(Set::Itself(ipv4), &[addr, addr], 0)),
            Command::AddSet(spec(Set::Peers(ipv4), &[addr], 2)),
            Command::AddIntervalSet(spec(Set::Blocks(ipv4), &[addr], 2)),
        ]);
    }
    let ports = [Mark, InetProto, InetService];
    t.commands.extend([
        Command::AddSet(spec(Set::Pairs, &[Mark, Mark], 2)),
        Command::AddSet(spec(Set::Anyone, &[Mark], 2)),
        Command::AddSet(spec(Set::Ports, &ports, 0)),
        Command::AddIntervalSet(spec(Set::Ranges, &ports, 0)),
    ]);
}

/// Where the words of a map's data and of keys stand; addresses stand in the registers before.
///
/// A peer's data is loaded over a pod's, so that the peer's class and the pod's are next to each
/// other: at `PEER` and `CLASS`.
const WORD: u8 = 8;
const PEER: u8 = 9;
const CLASS: u8 = 10;
const RESULT: u8 = 11;
const LIST: u8 = 12;
const PROTOCOL: u8 = 13;
const PORT: u8 = 14;

/// Load something where a map will put a number.
///
/// nft(8) stops with a failed assertion when it lists a rule whose key begins with what a map gave.
/// So a map's data begins with a word that is no key, and something is loaded where the keys will
/// be, for nft to see. It prints `meta mark` there.
fn placeholder(register: u8) -> Expr {
    Expr::Meta {
        key: MetaKey::Mark,
        dreg: Register(register),
    }
}

fn map(set: Set, at: u8, to: u8) -> Expr {
    Expr::Map {
        map: set.to_string(),
        sreg: Register(at),
        dreg: Register(to),
    }
}

fn compare(op: CmpOp, register: u8, word: u32) -> Expr {
    Expr::Cmp {
        op,
        sreg: Register(register),
        data: word.to_ne_bytes().to_vec(),
    }
}

fn goto(chain: &str) -> Expr {
    Expr::Verdict(Verdict::Goto(chain.to_owned()))
}

/// Load the source of the connection's first packet.
fn source(ipv4: bool, register: u8) -> Expr {
    Expr::Ct {
        key: if ipv4 { CtKey::SrcIp } else { CtKey::SrcIp6 },
        direction: Some(CtDirection::Original),
        dreg: Register(register),
    }
}

/// Load the destination that the connection's first packet was translated to: it is where answers
/// come from.
fn destination(ipv4: bool, register: u8) -> Expr {
    Expr::Ct {
        key: if ipv4 { CtKey::SrcIp } else { CtKey::SrcIp6 },
        direction: Some(CtDirection::Reply),
        dreg: Register(register),
    }
}

/// A link's name as it stands in a register, to its end.
fn is_link(name: &str) -> Expr {
    let mut bytes = name.as_bytes().to_vec();
    bytes.resize(16, 0);
    Expr::Cmp {
        op: CmpOp::Eq,
        sreg: Register(0),
        data: bytes,
    }
}

/// What comes from the bridge or goes there is of a pod that is known, or it is dropped.
fn known_pods(t: &mut Transaction, bridge: &str) {
    type Load = fn(Register) -> Expr;
    type Address = fn(bool, Register) -> Expr;
    let ways: [(&str, Load, Address); 2] = [
        ("from-bridge", Expr::iifname, Expr::saddr),
        ("to-bridge", Expr::oifname, Expr::daddr),
    ];
    for (chain, link, address) in ways {
        for ipv4 in BOTH {
            let mut known = Expr::family(ipv4).to_vec();
            known.extend([
                address(ipv4, Register(0)),
                map(Set::Pods(ipv4), 0, WORD),
                Expr::Verdict(Verdict::Return),
            ]);
            t.commented_rule(chain, "a pod that is known here", known);
        }
        let drop = vec![Expr::Verdict(Verdict::Drop)];
        t.commented_rule(chain, "an address whose pod is not known yet", drop);
        let jump = Expr::Verdict(Verdict::Jump(chain.to_owned()));
        let rule = vec![link(Register(0)), is_link(bridge), jump];
        t.commented_rule("forward", "to or from a pod of this node", rule);
    }
}

/// What belongs to no connection cannot be judged: it reaches no restricted pod, and leaves none.
fn untracked(t: &mut Transaction) {
    for ipv4 in BOTH {
        for address in [Expr::saddr, Expr::daddr] {
            for class in [PEER, CLASS] {
                let mut rule = Expr::family(ipv4).to_vec();
                rule.extend([
                    placeholder(class),
                    address(ipv4, Register(0)),
                    map(Set::Pods(ipv4), 0, WORD),
                    compare(CmpOp::Neq, class, 0),
                    Expr::Verdict(Verdict::Drop),
                ]);
                let comment = "of no connection, and a pod that policies select";
                t.commented_rule("untracked", comment, rule);
            }
        }
    }
}

/// First egress, for what comes from a restricted pod; then ingress, for what goes to one.
fn gates(t: &mut Transaction) {
    let mut stray = Expr::state_without_connection().to_vec();
    stray.push(goto("untracked"));
    t.commented_rule("forward", "a packet of no connection", stray);
    let gate = |address: fn(bool, u8) -> Expr, class: u8, ipv4: bool, chain: &str| {
        let mut rule = Expr::family(ipv4).to_vec();
        rule.extend([
            placeholder(class),
            address(ipv4, 0),
            map(Set::Pods(ipv4), 0, WORD),
            compare(CmpOp::Neq, class, 0),
            goto(&of(chain, ipv4)),
        ]);
        rule
    };
    for ipv4 in BOTH {
        let from = gate(source, PEER, ipv4, "egress");
        t.commented_rule("forward", "policies select who began it, for egress", from);
        let to = gate(destination, CLASS, ipv4, "ingress");
        t.commented_rule("ingress", "policies select whom it is for, for ingress", to);
    }
    t.commented_rule(
        "forward",
        "no policy on egress forbids it",
        vec![goto("ingress")],
    );
}

/// Who is at the other end, for a rule.
#[derive(Clone, Copy)]
enum Other {
    Pod,
    Block,
    Anyone,
}

/// The rules that let a restricted pod's packets pass; whatever none of them lets pass is dropped.
fn judge(t: &mut Transaction, ipv4: bool, egress: bool) {
    let chain = of(if egress { "egress" } else { "ingress" }, ipv4);
    let pass = || {
        if egress {
            goto("ingress")
        } else {
            Expr::Verdict(Verdict::Accept)
        }
    };
    let width = if ipv4 { 1 } else { 4 };
    let itself = Expr::InSet {
        set: Set::Itself(ipv4).to_string(),
        sreg: Register(0),
    };
    let accept = Expr::Verdict(Verdict::Accept);
    let both = vec![source(ipv4, 0), destination(ipv4, width), itself, accept];
    t.commented_rule(&chain, "a pod and itself", both);
    for other in [Other::Pod, Other::Block, Other::Anyone] {
        let mut all = list_of(ipv4, egress, other);
        all.extend([compare(CmpOp::Eq, LIST, ALL), pass()]);
        t.commented_rule(&chain, "a policy allows this peer, on all ports", all);
        for set in [Set::Ports, Set::Ranges] {
            let mut some = list_of(ipv4, egress, other);
            some.extend([
                Expr::Ct {
                    key: CtKey::Protocol,
                    direction: None,
                    dreg: Register(PROTOCOL),
                },
                Expr::Ct {
                    key: CtKey::ProtoSrc,
                    direction: Some(CtDirection::Reply),
                    dreg: Register(PORT),
                },
                Expr::InSet {
                    set: set.to_string(),
                    sreg: Register(LIST),
                },
                pass(),
            ]);
            t.commented_rule(&chain, "a policy allows this peer, on this port", some);
        }
    }
    let drop = vec![Expr::Verdict(Verdict::Drop)];
    t.commented_rule(&chain, "no policy allows it", drop);
}

/// Look up the list of ports that the pod and the other end have.
fn list_of(ipv4: bool, egress: bool, other: Other) -> Vec<Expr> {
    let (pod, peer) = if egress {
        (source(ipv4, 0), destination(ipv4, 0))
    } else {
        (destination(ipv4, 0), source(ipv4, 0))
    };
    // The class for egress is the first number of a pod, that for ingress the second: both are to
    // stand at CLASS.
    let to = if egress { WORD + 1 } else { WORD };
    let mut exprs = vec![pod, placeholder(CLASS), placeholder(LIST)];
    exprs.push(map(Set::Pods(ipv4), 0, to));
    let with = |set| {
        [
            placeholder(PEER),
            peer,
            map(set, 0, WORD),
            map(Set::Pairs, PEER, RESULT),
        ]
    };
    match other {
        Other::Pod => exprs.extend(with(Set::Peers(ipv4))),
        Other::Block => exprs.extend(with(Set::Blocks(ipv4))),
        Other::Anyone => exprs.push(map(Set::Anyone, CLASS, RESULT)),
    }
    exprs
}

/// Entries as elements, by set.
pub fn element((set, key, data): Entry) -> (Set, Element) {
    (set, Element { key, data })
}
