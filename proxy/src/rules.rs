// SPDX-License-Identifier: Apache-2.0
//! The proxy's table: constant chains, a few maps, and how a Service becomes elements of them.
//!
//! Services are never rules. A packet's cost is a fixed number of hash lookups, and a change of one
//! Service is a change of its own elements.

use std::collections::BTreeMap;
use std::net::IpAddr;

use cni::cidr::Cidr;
use cni::nft::{
    ChainKind, CmpOp, Command, CtDirection, CtKey, Data, DataType, Expr, Family, Hook, MapData,
    NatKind, Register, Reject, SetSpec, Transaction, Verdict, match_prefix,
};

use crate::service::{Backend, Frontend, Masquerade, Protocol, ServiceRules, Target};

/// Elements by set and key. A plain set's elements have no data.
pub type Elements = BTreeMap<(String, Vec<u8>), Option<Data>>;

/// Names of the maps, each followed by 4 or 6.
mod name {
    pub(super) const SERVICES: &str = "services";
    pub(super) const ENDPOINTS: &str = "endpoints";
    pub(super) const REFUSE: &str = "refuse";
    pub(super) const MASQUERADE: &str = "masquerade";
    pub(super) const LOOP: &str = "loop";
    pub(super) const CLUSTER_IPS: &str = "cluster-ips";
}

const REJECT: &str = "reject";
const MASQUERADE_ALL: &str = "masquerade-all";
const MASQUERADE_OUTSIDE: &str = "masquerade-outside";
const NAT_DESTINATION: i32 = -100;
const NAT_SOURCE: i32 = 100;
const FILTER: i32 = 0;
/// Registers of map data: after the longest key.
const DATA: u8 = 8;

fn of(name: &str, ipv4: bool) -> String {
    format!("{name}{}", if ipv4 { '4' } else { '6' })
}

