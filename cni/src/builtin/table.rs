// SPDX-License-Identifier: Apache-2.0
//! The nftables table of the built-in plugins: masquerade of pods, host ports, bridges kept apart.
//!
//! The rules are constant; pods are elements of maps. So ADD and DEL of a pod touch a few elements,
//! and two of them never wait for each other.

use std::net::IpAddr;

use super::internal;
use crate::cidr::Cidr;
use crate::nft::pool::Kept;
use crate::nft::{
    ChainKind, CmpOp, Command, DataType, Element, Expr, Family, Hook, MapData, MetaKey, NatKind,
    NftError, Register, SetSpec, Transaction, Verdict, match_prefix,
};
use crate::types::PluginError;

/// After the service proxy (-100), so that a host port can't take a Service's port (CVE-2019-9946).
const HOST_PORT_PRIORITY: i32 = -90;
const SOURCE_PRIORITY: i32 = 100;
/// As `filter` of iptables.
const FILTER_PRIORITY: i32 = 0;
/// Bridges that `firewall` keeps apart.
pub(super) const BRIDGES: &str = "bridges";
/// Pairs of bridges that it doesn't.
pub(super) const OPEN_BRIDGES: &str = "open-bridges";
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

/// A table of constant rules and of sets, in which attachments are elements.
pub(super) struct Sets<'a> {
    pub(super) family: Family,
    pub(super) table: &'a str,
    /// Makes all of the table but the elements, and leaves these alone. Chains that it does not know
    /// are left alone too.
    pub(super) base: fn(&str) -> Transaction,
}

impl Sets<'_> {
    fn empty(&self) -> Transaction {
        Transaction::new(self.family, self.table)
    }

    fn open() -> Result<Kept, PluginError> {
        Kept::take().map_err(internal)
    }

    /// Add elements. When something that they need is not there, make it: first `chains`, then the
    /// whole table. The common case deletes no rule.
    pub(super) fn add(&self, chains: &[Command], elements: &[Command]) -> Result<(), PluginError> {
        let mut socket = Self::open()?;
        let with = |mut transaction: Transaction, parts: &[&[Command]]| {
            for part in parts {
                transaction.commands.extend_from_slice(part);
            }
            transaction
        };
        for parts in [&[elements] as &[_], &[chains, elements]] {
            match socket.apply(&with(self.empty(), parts)) {
                Err(error) if error.errno() == Some(libc::ENOENT) => {}
                other => return other.map_err(internal),
            }
        }
        socket
            .apply(&with((self.base)(self.table), &[chains, elements]))
            .map_err(internal)
    }

    /// Add elements, and make their `chains` again whatever they are like. Not the table.
    pub(super) fn restore(
        &self,
        chains: &[Command],
        elements: &[Command],
    ) -> Result<(), PluginError> {
        let mut transaction = self.empty();
        transaction.commands.extend_from_slice(chains);
        transaction.commands.extend_from_slice(elements);
        Self::open()?.apply(&transaction).map_err(internal)
    }

    /// Make the table again, whatever it is like. Elements stay.
    pub(super) fn rebuild(&self) -> Result<(), PluginError> {
        let transaction = (self.base)(self.table);
        Self::open()?.apply(&transaction).map_err(internal)
    }

    /// Delete elements one by one; what is gone is fine.
    pub(super) fn delete(&self, elements: &[(String, Vec<u8>)]) -> Result<(), PluginError> {
        if elements.is_empty() {
            return Ok(());
        }
        let mut socket = Self::open()?;
        let mut outcome = Ok(());
        for (set, key) in elements {
            let mut transaction = self.empty();
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
    pub(super) fn get(&self, set: &str, key: &[u8]) -> Result<Option<Vec<u8>>, PluginError> {
        let found: Result<_, NftError> = Self::open()?.element(self.family, self.table, set, key);
        found.map_err(internal)
    }

    /// The keys of a set; none when it (or the table) is not there.
    pub(super) fn keys(&self, set: &str) -> Result<Vec<Vec<u8>>, PluginError> {
        let found = Self::open()?.keys(self.family, self.table, set);
        found.map_err(internal)
    }
}

/// The table of the plugins together.
pub(super) fn sets(table: &str) -> Sets<'_> {
    Sets {
        family: Family::Inet,
        table,
        base,
    }
}

/// Make the table again, whatever it is like, but not the elements.
pub(crate) fn rebuild(table: &str) -> Result<(), PluginError> {
    sets(table).rebuild()
}

