// SPDX-License-Identifier: Apache-2.0
//! Packets in, packets out (RFC 1035, RFC 6891). Pure. What is read and written is hickory's work;
//! this says what a server accepts, and what fits.

use hickory_proto::op::{
    Header, Message, MessageType, Metadata, OpCode, Query, ResponseCode, emit_message_parts,
};
use hickory_proto::rr::{Name, Record};
use hickory_proto::serialize::binary::{BinDecodable, BinDecoder, BinEncodable, BinEncoder};

use super::answer::Answer;

/// What is told to others that they may send, and what is sent over UDP at most: it fits in a packet
/// on any link, so nothing is fragmented (DNS flag day 2020).
pub const UDP_MAX: u16 = 1232;
/// What every client takes (RFC 1035, 4.2.1).
const UDP_MIN: u16 = 512;
/// Of a message, whatever carries it.
pub const TCP_MAX: u16 = u16::MAX;
/// A header.
pub(crate) const HEADER: usize = 12;
/// An OPT record without options.
const OPT: usize = 11;

/// A question that can be answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Of the message.
    pub id: u16,
    /// Name as the client wrote it, type and class.
    pub query: Query,
    /// Does the client want others to be asked?
    pub recursion_desired: bool,
    /// Does it check signatures itself?
    pub checking_disabled: bool,
    /// Does it want to know what others checked?
    pub authentic_data: bool,
    /// What it says of itself (RFC 6891).
    pub edns: Option<ClientEdns>,
}

/// Of an OPT record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClientEdns {
    /// The largest packet it takes.
    pub payload: u16,
    /// Does it want signatures?
    pub dnssec_ok: bool,
}

/// Why there is no question.
#[derive(Debug, PartialEq, Eq)]
pub enum Refused {
    /// Nothing is sent: it is no question, and an answer would go on and on.
    Drop,
    /// This is sent.
    Reply(Vec<u8>),
}

/// Read a packet.
///
/// # Errors
/// What becomes of one that is no question.
pub fn parse(packet: &[u8]) -> Result<Request, Refused> {
    let Ok(header) = Header::read(&mut BinDecoder::new(packet)) else {
        return Err(Refused::Drop);
    };
    if header.message_type == MessageType::Response {
        return Err(Refused::Drop);
    }
    let refuse = |code| Err(Refused::Reply(bare(&header, code)));
    if header.op_code != OpCode::Query {
        return refuse(ResponseCode::NotImp);
    }
    let counts = header.counts;
    // A question carries one name, and records only to say things about itself (OPT, TSIG).
    if counts.queries != 1
        || counts.answers != 0
        || counts.authorities != 0
        || counts.additionals > 2
    {
        return refuse(ResponseCode::FormErr);
    }
    let Ok(mut message) = Message::from_vec(packet) else {
        return refuse(ResponseCode::FormErr);
    };
    let Some(query) = message.queries.pop() else {
        return refuse(ResponseCode::FormErr);
    };
    let request = Request {
        id: header.id,
        query,
        recursion_desired: header.recursion_desired,
        checking_disabled: header.checking_disabled,
        authentic_data: header.authentic_data,
        edns: message.edns.as_ref().map(|edns| ClientEdns {
            payload: edns.max_payload(),
            dnssec_ok: edns.flags().dnssec_ok,
        }),
    };
    if message.edns.is_some_and(|edns| edns.version() > 0) {
        let answer = Answer::code(ResponseCode::BADVERS);
        return Err(Refused::Reply(encode(&request, &answer, UDP_MIN)));
    }
    Ok(request)
}

/// A header that says no. The question is not repeated: it could not be read.
fn bare(header: &Header, code: ResponseCode) -> Vec<u8> {
    let mut metadata = Metadata::response_from_request(&header.metadata);
    metadata.response_code = code;
    let mut message = Message::new(header.id, MessageType::Response, header.op_code);
    message.metadata = metadata;
    message.to_vec().unwrap_or_default()
}

impl Request {
    /// The largest answer over UDP.
    pub fn udp_limit(&self) -> u16 {
        let payload = self.edns.map_or(UDP_MIN, |edns| edns.payload);
        payload.clamp(UDP_MIN, UDP_MAX)
    }

    /// Does the client want signatures?
    pub fn dnssec_ok(&self) -> bool {
        self.edns.is_some_and(|edns| edns.dnssec_ok)
    }

    fn metadata(&self, answer: &Answer) -> Metadata {
        let mut metadata = Metadata::new(self.id, MessageType::Response, OpCode::Query);
        metadata.recursion_desired = self.recursion_desired;
        metadata.checking_disabled = self.checking_disabled;
        metadata.recursion_available = true;
        metadata.authoritative = answer.authoritative;
        metadata.truncation = answer.truncated;
        // What does not fit in the header goes into OPT.
        metadata.response_code = ResponseCode::from(0, answer.code.low());
        metadata
    }

