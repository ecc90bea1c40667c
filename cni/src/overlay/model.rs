// SPDX-License-Identifier: Apache-2.0
//! The words of the overlay: settings, nodes, what the kernel has, and steps.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use super::Announcement;
use super::wireguard::{PeerSpec, PublicKey, PublicKeys, SeenDevice, WireGuard};
use crate::cidr::Cidr;

/// How packets get from node to node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Backend {
    /// In UDP packets between the nodes' addresses; works wherever the nodes reach each other.
    #[default]
    Vxlan,
    /// In UDP packets between the nodes' addresses, encrypted.
    WireGuard,
    /// As they are, routed to the other node's address, which must be on a common subnet.
    HostGw,
    /// Somebody else's business. What another back end made is taken away.
    None,
}

impl Backend {
    const ALL: [Backend; 4] = [
        Backend::Vxlan,
        Backend::WireGuard,
        Backend::HostGw,
        Backend::None,
    ];

    /// As flags and announcements write it.
    pub fn name(self) -> &'static str {
        match self {
            Backend::Vxlan => "vxlan",
            Backend::WireGuard => "wireguard",
            Backend::HostGw => "host-gw",
            Backend::None => "none",
        }
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Backend {
    type Err = String;

    fn from_str(text: &str) -> Result<Backend, String> {
        Backend::ALL
            .into_iter()
            .find(|backend| backend.name() == text)
            .ok_or_else(|| format!("{text:?} is none of vxlan, wireguard, host-gw and none"))
    }
}

/// What the operator says; the same on every node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// How packets get from node to node.
    pub backend: Backend,
    /// Name of the VXLAN link. At most 15 bytes.
    pub link: String,
    /// VXLAN network identifier, 24 bits.
    pub vni: u32,
    /// UDP port of VXLAN.
    pub port: u16,
    /// What is particular to WireGuard.
    pub wireguard: WireGuard,
    /// Ranges of all pods. A node that claims others is refused.
    pub cluster: Vec<Cidr>,
    /// Bridge of this node's pods; its MTU follows that of pods.
    pub bridge: String,
    /// nftables table of the node's Services; the overlay's is called after it: `<table>-overlay`.
    pub nft_table: String,
}

impl Settings {
    /// flannel's VNI and port, which Linux' own default for the port is too.
    pub const VNI: u32 = 1;
    /// See [`Settings::VNI`].
    pub const PORT: u16 = 8472;
    /// The VXLAN link's usual name.
    pub const LINK: &'static str = "pw-vxlan";
}

/// A hardware address.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Mac(pub [u8; 6]);

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Mac {
    type Err = String;

    fn from_str(text: &str) -> Result<Mac, String> {
        let wrong = || format!("{text:?} is not a hardware address such as 02:00:00:00:00:01");
        let parts: Vec<u8> = text
            .split(':')
            .map(|part| match part.len() {
                2 => u8::from_str_radix(part, 16).map_err(|_| wrong()),
                _ => Err(wrong()),
            })
            .collect::<Result<_, _>>()?;
        let mac = Mac(parts.try_into().map_err(|_| wrong())?);
        // A group address or none at all would flood or be refused.
        if mac.0[0] & 1 == 1 || mac.0 == [0; 6] {
            return Err(wrong());
        }
        Ok(mac)
    }
}

/// This node.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Own {
    /// Its name.
    pub name: String,
    /// Its addresses; the first is the one that encapsulated packets go to.
    pub addresses: Vec<IpAddr>,
    /// Its pods' ranges.
    pub pod_cidrs: Vec<Cidr>,
    /// Its WireGuard keys; [`super::Kernel`] knows them.
    pub keys: Option<PublicKeys>,
}

/// Another node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Its name.
    pub name: String,
    /// Its pods' ranges.
    pub pod_cidrs: Vec<Cidr>,
    /// What it says about itself.
    pub announcement: Announcement,
}

/// A link as far as it matters here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeenLink {
    /// Interface index.
    pub index: u32,
    /// Name.
    pub name: String,
    /// Driver.
    pub kind: String,
    /// Is it up?
    pub up: bool,
    /// Largest packet.
    pub mtu: u32,
    /// Hardware address.
    pub mac: Option<Mac>,
    /// What is particular to a VXLAN link.
    pub vxlan: Option<SeenVxlan>,
}

/// Parameters of a VXLAN link that is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SeenVxlan {
    /// Network identifier.
    pub vni: u32,
    /// UDP port.
    pub port: u16,
    /// Address that packets are sent from.
    pub local: Option<IpAddr>,
    /// Does it learn who is where from what it receives?
    pub learning: bool,
}

/// A VXLAN link to make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VxlanSpec {
    /// Name.
    pub name: String,
    /// Network identifier.
    pub vni: u32,
    /// UDP port.
    pub port: u16,
    /// Address that packets are sent from.
    pub local: IpAddr,
    /// Hardware address.
    pub mac: Mac,
    /// Largest packet.
    pub mtu: u32,
}

/// Who has an address on the overlay link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Neighbour {
    /// The address.
    pub address: IpAddr,
    /// Who has it.
    pub mac: Mac,
}

/// Which node a hardware address is at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ForwardEntry {
    /// The hardware address.
    pub mac: Mac,
    /// The node's address.
    pub node: IpAddr,
}

/// A route to another node's pods, with [`super::ROUTE_PROTOCOL`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PathRoute {
    /// The pods' range.
    pub dst: Cidr,
    /// Next hop.
    pub gateway: Option<IpAddr>,
    /// Is the next hop on the link, whatever the routes say?
    pub onlink: bool,
    /// Index of the link.
    pub link: u32,
    /// Source address of what this node itself sends (IPv4).
    pub source: Option<IpAddr>,
}

