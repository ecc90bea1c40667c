// SPDX-License-Identifier: Apache-2.0
//! Links, addresses and routes over rtnetlink.
//!
//! A [`Route`] socket belongs to the network namespace of the thread that opened it, for good; so
//! one that was opened by a thread inside a pod's namespace can be used from anywhere.

mod change;
mod neighbour;
mod port;
mod tc;

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkHeader,
    NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressScope,
};
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteMetric, RouteProtocol,
    RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::sys::socket::SockProtocol;

pub(crate) use change::{Change, parse_mac};
pub(crate) use port::PortSpec;
pub(crate) use tc::Bucket;

use crate::cidr::Cidr;
use crate::netlink::{NetlinkError, Socket};

/// What was attempted on the network, and what the kernel said.
#[derive(Debug, thiserror::Error)]
#[error("{attempt}")]
pub struct LinkError {
    attempt: String,
    #[source]
    source: NetlinkError,
}

impl LinkError {
    pub(crate) fn new(attempt: String, source: NetlinkError) -> LinkError {
        LinkError { attempt, source }
    }

    /// The kernel's errno, if it was the kernel that refused.
    pub fn errno(&self) -> Option<i32> {
        self.source.errno()
    }
}

/// A link as the kernel describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Interface index.
    pub index: u32,
    /// Name.
    pub name: String,
    /// Hardware address, `aa:bb:cc:dd:ee:ff`.
    pub mac: String,
    /// Largest packet.
    pub mtu: u32,
    /// Index of the bridge it is a port of.
    pub master: Option<u32>,
    /// Driver: `veth`, `bridge`; empty for others without one.
    pub kind: String,
    /// Is it administratively up?
    pub up: bool,
    /// Was it told to take frames for others?
    pub promisc: bool,
    /// Was it told to take all multicast frames?
    pub allmulti: bool,
    /// Packets that may wait to be sent.
    pub queue: u32,
    /// What somebody calls it besides its name; often empty.
    pub alias: String,
}

/// An rtnetlink socket.
#[derive(Debug)]
pub struct Route {
    socket: Socket,
}

/// The two ends of a pod's veth pair.
#[derive(Debug, Clone)]
pub struct VethSpec<'a> {
    /// Name of the host end.
    pub host_name: &'a str,
    /// Index of the bridge the host end is a port of; 0: none.
    pub master: u32,
    /// Name of the pod end.
    pub pod_name: &'a str,
    /// Hardware address of the pod end; `None`: the kernel draws one.
    pub pod_mac: Option<[u8; 6]>,
    /// Largest packet; `None`: the kernel's default.
    pub mtu: Option<u32>,
}

/// A route to add.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouteSpec {
    /// Where to.
    pub dst: Cidr,
    /// Through which gateway; `None`: directly on the link.
    pub gw: Option<IpAddr>,
    /// Out of which link.
    pub link: u32,
    /// Metrics and place, from the configuration.
    pub mtu: Option<u32>,
    pub advmss: Option<u32>,
    pub priority: Option<u32>,
    pub table: Option<u32>,
    pub scope: Option<u8>,
    /// Source address of what is sent by it, if not the link's own choice.
    pub src: Option<IpAddr>,
}

impl RouteSpec {
    /// A route without metrics.
    pub fn new(dst: Cidr, gw: Option<IpAddr>, link: u32) -> RouteSpec {
        RouteSpec {
            dst,
            gw,
            link,
            mtu: None,
            advmss: None,
            priority: None,
            table: None,
            scope: None,
            src: None,
        }
    }
}

const CREATE: u16 = NLM_F_CREATE | NLM_F_EXCL;

impl Route {
    /// Open a socket in the namespace of the calling thread.
    pub fn open() -> io::Result<Route> {
        Ok(Route {
            socket: Socket::open(SockProtocol::NetlinkRoute)?,
        })
    }

    /// One whose dumps the kernel filters by what is asked (`NETLINK_GET_STRICT_CHK`).
    pub(crate) fn open_filtering() -> io::Result<Route> {
        let route = Route::open()?;
        route.socket.filter_dumps()?;
        Ok(route)
    }

