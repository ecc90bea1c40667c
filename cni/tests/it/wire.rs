// SPDX-License-Identifier: Apache-2.0
//! Everything that crosses the links of a namespace, as it is on the wire.

use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, setsockopt, socket, sockopt,
};

const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;
pub(crate) const UDP: u8 = 17;
const ICMPV6: u8 = 58;

/// Frames of all links of the namespace it was made in, since then (packet(7)).
pub(crate) struct Wire(OwnedFd);

/// What of a packet matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Packet {
    pub(crate) protocol: u8,
    /// Source and destination port, of UDP and TCP.
    pub(crate) ports: (u16, u16),
}

impl Wire {
    pub(crate) fn tap() -> Wire {
        let kind = SockType::Raw;
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let socket = socket(AddressFamily::Packet, kind, flags, SockProtocol::EthAll);
        let socket = socket.expect("these tests need root");
        setsockopt(&socket, sockopt::RcvBuf, &(4 << 20)).expect("a buffer");
        Wire(socket)
    }

    /// The frames that crossed since the last call.
    pub(crate) fn frames(&self) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        let mut buffer = vec![0; 65_536];
        while let Ok(length) = recv(self.0.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
            frames.push(buffer[..length].to_vec());
        }
        frames
    }
}

/// The IP packet in a frame. None for what neighbours say to each other: ARP and ICMPv6's part of it.
pub(crate) fn packet(frame: &[u8]) -> Option<Packet> {
    let two = |at: usize| {
        frame
            .get(at..at + 2)
            .map(|b| u16::from_be_bytes([b[0], b[1]]))
    };
    let (protocol, payload) = match two(12)? {
        IPV4 => (frame[23], 14 + usize::from(frame[14] & 0xf) * 4),
        IPV6 => (frame[20], 14 + 40),
        _ => return None,
    };
    // Multicast listener reports have a header before that of ICMPv6.
    if protocol == ICMPV6 || protocol == 0 {
        return None;
    }
    Some(Packet {
        protocol,
        ports: (two(payload)?, two(payload + 2)?),
    })
}

/// Do these frames have this text in them?
pub(crate) fn shows(frames: &[Vec<u8>], text: &[u8]) -> bool {
    let has = |frame: &Vec<u8>| frame.windows(text.len()).any(|window| window == text);
    frames.iter().any(has)
}
