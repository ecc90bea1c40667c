// SPDX-License-Identifier: Apache-2.0
//! An answer that somebody else gave, kept as it is sent: a hit costs a copy and a few bytes written
//! over. Pure.

use std::time::Duration;

use hickory_proto::op::{Message, OpCode, Query, ResponseCode};
use hickory_proto::rr::{RData, RecordType};

use super::message::{self, HEADER, Request};

/// How long an answer is kept, whatever it says: CoreDNS's limits, for names and for denials.
const KEEP_MIN: u32 = 5;
const KEEP_MAX: u32 = 3600;
const DENY_MAX: u32 = 1800;
/// Resolvers that fail are asked again soon, but not by every client at once (RFC 9520, 3.2).
const FAILURE: Duration = Duration::from_secs(1);

/// What kind of answer it is, as CoreDNS's metrics tell them apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// There are records.
    Success,
    /// There are none, and it says so.
    Denial,
    /// It could not be said.
    Failure,
}

/// Records of the same length side by side, which can change places.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Span {
    start: usize,
    each: usize,
    count: usize,
}

/// An answer without OPT record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    wire: Box<[u8]>,
    /// Length of the name in the question.
    name: usize,
    /// Where the times to live are.
    ttls: Box<[u16]>,
    addresses: Option<Span>,
    code: ResponseCode,
    authentic: bool,
    kind: Kind,
    /// How long it may be kept; `None`: not at all.
    keep: Option<Duration>,
}

/// Where a record lies.
struct Place {
    start: usize,
    ttl: usize,
    end: usize,
    kind: u16,
}

impl Stored {
    /// Of an answer to `query` that has been checked. `None`: it cannot be written.
    pub fn new(query: &Query, mut reply: Message) -> Option<Stored> {
        let (kind, keep) = fate(&reply);
        for record in reply.answers.iter_mut().chain(&mut reply.authorities) {
            record.ttl = record.ttl.clamp(KEEP_MIN, KEEP_MAX);
        }
        for record in &mut reply.additionals {
            record.ttl = record.ttl.clamp(KEEP_MIN, KEEP_MAX);
        }
        let mut kept = Message::response(0, OpCode::Query);
        kept.queries = vec![query.clone()];
        kept.answers = reply.answers;
        kept.authorities = reply.authorities;
        kept.additionals = reply.additionals;
        let wire = kept.to_vec().ok()?;
        let name = message::wire(query.name()).len();
        let count = kept.answers.len() + kept.authorities.len() + kept.additionals.len();
        let places = places(&wire, HEADER + name + 4, count)?;
        let ttls: Option<Vec<u16>> = places.iter().map(|p| u16::try_from(p.ttl).ok()).collect();
        Some(Stored {
            addresses: addresses(&places[..kept.answers.len()]),
            wire: wire.into(),
            name,
            ttls: ttls?.into(),
            code: reply.metadata.response_code,
            authentic: reply.metadata.authentic_data,
            kind,
            keep,
        })
    }

    /// That nobody could say.
    pub fn failure(query: &Query) -> Option<Stored> {
        let mut reply = Message::response(0, OpCode::Query);
        reply.metadata.response_code = ResponseCode::ServFail;
        Stored::new(query, reply)
    }

    /// How long it may be kept.
    pub fn keep(&self) -> Option<Duration> {
        self.keep
    }

    /// What kind it is.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Its response code.
    pub fn code(&self) -> ResponseCode {
        self.code
    }

    /// What it takes, in bytes.
    pub fn size(&self) -> usize {
        size_of::<Stored>() + self.wire.len() + 2 * self.ttls.len()
    }

    /// As a message again.
    pub fn message(&self) -> Option<Message> {
        Message::from_vec(&self.wire).ok()
    }

    /// For a client that asks so many seconds later. What is too long for it is left out, and it is
    /// told to come back over TCP.
    pub fn render(&self, request: &Request, age: u32, limit: u16, offset: usize) -> Vec<u8> {
        let mut out = self.wire.to_vec();
        if let Some(span) = self.addresses {
            let end = span.start + span.each * span.count;
            out[span.start..end].rotate_left(span.each * (offset % span.count));
        }
        for at in &self.ttls {
            let at = usize::from(*at);
            let Some(field) = out.get_mut(at..at + 4) else {
                continue;
            };
            let ttl = u32::from_be_bytes([field[0], field[1], field[2], field[3]]);
            field.copy_from_slice(&ttl.saturating_sub(age).to_be_bytes());
        }
        self.address_to(&mut out, request);
        if out.len() > usize::from(request.room(limit)) {
            out.truncate(HEADER + self.name + 4);
            out[6..HEADER].fill(0);
            out[2] |= 0x02;
        }
        request.append_opt(&mut out, self.code.high());
        out
    }