    /// Send requests as one batch, and return what is answered.
    pub(crate) fn request(
        &mut self,
        attempt: impl FnOnce() -> String,
        requests: Vec<(u16, RouteNetlinkMessage)>,
    ) -> Result<Vec<RouteNetlinkMessage>, LinkError> {
        let count = requests.len();
        if count == 0 {
            return Ok(Vec::new());
        }
        let first = self.socket.take_seqs(count);
        let mut bytes = Vec::new();
        let mut last = first;
        for (index, (flags, request)) in requests.into_iter().enumerate() {
            last = first + u32::try_from(index).expect("a short batch");
            let mut header = NetlinkHeader::default();
            header.flags = NLM_F_REQUEST
                | flags
                | if flags & NLM_F_DUMP == NLM_F_DUMP {
                    0
                } else {
                    NLM_F_ACK
                };
            header.sequence_number = last;
            let mut message = NetlinkMessage::new(header, NetlinkPayload::from(request));
            message.finalize();
            let start = bytes.len();
            bytes.resize(start + message.buffer_len().next_multiple_of(4), 0);
            message.serialize(&mut bytes[start..]);
        }
        match self.socket.exchange(&bytes, first, last) {
            Ok(data) => Ok(data
                .iter()
                .filter_map(|(kind, payload)| decode(*kind, payload))
                .collect()),
            Err(source) => Err(LinkError {
                attempt: attempt(),
                source,
            }),
        }
    }

    /// The link of this name, or `None`.
    pub fn link(&mut self, name: &str) -> Result<Option<Link>, LinkError> {
        let mut message = LinkMessage::default();
        message
            .attributes
            .push(LinkAttribute::IfName(name.to_owned()));
        let asked = self.request(
            || format!("looking up link {name}"),
            vec![(0, RouteNetlinkMessage::GetLink(message))],
        );
        match asked {
            Ok(answers) => Ok(answers.into_iter().find_map(as_link)),
            Err(error) if matches!(error.errno(), Some(libc::ENODEV | libc::ERANGE)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Every link of the namespace.
    pub fn links(&mut self) -> Result<Vec<Link>, LinkError> {
        let request = RouteNetlinkMessage::GetLink(LinkMessage::default());
        let answers = self.request(|| "listing links".to_owned(), vec![(NLM_F_DUMP, request)])?;
        Ok(answers.into_iter().filter_map(as_link).collect())
    }

    /// Make a bridge and set it up. Fails with `EEXIST` when the name is taken.
    pub fn add_bridge(
        &mut self,
        name: &str,
        mac: [u8; 6],
        mtu: Option<u32>,
    ) -> Result<(), LinkError> {
        let mut message = LinkMessage::default();
        message.header.flags = LinkFlags::Up;
        message.header.change_mask = LinkFlags::Up;
        message
            .attributes
            .push(LinkAttribute::IfName(name.to_owned()));
        message
            .attributes
            .push(LinkAttribute::Address(mac.to_vec()));
        message.attributes.extend(mtu.map(LinkAttribute::Mtu));
        message
            .attributes
            .push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(
                InfoKind::Bridge,
            )]));
        self.request(
            || format!("creating bridge {name}"),
            vec![(CREATE, RouteNetlinkMessage::NewLink(message))],
        )
        .map(drop)
    }

