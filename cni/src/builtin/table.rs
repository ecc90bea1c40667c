// SPDX-License-Identifier: Apache-2.0
//! The nftables table of the built-in plugins: masquerade of pods and host ports.
//!
//! The rules are constant; pods are elements of maps. So ADD and DEL of a pod touch a few elements,
//! and two of them never wait for each other.

use std::net::IpAddr;

use super::internal;
use crate::cidr::Cidr;
use crate::nft::pool::Kept;
use crate::nft::{
    ChainKind, CmpOp, Command, DataType, Element, Expr, Family, Hook, MapData, NatKind, NftError,
    Register, SetSpec, Transaction, Verdict, match_prefix,
};
use crate::types::PluginError;

/// After the service proxy (-100), so that a host port can't take a Service's port (CVE-2019-9946).
const HOST_PORT_PRIORITY: i32 = -90;
const SOURCE_PRIORITY: i32 = 100;
/// Before connection tracking (-200) turns an answer's destination back into a loopback address.
const GUARD_PRIORITY: i32 = -300;

pub(crate) fn suffix(ipv4: bool) -> char {
    if ipv4 { '4' } else { '6' }
}

/// Bytes of an address as part of a key.
pub(crate) fn octets(addr: IpAddr) -> Vec<u8> {
    match addr {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

fn open() -> Result<Kept, PluginError> {
    Kept::take().map_err(internal)
}

/// Add elements. When something that they need is not there, make it: first `chains`, then the
/// whole table. The common case deletes no rule.
pub(crate) fn add(
    table: &str,
    chains: &[Command],
    elements: &[Command],
) -> Result<(), PluginError> {
    let mut socket = open()?;
    let with = |mut transaction: Transaction, parts: &[&[Command]]| {
        parts
            .iter()
            .for_each(|part| transaction.commands.extend_from_slice(part));
        transaction
    };
    let empty = || Transaction::new(Family::Inet, table);
    for transaction in [
        with(empty(), &[elements]),
        with(empty(), &[chains, elements]),
    ] {
        match socket.apply(&transaction) {
            Err(error) if error.errno() == Some(libc::ENOENT) => {}
            other => return other.map_err(internal),
        }
    }
    socket
        .apply(&with(base(table), &[chains, elements]))
        .map_err(internal)
}

/// Delete elements one by one; what is gone is fine.
pub(crate) fn delete(table: &str, elements: &[(String, Vec<u8>)]) -> Result<(), PluginError> {
    let mut socket = open()?;
    let mut outcome = Ok(());
    for (set, key) in elements {
        let mut transaction = Transaction::new(Family::Inet, table);
        transaction.delete(set, vec![key.clone()]);
        match socket.apply(&transaction) {
            Err(error) if error.errno() != Some(libc::ENOENT) => {
                outcome = outcome.and(Err(internal(error)))
            }
            _ => {}
        }
    }
    outcome
}

/// The data of an element; `None` when it (or the table) is not there.
pub(crate) fn get(table: &str, set: &str, key: &[u8]) -> Result<Option<Vec<u8>>, PluginError> {
    let found: Result<_, NftError> = open()?.element(Family::Inet, table, set, key);
    found.map_err(internal)
}

fn base(table: &str) -> Transaction {
    use DataType::{InetProto, InetService, Ipv4Addr, Ipv6Addr};
    let mut t = Transaction::new(Family::Inet, table);
    t.commands.push(Command::AddTable);
    t.commands.push(Command::Flush { chain: None });
    t.base_chain(
        "postrouting",
        ChainKind::Nat,
        Hook::Postrouting,
        SOURCE_PRIORITY,
    );
    t.base_chain(
        "prerouting",
        ChainKind::Nat,
        Hook::Prerouting,
        HOST_PORT_PRIORITY,
    );
    t.base_chain("output", ChainKind::Nat, Hook::Output, HOST_PORT_PRIORITY);
    t.base_chain("guard", ChainKind::Filter, Hook::Prerouting, GUARD_PRIORITY);
    t.chain("hostports");
    for (ipv4, addr) in [(true, Ipv4Addr), (false, Ipv6Addr)] {
        let n = suffix(ipv4);
        let mut set = |name: &str, key: &[DataType], data: Option<MapData>| {
            t.commands.push(Command::AddSet(SetSpec {
                name: format!("{name}{n}"),
                key: key.to_vec(),
                data,
            }));
        };
        let target = || Some(MapData::Fields(vec![addr, InetService]));
        set("masquerade", &[addr], Some(MapData::Verdict));
        set("loop", &[addr, addr], None);
        if ipv4 {
            set("localhost", &[addr], None);
        }
        set("hostport", &[InetProto, InetService], target());
        set("hostip", &[addr, InetProto, InetService], target());
    }
    for ipv4 in [true, false] {
        translate_sources(&mut t, ipv4);
        translate_host_ports(&mut t, ipv4);
    }
    translate_loopback_sources(&mut t);
    guard_loopback(&mut t);
    for hook in ["prerouting", "output"] {
        let mut rule = Expr::to_local().to_vec();
        rule.push(Expr::Verdict(Verdict::Jump("hostports".to_owned())));
        t.commented_rule(hook, "to this node: look for a host port", rule);
    }
    t
}

fn width(ipv4: bool) -> u8 {
    if ipv4 { 1 } else { 4 }
}

fn translate_sources(t: &mut Transaction, ipv4: bool) {
    let n = suffix(ipv4);
    // A pod that reaches itself through a host port must see an answer from there.
    let mut hairpin = Expr::destination_translated().to_vec();
    hairpin.extend(Expr::family(ipv4));
    hairpin.extend([
        Expr::saddr(ipv4, Register(0)),
        Expr::daddr(ipv4, Register(width(ipv4))),
        Expr::InSet {
            set: format!("loop{n}"),
            sreg: Register(0),
        },
        Expr::Masquerade,
    ]);
    let comment = "a pod that reaches itself through a host port";
    t.commented_rule("postrouting", comment, hairpin);
    let mut outward = Expr::family(ipv4).to_vec();
    outward.extend([
        Expr::saddr(ipv4, Register(0)),
        Expr::VerdictMap {
            map: format!("masquerade{n}"),
            sreg: Register(0),
        },
    ]);
    t.commented_rule("postrouting", "from a pod of this node", outward);
}

fn loopback(ipv4: bool) -> Cidr {
    let text = if ipv4 { "127.0.0.0/8" } else { "::1/128" };
    text.parse().expect("a constant")
}

/// A program on the host that uses a host port at 127.0.0.1 must see an answer from there.
fn translate_loopback_sources(t: &mut Transaction) {
    let mut rule = Expr::destination_translated().to_vec();
    rule.extend(Expr::family(true));
    rule.push(Expr::saddr(true, Register(0)));
    rule.extend(match_prefix(CmpOp::Eq, loopback(true)));
    rule.extend([
        Expr::daddr(true, Register(0)),
        Expr::InSet {
            set: "localhost4".to_owned(),
            sreg: Register(0),
        },
        Expr::Masquerade,
    ]);
    let comment = "a program of this node that uses a host port at 127.0.0.1";
    t.commented_rule("postrouting", comment, rule);
}

/// Host ports at 127.0.0.1 need `route_localnet` on the pods' link, with which the kernel would also
/// take packets from pods to the host's loopback (CVE-2020-8558), or ones that claim to come from
/// there. No such packet is ever right on a wire.
fn guard_loopback(t: &mut Transaction) {
    for address in [Expr::saddr, Expr::daddr] {
        let mut rule = Expr::from_outside().to_vec();
        rule.extend(Expr::family(true));
        rule.push(address(true, Register(0)));
        rule.extend(match_prefix(CmpOp::Eq, loopback(true)));
        rule.push(Expr::Verdict(Verdict::Drop));
        let comment = "loopback addresses never come by a wire (CVE-2020-8558)";
        t.commented_rule("guard", comment, rule);
    }
}

/// Only packets to an address of this host come here (CVE-2025-67499). Those to `::1` stay: IPv6 has
/// no `route_localnet`, so their answer could not come back.
fn translate_host_ports(t: &mut Transaction, ipv4: bool) {
    let n = suffix(ipv4);
    if !ipv4 {
        let mut local = Expr::family(ipv4).to_vec();
        local.push(Expr::daddr(ipv4, Register(0)));
        local.extend(match_prefix(CmpOp::Eq, loopback(ipv4)));
        local.push(Expr::Verdict(Verdict::Return));
        t.commented_rule("hostports", "IPv6 has no route_localnet", local);
    }

    let translate = |map: String, mut rule: Vec<Expr>| {
        let addr = Register(8);
        rule.push(Expr::Map {
            map,
            sreg: Register(0),
            dreg: addr,
        });
        let port = Register(8 + width(ipv4));
        rule.push(Expr::Nat {
            kind: NatKind::Dnat,
            ipv4,
            addr,
            port,
        });
        rule
    };
    let mut with_address = Expr::family(ipv4).to_vec();
    let next = width(ipv4);
    with_address.extend([
        Expr::daddr(ipv4, Register(0)),
        Expr::l4proto(Register(next)),
        Expr::dport(Register(next + 1)),
    ]);
    let of_address = translate(format!("hostip{n}"), with_address);
    t.commented_rule("hostports", "a host port of one address", of_address);
    let mut without = Expr::family(ipv4).to_vec();
    without.extend([Expr::l4proto(Register(0)), Expr::dport(Register(1))]);
    let of_all = translate(format!("hostport{n}"), without);
    t.commented_rule("hostports", "a host port of every address", of_all);
}

/// An element of a set without data.
pub(crate) fn plain(key: Vec<u8>) -> Element {
    Element { key, data: None }
}
