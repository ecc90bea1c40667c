// SPDX-License-Identifier: Apache-2.0
//! What a question gets (Kubernetes DNS specification 1.1.0). Pure: no socket, no clock.
//!
//! Names of the cluster and addresses of Services and pods are answered from the [`Zone`]; anything
//! else is somebody else's to know, and the caller asks there.

use std::net::IpAddr;

use cni::cidr::Cidr;
use hickory_proto::op::{Query, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, CNAME, HINFO, NS, PTR, SOA, SRV, TXT};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};

use super::lookup::{self, Node};
use super::zone::Zone;

/// How long an answer counts, in seconds: CoreDNS's default. The zone is on the same node, so asking
/// again costs little, and a pod that moved is found soon.
pub const TTL: u32 = 5;
/// The version of the schema hardly changes (section 2.2).
const VERSION_TTL: u32 = 28_800;
/// Of the specification that this follows.
const SCHEMA_VERSION: &str = "1.1.0";
/// Names that stand for names, one after the other.
const ALIASES_MAX: usize = 8;

/// What is sent back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Response code.
    pub code: ResponseCode,
    /// Does it come from our own zone?
    pub authoritative: bool,
    /// The three sections.
    pub answers: Vec<Record>,
    /// SOA of what does not exist.
    pub authorities: Vec<Record>,
    /// Addresses of targets, which may be left out.
    pub additionals: Vec<Record>,
    /// There is more than there was room for.
    pub truncated: bool,
}

impl Answer {
    /// Nothing but a code.
    pub fn code(code: ResponseCode) -> Answer {
        Answer {
            code,
            authoritative: false,
            answers: Vec::new(),
            authorities: Vec::new(),
            additionals: Vec::new(),
            truncated: false,
        }
    }

    fn own() -> Answer {
        Answer {
            authoritative: true,
            ..Answer::code(ResponseCode::NoError)
        }
    }
}

/// What is to be done about a question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Send this.
    Done(Answer),
    /// Ask somebody else.
    Forward,
    /// Ask somebody else for this name, and send what comes after these records.
    Follow(Answer, Name),
}

/// How much of it.
#[derive(Debug, Clone, Copy)]
pub struct Turn {
    /// Addresses begin with another one each time, so that clients spread.
    pub offset: usize,
    /// Records that can fit; more are not made.
    pub room: usize,
}

/// Decide on a question.
pub fn answer(query: &Query, zone: &Zone, turn: Turn) -> Outcome {
    if let Some(code) = refused(query) {
        return Outcome::Done(Answer::code(code));
    }
    let name = query.name();
    if zone.place().domain.zone_of(name) {
        return in_domain(query, zone, turn);
    }
    if let Some(range) = reverse(name) {
        return in_reverse(query, zone, range);
    }
    if name.is_localhost() {
        return Outcome::Done(localhost(query));
    }
    if query.query_type() == RecordType::ANY {
        return Outcome::Done(Answer::code(ResponseCode::NotImp));
    }
    Outcome::Forward
}

/// Questions that nobody is answered.
fn refused(query: &Query) -> Option<ResponseCode> {
    if query.query_class() != DNSClass::IN {
        return Some(ResponseCode::Refused);
    }
    match query.query_type() {
        RecordType::AXFR | RecordType::IXFR => Some(ResponseCode::Refused),
        RecordType::OPT | RecordType::TSIG | RecordType::ZERO => Some(ResponseCode::FormErr),
        // Questions about transactions and mail agents (RFC 6895, 3.1); not for names.
        other if (249..=254).contains(&u16::from(other)) => Some(ResponseCode::NotImp),
        _ => None,
    }
}

fn in_domain(query: &Query, zone: &Zone, turn: Turn) -> Outcome {
    let mut answer = Answer::own();
    let mut name = query.name().clone();
    for _ in 0..ALIASES_MAX {
        let node = lookup::find(zone, &name);
        if !zone.complete() && matches!(node, Node::Missing | Node::Empty) {
            return Outcome::Done(Answer::code(ResponseCode::ServFail));
        }
        let Node::Alias(target) = node else {
            fill(&mut answer, query.query_type(), &name, zone, node, turn);
            return Outcome::Done(answer);
        };
        let alias = RData::CNAME(CNAME(target.clone()));
        answer.answers.push(Record::from_rdata(name, TTL, alias));
        if query.query_type() == RecordType::CNAME || query.query_type() == RecordType::ANY {
            return Outcome::Done(answer);
        }
        if !zone.place().domain.zone_of(target) {
            return Outcome::Follow(answer, target.clone());
        }
        name = target.clone();
    }
    // In a circle.
    Outcome::Done(Answer::code(ResponseCode::ServFail))
}

