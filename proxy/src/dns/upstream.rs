// SPDX-License-Identifier: Apache-2.0
//! One question to one server. Each has a socket of its own, so a port that nobody can foresee, and
//! a number that nobody can foresee; what comes back and does not match is not looked at (RFC 5452).

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query};
use hickory_proto::serialize::binary::DecodeError;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};

use super::message::{HEADER, UDP_MAX, answers};

/// More than a server may send.
const BUFFER: usize = 4096;
/// In the third byte of a message.
const RESPONSE: u8 = 0x80;
const TRUNCATED: u8 = 0x02;

/// A question as it is sent on.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) query: Query,
    pub(crate) dnssec_ok: bool,
    pub(crate) checking_disabled: bool,
}

/// Why a server gave no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AskError {
    #[error("asking over UDP")]
    Udp(#[source] io::Error),
    #[error("asking over TCP")]
    Tcp(#[source] io::Error),
    #[error("the answer cannot be read")]
    Malformed(#[source] DecodeError),
    #[error("the answer over TCP is to another question")]
    Another,
    #[error("the question cannot be written")]
    Unwritable,
}

/// Ask. There is no deadline in here; dropping the future closes the socket.
pub(crate) async fn ask(
    server: SocketAddr,
    asked: &Asked,
    edns: bool,
) -> Result<Message, AskError> {
    let message = write(asked, edns);
    let packet = message.to_vec().map_err(|_| AskError::Unwritable)?;
    match over_udp(server, &message, &packet).await? {
        Some(reply) => Ok(reply),
        None => over_tcp(server, &message, &packet).await,
    }
}

fn write(asked: &Asked, edns: bool) -> Message {
    let mut message = Message::new(rand::random(), MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.metadata.checking_disabled = asked.checking_disabled;
    message.add_query(asked.query.clone());
    if edns {
        let mut opt = Edns::new();
        opt.set_max_payload(UDP_MAX).set_dnssec_ok(asked.dnssec_ok);
        message.set_edns(opt);
    }
    message
}

/// `None`: the answer does not fit in a packet.
async fn over_udp(
    server: SocketAddr,
    question: &Message,
    packet: &[u8],
) -> Result<Option<Message>, AskError> {
    let any: IpAddr = match server {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let failed = AskError::Udp;
    let socket = UdpSocket::bind((any, 0)).await.map_err(failed)?;
    // A connected socket takes nothing from other addresses, and hears of ICMP errors.
    socket.connect(server).await.map_err(failed)?;
    socket.send(packet).await.map_err(failed)?;
    let mut buffer = vec![0; BUFFER];
    loop {
        let length = socket.recv(&mut buffer).await.map_err(failed)?;
        let bytes = &buffer[..length];
        match Message::from_vec(bytes) {
            Ok(reply) if answers(question, &reply) => {
                return Ok((!reply.metadata.truncation).then_some(reply));
            }
            // Cut off in the middle of a record.
            Err(_) if is_reply(bytes, packet) && bytes[2] & TRUNCATED != 0 => return Ok(None),
            Err(error) if is_reply(bytes, packet) => return Err(AskError::Malformed(error)),
            // Somebody guesses, or an old answer: the right one may still come.
            Ok(_) | Err(_) => {}
        }
    }
}

/// As far as a header tells.
fn is_reply(bytes: &[u8], question: &[u8]) -> bool {
    bytes.len() >= HEADER && bytes[..2] == question[..2] && bytes[2] & RESPONSE != 0
}

async fn over_tcp(
    server: SocketAddr,
    question: &Message,
    packet: &[u8],
) -> Result<Message, AskError> {
    let failed = AskError::Tcp;
    let mut stream = TcpStream::connect(server).await.map_err(failed)?;
    let length = u16::try_from(packet.len()).map_err(|_| AskError::Unwritable)?;
    let framed = [&length.to_be_bytes()[..], packet].concat();
    stream.write_all(&framed).await.map_err(failed)?;
    let length = stream.read_u16().await.map_err(failed)?;
    let mut reply = vec![0; usize::from(length)];
    stream.read_exact(&mut reply).await.map_err(failed)?;
    let reply = Message::from_vec(&reply).map_err(AskError::Malformed)?;
    match answers(question, &reply) {
        true => Ok(reply),
        false => Err(AskError::Another),
    }
}
