// SPDX-License-Identifier: Apache-2.0
//! The expressions that rules are made of: each reads a packet or registers, and writes a register,
//! decides that the rule does not match, or gives a verdict.

use crate::cidr::Cidr;
use std::net::IpAddr;

/// One of sixteen 4-byte registers; a wider value takes several in a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Register(pub u8);

impl Register {
    /// The kernel's number: `NFT_REG32_00` is 8.
    pub(super) fn number(self) -> u32 {
        8 + u32::from(self.0)
    }
}

/// What becomes of a packet.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    Accept,
    Drop,
    Return,
    /// Go on in that chain, and come back.
    Jump(String),
    /// Go on in that chain, and don't come back.
    Goto(String),
}

/// Which header an offset counts from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PayloadBase {
    /// The Ethernet header.
    Link,
    Network,
    Transport,
}

/// A property of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetaKey {
    /// `NFPROTO_IPV4` or `NFPROTO_IPV6`, one byte.
    NfProto,
    /// The packet's mark (4 bytes, host order).
    Mark,
    /// Transport protocol, one byte.
    L4Proto,
    /// Index of the link that a packet came in on (4 bytes, host order); 1 is loopback.
    InputLink,
    /// Name of the link the packet came in by: 16 bytes, the rest of a shorter name is zero.
    IifName,
    /// The same of the link that it leaves by.
    OifName,
}

/// A property of a packet's connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CtKey {
    /// Bits: invalid 1, established 2, related 4, new 8.
    State,
    /// Bits of `ip_conntrack_status`: destination translated 0x20.
    Status,
    /// IPv4 source.
    SrcIp,
    /// IPv6 source.
    SrcIp6,
    /// IPv4 destination.
    DstIp,
    /// IPv6 destination.
    DstIp6,
    /// Transport protocol of the connection, one byte. An ICMP error has that of the connection it
    /// tells of.
    Protocol,
    /// Source port.
    ProtoSrc,
    /// Destination port.
    ProtoDst,
}

/// Direction of a connection's tuple.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CtDirection {
    Original,
    Reply,
}

/// Comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CmpOp {
    Eq,
    Neq,
}

/// Which address is translated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NatKind {
    Dnat,
}

/// What a rule does to an element when a packet passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DynamicOp {
    /// Add it, or begin its timeout anew. The data of one that is there stays as it is.
    Update,
    /// Delete it, if it is there.
    Delete,
}

/// How a packet is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reject {
    /// ICMP or ICMPv6 port unreachable, by family.
    PortUnreachable,
    /// TCP reset.
    TcpReset,
}

/// One step of a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expr {
    /// Load a property of the packet.
    Meta { key: MetaKey, dreg: Register },
    /// Load bytes of the packet.
    Payload {
        base: PayloadBase,
        offset: u32,
        len: u32,
        dreg: Register,
    },
    /// Load a property of the connection.
    Ct {
        key: CtKey,
        direction: Option<CtDirection>,
        dreg: Register,
    },
    /// Load the type of the destination address, as the routing table sees it (4 bytes, host order).
    FibDaddrType { dreg: Register },
    /// The same of the source address.
    FibSaddrType { dreg: Register },
    /// `dreg = sreg & mask`
    Mask {
        sreg: Register,
        dreg: Register,
        mask: Vec<u8>,
    },
    /// Go on if the register compares so.
    Cmp {
        op: CmpOp,
        sreg: Register,
        data: Vec<u8>,
    },
    /// Go on if the set has this key.
    InSet { set: String, sreg: Register },
    /// Go on if the map has this key, with its data in `dreg`.
    Map {
        map: String,
        sreg: Register,
        dreg: Register,
    },
    /// Take the verdict that the map has for this key, if it has one.
    VerdictMap { map: String, sreg: Register },
    /// Change an element of a dynamic map. The rule ends here when the map is full.
    Dynamic {
        op: DynamicOp,
        map: String,
        key: Register,
        /// What a new element maps to.
        data: Option<Register>,
        /// Seconds until the element is gone, if nothing updates it.
        timeout: Option<u32>,
    },
    /// Load a random number below `modulus` (4 bytes, host order).
    Random { modulus: u32, dreg: Register },
    /// Translate to the address (and port) in registers.
    Nat {
        kind: NatKind,
        ipv4: bool,
        addr: Register,
        port: Register,
    },
    /// Translate the source to the address of the outgoing link.
    Masquerade,
    /// Keep the packet from connection tracking, which comes later.
    Untracked,
    /// Refuse the packet.
    Reject(Reject),
    /// Have the kernel tell what becomes of the packet from here on ([`super::Tracer`]).
    Trace,
    /// Decide.
    Verdict(Verdict),
}

/// `RTN_LOCAL` of rtnetlink: an address of this host.
pub(crate) const RTN_LOCAL: u32 = 2;