fn octets(addr: IpAddr) -> Vec<u8> {
    match addr {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

fn padded(port: u16) -> [u8; 4] {
    let [high, low] = port.to_be_bytes();
    [high, low, 0, 0]
}

fn frontend_key(frontend: &Frontend) -> Vec<u8> {
    let mut key = octets(frontend.addr);
    key.extend([frontend.protocol.number(), 0, 0, 0]);
    key.extend(padded(frontend.port));
    key
}

fn backend_data(backend: &Backend) -> Data {
    let mut data = octets(backend.addr);
    data.extend(padded(backend.port));
    Data::Value(data)
}

fn goto(chain: &str) -> Option<Data> {
    Some(Data::Verdict(Verdict::Goto(chain.to_owned())))
}

/// The chain that draws one of `count` endpoints.
pub fn pick_chain(ipv4: bool, count: usize) -> String {
    format!("{}-{count}", of("pick", ipv4))
}

/// The elements of one Service.
pub fn elements(rules: &ServiceRules) -> Elements {
    let mut elements = Elements::new();
    for (frontend, target) in &rules.frontends {
        target_elements(&mut elements, frontend, target);
    }
    for ip in &rules.cluster_ips {
        elements.insert((of(name::CLUSTER_IPS, ip.is_ipv4()), octets(*ip)), None);
    }
    for ip in &rules.local {
        elements.insert((of(name::LOOP, ip.is_ipv4()), octets(*ip).repeat(2)), None);
    }
    elements
}

fn target_elements(elements: &mut Elements, frontend: &Frontend, target: &Target) {
    let ipv4 = frontend.addr.is_ipv4();
    let key = frontend_key(frontend);
    match target {
        Target::Reject => drop(elements.insert((of(name::REFUSE, ipv4), key), goto(REJECT))),
        Target::Drop => {
            let drop_it = Some(Data::Verdict(Verdict::Drop));
            elements.insert((of(name::REFUSE, ipv4), key), drop_it);
        }
        Target::Backends(backends, masquerade) => {
            for (slot, backend) in (0_u32..).zip(backends) {
                let mut slot_key = key.clone();
                slot_key.extend(slot.to_ne_bytes());
                elements.insert(
                    (of(name::ENDPOINTS, ipv4), slot_key),
                    Some(backend_data(backend)),
                );
            }
            let chain = pick_chain(ipv4, backends.len());
            elements.insert((of(name::SERVICES, ipv4), key.clone()), goto(&chain));
            let chain = match masquerade {
                Masquerade::All => MASQUERADE_ALL,
                Masquerade::Outside => MASQUERADE_OUTSIDE,
                Masquerade::None => return,
            };
            elements.insert((of(name::MASQUERADE, ipv4), key), goto(chain));
        }
    }
}

/// Replace the whole table, in one transaction: chains and empty maps.
pub fn skeleton(table: &str, cluster: &[Cidr]) -> Transaction {
    let mut t = Transaction::new(Family::Inet, table);
    t.commands
        .extend([Command::AddTable, Command::DeleteTable, Command::AddTable]);
    for (ipv4, addr) in [(true, DataType::Ipv4Addr), (false, DataType::Ipv6Addr)] {
        maps(&mut t, ipv4, addr);
    }
    t.base_chain(
        "prerouting",
        ChainKind::Nat,
        Hook::Prerouting,
        NAT_DESTINATION,
    );
    t.base_chain("nat-output", ChainKind::Nat, Hook::Output, NAT_DESTINATION);
    t.base_chain("postrouting", ChainKind::Nat, Hook::Postrouting, NAT_SOURCE);
    t.base_chain("input", ChainKind::Filter, Hook::Input, FILTER);
    t.base_chain("forward", ChainKind::Filter, Hook::Forward, FILTER);
    t.base_chain("filter-output", ChainKind::Filter, Hook::Output, FILTER);
    for chain in [REJECT, MASQUERADE_ALL, MASQUERADE_OUTSIDE] {
        t.chain(chain);
    }
    for ipv4 in [true, false] {
        destination_rules(&mut t, ipv4);
        source_rules(&mut t, ipv4);
        refuse_rules(&mut t, ipv4);
    }
    reject_rules(&mut t);
    masquerade_rules(&mut t, cluster);
    t
}

fn maps(t: &mut Transaction, ipv4: bool, addr: DataType) {
    use DataType::{InetProto, InetService, Mark};
    let frontend = [addr, InetProto, InetService];
    let with_slot = [addr, InetProto, InetService, Mark];
    let mut set = |name: &str, key: &[DataType], data: Option<MapData>| {
        t.commands.push(Command::AddSet(SetSpec {
            name: of(name, ipv4),
            key: key.to_vec(),
            data,
        }));
    };
    set(name::SERVICES, &frontend, Some(MapData::Verdict));
    set(
        name::ENDPOINTS,
        &with_slot,
        Some(MapData::Fields(vec![addr, InetService])),
    );
    set(name::REFUSE, &frontend, Some(MapData::Verdict));
    set(name::MASQUERADE, &frontend, Some(MapData::Verdict));
    set(name::LOOP, &[addr, addr], None);
    set(name::CLUSTER_IPS, &[addr], None);
}

/// Registers that an address takes.
fn width(ipv4: bool) -> u8 {
    if ipv4 { 1 } else { 4 }
}

/// Load destination address, protocol and port: the key of a frontend.
fn load_frontend(ipv4: bool) -> Vec<Expr> {
    let mut exprs = Expr::family(ipv4).to_vec();
    exprs.extend([
        Expr::daddr(ipv4, Register(0)),
        Expr::l4proto(Register(width(ipv4))),
        Expr::dport(Register(width(ipv4) + 1)),
    ]);
    exprs
}

fn verdict_of(map: &str, ipv4: bool) -> Expr {
    Expr::VerdictMap {
        map: of(map, ipv4),
        sreg: Register(0),
    }
}

fn destination_rules(t: &mut Transaction, ipv4: bool) {
    for chain in ["prerouting", "nat-output"] {
        let mut rule = load_frontend(ipv4);
        rule.push(verdict_of(name::SERVICES, ipv4));
        t.rule(chain, rule);
    }
}

/// Which sources are replaced is found by what the client asked for (the connection's original
/// destination), so that no packet mark is needed that others could use too.
fn source_rules(t: &mut Transaction, ipv4: bool) {
    let mut hairpin = Expr::destination_translated().to_vec();
    hairpin.extend(Expr::family(ipv4));
    hairpin.extend([
        Expr::saddr(ipv4, Register(0)),
        Expr::daddr(ipv4, Register(width(ipv4))),
        Expr::InSet {
            set: of(name::LOOP, ipv4),
            sreg: Register(0),
        },
        Expr::Masquerade,
    ]);
    t.rule("postrouting", hairpin);
    let direction = Some(CtDirection::Original);
    let address = if ipv4 { CtKey::DstIp } else { CtKey::DstIp6 };
    let mut asked = Expr::destination_translated().to_vec();
    asked.extend(Expr::family(ipv4));
    asked.extend([
        Expr::Ct {
            key: address,
            direction,
            dreg: Register(0),
        },
        Expr::l4proto(Register(width(ipv4))),
        Expr::Ct {
            key: CtKey::ProtoDst,
            direction,
            dreg: Register(width(ipv4) + 1),
        },
        verdict_of(name::MASQUERADE, ipv4),
    ]);
    t.rule("postrouting", asked);
}

fn refuse_rules(t: &mut Transaction, ipv4: bool) {
    for chain in ["input", "forward", "filter-output"] {
        let mut rule = Expr::state_new().to_vec();
        rule.extend(load_frontend(ipv4));
        rule.push(verdict_of(name::REFUSE, ipv4));
        t.rule(chain, rule);
    }
    // A cluster IP that is still a destination here has not been translated: no such port.
    for chain in ["forward", "filter-output"] {
        let mut rule = Expr::state_new().to_vec();
        rule.extend(Expr::family(ipv4));
        rule.extend([
            Expr::daddr(ipv4, Register(0)),
            Expr::InSet {
                set: of(name::CLUSTER_IPS, ipv4),
                sreg: Register(0),
            },
            Expr::Verdict(Verdict::Goto(REJECT.to_owned())),
        ]);
        t.rule(chain, rule);
    }
}

fn reject_rules(t: &mut Transaction) {
    let tcp = Expr::Cmp {
        op: CmpOp::Eq,
        sreg: Register(0),
        data: vec![Protocol::Tcp.number()],
    };
    t.rule(
        REJECT,
        vec![
            Expr::l4proto(Register(0)),
            tcp,
            Expr::Reject(Reject::TcpReset),
        ],
    );
    t.rule(REJECT, vec![Expr::Reject(Reject::PortUnreachable)]);
}

fn masquerade_rules(t: &mut Transaction, cluster: &[Cidr]) {
    t.rule(MASQUERADE_ALL, vec![Expr::Masquerade]);
    for cidr in cluster {
        let mut rule = Expr::family(cidr.is_ipv4()).to_vec();
        rule.push(Expr::saddr(cidr.is_ipv4(), Register(0)));
        rule.extend(match_prefix(CmpOp::Eq, *cidr));
        rule.push(Expr::Verdict(Verdict::Return));
        t.rule(MASQUERADE_OUTSIDE, rule);
    }
    t.rule(MASQUERADE_OUTSIDE, vec![Expr::Masquerade]);
}

/// Make the chain that draws one of `count` endpoints.
pub fn add_pick_chain(t: &mut Transaction, ipv4: bool, count: u32) {
    let chain = format!("{}-{count}", of("pick", ipv4));
    t.chain(&chain);
    let slot = Register(width(ipv4) + 2);
    let mut rule = load_frontend(ipv4);
    rule.extend([
        Expr::Random {
            modulus: count,
            dreg: slot,
        },
        Expr::Map {
            map: of(name::ENDPOINTS, ipv4),
            sreg: Register(0),
            dreg: Register(DATA),
        },
        Expr::Nat {
            kind: NatKind::Dnat,
            ipv4,
            addr: Register(DATA),
            port: Register(DATA + width(ipv4)),
        },
    ]);
    t.rule(&chain, rule);
}
