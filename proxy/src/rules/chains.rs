// SPDX-License-Identifier: Apache-2.0
//! Chains that are made when a Service first needs them. None belongs to a Service: there is one
//! for each number of endpoints, and one for each list of sources.

use cni::cidr::Cidr;
use cni::nft::{
    CmpOp, Command, Data, DataType, DynamicOp, Element, Expr, MapData, NatKind, Register, SetSpec,
    Transaction, Verdict, match_prefix,
};

use super::layout::{
    Map, SetName, digit, frontend_width, load_frontend, map_to, placeholder, width,
};

/// Clients that are remembered, for each family; the kernel takes 16 bytes for each at once.
const LEARNED: u32 = 1 << 17;
/// Register of map data, after the longest key.
const DATA: u8 = 8;

/// What distinguishes the chains that draw an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pick {
    /// Family.
    pub ipv4: bool,
    /// Frontends are node ports.
    pub node_port: bool,
    /// Among the endpoints for clients from outside.
    pub local: bool,
    /// Number of endpoints, not 0.
    pub count: u32,
    /// For how many seconds a client keeps what was drawn.
    pub affinity: Option<u32>,
}

impl Pick {
    fn endpoints(&self) -> SetName {
        if self.local {
            Map::LocalEndpoints.of(self.ipv4)
        } else {
            Map::Endpoints.of(self.ipv4)
        }
    }

    fn members(&self) -> SetName {
        if self.local {
            Map::LocalMembers.of(self.ipv4)
        } else {
            Map::Members.of(self.ipv4)
        }
    }

    fn slots(&self) -> SetName {
        if self.local {
            Map::LocalSlots.of(self.ipv4)
        } else {
            Map::Slots.of(self.ipv4)
        }
    }
}

/// The chain that draws one of `count` endpoints.
pub fn pick_chain(pick: &Pick) -> String {
    let node = if pick.node_port { "node-" } else { "" };
    let local = if pick.local { "local-" } else { "" };
    let keep = pick.affinity.map(|s| format!("-keep{s}"));
    let family = digit(pick.ipv4);
    format!(
        "{node}{local}pick{family}-{}{}",
        pick.count,
        keep.unwrap_or_default()
    )
}

/// Make the chain that draws one of `count` endpoints, known by a number from now on.
pub fn add_pick_chain(t: &mut Transaction, pick: &Pick, number: u32) {
    let chain = pick_chain(pick);
    if pick.affinity.is_some() {
        learned_map(t, pick.ipv4);
    }
    t.chain(&chain);
    if let Some(timeout) = pick.affinity {
        keep_rules(t, &chain, pick, timeout);
    }
    let slot = frontend_width(pick.ipv4);
    let mut rule = load_frontend(pick.ipv4, pick.node_port, 0);
    rule.extend([
        random(pick.count, slot),
        map_to(pick.endpoints(), 0, DATA),
        translate(pick.ipv4, DATA),
    ]);
    t.commented_rule(
        &chain,
        "an endpoint by chance becomes the destination",
        rule,
    );
    name_chain(t, Map::Entries, number, &chain);
    name_chain(t, Map::Picks, number, &chain);
}

pub(super) fn name_chain(t: &mut Transaction, map: Map, number: u32, chain: &str) {
    let element = Element {
        key: number.to_ne_bytes().to_vec(),
        data: Some(Data::Verdict(Verdict::Goto(chain.to_owned()))),
    };
    t.add(&map.alone().to_string(), vec![element]);
}

fn random(count: u32, to: u8) -> Expr {
    Expr::Random {
        modulus: count,
        dreg: Register(to),
    }
}

fn translate(ipv4: bool, data: u8) -> Expr {
    Expr::Nat {
        kind: NatKind::Dnat,
        ipv4,
        addr: Register(data),
        port: Register(data + width(ipv4)),
    }
}

fn learned_map(t: &mut Transaction, ipv4: bool) {
    use DataType::{InetProto, InetService};
    let addr = address(ipv4);
    t.commands.push(Command::AddDynamicMap {
        spec: SetSpec {
            name: Map::Learned.of(ipv4).to_string(),
            key: vec![addr, addr, InetProto, InetService],
            data: Some(MapData::Fields(row(ipv4))),
        },
        size: LEARNED,
    });
}

pub(super) fn address(ipv4: bool) -> DataType {
    if ipv4 {
        DataType::Ipv4Addr
    } else {
        DataType::Ipv6Addr
    }
}

/// Client, frontend and token, as they stand in registers.
pub(super) fn row(ipv4: bool) -> Vec<DataType> {
    use DataType::{InetProto, InetService, Mark};
    let addr = address(ipv4);
    vec![addr, addr, InetProto, InetService, Mark]
}

/// Rules that keep a client at its endpoint. In registers stand client, frontend and token, one
/// after the other, so that client and frontend are one key, and frontend and token another. Maps
/// give the whole row, and the client is loaded again, for nft's sake: see [`numbers_of`].
///
/// [`numbers_of`]: super::layout::numbers_of
fn keep_rules(t: &mut Transaction, chain: &str, pick: &Pick, timeout: u32) {
    let ipv4 = pick.ipv4;
    let frontend = width(ipv4);
    let token = frontend + frontend_width(ipv4);
    // After the token: IPv6 needs all of the registers.
    let backend = token + 1;
    let learned = Map::Learned.of(ipv4);
    let client = || Expr::saddr(ipv4, Register(0));
    let load = || {
        let mut exprs = vec![client()];
        exprs.extend(load_frontend(ipv4, pick.node_port, frontend));
        exprs
    };
    let change = |op, timeout| Expr::Dynamic {
        op,
        map: learned.to_string(),
        key: Register(0),
        data: Some(Register(0)),
        timeout,
    };
    let lead = || {
        [
            map_to(pick.members(), frontend, backend),
            change(DynamicOp::Update, Some(timeout)),
            translate(ipv4, backend),
        ]
    };
    let known = || [placeholder(token), map_to(learned, 0, 0), client()];
    // Who is known goes where it went, if that endpoint is still one.
    let mut stay = load();
    stay.extend(known());
    stay.extend(lead());
    t.commented_rule(chain, "the endpoint that this client had before", stay);
    // Who is known and gets here has an endpoint that is gone. An update would not replace it.
    let mut forget = load();
    forget.extend(known());
    forget.push(change(DynamicOp::Delete, None));
    t.commented_rule(chain, "that endpoint is gone: forget it", forget);
    let mut learn = load();
    learn.extend([
        random(pick.count, token),
        map_to(pick.slots(), frontend, 0),
        client(),
    ]);
    learn.extend(lead());
    t.commented_rule(
        chain,
        "an endpoint by chance, to be kept for this client",
        learn,
    );
}

/// Make the chain that drops all but packets from `sources`, known by a number from now on. One
/// that has the number already is rewritten.
pub fn add_sources_chain(t: &mut Transaction, sources: &[Cidr], number: u32) {
    let chain = format!("sources-{number}");
    t.chain(&chain);
    t.commands.push(Command::Flush {
        chain: Some(chain.clone()),
    });
    for cidr in sources {
        let mut rule = Expr::family(cidr.is_ipv4()).to_vec();
        rule.push(Expr::saddr(cidr.is_ipv4(), Register(0)));
        rule.extend(match_prefix(CmpOp::Eq, *cidr));
        rule.push(Expr::Verdict(Verdict::Return));
        t.commented_rule(&chain, "a source that may", rule);
    }
    let drop = vec![Expr::Verdict(Verdict::Drop)];
    t.commented_rule(&chain, "every other source", drop);
    name_chain(t, Map::SourceLists, number, &chain);
}
