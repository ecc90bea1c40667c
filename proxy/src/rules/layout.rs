// SPDX-License-Identifier: Apache-2.0
//! Names and keys of the maps, and where their fields stand in registers.

use std::fmt;
use std::net::IpAddr;

use cni::nft::{Data, Expr, MetaKey, Register};

use crate::service::{Backend, Frontend};

/// A map or set of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Map {
    /// frontend → count of endpoints . number of a chain . policy
    Services,
    /// frontend . slot → backend
    Endpoints,
    /// The same for clients from outside, where they have endpoints of their own.
    LocalEndpoints,
    /// The same of frontends that lead clients inside and outside to different endpoints: count .
    /// number of the chain for clients inside . for those outside
    Split,
    /// frontend . slot → 0 . frontend . token of a backend, where clients keep their endpoint
    Slots,
    /// The same for clients from outside.
    LocalSlots,
    /// frontend . token → backend
    Members,
    /// The same for clients from outside.
    LocalMembers,
    /// client . frontend → client . frontend . token of a backend; rules fill it
    Learned,
    /// frontend → count of sources . number of the list . 0
    Firewall,
    /// address
    ClusterIps,
    /// pod's address . pod's address
    Loop,
    /// number → chain that picks an endpoint, or decides who gets which
    Entries,
    /// number → chain that picks an endpoint. Those that decide look here: the kernel takes no map
    /// that leads a chain to itself.
    Picks,
    /// number → chain that lets sources pass
    SourceLists,
    /// policy → chain that replaces the source
    Masquerades,
    /// policy → chain that refuses
    Refusals,
}

/// A map of one family; those without addresses are there once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SetName {
    /// Which.
    pub map: Map,
    /// `None`: it has no addresses.
    pub ipv4: Option<bool>,
}

impl Map {
    /// Of a family.
    pub fn of(self, ipv4: bool) -> SetName {
        SetName {
            map: self,
            ipv4: Some(ipv4),
        }
    }

    /// One without addresses.
    pub fn alone(self) -> SetName {
        SetName {
            map: self,
            ipv4: None,
        }
    }
}

impl fmt::Display for SetName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.map {
            Map::Services => "services",
            Map::Endpoints => "endpoints",
            Map::LocalEndpoints => "local-endpoints",
            Map::Split => "split",
            Map::Slots => "slots",
            Map::LocalSlots => "local-slots",
            Map::Members => "members",
            Map::LocalMembers => "local-members",
            Map::Learned => "learned",
            Map::Firewall => "firewall",
            Map::ClusterIps => "cluster-ips",
            Map::Loop => "loop",
            Map::Entries => "entries",
            Map::Picks => "picks",
            Map::SourceLists => "source-lists",
            Map::Masquerades => "masquerades",
            Map::Refusals => "refusals",
        })?;
        self.ipv4.map_or(Ok(()), |ipv4| f.write_str(digit(ipv4)))
    }
}

pub(super) fn digit(ipv4: bool) -> &'static str {
    if ipv4 { "4" } else { "6" }
}

/// Registers that an address takes.
pub(super) fn width(ipv4: bool) -> u8 {
    if ipv4 { 1 } else { 4 }
}

/// Registers that a frontend takes: address, protocol, port.
pub(super) fn frontend_width(ipv4: bool) -> u8 {
    width(ipv4) + 2
}

pub(super) fn octets(addr: IpAddr) -> Vec<u8> {
    match addr {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

fn padded(port: u16) -> [u8; 4] {
    let [high, low] = port.to_be_bytes();
    [high, low, 0, 0]
}

pub(crate) fn frontend_key(frontend: &Frontend) -> Vec<u8> {
    let mut key = octets(frontend.addr);
    key.extend([frontend.protocol.number(), 0, 0, 0]);
    key.extend(padded(frontend.port));
    key
}

pub(super) fn backend_bytes(backend: &Backend) -> Vec<u8> {
    let mut data = octets(backend.addr);
    data.extend(padded(backend.port));
    data
}

/// What [`backend_bytes`] wrote.
pub(crate) fn backend_of(bytes: &[u8]) -> Option<Backend> {
    let (address, port) = bytes.split_at_checked(bytes.len().checked_sub(4)?)?;
    let v4 = <[u8; 4]>::try_from(address).map(IpAddr::from);
    let v6 = || <[u8; 16]>::try_from(address).map(IpAddr::from);
    Some(Backend {
        addr: v4.or_else(|_| v6()).ok()?,
        port: u16::from_be_bytes([port[0], port[1]]),
    })
}

/// Load the frontend that a packet is sent to, from register `at` on.
pub(super) fn load_frontend(ipv4: bool, node_port: bool, at: u8) -> Vec<Expr> {
    let mut exprs = vec![Expr::daddr(ipv4, Register(at))];
    if node_port {
        exprs.push(no_address(ipv4, at));
    }
    exprs.extend([
        Expr::l4proto(Register(at + width(ipv4))),
        Expr::dport(Register(at + width(ipv4) + 1)),
    ]);
    exprs
}

/// Make the address in a register the unspecified one, which stands for all that node ports have.
pub(super) fn no_address(ipv4: bool, at: u8) -> Expr {
    Expr::Mask {
        sreg: Register(at),
        dreg: Register(at),
        mask: vec![0; usize::from(width(ipv4)) * 4],
    }
}

/// Look the data of a frontend up.
pub(super) fn map_to(name: SetName, at: u8, to: u8) -> Expr {
    Expr::Map {
        map: name.to_string(),
        sreg: Register(at),
        dreg: Register(to),
    }
}

/// Registers of what a frontend maps to; see [`numbers_of`].
const COUNT: u8 = 8;
/// The first number of a frontend.
pub(super) const FIRST: u8 = 9;
/// The second one.
pub(super) const SECOND: u8 = 10;

/// Look the numbers of a frontend up.
///
/// nft(8) keeps account of what it thinks is in a register, and stops with a failed assertion when
/// it lists a rule whose key begins with what a map gave. So a map's data begins with a word that is
/// no key, and something is loaded where the keys will be, for nft to see. It prints `meta mark`
/// there.
pub(super) fn numbers_of(map: Map, ipv4: bool) -> [Expr; 3] {
    [
        placeholder(FIRST),
        placeholder(SECOND),
        map_to(map.of(ipv4), 0, COUNT),
    ]
}

pub(super) fn placeholder(register: u8) -> Expr {
    Expr::Meta {
        key: MetaKey::Mark,
        dreg: Register(register),
    }
}

/// A count and two numbers, as they stand in a map of Services.
pub(super) fn numbers(count: usize, first: u32, second: u32) -> Option<Data> {
    let count = u32::try_from(count).unwrap_or(u32::MAX);
    let words = [count, first, second].map(u32::to_ne_bytes);
    Some(Data::Value(words.concat()))
}

/// Take the verdict of a number in a register.
pub(super) fn verdict_of(map: Map, register: u8) -> Expr {
    Expr::VerdictMap {
        map: map.alone().to_string(),
        sreg: Register(register),
    }
}
