// SPDX-License-Identifier: Apache-2.0
//! What became of a packet: the kernel tells it rule by rule (netlink group `NFNLGRP_NFTRACE`) of
//! packets that [`Expr::Trace`](super::Expr::Trace) has marked.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use nix::sys::socket::SockProtocol;

use super::{Family, Verdict};
use crate::netlink::{self, Attributes, be32, text};

const NFNLGRP_NFTRACE: libc::c_int = 9;
const NFT_MSG_TRACE: u16 = 0x0a11;
const NFGEN_HEADER: usize = 4;

/// Hears of marked packets, in the network namespace of the thread that opened it.
#[derive(Debug)]
pub struct Tracer {
    socket: netlink::Socket,
}

/// One thing that happened to a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// Which packet, nearly: the kernel may give two the same number, and one packet another one when
    /// it is forwarded.
    pub packet: u32,
    /// Table (`None`: of a family that no rule of ours is in) and chain it was in.
    pub family: Option<Family>,
    pub table: String,
    pub chain: String,
    /// What happened there.
    pub event: Event,
    /// From where to where, if the kernel sent the headers: it does when a packet comes to a base
    /// chain.
    pub flow: Option<Flow>,
    /// Numbers of the links it came in by and goes out by; 0: none (yet).
    pub iif: u32,
    pub oif: u32,
}

/// What happened to a packet in a chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A rule matched, and ended in this.
    Rule { handle: u64, ended: Ended },
    /// A chain came to its end, and the one that it was called from goes on.
    Return,
    /// A base chain came to its end: its policy.
    Policy(Ended),
}

/// How a rule, or a base chain, ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ended {
    /// With the next rule.
    Continue,
    /// With a verdict.
    Verdict(Verdict),
    /// The packet was taken over, by `reject` or by a queue.
    Taken,
}

/// Addresses and ports, as they were at that moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flow {
    pub source: IpAddr,
    pub destination: IpAddr,
    /// Protocol number.
    pub protocol: u8,
    /// Of the source and of the destination; 0 for a protocol without ports.
    pub ports: (u16, u16),
}

impl Tracer {
    /// Begin to listen.
    ///
    /// # Errors
    /// When the kernel refuses the socket; it needs CAP_NET_ADMIN.
    pub fn open() -> io::Result<Tracer> {
        let socket = netlink::Socket::open(SockProtocol::NetlinkNetFilter)?;
        socket.join(NFNLGRP_NFTRACE)?;
        Ok(Tracer { socket })
    }

    /// What has happened since the last call, in order. Blocks until there is something, at most
    /// for `wait`; nothing then.
    ///
    /// # Errors
    /// When reading fails; `ENOBUFS` when so much happened that some of it is lost.
    pub fn next(&self, wait: Duration) -> io::Result<Vec<Step>> {
        let heard = self.socket.hear(wait)?;
        let traced = heard.iter().filter(|(kind, _)| *kind == NFT_MSG_TRACE);
        Ok(traced.filter_map(|(_, payload)| step(payload)).collect())
    }
}

fn step(payload: &[u8]) -> Option<Step> {
    const TABLE: u16 = 1;
    const CHAIN: u16 = 2;
    const HANDLE: u16 = 3;
    const TYPE: u16 = 4;
    const VERDICT: u16 = 5;
    const ID: u16 = 6;
    const NETWORK: u16 = 8;
    const TRANSPORT: u16 = 9;
    const IIF: u16 = 10;
    const OIF: u16 = 12;
    const POLICY: u16 = 16;
    const TYPE_POLICY: u32 = 1;
    const TYPE_RETURN: u32 = 2;
    const TYPE_RULE: u32 = 3;
    let attributes = payload.get(NFGEN_HEADER..)?;
    let find = |wanted| Attributes(attributes).find(|a| a.0 == wanted).map(|a| a.1);
    let event = match be32(find(TYPE)?)? {
        TYPE_RULE => Event::Rule {
            handle: u64::from_be_bytes(find(HANDLE)?.try_into().ok()?),
            ended: verdict(find(VERDICT)?)?,
        },
        TYPE_RETURN => Event::Return,
        TYPE_POLICY => Event::Policy(ended(be32(find(POLICY)?)?.cast_signed(), None)?),
        _ => return None,
    };
    let transport = find(TRANSPORT).unwrap_or_default();
    Some(Step {
        packet: be32(find(ID)?)?,
        family: Family::of_number(*payload.first()?),
        table: text(find(TABLE)?),
        chain: text(find(CHAIN)?),
        event,
        flow: find(NETWORK).and_then(|network| flow(network, transport)),
        iif: find(IIF).and_then(be32).unwrap_or(0),
        oif: find(OIF).and_then(be32).unwrap_or(0),
    })
}