/// Add what a name has of a type; or why there is nothing.
fn fill(
    answer: &mut Answer,
    kind: RecordType,
    name: &Name,
    zone: &Zone,
    node: Node<'_>,
    turn: Turn,
) {
    let before = answer.answers.len();
    match (kind, &node) {
        (_, Node::Missing) => answer.code = ResponseCode::NXDomain,
        // RFC 8482, 4.2: less than all is no lie, and no weapon.
        (RecordType::ANY, _) => {
            let minimal = HINFO::new("RFC8482".to_owned(), String::new());
            push(answer, name, TTL, RData::HINFO(minimal));
        }
        (RecordType::SOA, Node::Apex) => {
            push(answer, name, TTL, RData::SOA(zone.soa()));
        }
        (RecordType::NS, Node::Apex) => {
            let server = zone.name_server().clone();
            push(answer, name, TTL, RData::NS(NS(server.clone())));
            let servers = zone.place().servers.iter();
            let servers = servers.map(|ip| address(server.clone(), *ip));
            answer.additionals.extend(servers);
        }
        (RecordType::TXT, Node::Version) => {
            let text = TXT::new(vec![SCHEMA_VERSION.to_owned()]);
            push(answer, name, VERSION_TTL, RData::TXT(text));
        }
        (RecordType::A | RecordType::AAAA, _) => {
            let ipv4 = kind == RecordType::A;
            let mut ips: Vec<IpAddr> = node.addresses(zone);
            ips.retain(|ip| ip.is_ipv4() == ipv4);
            answer.truncated |= rotate(&mut ips, turn);
            let records = ips.into_iter().map(|ip| address(name.clone(), ip));
            answer.answers.extend(records);
        }
        (RecordType::SRV, _) => services(answer, name, zone, &node, turn),
        _ => {}
    }
    if answer.answers.len() == before {
        let soa = RData::SOA(zone.soa());
        let record = Record::from_rdata(zone.place().domain.clone(), TTL, soa);
        answer.authorities.push(record);
    }
}

/// One target for each port and endpoint, all with the same weight, as CoreDNS has them.
fn services(answer: &mut Answer, name: &Name, zone: &Zone, node: &Node<'_>, turn: Turn) {
    let mut targets = node.targets(zone);
    let count = u16::try_from(targets.len()).unwrap_or(u16::MAX).max(1);
    let weight = (100 / count).max(1);
    answer.truncated |= rotate(&mut targets, turn);
    for (port, target, ips) in targets {
        let record = SRV::new(0, weight, port, target.clone());
        push(answer, name, TTL, RData::SRV(record));
        for ip in ips {
            let record = address(target.clone(), ip);
            if answer.additionals.len() < turn.room && !answer.additionals.contains(&record) {
                answer.additionals.push(record);
            }
        }
    }
}

/// Begin elsewhere, and keep what there is room for. Was there more?
fn rotate<T>(items: &mut Vec<T>, turn: Turn) -> bool {
    if !items.is_empty() {
        let offset = turn.offset % items.len();
        items.rotate_left(offset);
    }
    let more = items.len() > turn.room;
    items.truncate(turn.room);
    more
}

fn push(answer: &mut Answer, name: &Name, ttl: u32, data: RData) {
    let record = Record::from_rdata(name.clone(), ttl, data);
    answer.answers.push(record);
}

fn address(name: Name, ip: IpAddr) -> Record {
    let data = match ip {
        IpAddr::V4(v4) => RData::A(A(v4)),
        IpAddr::V6(v6) => RData::AAAA(AAAA(v6)),
    };
    Record::from_rdata(name, TTL, data)
}

/// The range of addresses that a name in the reverse tree stands for.
fn reverse(name: &Name) -> Option<Cidr> {
    let range = name.parse_arpa_name().ok()?;
    Cidr::new(range.addr(), range.prefix_len())
}

fn in_reverse(query: &Query, zone: &Zone, range: Cidr) -> Outcome {
    let whole = range == Cidr::host(range.addr);
    let names = match whole {
        true => zone.names_of(range.addr),
        false => Vec::new(),
    };
    let ranges = zone.place().services.iter().chain(&zone.place().pods);
    let mut ours = ranges.filter(|ours| ours.contains(range.addr) && ours.prefix <= range.prefix);
    let ours = ours.next();
    if names.is_empty() && ours.is_none() {
        return Outcome::Forward;
    }
    let mut answer = Answer::own();
    if query.query_type() == RecordType::PTR {
        let targets = names.iter().filter_map(|(namespace, service, label)| {
            lookup::name(zone, namespace, service, label.as_deref())
        });
        for target in targets {
            push(&mut answer, query.name(), TTL, RData::PTR(PTR(target)));
        }
    }
    if !answer.answers.is_empty() {
        return Outcome::Done(answer);
    }
    if !zone.complete() {
        return Outcome::Done(Answer::code(ResponseCode::ServFail));
    }
    if whole && names.is_empty() {
        answer.code = ResponseCode::NXDomain;
    }
    let apex = match ours {
        Some(range) => reverse_zone(query.name(), *range),
        None => query.name().clone(),
    };
    let soa: SOA = zone.soa();
    answer
        .authorities
        .push(Record::from_rdata(apex, TTL, RData::SOA(soa)));
    Outcome::Done(answer)
}

/// The name, of those above, that stands for as much of a range as whole labels can.
fn reverse_zone(name: &Name, range: Cidr) -> Name {
    let bits = if range.is_ipv4() { 8 } else { 4 };
    name.trim_to(2 + usize::from(range.prefix / bits))
}

/// RFC 6761, 6.3: this name is the client's own machine, whatever others say.
fn localhost(query: &Query) -> Answer {
    let mut answer = Answer::own();
    let ip = match query.query_type() {
        RecordType::A => IpAddr::from([127, 0, 0, 1]),
        RecordType::AAAA => IpAddr::from(std::net::Ipv6Addr::LOCALHOST),
        _ => return answer,
    };
    answer.answers.push(address(query.name().clone(), ip));
    answer
}