impl Expr {
    /// Match the family of a packet.
    pub fn family(ipv4: bool) -> [Expr; 2] {
        let protocol = if ipv4 {
            libc::NFPROTO_IPV4
        } else {
            libc::NFPROTO_IPV6
        };
        let byte = u8::try_from(protocol).expect("a small number");
        [
            Expr::Meta {
                key: MetaKey::NfProto,
                dreg: Register(0),
            },
            Expr::Cmp {
                op: CmpOp::Eq,
                sreg: Register(0),
                data: vec![byte],
            },
        ]
    }

    /// Load the source address.
    pub fn saddr(ipv4: bool, dreg: Register) -> Expr {
        let (offset, len) = if ipv4 { (12, 4) } else { (8, 16) };
        Expr::Payload {
            base: PayloadBase::Network,
            offset,
            len,
            dreg,
        }
    }

    /// Load the destination address.
    pub fn daddr(ipv4: bool, dreg: Register) -> Expr {
        let (offset, len) = if ipv4 { (16, 4) } else { (24, 16) };
        Expr::Payload {
            base: PayloadBase::Network,
            offset,
            len,
            dreg,
        }
    }

    /// Load the transport protocol.
    pub fn l4proto(dreg: Register) -> Expr {
        Expr::Meta {
            key: MetaKey::L4Proto,
            dreg,
        }
    }

    /// Load the destination port.
    pub fn dport(dreg: Register) -> Expr {
        Expr::Payload {
            base: PayloadBase::Transport,
            offset: 2,
            len: 2,
            dreg,
        }
    }

    /// Match packets to an address of this host.
    pub fn to_local() -> [Expr; 2] {
        [
            Expr::FibDaddrType { dreg: Register(0) },
            Expr::Cmp {
                op: CmpOp::Eq,
                sreg: Register(0),
                data: RTN_LOCAL.to_ne_bytes().to_vec(),
            },
        ]
    }

    /// Match packets that came in on another link than loopback.
    pub fn from_outside() -> [Expr; 2] {
        // LOOPBACK_IFINDEX of net/loopback.h: the same in every network namespace.
        const LOOPBACK: u32 = 1;
        [
            Expr::Meta {
                key: MetaKey::InputLink,
                dreg: Register(0),
            },
            Expr::Cmp {
                op: CmpOp::Neq,
                sreg: Register(0),
                data: LOOPBACK.to_ne_bytes().to_vec(),
            },
        ]
    }

    /// Match packets that a program of this host sends, by their source address.
    pub fn from_local() -> [Expr; 2] {
        [
            Expr::FibSaddrType { dreg: Register(0) },
            Expr::Cmp {
                op: CmpOp::Eq,
                sreg: Register(0),
                data: RTN_LOCAL.to_ne_bytes().to_vec(),
            },
        ]
    }

    /// Load the name of the link a packet came in by, to compare it with [`Expr::Cmp`]: with all 16
    /// bytes of a name, or with a prefix.
    pub fn iifname(dreg: Register) -> Expr {
        Expr::Meta {
            key: MetaKey::IifName,
            dreg,
        }
    }

    /// The same of the link a packet goes out by.
    pub fn oifname(dreg: Register) -> Expr {
        Expr::Meta {
            key: MetaKey::OifName,
            dreg,
        }
    }

    /// Match packets that belong to no tracked connection: invalid ones, and those that a rule
    /// exempted.
    pub fn state_without_connection() -> [Expr; 3] {
        ct_bits(CtKey::State, 1 | 64)
    }

    /// Match connections whose destination was translated.
    pub fn destination_translated() -> [Expr; 3] {
        ct_bits(CtKey::Status, 0x20)
    }

    /// Match packets that begin a connection.
    pub fn state_new() -> [Expr; 3] {
        ct_bits(CtKey::State, 8)
    }
}

fn ct_bits(key: CtKey, bits: u32) -> [Expr; 3] {
    let zero = 0_u32.to_ne_bytes().to_vec();
    [
        Expr::Ct {
            key,
            direction: None,
            dreg: Register(0),
        },
        Expr::Mask {
            sreg: Register(0),
            dreg: Register(0),
            mask: bits.to_ne_bytes().to_vec(),
        },
        Expr::Cmp {
            op: CmpOp::Neq,
            sreg: Register(0),
            data: zero,
        },
    ]
}

/// Match the address that starts at register 0 against a prefix.
pub fn match_prefix(op: CmpOp, cidr: Cidr) -> Vec<Expr> {
    let octets = |addr: IpAddr| match addr {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    };
    let every = crate::cidr::from_bits(u128::MAX, cidr.is_ipv4());
    let mask = Cidr {
        addr: every,
        prefix: cidr.prefix,
    }
    .network()
    .addr;
    let register = Register(0);
    vec![
        Expr::Mask {
            sreg: register,
            dreg: register,
            mask: octets(mask),
        },
        Expr::Cmp {
            op,
            sreg: register,
            data: octets(cidr.network().addr),
        },
    ]
}