    /// Make a veth pair, one end here as a port of the bridge, the other born in the namespace of
    /// `netns`: one request, and no wait for a namespace move (which costs an RCU grace period).
    pub fn add_veth(
        &mut self,
        spec: &VethSpec<'_>,
        netns: BorrowedFd<'_>,
    ) -> Result<(), LinkError> {
        let mut peer = LinkMessage::default();
        peer.attributes
            .push(LinkAttribute::IfName(spec.pod_name.to_owned()));
        peer.attributes
            .push(LinkAttribute::NetNsFd(netns.as_raw_fd()));
        peer.attributes.extend(spec.mtu.map(LinkAttribute::Mtu));
        peer.attributes
            .extend(spec.pod_mac.map(|mac| LinkAttribute::Address(mac.to_vec())));
        let mut host = LinkMessage::default();
        host.header.flags = LinkFlags::Up;
        host.header.change_mask = LinkFlags::Up;
        host.attributes
            .push(LinkAttribute::IfName(spec.host_name.to_owned()));
        if spec.master != 0 {
            host.attributes.push(LinkAttribute::Controller(spec.master));
        }
        host.attributes.extend(spec.mtu.map(LinkAttribute::Mtu));
        host.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
        ]));
        self.request(
            || {
                format!(
                    "creating veth {} with peer {} in the pod",
                    spec.host_name, spec.pod_name
                )
            },
            vec![(CREATE, RouteNetlinkMessage::NewLink(host))],
        )
        .map(drop)
    }

    /// Set a link up.
    pub fn set_up(&mut self, index: u32) -> Result<(), LinkError> {
        self.request(
            || format!("setting link {index} up"),
            vec![(0, set_up(index))],
        )
        .map(drop)
    }

    /// Set a link down: nothing passes it any more. Succeeds when it is gone.
    pub fn set_down(&mut self, index: u32) -> Result<(), LinkError> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.header.change_mask = LinkFlags::Up;
        let done = self.request(
            || format!("setting link {index} down"),
            vec![(0, RouteNetlinkMessage::SetLink(message))],
        );
        gone_is_done(done)
    }

    /// Move a link to another network namespace and give it its name there, in one request. It is
    /// down afterwards, without addresses and perhaps with another index.
    pub fn move_to(
        &mut self,
        link: &Link,
        name: &str,
        netns: BorrowedFd<'_>,
    ) -> Result<(), LinkError> {
        let mut message = LinkMessage::default();
        message.header.index = link.index;
        message
            .attributes
            .push(LinkAttribute::IfName(name.to_owned()));
        message
            .attributes
            .push(LinkAttribute::NetNsFd(netns.as_raw_fd()));
        self.request(
            || format!("moving link {} as {name}", link.name),
            vec![(0, RouteNetlinkMessage::SetLink(message))],
        )
        .map(drop)
    }

    /// Delete a link by index. Succeeds when it is gone already.
    pub fn delete(&mut self, index: u32) -> Result<(), LinkError> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        let done = self.request(
            || format!("deleting link {index}"),
            vec![(0, RouteNetlinkMessage::DelLink(message))],
        );
        gone_is_done(done)
    }

    /// Give a link addresses, set it up, and add routes: one batch. An address or route that is
    /// there already is left as it is.
    pub fn configure(
        &mut self,
        index: u32,
        addresses: &[AddressSpec],
        routes: &[RouteSpec],
    ) -> Result<(), LinkError> {
        self.configure_with(index, addresses, routes, Duplicates::Trusted)
    }

    /// [`Route::configure`], with a say about the detection of duplicate addresses.
    pub(crate) fn configure_with(
        &mut self,
        index: u32,
        addresses: &[AddressSpec],
        routes: &[RouteSpec],
        duplicates: Duplicates,
    ) -> Result<(), LinkError> {
        let mut batch = Vec::new();
        for address in addresses {
            batch.push((
                NLM_F_CREATE | NLM_F_REPLACE,
                RouteNetlinkMessage::NewAddress(address.message_with(index, duplicates)),
            ));
        }
        batch.push((0, set_up(index)));
        for route in routes {
            batch.push((
                NLM_F_CREATE | NLM_F_REPLACE,
                RouteNetlinkMessage::NewRoute(route.message()),
            ));
        }
        self.request(
            || format!("configuring link {index}: addresses {addresses:?}, routes {routes:?}"),
            batch,
        )
        .map(drop)
    }

    /// Give a link an address that is this host's alone: never the source of what leaves the host.
    pub fn add_host_address(&mut self, index: u32, address: IpAddr) -> Result<(), LinkError> {
        let mut message = AddressSpec::plain(Cidr::host(address)).message(index);
        message.header.scope = AddressScope::Host;
        let request = (
            NLM_F_CREATE | NLM_F_REPLACE,
            RouteNetlinkMessage::NewAddress(message),
        );
        let attempt = || format!("adding address {address} to link {index}");
        self.request(attempt, vec![request]).map(drop)
    }

    /// The addresses of one link.
    pub fn addresses_of(&mut self, index: u32) -> Result<Vec<Cidr>, LinkError> {
        let answers = self.address_messages(index)?;
        Ok(answers
            .into_iter()
            .filter_map(as_address)
            .map(|(_, a)| a)
            .collect())
    }

    /// What the kernel says of the addresses of one link. It is asked for no others: they may be
    /// as many as there are pods.
    fn address_messages(&mut self, index: u32) -> Result<Vec<RouteNetlinkMessage>, LinkError> {
        let mut message = AddressMessage::default();
        message.header.index = index;
        // Before Linux 4.20 it tells all.
        let _ = self.socket.filter_dumps();
        let request = RouteNetlinkMessage::GetAddress(message);
        let attempt = || format!("listing the addresses of link {index}");
        let mut answers = self.request(attempt, vec![(NLM_F_DUMP, request)])?;
        answers.retain(|answer| match answer {
            RouteNetlinkMessage::NewAddress(message) => message.header.index == index,
            _ => false,
        });
        Ok(answers)
    }

    /// The addresses of the namespace, with the index of their link.
    pub fn addresses(&mut self) -> Result<Vec<(u32, Cidr)>, LinkError> {
        let request = RouteNetlinkMessage::GetAddress(AddressMessage::default());
        let answers = self.request(
            || "listing addresses".to_owned(),
            vec![(NLM_F_DUMP, request)],
        )?;
        Ok(answers.into_iter().filter_map(as_address).collect())
    }

    /// The IPv6 addresses of a link that the kernel still asks about, and those that it found to be
    /// somebody else's.
    pub(crate) fn tentative(&mut self, index: u32) -> Result<(Vec<Cidr>, Vec<Cidr>), LinkError> {
        let answers = self.address_messages(index)?;
        let (mut asked, mut duplicate) = (Vec::new(), Vec::new());
        for answer in answers {
            let RouteNetlinkMessage::NewAddress(message) = &answer else {
                continue;
            };
            let flags = message.header.flags;
            let of = if flags.contains(AddressHeaderFlags::Dadfailed) {
                &mut duplicate
            } else if flags.contains(AddressHeaderFlags::Tentative) {
                &mut asked
            } else {
                continue;
            };
            of.extend(as_address(answer).map(|(_, address)| address));
        }
        Ok((asked, duplicate))
    }

    /// Take an address off a link.
    pub fn delete_address(&mut self, index: u32, address: Cidr) -> Result<(), LinkError> {
        let message = AddressSpec::plain(address).message(index);
        self.request(
            || format!("taking {address} off link {index}"),
            vec![(0, RouteNetlinkMessage::DelAddress(message))],
        )
        .map(drop)
    }

    /// Give a link a second name, which only tells what it is for.
    pub(crate) fn set_alias(&mut self, index: u32, alias: &str) -> Result<(), LinkError> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message
            .attributes
            .push(LinkAttribute::IfAlias(alias.to_owned()));
        self.request(
            || format!("giving link {index} the alias {alias}"),
            vec![(0, RouteNetlinkMessage::SetLink(message))],
        )
        .map(drop)
    }

    /// The addresses of a link that were given to it by hand and mean the same everywhere: neither
    /// those with a lifetime nor link-local ones.
    pub fn lasting_addresses(&mut self, index: u32) -> Result<Vec<Cidr>, LinkError> {
        let answers = self.address_messages(index)?;
        let lasting = answers.into_iter().filter(|answer| match answer {
            RouteNetlinkMessage::NewAddress(message) => {
                message.header.scope == AddressScope::Universe
                    && message.header.flags.contains(AddressHeaderFlags::Permanent)
            }
            _ => false,
        });
        Ok(lasting.filter_map(as_address).map(|(_, a)| a).collect())
    }

    /// The unicast routes of the main table: destination, gateway, link.
    pub fn routes(&mut self, ipv4: bool) -> Result<Vec<RouteSpec>, LinkError> {
        let mut message = RouteMessage::default();
        message.header.address_family = if ipv4 {
            AddressFamily::Inet
        } else {
            AddressFamily::Inet6
        };
        let request = RouteNetlinkMessage::GetRoute(message);
        let answers = self.request(|| "listing routes".to_owned(), vec![(NLM_F_DUMP, request)])?;
        Ok(answers.into_iter().filter_map(as_route).collect())
    }
}