    /// Write who asked, and how, over it.
    fn address_to(&self, out: &mut [u8], request: &Request) {
        out[..2].copy_from_slice(&request.id.to_be_bytes());
        out[2] = 0x80 | u8::from(request.recursion_desired);
        let wants_authentic = request.authentic_data || request.dnssec_ok();
        let flags = [
            (0x80, true),
            (0x20, self.authentic && wants_authentic),
            (0x10, request.checking_disabled),
        ];
        let flags = flags.iter().filter(|(_, on)| *on).map(|(bit, _)| bit);
        out[3] = self.code.low() | flags.sum::<u8>();
        // The same letters, as this client wrote them.
        let name = message::wire(request.query.name());
        if name.len() == self.name {
            out[HEADER..HEADER + self.name].copy_from_slice(&name);
        }
    }
}

/// What kind an answer is, and how long it counts (RFC 2308, 5).
fn fate(reply: &Message) -> (Kind, Option<Duration>) {
    let seconds = |n: u32| Duration::from_secs(n.into());
    match reply.metadata.response_code {
        ResponseCode::NoError | ResponseCode::NXDomain => {}
        ResponseCode::ServFail => return (Kind::Failure, Some(FAILURE)),
        _ => return (Kind::Failure, None),
    }
    let denied = reply.metadata.response_code == ResponseCode::NXDomain;
    let asked = reply.queries.first().map(Query::query_type);
    // An alias whose target has nothing of the type is a denial too.
    let found = !denied
        && reply
            .answers
            .iter()
            .any(|record| Some(record.record_type()) == asked || asked == Some(RecordType::ANY));
    let shortest = reply.answers.iter().map(|record| record.ttl).min();
    if found {
        let ttl = shortest.unwrap_or_default();
        return (Kind::Success, Some(seconds(ttl.clamp(KEEP_MIN, KEEP_MAX))));
    }
    let soa = reply
        .authorities
        .iter()
        .find_map(|record| match &record.data {
            RData::SOA(soa) => Some(record.ttl.min(soa.minimum)),
            _ => None,
        });
    // A denial that does not say for how long is not kept.
    let ttl = soa.map(|ttl| ttl.min(shortest.unwrap_or(ttl)).clamp(KEEP_MIN, DENY_MAX));
    (Kind::Denial, ttl.map(seconds))
}

/// Where the records lie in a message of our own writing.
fn places(wire: &[u8], mut at: usize, count: usize) -> Option<Vec<Place>> {
    let mut found = Vec::with_capacity(count);
    for _ in 0..count {
        let start = at;
        at = after_name(wire, at)?;
        let fixed = wire.get(at..at + 10)?;
        let end = at + 10 + usize::from(u16::from_be_bytes([fixed[8], fixed[9]]));
        found.push(Place {
            start,
            ttl: at + 4,
            end,
            kind: u16::from_be_bytes([fixed[0], fixed[1]]),
        });
        at = end;
    }
    (at == wire.len()).then_some(found)
}

fn after_name(wire: &[u8], mut at: usize) -> Option<usize> {
    loop {
        match *wire.get(at)? {
            0 => return Some(at + 1),
            pointer if pointer >= 0xc0 => return Some(at + 2),
            length => at += 1 + usize::from(length),
        }
    }
}

/// The addresses at the end of the answers, when they are all of one length: then nothing refers to
/// a name in between, and they can change places.
fn addresses(answers: &[Place]) -> Option<Span> {
    let is_address = |place: &&Place| {
        matches!(
            RecordType::from(place.kind),
            RecordType::A | RecordType::AAAA
        )
    };
    let count = answers.iter().rev().take_while(is_address).count();
    let tail = &answers[answers.len() - count..];
    let first = tail.first()?;
    let each = first.end - first.start;
    let alike = tail.iter().all(|place| place.end - place.start == each);
    (count > 1 && alike).then_some(Span {
        start: first.start,
        each,
        count,
    })
}

#[cfg(test)]
mod tests {
    use hickory_proto::op::MessageType;
    use hickory_proto::rr::rdata::{A, CNAME, SOA};
    use hickory_proto::rr::{Name, Record};

    use super::*;

    fn name(text: &str) -> Name {
        Name::from_ascii(text).expect("a name")
    }