/// A verdict as the kernel writes it in attributes.
pub(super) fn verdict(nested: &[u8]) -> Option<Ended> {
    const CODE: u16 = 1;
    const CHAIN: u16 = 2;
    let find = |wanted| Attributes(nested).find(|a| a.0 == wanted).map(|a| a.1);
    ended(be32(find(CODE)?)?.cast_signed(), find(CHAIN).map(text))
}

fn ended(code: i32, chain: Option<String>) -> Option<Ended> {
    Some(match code {
        -1 | -2 => Ended::Continue,
        -3 => Ended::Verdict(Verdict::Jump(chain?)),
        -4 => Ended::Verdict(Verdict::Goto(chain?)),
        -5 => Ended::Verdict(Verdict::Return),
        0 => Ended::Verdict(Verdict::Drop),
        1 => Ended::Verdict(Verdict::Accept),
        _ => Ended::Taken,
    })
}

/// The first bytes of both headers, as far as the kernel sent them.
fn flow(network: &[u8], transport: &[u8]) -> Option<Flow> {
    let (source, destination, protocol) = match network.first()? >> 4 {
        4 => {
            let address = |at| {
                let octets: [u8; 4] = network.get(at..at + 4)?.try_into().ok()?;
                Some(IpAddr::from(Ipv4Addr::from(octets)))
            };
            (address(12)?, address(16)?, *network.get(9)?)
        }
        6 => {
            let address = |at| {
                let octets: [u8; 16] = network.get(at..at + 16)?.try_into().ok()?;
                Some(IpAddr::from(Ipv6Addr::from(octets)))
            };
            (address(8)?, address(24)?, *network.get(6)?)
        }
        _ => return None,
    };
    let port = |at: usize| {
        let bytes = transport.get(at..at + 2)?.try_into().ok()?;
        Some(u16::from_be_bytes(bytes))
    };
    let with_ports = [libc::IPPROTO_TCP, libc::IPPROTO_UDP, libc::IPPROTO_SCTP];
    let ports = if with_ports.contains(&i32::from(protocol)) {
        (port(0).unwrap_or(0), port(2).unwrap_or(0))
    } else {
        (0, 0)
    };
    Some(Flow {
        source,
        destination,
        protocol,
        ports,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attribute(bytes: &mut Vec<u8>, kind: u16, value: &[u8]) {
        let length = u16::try_from(value.len() + 4).expect("short");
        bytes.extend(length.to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }

    fn message() -> Vec<u8> {
        let mut verdict = Vec::new();
        attribute(&mut verdict, 1, &(-4_i32).to_be_bytes());
        attribute(&mut verdict, 2, b"pick4-2\0");
        let mut network = vec![0x45, 0, 0, 60, 0, 0, 0, 0, 64, 6, 0, 0];
        network.extend([10, 42, 0, 5, 10, 43, 0, 1]);
        let mut bytes = vec![1, 0, 0, 0];
        attribute(&mut bytes, 1, b"podwright\0");
        attribute(&mut bytes, 2, b"prerouting\0");
        attribute(&mut bytes, 3, &7_u64.to_be_bytes());
        attribute(&mut bytes, 4, &3_u32.to_be_bytes());
        attribute(&mut bytes, 5, &verdict);
        attribute(&mut bytes, 6, &9_u32.to_be_bytes());
        attribute(&mut bytes, 8, &network);
        attribute(&mut bytes, 9, &[0x9c, 0x40, 0, 80, 0, 0]);
        attribute(&mut bytes, 10, &4_u32.to_be_bytes());
        bytes
    }

    #[test]
    fn a_matching_rule_is_read_with_the_packet() {
        let step = step(&message()).expect("a step");
        assert_eq!(
            step.event,
            Event::Rule {
                handle: 7,
                ended: Ended::Verdict(Verdict::Goto("pick4-2".into()))
            }
        );
        assert_eq!((step.packet, step.iif, step.oif), (9, 4, 0));
        let flow = step.flow.expect("the headers");
        assert_eq!(flow.source, IpAddr::from([10, 42, 0, 5]));
        assert_eq!(flow.destination, IpAddr::from([10, 43, 0, 1]));
        assert_eq!((flow.protocol, flow.ports), (6, (40000, 80)));
    }

    #[test]
    fn what_is_cut_off_is_no_step() {
        let whole = message();
        for length in 0..whole.len() - 20 {
            // Whatever is missing, reading ends.
            let _ = step(&whole[..length]);
        }
        assert_eq!(step(&[]), None);
        assert_eq!(flow(&[0x45; 8], &[]), None);
    }
}