/// What becomes of an IPv6 address that somebody else may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Duplicates {
    /// It is used at once. To ask first would hold a pod up for a second or more (RFC 4862, 5.4),
    /// and the lease on disk already says that nobody else has it.
    Trusted,
    /// The kernel asks first; see [`Route::tentative`].
    Detected,
}

/// An address to put on a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AddressSpec {
    /// The address with its subnet's prefix length.
    pub address: Cidr,
    /// Leave out the route to the subnet that the kernel would add by itself.
    pub no_prefix_route: bool,
}

impl AddressSpec {
    fn plain(address: Cidr) -> AddressSpec {
        AddressSpec {
            address,
            no_prefix_route: false,
        }
    }

    pub(crate) fn message(&self, index: u32) -> AddressMessage {
        self.message_with(index, Duplicates::Trusted)
    }

    fn message_with(&self, index: u32, duplicates: Duplicates) -> AddressMessage {
        let mut message = AddressMessage::default();
        message.header.index = index;
        message.header.prefix_len = self.address.prefix;
        message.header.scope = AddressScope::Universe;
        message.header.family = family(self.address.addr);
        let mut flags = AddressFlags::empty();
        if self.no_prefix_route {
            flags |= AddressFlags::Noprefixroute;
        }
        if self.address.is_ipv4() {
            message
                .attributes
                .push(AddressAttribute::Local(self.address.addr));
            if let (IpAddr::V4(last), true) = (self.address.last(), self.address.prefix < 31) {
                message.attributes.push(AddressAttribute::Broadcast(last));
            }
        } else if duplicates == Duplicates::Trusted {
            flags |= AddressFlags::Nodad;
        }
        message
            .attributes
            .push(AddressAttribute::Address(self.address.addr));
        message.attributes.push(AddressAttribute::Flags(flags));
        message
    }
}