    /// An OPT record, where the client had one, for the end of a message.
    pub(crate) fn append_opt(&self, message: &mut Vec<u8>, code_high: u8) {
        let Some(edns) = self.edns else { return };
        let [high, low] = UDP_MAX.to_be_bytes();
        let flags = if edns.dnssec_ok { 0x80 } else { 0 };
        message.extend([0, 0, 41, high, low, code_high, 0, flags, 0, 0, 0]);
        let count = u16::from_be_bytes([message[10], message[11]]).saturating_add(1);
        message[10..HEADER].copy_from_slice(&count.to_be_bytes());
    }

    /// How much an answer may have without the OPT record.
    pub(crate) fn room(&self, limit: u16) -> u16 {
        match self.edns {
            Some(_) => limit - OPT as u16,
            None => limit,
        }
    }
}

/// An answer of at most `limit` bytes. What does not fit is left out, and the client is told: only
/// additional records may go without a word (RFC 2181, 9).
pub fn encode(request: &Request, answer: &Answer, limit: u16) -> Vec<u8> {
    let room = request.room(limit);
    let sections = |additionals: &[Record]| emit(request, answer, additionals, room);
    let mut written = sections(&answer.additionals);
    let complete = |written: &Option<(Vec<u8>, Header)>| {
        let header = written.as_ref().map(|(_, header)| header);
        header.is_some_and(|header| header.truncation == answer.truncated)
    };
    if !complete(&written) && !answer.additionals.is_empty() {
        written = sections(&[]);
    }
    match written {
        Some((mut message, _)) => {
            request.append_opt(&mut message, answer.code.high());
            message
        }
        // A record of ours that cannot be written: nothing that the client could help.
        None => refusal(request, ResponseCode::ServFail),
    }
}

/// An answer of a code alone.
pub(crate) fn refusal(request: &Request, code: ResponseCode) -> Vec<u8> {
    let answer = Answer::code(code);
    let written = emit(request, &answer, &[], UDP_MIN - OPT as u16);
    let mut message = written.map(|(message, _)| message).unwrap_or_default();
    if message.len() >= HEADER {
        request.append_opt(&mut message, code.high());
    }
    message
}

fn emit(
    request: &Request,
    answer: &Answer,
    additionals: &[Record],
    room: u16,
) -> Option<(Vec<u8>, Header)> {
    let mut buffer = Vec::with_capacity(512);
    let mut encoder = BinEncoder::new(&mut buffer);
    encoder.set_max_size(room);
    let header = emit_message_parts(
        &request.metadata(answer),
        &mut std::iter::once(&request.query),
        &mut answer.answers.iter(),
        &mut answer.authorities.iter(),
        &mut additionals.iter(),
        None,
        None,
        &mut encoder,
    );
    let header = header.ok()?;
    // The first bytes of a record that did not fit.
    encoder.trim();
    Some((buffer, header))
}

/// A name as it stands in a packet.
pub(crate) fn wire(name: &Name) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(64);
    // A name that was read can be written.
    let _ = name.emit(&mut BinEncoder::new(&mut bytes));
    bytes
}

/// Is this an answer to that question? Not when it is to somebody else's, or no answer at all: an update
/// may have records without data, which an answer must not.
pub fn answers(question: &Message, reply: &Message) -> bool {
    let same = |a: &Query, b: &Query| {
        a.name() == b.name()
            && a.query_type() == b.query_type()
            && a.query_class() == b.query_class()
    };
    reply.id == question.id
        && reply.message_type == MessageType::Response
        && reply.op_code == OpCode::Query
        && reply.queries.len() == 1
        && same(&reply.queries[0], &question.queries[0])
}

#[cfg(test)]
mod tests {
    use hickory_proto::op::Edns;
    use hickory_proto::rr::rdata::{A, TXT};
    use hickory_proto::rr::{DNSClass, RData, RecordType};

    use super::*;

    fn question(name: &str) -> Message {
        let mut message = Message::new(7, MessageType::Query, OpCode::Query);
        let name = Name::from_ascii(name).expect("a name");
        message.add_query(Query::query(name, RecordType::A));
        message.metadata.recursion_desired = true;
        message
    }

    fn bytes(message: &Message) -> Vec<u8> {
        message.to_vec().expect("it can be written")
    }

    fn code(packet: &[u8]) -> ResponseCode {
        let Err(Refused::Reply(reply)) = parse(packet) else {
            panic!("answered");
        };
        let reply = Message::from_vec(&reply).expect("a message");
        assert_eq!(reply.id, 7);
        assert_eq!(reply.message_type, MessageType::Response);
        reply.response_code
    }

