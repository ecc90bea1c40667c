// SPDX-License-Identifier: Apache-2.0
//! A client that asks what it is told to, and a resolver that says what it is told to.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::str::FromStr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{Name, RData, Record, RecordType};

pub(crate) const SERVER: &str = "10.43.0.10:53";

/// `name type`, as a message.
pub(crate) fn question(text: &str) -> Message {
    let (name, kind) = text.split_once(' ').expect("a name and a type");
    let mut message = Message::new(4711, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    let kind = RecordType::from_str(kind).expect("a type");
    message.add_query(Query::query(Name::from_ascii(name).expect("a name"), kind));
    message
}

pub(crate) fn with_edns(text: &str, payload: u16) -> Message {
    let mut message = question(text);
    let mut edns = Edns::new();
    edns.set_max_payload(payload);
    message.set_edns(edns);
    message
}

pub(crate) fn bytes(message: &Message) -> Vec<u8> {
    message.to_vec().expect("it can be written")
}

/// Ask from this thread's namespace; no answer is an error.
pub(crate) fn over_udp(message: &Message) -> std::io::Result<Message> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.set_read_timeout(Some(Duration::from_secs(8)))?;
    socket.connect(SERVER)?;
    socket.send(&bytes(message))?;
    let mut buffer = [0; 65_535];
    let length = socket.recv(&mut buffer)?;
    let reply = Message::from_vec(&buffer[..length]).expect("a message");
    assert_eq!(reply.id, message.id);
    Ok(reply)
}

pub(crate) fn connect() -> std::io::Result<TcpStream> {
    let server: SocketAddr = SERVER.parse().expect("an address");
    let stream = TcpStream::connect_timeout(&server, Duration::from_secs(5))?;
    stream.set_read_timeout(Some(Duration::from_secs(8)))?;
    Ok(stream)
}

pub(crate) fn send(stream: &mut TcpStream, message: &[u8]) -> std::io::Result<()> {
    let length = u16::try_from(message.len()).expect("short");
    stream.write_all(&[&length.to_be_bytes()[..], message].concat())
}

pub(crate) fn receive(stream: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut message = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut message)?;
    Ok(message)
}

pub(crate) fn over_tcp(message: &Message) -> std::io::Result<Message> {
    let mut stream = connect()?;
    send(&mut stream, &bytes(message))?;
    Ok(Message::from_vec(&receive(&mut stream)?).expect("a message"))
}

/// The code and the data of an answer, as words.
pub(crate) fn said(reply: &Message) -> String {
    let data = reply.answers.iter().map(|record| record.data.to_string());
    let data: Vec<String> = data.collect();
    format!("{:?} {}", reply.response_code, data.join(" "))
        .trim()
        .to_owned()
}

/// Ask over UDP, and put the answer in words.
pub(crate) fn ask(text: &str) -> String {
    match over_udp(&question(text)) {
        Ok(reply) => said(&reply),
        Err(error) => error.kind().to_string(),
    }
}

/// An answer of addresses to a question.
pub(crate) fn addresses(asked: &Message, ips: &[[u8; 4]]) -> Message {
    let mut reply = Message::response(asked.id, OpCode::Query);
    reply.metadata.recursion_available = true;
    reply.queries.clone_from(&asked.queries);
    for [a, b, c, d] in ips {
        let data = RData::A(A::new(*a, *b, *c, *d));
        let name = asked.queries[0].name().clone();
        reply.add_answer(Record::from_rdata(name, 300, data));
    }
    reply
}

pub(crate) fn code(asked: &Message, code: ResponseCode) -> Message {
    let mut reply = addresses(asked, &[]);
    reply.metadata.response_code = code;
    reply
}

/// A resolver in a test's namespace.
#[derive(Clone)]
pub(crate) struct Resolver {
    /// Questions that came over UDP.
    pub(crate) asked: Arc<AtomicUsize>,
    /// Where they came from.
    pub(crate) ports: Arc<Mutex<Vec<u16>>>,
}

impl Resolver {
    /// On port 53 of an address of `lo`. `answer` says which packets a question gets; over TCP only
    /// the first is sent. It ends with the process.
    pub(crate) fn start(
        ip: &str,
        answer: impl Fn(&Message, bool) -> Vec<Vec<u8>> + Send + Sync + 'static,
    ) -> Resolver {
        let address: SocketAddr = (ip.parse::<IpAddr>().expect("an address"), 53).into();
        let socket = UdpSocket::bind(address).expect("bind");
        let listener = TcpListener::bind(address).expect("bind");
        let resolver = Resolver {
            asked: Arc::default(),
            ports: Arc::default(),
        };
        let (answer, noted) = (Arc::new(answer), resolver.clone());
        let over_tcp = answer.clone();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok((length, from)) = socket.recv_from(&mut buffer) {
                let asked = Message::from_vec(&buffer[..length]).expect("a question");
                // Its own question, which finds loops.
                if asked.queries[0].query_type() == RecordType::HINFO {
                    continue;
                }
                noted.asked.fetch_add(1, Ordering::SeqCst);
                noted.ports.lock().expect("no panic").push(from.port());
                for packet in answer(&asked, false) {
                    let _ = socket.send_to(&packet, from);
                }
            }
        });
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                if let Ok(message) = receive(&mut stream) {
                    let asked = Message::from_vec(&message).expect("a question");
                    for packet in over_tcp(&asked, true).iter().take(1) {
                        let _ = send(&mut stream, packet);
                    }
                }
            }
        });
        resolver
    }

    pub(crate) fn count(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}
