// SPDX-License-Identifier: Apache-2.0
//! The constant part of the table: base chains, empty maps, and the rules that look into them.

use cni::cidr::Cidr;
use cni::nft::{
    ChainKind, CmpOp, Command, CtDirection, CtKey, Data, DataType, Element, Expr, Hook, MapData,
    Register, Reject, SetSpec, Transaction, Verdict, match_prefix,
};

use super::chains::{address, name_chain, row};
use super::elements::{SPLIT, policy};
use super::layout::{
    FIRST, Map, SECOND, SetName, digit, load_frontend, no_address, numbers_of, verdict_of, width,
};
use super::{LocalDetect, Settings};
use crate::service::{Masquerade, Protocol, Refuse};

const REJECT: &str = "reject";
const NAT_DESTINATION: i32 = -100;
const NAT_SOURCE: i32 = 100;
const FILTER: i32 = 0;
/// Before destinations are translated.
const GUARD: i32 = NAT_DESTINATION - 10;
const BOTH: [bool; 2] = [true, false];

/// Replace the whole table, in one transaction: chains and empty maps.
pub fn skeleton(table: &str, settings: &Settings) -> Transaction {
    let mut t = Transaction::new(cni::nft::Family::Inet, table);
    t.commands
        .extend([Command::AddTable, Command::DeleteTable, Command::AddTable]);
    BOTH.iter().for_each(|ipv4| family_maps(&mut t, *ipv4));
    number_maps(&mut t);
    let (filter, nat) = (ChainKind::Filter, ChainKind::Nat);
    t.base_chain("guard", filter, Hook::Prerouting, GUARD);
    t.base_chain("guard-output", filter, Hook::Output, GUARD);
    t.base_chain("prerouting", nat, Hook::Prerouting, NAT_DESTINATION);
    t.base_chain("nat-output", nat, Hook::Output, NAT_DESTINATION);
    t.base_chain("postrouting", nat, Hook::Postrouting, NAT_SOURCE);
    t.base_chain("input", filter, Hook::Input, FILTER);
    t.base_chain("forward", filter, Hook::Forward, FILTER);
    t.base_chain("filter-output", filter, Hook::Output, FILTER);
    reject_chain(&mut t);
    masquerade_chains(&mut t, settings);
    refusals(&mut t);
    for (ipv4, node_port, number) in SPLIT {
        split_chain(&mut t, settings, ipv4, node_port, number);
    }
    for ipv4 in BOTH {
        guard_rules(&mut t, settings, ipv4);
        destination_rules(&mut t, settings, ipv4);
        source_rules(&mut t, settings, ipv4);
        refuse_rules(&mut t, settings, ipv4);
    }
    t
}

fn set(t: &mut Transaction, name: SetName, key: &[DataType], data: Option<MapData>) {
    t.commands.push(Command::AddSet(SetSpec {
        name: name.to_string(),
        key: key.to_vec(),
        data,
    }));
}

fn family_maps(t: &mut Transaction, ipv4: bool) {
    use DataType::{InetProto, InetService, Mark};
    let addr = address(ipv4);
    let frontend = [addr, InetProto, InetService];
    let with_slot = [addr, InetProto, InetService, Mark];
    let numbers = || Some(MapData::Fields(vec![Mark; 3]));
    let backend = || Some(MapData::Fields(vec![addr, InetService]));
    for map in [Map::Services, Map::Split, Map::Firewall] {
        set(t, map.of(ipv4), &frontend, numbers());
    }
    for map in [Map::Slots, Map::LocalSlots] {
        let row = Some(MapData::Fields(row(ipv4)));
        set(t, map.of(ipv4), &with_slot, row);
    }
    for map in [
        Map::Endpoints,
        Map::LocalEndpoints,
        Map::Members,
        Map::LocalMembers,
    ] {
        set(t, map.of(ipv4), &with_slot, backend());
    }
    set(t, Map::Loop.of(ipv4), &[addr, addr], None);
    set(t, Map::ClusterIps.of(ipv4), &[addr], None);
}