impl RouteSpec {
    fn message(&self) -> RouteMessage {
        let mut message = RouteMessage::default();
        message.header.address_family = family(self.dst.addr);
        message.header.destination_prefix_length = self.dst.prefix;
        message.header.table = RouteHeader::RT_TABLE_MAIN;
        message.header.protocol = RouteProtocol::Boot;
        message.header.kind = RouteType::Unicast;
        message.header.scope = match (self.scope, self.gw) {
            (Some(scope), _) => RouteScope::from(scope),
            (None, None) => RouteScope::Link,
            (None, Some(_)) => RouteScope::Universe,
        };
        let attributes = &mut message.attributes;
        if self.dst.prefix > 0 {
            attributes.push(RouteAttribute::Destination(RouteAddress::from(
                self.dst.network().addr,
            )));
        }
        attributes.extend(
            self.gw
                .map(|gw| RouteAttribute::Gateway(RouteAddress::from(gw))),
        );
        attributes.push(RouteAttribute::Oif(self.link));
        attributes.extend(
            self.src
                .map(|src| RouteAttribute::PrefSource(RouteAddress::from(src))),
        );
        attributes.extend(self.priority.map(RouteAttribute::Priority));
        attributes.extend(self.table.map(RouteAttribute::Table));
        let metrics: Vec<_> = self
            .mtu
            .map(RouteMetric::Mtu)
            .into_iter()
            .chain(self.advmss.map(RouteMetric::Advmss))
            .collect();
        if !metrics.is_empty() {
            attributes.push(RouteAttribute::Metrics(metrics));
        }
        message
    }
}

/// Set the loopback interface of the calling thread's namespace up.
pub(crate) fn loopback_up() -> io::Result<()> {
    const LOOPBACK_INDEX: u32 = 1; // the kernel makes it first in every namespace
    Route::open()?
        .set_up(LOOPBACK_INDEX)
        .map_err(io::Error::other)
}