fn base(table: &str) -> Transaction {
    let mut t = Transaction::new(Family::Inet, table);
    t.commands.push(Command::AddTable);
    let chains = [
        (
            "postrouting",
            ChainKind::Nat,
            Hook::Postrouting,
            SOURCE_PRIORITY,
        ),
        (
            "prerouting",
            ChainKind::Nat,
            Hook::Prerouting,
            HOST_PORT_PRIORITY,
        ),
        ("output", ChainKind::Nat, Hook::Output, HOST_PORT_PRIORITY),
        ("guard", ChainKind::Filter, Hook::Prerouting, GUARD_PRIORITY),
        ("forward", ChainKind::Filter, Hook::Forward, FILTER_PRIORITY),
    ];
    for (name, kind, hook, priority) in chains {
        t.base_chain(name, kind, hook, priority);
    }
    t.chain("hostports");
    for name in chains.iter().map(|chain| chain.0).chain(["hostports"]) {
        let chain = Some(name.to_owned());
        t.commands.push(Command::Flush { chain });
    }
    add_sets(&mut t);
    for ipv4 in [true, false] {
        translate_sources(&mut t, ipv4);
        translate_host_ports(&mut t, ipv4);
    }
    translate_loopback_sources(&mut t);
    guard_loopback(&mut t);
    isolate_bridges(&mut t);
    for hook in ["prerouting", "output"] {
        let mut rule = Expr::to_local().to_vec();
        rule.push(Expr::Verdict(Verdict::Jump("hostports".to_owned())));
        t.commented_rule(hook, "to this node: look for a host port", rule);
    }
    t
}

fn add_sets(t: &mut Transaction) {
    use DataType::{IfName, InetProto, InetService, Ipv4Addr, Ipv6Addr};
    let mut set = |name: String, key: &[DataType], data: Option<MapData>| {
        t.commands.push(Command::AddSet(SetSpec {
            name,
            key: key.to_vec(),
            data,
        }));
    };
    for (ipv4, addr) in [(true, Ipv4Addr), (false, Ipv6Addr)] {
        let n = suffix(ipv4);
        let target = || Some(MapData::Fields(vec![addr, InetService]));
        set(format!("masquerade{n}"), &[addr], Some(MapData::Verdict));
        set(format!("loop{n}"), &[addr, addr], None);
        set(format!("always{n}"), &[addr], None);
        if ipv4 {
            set("localhost4".to_owned(), &[addr], None);
        }
        set(format!("hostport{n}"), &[InetProto, InetService], target());
        set(
            format!("hostip{n}"),
            &[addr, InetProto, InetService],
            target(),
        );
    }
    set(BRIDGES.to_owned(), &[IfName], None);
    set(OPEN_BRIDGES.to_owned(), &[IfName, IfName], None);
}

/// `firewall`: what comes from one of its bridges does not go to one of them, not even to the same,
/// unless that pair is open.
fn isolate_bridges(t: &mut Transaction) {
    let name = |key, register| Expr::Meta {
        key,
        dreg: Register(register),
    };
    let in_set = |set: &str| Expr::InSet {
        set: set.to_owned(),
        sreg: Register(0),
    };
    let comment = "bridges whose pods may connect (firewall)";
    let open = vec![
        name(MetaKey::IifName, 0),
        name(MetaKey::OifName, 4),
        in_set(OPEN_BRIDGES),
        Expr::Verdict(Verdict::Accept),
    ];
    t.commented_rule("forward", comment, open);
    let comment = "bridges whose pods may not (firewall)";
    let closed = vec![
        name(MetaKey::IifName, 0),
        in_set(BRIDGES),
        name(MetaKey::OifName, 0),
        in_set(BRIDGES),
        Expr::Verdict(Verdict::Drop),
    ];
    t.commented_rule("forward", comment, closed);
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
    // Its connections by host ports come from the node, whoever made them (portmap's masqAll).
    let mut always = Expr::destination_translated().to_vec();
    always.extend(Expr::family(ipv4));
    always.extend([
        Expr::daddr(ipv4, Register(0)),
        Expr::InSet {
            set: format!("always{n}"),
            sreg: Register(0),
        },
        Expr::Masquerade,
    ]);
    let comment = "whoever uses host ports of a pod whose network has masqAll";
    t.commented_rule("postrouting", comment, always);
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