fn number_maps(t: &mut Transaction) {
    for map in [
        Map::Entries,
        Map::Picks,
        Map::SourceLists,
        Map::Masquerades,
        Map::Refusals,
    ] {
        set(t, map.alone(), &[DataType::Mark], Some(MapData::Verdict));
    }
}

fn reject_chain(t: &mut Transaction) {
    t.chain(REJECT);
    let tcp = Expr::Cmp {
        op: CmpOp::Eq,
        sreg: Register(0),
        data: vec![Protocol::Tcp.number()],
    };
    let reset = Expr::Reject(Reject::TcpReset);
    let reset = vec![Expr::l4proto(Register(0)), tcp, reset];
    t.commented_rule(REJECT, "TCP is reset", reset);
    let unreachable = vec![Expr::Reject(Reject::PortUnreachable)];
    t.commented_rule(REJECT, "port unreachable", unreachable);
}

/// A verdict for each policy that has this part.
fn policies(
    t: &mut Transaction,
    map: Map,
    verdict: impl Fn(Masquerade, Option<Refuse>) -> Option<Verdict>,
) {
    let mut elements = Vec::new();
    for masquerade in [Masquerade::All, Masquerade::Outside, Masquerade::Host] {
        for refuse in [None, Some(Refuse::Reject), Some(Refuse::Drop)] {
            if let Some(verdict) = verdict(masquerade, refuse) {
                elements.push(Element {
                    key: policy(masquerade, refuse).to_ne_bytes().to_vec(),
                    data: Some(Data::Verdict(verdict)),
                });
            }
        }
    }
    t.add(&map.alone().to_string(), elements);
}

fn refusals(t: &mut Transaction) {
    policies(t, Map::Refusals, |_, refuse| match refuse? {
        Refuse::Reject => Some(Verdict::Goto(REJECT.to_owned())),
        Refuse::Drop => Some(Verdict::Drop),
    });
}

fn masquerade_chains(t: &mut Transaction, settings: &Settings) {
    let name = |masquerade| match masquerade {
        Masquerade::All => "masquerade-all",
        Masquerade::Outside => "masquerade-outside",
        Masquerade::Host => "masquerade-host",
    };
    for masquerade in [Masquerade::All, Masquerade::Outside, Masquerade::Host] {
        let chain = name(masquerade);
        t.chain(chain);
        match masquerade {
            Masquerade::All => {
                let comment = "the node's address replaces the client's: answers come back here";
                t.commented_rule(chain, comment, vec![Expr::Masquerade]);
            }
            Masquerade::Outside => outside_rules(t, chain, settings),
            Masquerade::Host => {
                let mut rule = Expr::from_local().to_vec();
                rule.push(Expr::Masquerade);
                t.commented_rule(chain, "sent by the node itself", rule);
            }
        }
    }
    policies(t, Map::Masquerades, |masquerade, _| {
        Some(Verdict::Goto(name(masquerade).to_owned()))
    });
}

fn outside_rules(t: &mut Transaction, chain: &str, settings: &Settings) {
    if settings.masquerade_all {
        let comment = "masquerade-all: the node's address replaces the client's";
        t.commented_rule(chain, comment, vec![Expr::Masquerade]);
        return;
    }
    for ipv4 in BOTH {
        // Without a way to know pods, everybody is taken for one, as kube-proxy does.
        let pods = from_pods(settings, ipv4);
        for mut rule in pods.iter().cloned() {
            rule.push(Expr::Verdict(Verdict::Return));
            t.commented_rule(chain, "from a pod: it keeps its address", rule);
        }
        if !pods.is_empty() {
            let mut rule = Expr::family(ipv4).to_vec();
            rule.push(Expr::Masquerade);
            let comment = "not from a pod: the node's address replaces the client's";
            t.commented_rule(chain, comment, rule);
        }
    }
}

