// SPDX-License-Identifier: Apache-2.0
//! Steps into the kernel: the nftables transaction, then the flows that must be forgotten.

use std::io;
use std::net::IpAddr;

use cni::cidr::Cidr;
use cni::conntrack::{self, ConntrackError, Flow};
use cni::nft::{NftError, Socket, Transaction};

use crate::service::{Backend, Frontend, Protocol};
use crate::state::UdpTargets;

/// Why rules were not applied; nothing changed.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// No socket.
    #[error("opening a netlink socket")]
    Open(#[source] io::Error),
    /// The kernel refused.
    #[error("applying rules")]
    Rules(#[source] NftError),
}

/// The way into the kernel. It keeps its socket: closing one waits for the kernel to free what was
/// deleted over it, an RCU grace period of about 20 ms.
#[derive(Debug, Default)]
pub struct Kernel {
    socket: Option<Socket>,
}

impl Kernel {
    /// Apply a transaction, in the network namespace of the thread that does so first. Blocks, for
    /// microseconds when little changed.
    pub fn apply(&mut self, transaction: &Transaction) -> Result<(), ApplyError> {
        let socket = match &mut self.socket {
            Some(socket) => socket,
            none => none.insert(Socket::open().map_err(ApplyError::Open)?),
        };
        let applied = socket.apply(transaction).map_err(ApplyError::Rules);
        if applied.is_err() {
            self.socket = None; // whatever is wrong with it, a new one is not
        }
        applied
    }

    /// The address of its netlink socket, once it has one.
    pub fn port(&self) -> Option<u32> {
        self.socket.as_ref()?.port().ok()
    }
}

/// A UDP flow stays with its first endpoint for as long as packets come. So forget every flow to
/// these frontends that goes somewhere the frontend does not lead to (any more). Blocks, for as
/// long as it takes to list the flows of the host. Returns how many IPv4 and IPv6 flows there were.
pub fn forget(udp: &UdpTargets, node_ports: &[Cidr]) -> Result<[u64; 2], ConntrackError> {
    let mut forgotten = [0, 0];
    if udp.is_empty() {
        return Ok(forgotten);
    }
    let counts = std::cell::RefCell::new(&mut forgotten);
    conntrack::delete(|flow| {
        let stray = is_astray(flow, udp, node_ports);
        if stray {
            counts.borrow_mut()[usize::from(flow.original.dst.is_ipv6())] += 1;
        }
        stray
    })?;
    Ok(forgotten)
}

fn is_astray(flow: &Flow, udp: &UdpTargets, node_ports: &[Cidr]) -> bool {
    if flow.original.protocol != conntrack::UDP {
        return false;
    }
    let answers = Backend {
        addr: flow.reply.src,
        port: flow.reply.sport,
    };
    let at = |addr: IpAddr| Frontend {
        addr,
        protocol: Protocol::Udp,
        port: flow.original.dport,
    };
    let asked = flow.original.dst;
    let at_node = Frontend::node_port(asked.is_ipv4(), Protocol::Udp, flow.original.dport);
    let targets = udp.get(&at(asked)).or_else(|| {
        let answering = node_ports.iter().any(|cidr| cidr.contains(asked));
        udp.get(&at_node)
            .filter(|_| answering && !asked.is_loopback())
    });
    targets.is_some_and(|backends| !backends.contains(&answers))
}