/// What the kernel has of the overlay.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Seen {
    /// The link by VXLAN's name.
    pub own: Option<SeenLink>,
    /// The link by WireGuard's name.
    pub wireguard: Option<SeenLink>,
    /// What is particular to it, if it is one.
    pub device: Option<SeenDevice>,
    /// Endpoints that the peers of the WireGuard link were last told to have.
    pub told: BTreeMap<PublicKey, SocketAddr>,
    /// The bridge of this node's pods.
    pub bridge: Option<SeenLink>,
    /// The link that carries this node's first address.
    pub uplink: Option<SeenLink>,
    /// Addresses of the namespace, with the index of their link.
    pub addresses: Vec<(u32, Cidr)>,
    /// Our routes.
    pub routes: Vec<PathRoute>,
    /// Permanent neighbours on the VXLAN link.
    pub neighbours: Vec<Neighbour>,
    /// Forwarding entries of the VXLAN link. `mac` is all zero for one that floods.
    pub forward: Vec<ForwardEntry>,
    /// Chains with the rules that keep encapsulated packets from being tracked.
    pub untracked: Vec<String>,
}

/// One change. A step that finds it done already succeeds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Take a link away, because of this.
    DeleteLink(u32, &'static str),
    /// Make it, down.
    AddVxlan(VxlanSpec),
    /// Make it, down: name, largest packet.
    AddWireGuard(String, u32),
    /// Give a WireGuard link the private key that belongs to this public one.
    SetKey(u32, PublicKey),
    /// Have it listen on this port, and send without a mark.
    SetSocket(u32, u16),
    /// Add or change a peer of it.
    SetPeer(u32, PeerSpec),
    /// Forget a peer of it.
    DeletePeer(u32, PublicKey),
    /// Change the largest packet of a link.
    SetMtu(u32, u32),
    /// Change a hardware address.
    SetMac(u32, Mac),
    /// Set a link up.
    SetUp(u32),
    /// Give the link an address.
    AddAddress(u32, Cidr),
    /// Take an address from it.
    DeleteAddress(u32, Cidr),
    /// Add or replace.
    SetNeighbour(u32, Neighbour),
    /// Forget.
    DeleteNeighbour(u32, Neighbour),
    /// Add or replace.
    SetForward(u32, ForwardEntry),
    /// Forget.
    DeleteForward(u32, ForwardEntry),
    /// Keep packets to this UDP port from being tracked; `None`: no packets.
    SetUntracked(Option<u16>),
    /// Add; fails when somebody else has a route there.
    AddRoute(PathRoute),
    /// Take one of ours away.
    DeleteRoute(PathRoute),
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::DeleteLink(index, why) => write!(f, "delete link {index}: {why}"),
            Step::AddVxlan(spec) => write!(
                f,
                "make vxlan link {} with vni {} on {} port {}, mtu {}",
                spec.name, spec.vni, spec.local, spec.port, spec.mtu
            ),
            Step::AddWireGuard(name, mtu) => write!(f, "make WireGuard link {name}, mtu {mtu}"),
            Step::SetKey(index, key) => write!(f, "set key of link {index} to that of {key}"),
            Step::SetSocket(index, port) => write!(f, "link {index} listens on port {port}"),
            Step::SetPeer(_, spec) => write!(f, "{spec}"),
            Step::DeletePeer(_, key) => write!(f, "forget peer {key}"),
            Step::SetMtu(index, mtu) => write!(f, "set mtu of link {index} to {mtu}"),
            Step::SetMac(index, mac) => write!(f, "set hardware address of link {index} to {mac}"),
            Step::SetUp(index) => write!(f, "set link {index} up"),
            Step::AddAddress(index, cidr) => write!(f, "add address {cidr} to link {index}"),
            Step::DeleteAddress(index, cidr) => {
                write!(f, "delete address {cidr} from link {index}")
            }
            Step::SetNeighbour(_, n) => write!(f, "neighbour {} is {}", n.address, n.mac),
            Step::DeleteNeighbour(_, n) => write!(f, "forget neighbour {}", n.address),
            Step::SetForward(_, e) => write!(f, "{} is at {}", e.mac, e.node),
            Step::DeleteForward(_, e) => write!(f, "forget {} at {}", e.mac, e.node),
            Step::SetUntracked(Some(port)) => {
                write!(f, "keep packets to UDP port {port} from being tracked")
            }
            Step::SetUntracked(None) => f.write_str("let all packets be tracked"),
            Step::AddRoute(route) => write!(f, "add route {route}"),
            Step::DeleteRoute(route) => write!(f, "delete route {route}"),
        }
    }
}

impl fmt::Display for PathRoute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "to {}", self.dst)?;
        if let Some(gateway) = self.gateway {
            write!(f, " by way of {gateway}")?;
        }
        write!(f, " on link {}", self.link)
    }
}

/// What keeps pods from reaching each other, and why.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// The other node; `None` when it is this one.
    pub peer: Option<String>,
    /// What is wrong and what to do.
    pub text: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.peer {
            Some(peer) => write!(f, "node {peer}: {}", self.text),
            None => f.write_str(&self.text),
        }
    }
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Decision {
    /// In this order. After one that makes or deletes the link, look again.
    pub steps: Vec<Step>,
    /// What is left undone, and why.
    pub problems: Vec<Problem>,
    /// [`Seen::told`] when these steps are done.
    pub told: BTreeMap<PublicKey, SocketAddr>,
}