    fn request(text: &str) -> Request {
        let mut message = Message::new(99, MessageType::Query, OpCode::Query);
        message.metadata.recursion_desired = true;
        message.add_query(Query::query(name(text), RecordType::A));
        message::parse(&message.to_vec().expect("bytes")).expect("a question")
    }

    fn reply(code: ResponseCode, answers: &[(&str, u32, RData)]) -> Message {
        let mut reply = Message::response(1, OpCode::Query);
        reply.metadata.response_code = code;
        reply.add_query(Query::query(name("www.example."), RecordType::A));
        for (owner, ttl, data) in answers {
            reply.add_answer(Record::from_rdata(name(owner), *ttl, data.clone()));
        }
        reply
    }

    fn ip(last: u8) -> RData {
        RData::A(A::new(192, 0, 2, last))
    }

    fn stored(reply: Message) -> Stored {
        let query = reply.queries[0].clone();
        Stored::new(&query, reply).expect("it can be written")
    }

    #[test]
    fn a_hit_has_the_clients_letters_and_a_shorter_life() {
        let alias = RData::CNAME(CNAME(name("host.example.")));
        let kept = stored(reply(
            ResponseCode::NoError,
            &[
                ("www.example.", 300, alias),
                ("host.example.", 60, ip(1)),
                ("host.example.", 60, ip(2)),
                ("host.example.", 60, ip(3)),
            ],
        ));
        assert_eq!(kept.keep(), Some(Duration::from_secs(60)));
        assert_eq!(kept.kind(), Kind::Success);
        let request = request("wWw.Example.");
        let mut firsts = Vec::new();
        for offset in 0..3 {
            let packet = kept.render(&request, 10, 512, offset);
            let said = Message::from_vec(&packet).expect("a message");
            assert_eq!((said.id, said.recursion_available), (99, true));
            assert_eq!(said.queries[0].name().to_string(), "wWw.Example.");
            let ttls: Vec<u32> = said.answers.iter().map(|a| a.ttl).collect();
            assert_eq!(ttls, [290, 50, 50, 50]);
            assert!(
                said.answers[1..]
                    .iter()
                    .all(|a| a.name == name("host.example."))
            );
            firsts.push(said.answers[1].data.clone());
        }
        assert_eq!(firsts, [ip(1), ip(2), ip(3)]);
    }

    #[test]
    fn what_is_too_long_for_a_client_sends_it_to_tcp() {
        let many: Vec<_> = (0..40).map(|n| ("www.example.", 60, ip(n))).collect();
        let kept = stored(reply(ResponseCode::NoError, &many));
        let request = request("www.example.");
        let short = Message::from_vec(&kept.render(&request, 0, 512, 0)).expect("a message");
        assert!(short.truncation && short.answers.is_empty());
        let long = kept.render(&request, 0, message::TCP_MAX, 7);
        let long = Message::from_vec(&long).expect("a message");
        assert_eq!((long.truncation, long.answers.len()), (false, 40));
    }

    #[test]
    fn how_long_an_answer_counts() {
        let soa = |ttl, minimum| {
            let soa = SOA::new(name("a."), name("b."), 1, 1, 1, 1, minimum);
            Record::from_rdata(name("example."), ttl, RData::SOA(soa))
        };
        let denial = |code, record: Option<Record>| {
            let mut denial = reply(code, &[]);
            denial.authorities.extend(record);
            let kept = stored(denial);
            (kept.kind(), kept.keep().map(|keep| keep.as_secs()))
        };
        let (nx, ok) = (ResponseCode::NXDomain, ResponseCode::NoError);
        assert_eq!(denial(nx, Some(soa(600, 30))), (Kind::Denial, Some(30)));
        assert_eq!(denial(ok, Some(soa(20, 300))), (Kind::Denial, Some(20)));
        assert_eq!(denial(nx, Some(soa(1, 1))), (Kind::Denial, Some(5)));
        assert_eq!(
            denial(nx, Some(soa(90_000, 90_000))),
            (Kind::Denial, Some(1800))
        );
        assert_eq!(denial(nx, None), (Kind::Denial, None));
        assert_eq!(
            denial(ResponseCode::ServFail, None),
            (Kind::Failure, Some(1))
        );
        assert_eq!(denial(ResponseCode::Refused, None), (Kind::Failure, None));
        let short = stored(reply(ok, &[("www.example.", 0, ip(1))]));
        assert_eq!(short.keep(), Some(Duration::from_secs(5)));
        let long = stored(reply(ok, &[("www.example.", 90_000, ip(1))]));
        assert_eq!(long.keep(), Some(Duration::from_secs(3600)));
    }
}