/// Ways to match packets from pods; each is a rule of its own. They use register 0 and four more.
fn from_pods(settings: &Settings, ipv4: bool) -> Vec<Vec<Expr>> {
    let family = Expr::family(ipv4).to_vec();
    let by_link = |data: Vec<u8>| {
        let mut rule = family.clone();
        rule.push(Expr::iifname(Register(0)));
        rule.push(Expr::Cmp {
            op: CmpOp::Eq,
            sreg: Register(0),
            data,
        });
        vec![rule]
    };
    match &settings.local {
        LocalDetect::Cidrs(cidrs) => cidrs
            .iter()
            .filter(|c| c.is_ipv4() == ipv4)
            .map(|cidr| {
                let mut rule = family.clone();
                rule.push(Expr::saddr(ipv4, Register(0)));
                rule.extend(match_prefix(CmpOp::Eq, *cidr));
                rule
            })
            .collect(),
        LocalDetect::Interface(name) => by_link(whole_name(name)),
        LocalDetect::InterfacePrefix(prefix) => by_link(prefix.as_bytes().to_vec()),
    }
}

/// A link's name as it stands in a register, which is compared to its end.
fn whole_name(name: &str) -> Vec<u8> {
    let mut bytes = name.as_bytes().to_vec();
    bytes.resize(16, 0);
    bytes
}

fn loopback(ipv4: bool) -> Cidr {
    let text = if ipv4 { "127.0.0.0/8" } else { "::1/128" };
    text.parse().expect("a CIDR")
}

/// What must not come from outside, whatever routing says (CVE-2020-8558): loopback addresses, and
/// cluster IPs as sources. Then who may send to a load balancer's address.
fn guard_rules(t: &mut Transaction, settings: &Settings, ipv4: bool) {
    let from_outside = || {
        let mut rule = Expr::state_new().to_vec();
        rule.extend(Expr::family(ipv4));
        rule.extend(Expr::from_outside());
        rule
    };
    for address in [Expr::daddr, Expr::saddr] {
        let mut rule = from_outside();
        rule.push(address(ipv4, Register(0)));
        rule.extend(match_prefix(CmpOp::Eq, loopback(ipv4)));
        rule.push(Expr::Verdict(Verdict::Drop));
        let comment = "loopback addresses never come by a wire (CVE-2020-8558)";
        t.commented_rule("guard", comment, rule);
    }
    let mut spoofed = from_outside();
    spoofed.push(Expr::saddr(ipv4, Register(0)));
    spoofed.push(is_cluster_ip(ipv4));
    spoofed.push(Expr::Verdict(Verdict::Drop));
    let comment = "nobody outside has a cluster IP";
    t.commented_rule("guard", comment, spoofed);
    let pods = from_pods(settings, ipv4);
    if settings.strict && !pods.is_empty() {
        strict_rules(t, &from_outside, pods, ipv4);
    }
    for chain in ["guard", "guard-output"] {
        let mut rule = Expr::state_new().to_vec();
        rule.extend(Expr::family(ipv4));
        rule.extend(load_frontend(ipv4, false, 0));
        rule.extend(numbers_of(Map::Firewall, ipv4));
        rule.push(verdict_of(Map::SourceLists, FIRST));
        let comment = "a balancer's address with loadBalancerSourceRanges";
        t.commented_rule(chain, comment, rule);
    }
}

fn is_cluster_ip(ipv4: bool) -> Expr {
    Expr::InSet {
        set: Map::ClusterIps.of(ipv4).to_string(),
        sreg: Register(0),
    }
}