    #[test]
    fn a_question_is_read() {
        let mut message = question("Web.Default.svc.cluster.local.");
        let mut edns = Edns::new();
        edns.set_max_payload(4096).set_dnssec_ok(true);
        message.set_edns(edns);
        let request = parse(&bytes(&message)).expect("a question");
        assert_eq!(
            request.query.name().to_string(),
            "Web.Default.svc.cluster.local."
        );
        assert!(request.recursion_desired && request.dnssec_ok());
        assert_eq!(request.udp_limit(), UDP_MAX);
        let plain = parse(&bytes(&question("a."))).expect("a question");
        assert_eq!((plain.edns, plain.udp_limit()), (None, 512));
    }

    #[test]
    fn what_is_no_question_is_refused_or_dropped() {
        assert_eq!(parse(&[]), Err(Refused::Drop));
        assert_eq!(parse(&[0; 11]), Err(Refused::Drop));
        let mut response = question("a.");
        response.metadata.message_type = MessageType::Response;
        assert_eq!(parse(&bytes(&response)), Err(Refused::Drop));
        let mut update = question("a.");
        update.metadata.op_code = OpCode::Update;
        assert_eq!(code(&bytes(&update)), ResponseCode::NotImp);
        let mut notify = question("a.");
        notify.metadata.op_code = OpCode::Notify;
        assert_eq!(code(&bytes(&notify)), ResponseCode::NotImp);
        let mut two = question("a.");
        two.add_query(Query::query(Name::root(), RecordType::A));
        assert_eq!(code(&bytes(&two)), ResponseCode::FormErr);
        let mut none = question("a.");
        none.queries.clear();
        assert_eq!(code(&bytes(&none)), ResponseCode::FormErr);
        let cut = bytes(&question("a.example."));
        assert_eq!(code(&cut[..cut.len() - 3]), ResponseCode::FormErr);
        let mut answered = question("a.");
        let record = Record::from_rdata(Name::root(), 1, RData::A(A::new(1, 2, 3, 4)));
        answered.add_answer(record);
        assert_eq!(code(&bytes(&answered)), ResponseCode::FormErr);
    }

    #[test]
    fn a_version_of_edns_to_come_is_told_ours() {
        let mut message = question("a.");
        let mut edns = Edns::new();
        edns.set_version(1);
        message.set_edns(edns);
        let Err(Refused::Reply(reply)) = parse(&bytes(&message)) else {
            panic!("answered");
        };
        let reply = Message::from_vec(&reply).expect("a message");
        // The number has two meanings; with OPT it is BADVERS.
        assert_eq!(u16::from(reply.response_code), 16);
        let edns = reply.edns.as_ref().expect("an OPT record");
        assert_eq!((edns.version(), edns.max_payload()), (0, UDP_MAX));
        assert_eq!(reply.queries.len(), 1);
    }

    fn with_answers(count: u8) -> Answer {
        let name = Name::from_ascii("a.example.").expect("a name");
        let record = |n| Record::from_rdata(name.clone(), 5, RData::A(A::new(10, 0, 0, n)));
        Answer {
            answers: (0..count).map(record).collect(),
            ..Answer::code(ResponseCode::NoError)
        }
    }

    #[test]
    fn what_does_not_fit_is_said_to_be_missing() {
        let mut message = question("a.example.");
        let plain = parse(&bytes(&message)).expect("a question");
        let mut edns = Edns::new();
        edns.set_max_payload(1232);
        message.set_edns(edns);
        let modern = parse(&bytes(&message)).expect("a question");
        for (request, count, truncated) in [
            (&plain, 30, false),
            (&plain, 31, true),
            (&modern, 74, false),
            (&modern, 76, true),
        ] {
            let limit = request.udp_limit();
            let packet = encode(request, &with_answers(count), limit);
            assert!(packet.len() <= usize::from(limit), "{}", packet.len());
            let reply = Message::from_vec(&packet).expect("a message");
            assert_eq!(reply.truncation, truncated, "{count}");
            assert_eq!(reply.edns.is_some(), request.edns.is_some());
            assert!(reply.answers.len() >= usize::from(count.min(29)));
        }
    }

    #[test]
    fn additional_records_go_without_a_word() {
        let request = parse(&bytes(&question("a.example."))).expect("a question");
        let mut answer = with_answers(20);
        let text = TXT::new(vec!["x".repeat(250)]);
        let name = Name::from_ascii("b.").expect("a name");
        answer.additionals = vec![Record::from_rdata(name, 5, RData::TXT(text)); 2];
        let packet = encode(&request, &answer, 512);
        let reply = Message::from_vec(&packet).expect("a message");
        assert!(!reply.truncation);
        assert_eq!((reply.answers.len(), reply.additionals.len()), (20, 0));
        assert_eq!(reply.queries[0].query_class(), DNSClass::IN);
    }
}