/// A link that is gone already needs no deleting and carries nothing.
fn gone_is_done<T>(done: Result<T, LinkError>) -> Result<(), LinkError> {
    match done {
        Err(error) if error.errno() == Some(libc::ENODEV) => Ok(()),
        other => other.map(drop),
    }
}

fn set_up(index: u32) -> RouteNetlinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
    RouteNetlinkMessage::SetLink(message)
}

pub(crate) fn family(addr: IpAddr) -> AddressFamily {
    if addr.is_ipv4() {
        AddressFamily::Inet
    } else {
        AddressFamily::Inet6
    }
}

fn decode(kind: u16, payload: &[u8]) -> Option<RouteNetlinkMessage> {
    use netlink_packet_core::NetlinkDeserializable;
    let mut header = NetlinkHeader::default();
    header.message_type = kind;
    // An attribute that the decoder does not know is no reason to fail: the link is skipped, and
    // what looked for it says that it is not there.
    RouteNetlinkMessage::deserialize(&header, payload).ok()
}

fn as_link(message: RouteNetlinkMessage) -> Option<Link> {
    let RouteNetlinkMessage::NewLink(message) = message else {
        return None;
    };
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        mac: String::new(),
        mtu: 0,
        master: None,
        kind: String::new(),
        up: message.header.flags.contains(LinkFlags::Up),
        promisc: message.header.flags.contains(LinkFlags::Promisc),
        allmulti: message.header.flags.contains(LinkFlags::Allmulti),
        queue: 0,
        alias: String::new(),
    };
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name,
            LinkAttribute::Address(mac) => link.mac = format_mac(&mac),
            LinkAttribute::Mtu(mtu) => link.mtu = mtu,
            LinkAttribute::TxQueueLen(length) => link.queue = length,
            LinkAttribute::IfAlias(alias) => link.alias = alias,
            LinkAttribute::Controller(master) => link.master = Some(master),
            LinkAttribute::LinkInfo(infos) => {
                for info in infos {
                    if let LinkInfo::Kind(kind) = info {
                        link.kind = kind.to_string();
                    }
                }
            }
            _ => {}
        }
    }
    Some(link)
}

pub(crate) fn format_mac(bytes: &[u8]) -> String {
    bytes
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect::<Vec<_>>()
        .join(":")
}

fn as_address(message: RouteNetlinkMessage) -> Option<(u32, Cidr)> {
    let RouteNetlinkMessage::NewAddress(message) = message else {
        return None;
    };
    let find = |local: bool| {
        message.attributes.iter().find_map(|a| match a {
            AddressAttribute::Local(addr) if local => Some(*addr),
            AddressAttribute::Address(addr) if !local => Some(*addr),
            _ => None,
        })
    };
    let addr = find(true).or_else(|| find(false))?;
    Some((
        message.header.index,
        Cidr::new(addr, message.header.prefix_len)?,
    ))
}

fn as_route(message: RouteNetlinkMessage) -> Option<RouteSpec> {
    let RouteNetlinkMessage::NewRoute(message) = message else {
        return None;
    };
    if message.header.kind != RouteType::Unicast
        || message.header.table != RouteHeader::RT_TABLE_MAIN
    {
        return None;
    }
    let ipv4 = message.header.address_family == AddressFamily::Inet;
    let mut dst = crate::cidr::from_bits(0, ipv4);
    let mut route = RouteSpec::new(Cidr::host(dst), None, 0);
    for attribute in message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => dst = ip_of(&address)?,
            RouteAttribute::Gateway(address) => route.gw = ip_of(&address),
            RouteAttribute::Oif(link) => route.link = link,
            RouteAttribute::Priority(metric) => route.priority = Some(metric),
            _ => {}
        }
    }
    route.dst = Cidr::new(dst, message.header.destination_prefix_length)?;
    Some(route)
}

pub(crate) fn ip_of(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(v4) => Some((*v4).into()),
        RouteAddress::Inet6(v6) => Some((*v6).into()),
        _ => None,
    }
}