/// Cluster IPs are for the cluster: a chain of its own, left by pods.
fn strict_rules(
    t: &mut Transaction,
    from_outside: &dyn Fn() -> Vec<Expr>,
    pods: Vec<Vec<Expr>>,
    ipv4: bool,
) {
    let chain = format!("strict{}", digit(ipv4));
    t.chain(&chain);
    for mut rule in pods {
        rule.push(Expr::Verdict(Verdict::Return));
        t.commented_rule(&chain, "from a pod", rule);
    }
    let drop = vec![Expr::Verdict(Verdict::Drop)];
    t.commented_rule(&chain, "cluster IPs are for the cluster", drop);
    let mut rule = from_outside();
    rule.push(Expr::daddr(ipv4, Register(0)));
    rule.push(is_cluster_ip(ipv4));
    rule.push(Expr::Verdict(Verdict::Jump(chain)));
    let comment = "from outside to a cluster IP";
    t.commented_rule("guard", comment, rule);
}

/// Ways to match packets to the addresses that node ports answer on; each is a rule of its own.
fn to_node_ports(settings: &Settings, ipv4: bool) -> Vec<Vec<Expr>> {
    let cidrs = settings.node_ports.iter();
    cidrs
        .filter(|c| c.is_ipv4() == ipv4 && !loopback(ipv4).contains(c.addr))
        .map(|cidr| {
            let mut rule = Expr::family(ipv4).to_vec();
            if *cidr != Cidr::host(cidr.addr) {
                rule.extend(Expr::to_local());
                rule.push(Expr::daddr(ipv4, Register(0)));
                rule.extend(match_prefix(CmpOp::Neq, loopback(ipv4)));
            }
            rule.push(Expr::daddr(ipv4, Register(0)));
            rule.extend(match_prefix(CmpOp::Eq, *cidr));
            rule
        })
        .collect()
}

/// Go to a frontend's chain.
fn by_number(ipv4: bool) -> Vec<Expr> {
    let mut exprs = numbers_of(Map::Services, ipv4).to_vec();
    exprs.push(verdict_of(Map::Entries, FIRST));
    exprs
}

/// Take the verdict of a frontend's policy.
fn by_policy(ipv4: bool, verdicts: Map) -> Vec<Expr> {
    let mut exprs = numbers_of(Map::Services, ipv4).to_vec();
    exprs.push(verdict_of(verdicts, SECOND));
    exprs
}

fn destination_rules(t: &mut Transaction, settings: &Settings, ipv4: bool) {
    for chain in ["prerouting", "nat-output"] {
        let mut rule = Expr::family(ipv4).to_vec();
        rule.extend(load_frontend(ipv4, false, 0));
        rule.extend(by_number(ipv4));
        let comment = "a Service's address and port: its number of endpoints says which chain";
        t.commented_rule(chain, comment, rule);
        for mut rule in to_node_ports(settings, ipv4) {
            rule.extend(load_frontend(ipv4, true, 0));
            rule.extend(by_number(ipv4));
            let comment = "a node port: its number of endpoints says which chain";
            t.commented_rule(chain, comment, rule);
        }
    }
}

/// With `externalTrafficPolicy: Local`, pods and the node itself use all endpoints, as if they had
/// gone out and come back by a load balancer; who comes from outside gets one of this node.
fn split_chain(t: &mut Transaction, settings: &Settings, ipv4: bool, node_port: bool, number: u32) {
    let node = if node_port { "node-" } else { "" };
    let chain = format!("{node}split{}", digit(ipv4));
    t.chain(&chain);
    let mut inside = from_pods(settings, ipv4);
    inside.push(Expr::from_local().to_vec());
    for mut rule in inside {
        rule.extend(load_frontend(ipv4, node_port, 0));
        rule.extend(numbers_of(Map::Split, ipv4));
        rule.push(verdict_of(Map::Picks, FIRST));
        let comment = "from a pod or the node itself: all endpoints";
        t.commented_rule(&chain, comment, rule);
    }
    let mut outside = load_frontend(ipv4, node_port, 0);
    outside.extend(numbers_of(Map::Split, ipv4));
    outside.push(verdict_of(Map::Picks, SECOND));
    let comment = "from outside: the endpoints of this node";
    t.commented_rule(&chain, comment, outside);
    name_chain(t, Map::Entries, number, &chain);
}

