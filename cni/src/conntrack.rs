// SPDX-License-Identifier: Apache-2.0
//! Deleting tracked connections (`linux/netfilter/nfnetlink_conntrack.h`).
//!
//! A UDP flow keeps the translation of its first packet as long as packets come. When the rule that
//! made the translation goes, the flow must be forgotten, or its packets go to a dead address.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use nix::sys::socket::SockProtocol;

use crate::netlink::{Attributes, NetlinkError, Socket};

const CT_GET: u16 = 0x101;
const CT_DELETE: u16 = 0x102;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP: u16 = 0x300;
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const NETLINK_HEADER: usize = 16;
const NFGEN_HEADER: usize = 4;

/// Transport protocol number of UDP.
pub const UDP: u8 = 17;

/// One direction of a tracked connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tuple {
    /// Source address.
    pub src: IpAddr,
    /// Destination address.
    pub dst: IpAddr,
    /// Transport protocol number.
    pub protocol: u8,
    /// Source port.
    pub sport: u16,
    /// Destination port.
    pub dport: u16,
}

/// A tracked connection: what was sent, and what is expected back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flow {
    /// As the first packet came.
    pub original: Tuple,
    /// As answers come: its source is where the packet went after translation.
    pub reply: Tuple,
}

/// Why connections could not be listed or deleted.
#[derive(Debug, thiserror::Error)]
pub enum ConntrackError {
    /// No socket.
    #[error("opening a conntrack socket")]
    Open(#[source] io::Error),
    /// The kernel refused.
    #[error("{0} tracked connections")]
    Request(&'static str, #[source] Refusal),
}

fn refused(what: &'static str) -> impl Fn(NetlinkError) -> ConntrackError {
    move |error| ConntrackError::Request(what, Refusal(error))
}

/// What the kernel said.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct Refusal(NetlinkError);

/// Delete every tracked connection that `wanted` picks, in the namespace of the calling thread.
/// Returns how many there were. One that ends by itself meanwhile is no error. Only those that are
/// picked are held in memory.
pub fn delete(wanted: impl Fn(&Flow) -> bool) -> Result<usize, ConntrackError> {
    let mut socket = Socket::open(SockProtocol::NetlinkNetFilter).map_err(ConntrackError::Open)?;
    let mut deleted = 0;
    for family in [libc::AF_INET, libc::AF_INET6] {
        let family = u8::try_from(family).expect("a small number");
        for original in pick(&mut socket, family, &wanted)? {
            let seq = socket.take_seqs(1);
            let request = message(CT_DELETE, NLM_F_REQUEST | NLM_F_ACK, seq, family, &original);
            match socket.exchange(&request, seq, seq) {
                Ok(_) => deleted += 1,
                Err(error) if error.errno() == Some(libc::ENOENT) => {}
                Err(error) => return Err(refused("deleting")(error)),
            }
        }
    }
    Ok(deleted)
}

/// The connections of a family that are wanted, by the attribute of their original tuple.
fn pick(
    socket: &mut Socket,
    family: u8,
    wanted: impl Fn(&Flow) -> bool,
) -> Result<Vec<Vec<u8>>, ConntrackError> {
    let seq = socket.take_seqs(1);
    let request = message(CT_GET, NLM_F_REQUEST | NLM_F_DUMP, seq, family, &[]);
    let mut picked = Vec::new();
    let listed = socket.exchange_with(&request, seq, seq, |_, payload| {
        if let Some((flow, original)) = parse(payload)
            && wanted(&flow)
        {
            picked.push(original.to_vec());
        }
    });
    listed.map_err(refused("listing"))?;
    Ok(picked)
}

fn message(kind: u16, flags: u16, seq: u32, family: u8, attributes: &[u8]) -> Vec<u8> {
    let length = NETLINK_HEADER + NFGEN_HEADER + attributes.len();
    let mut bytes = Vec::with_capacity(length);
    bytes.extend(
        u32::try_from(length)
            .expect("a short message")
            .to_ne_bytes(),
    );
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    bytes.extend(seq.to_ne_bytes());
    bytes.extend([0; 4]);
    bytes.extend([family, 0, 0, 0]);
    bytes.extend(attributes);
    bytes
}

/// The flow, and the attribute of its original tuple as it came (it names the flow at deletion).
fn parse(payload: &[u8]) -> Option<(Flow, &[u8])> {
    let attributes = payload.get(NFGEN_HEADER..)?;
    let (mut original, mut reply, mut raw) = (None, None, None);
    for (kind, value, whole) in Attributes(attributes) {
        match kind {
            CTA_TUPLE_ORIG => (original, raw) = (tuple(value), Some(whole)),
            CTA_TUPLE_REPLY => reply = tuple(value),
            _ => {}
        }
    }
    Some((
        Flow {
            original: original?,
            reply: reply?,
        },
        raw?,
    ))
}

fn tuple(bytes: &[u8]) -> Option<Tuple> {
    const IP: u16 = 1;
    const PROTO: u16 = 2;
    let (mut src, mut dst, mut protocol, mut sport, mut dport) = (None, None, None, 0, 0);
    for (kind, value, _) in Attributes(bytes) {
        for (inner, value, _) in Attributes(value) {
            match (kind, inner) {
                (IP, 1 | 3) => src = address(value),
                (IP, 2 | 4) => dst = address(value),
                (PROTO, 1) => protocol = value.first().copied(),
                (PROTO, 2) => sport = u16::from_be_bytes(value.try_into().ok()?),
                (PROTO, 3) => dport = u16::from_be_bytes(value.try_into().ok()?),
                _ => {}
            }
        }
    }
    Some(Tuple {
        src: src?,
        dst: dst?,
        protocol: protocol?,
        sport,
        dport,
    })
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        return Some(Ipv4Addr::from(v4).into());
    }
    Some(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?).into())
}