/// Which sources are replaced is found by what the client asked for (the connection's original
/// destination), so that no packet mark is needed that others could use too.
fn source_rules(t: &mut Transaction, settings: &Settings, ipv4: bool) {
    let translated = || {
        let mut rule = Expr::destination_translated().to_vec();
        rule.extend(Expr::family(ipv4));
        rule
    };
    let mut hairpin = translated();
    hairpin.extend([
        Expr::saddr(ipv4, Register(0)),
        Expr::daddr(ipv4, Register(width(ipv4))),
        Expr::InSet {
            set: Map::Loop.of(ipv4).to_string(),
            sreg: Register(0),
        },
        Expr::Masquerade,
    ]);
    let comment = "a pod that reaches itself through a Service";
    t.commented_rule("postrouting", comment, hairpin);
    let replace = || by_policy(ipv4, Map::Masquerades);
    let mut rule = translated();
    rule.extend(asked_frontend(ipv4, false));
    rule.extend(replace());
    let comment = "through a Service: its policy says whose address is replaced";
    t.commented_rule("postrouting", comment, rule);
    let cidrs = settings.node_ports.iter();
    for cidr in cidrs.filter(|c| c.is_ipv4() == ipv4) {
        let mut rule = translated();
        rule.push(asked_address(ipv4));
        rule.extend(match_prefix(CmpOp::Eq, *cidr));
        rule.extend(asked_frontend(ipv4, true));
        rule.extend(replace());
        let comment = "through a node port: its policy says whose address is replaced";
        t.commented_rule("postrouting", comment, rule);
    }
}

/// Load the address that the client sent its first packet to.
fn asked_address(ipv4: bool) -> Expr {
    Expr::Ct {
        key: if ipv4 { CtKey::DstIp } else { CtKey::DstIp6 },
        direction: Some(CtDirection::Original),
        dreg: Register(0),
    }
}

fn asked_frontend(ipv4: bool, node_port: bool) -> Vec<Expr> {
    let mut exprs = vec![asked_address(ipv4)];
    if node_port {
        exprs.push(no_address(ipv4, 0));
    }
    exprs.push(Expr::l4proto(Register(width(ipv4))));
    exprs.push(Expr::Ct {
        key: CtKey::ProtoDst,
        direction: Some(CtDirection::Original),
        dreg: Register(width(ipv4) + 1),
    });
    exprs
}

fn refuse_rules(t: &mut Transaction, settings: &Settings, ipv4: bool) {
    let new = |extra: &[Expr]| {
        let mut rule = Expr::state_new().to_vec();
        rule.extend(extra.iter().cloned());
        rule
    };
    let refuse = || by_policy(ipv4, Map::Refusals);
    for chain in ["input", "forward", "filter-output"] {
        let mut rule = new(&Expr::family(ipv4));
        rule.extend(load_frontend(ipv4, false, 0));
        rule.extend(refuse());
        let comment = "a Service without an endpoint refuses";
        t.commented_rule(chain, comment, rule);
    }
    for chain in ["input", "filter-output"] {
        for to_node in to_node_ports(settings, ipv4) {
            let mut rule = new(&to_node);
            rule.extend(load_frontend(ipv4, true, 0));
            rule.extend(refuse());
            let comment = "a node port without an endpoint refuses";
            t.commented_rule(chain, comment, rule);
        }
    }
    // A cluster IP that is still a destination here has not been translated: no such port.
    for chain in ["forward", "filter-output"] {
        let mut rule = new(&Expr::family(ipv4));
        rule.push(Expr::daddr(ipv4, Register(0)));
        rule.push(is_cluster_ip(ipv4));
        rule.push(Expr::Verdict(Verdict::Goto(REJECT.to_owned())));
        let comment = "a port that the cluster IP's Service does not have";
        t.commented_rule(chain, comment, rule);
    }
}
