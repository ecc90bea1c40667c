// SPDX-License-Identifier: Apache-2.0
//! The overlay's requests to rtnetlink and what its answers say.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVxlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope,
    RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::ROUTE_PROTOCOL;
use super::model::{ForwardEntry, Mac, Neighbour, PathRoute, SeenLink, SeenVxlan, VxlanSpec};
use crate::cidr::{self, Cidr};
use crate::link::{family, ip_of};

pub(super) fn new_vxlan(spec: &VxlanSpec) -> LinkMessage {
    let local = match spec.local {
        IpAddr::V4(v4) => InfoVxlan::Local(v4),
        IpAddr::V6(v6) => InfoVxlan::Local6(v6),
    };
    let mut message = LinkMessage::default();
    message.attributes = vec![
        LinkAttribute::IfName(spec.name.clone()),
        LinkAttribute::Address(spec.mac.0.to_vec()),
        LinkAttribute::Mtu(spec.mtu),
        LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Vxlan),
            LinkInfo::Data(InfoData::Vxlan(vec![
                InfoVxlan::Id(spec.vni),
                local,
                InfoVxlan::Port(spec.port),
                InfoVxlan::Learning(false),
            ])),
        ]),
    ];
    message
}

pub(super) fn new_wireguard(name: &str, mtu: u32) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.attributes = vec![
        LinkAttribute::IfName(name.to_owned()),
        LinkAttribute::Mtu(mtu),
        LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Wireguard)]),
    ];
    message
}

/// A link with nothing but its index, to be given attributes to change.
pub(super) fn link(index: u32, attributes: Vec<LinkAttribute>) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.attributes = attributes;
    message
}

pub(super) fn neighbour(link: u32, entry: &Neighbour) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = family(entry.address);
    message.header.ifindex = link;
    message.header.state = NeighbourState::Permanent;
    message.attributes = vec![
        NeighbourAttribute::Destination(NeighbourAddress::from(entry.address)),
        NeighbourAttribute::LinkLayerAddress(entry.mac.0.to_vec()),
    ];
    message
}

pub(super) fn forward(link: u32, entry: &ForwardEntry) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Bridge;
    message.header.ifindex = link;
    message.header.state = NeighbourState::Permanent;
    message.header.flags = NeighbourFlags::Own;
    message.attributes = vec![
        NeighbourAttribute::Destination(NeighbourAddress::from(entry.node)),
        NeighbourAttribute::LinkLayerAddress(entry.mac.0.to_vec()),
    ];
    message
}

/// Ask for the neighbours of a link, or with [`AddressFamily::Bridge`] for its forwarding entries.
pub(super) fn neighbours_of(link: u32, family: AddressFamily) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = family;
    if family == AddressFamily::Bridge {
        message.header.ifindex = link;
    } else {
        message.attributes = vec![NeighbourAttribute::IfIndex(link)];
    }
    message
}

pub(super) fn route(route: &PathRoute) -> RouteMessage {
    let mut message = own_routes(family(route.dst.addr));
    message.header.destination_prefix_length = route.dst.prefix;
    message.header.kind = RouteType::Unicast;
    message.header.scope = match route.gateway {
        Some(_) => RouteScope::Universe,
        None => RouteScope::Link,
    };
    if route.onlink {
        message.header.flags = RouteFlags::Onlink;
    }
    let attributes = &mut message.attributes;
    attributes.push(RouteAttribute::Destination(RouteAddress::from(
        route.dst.network().addr,
    )));
    attributes.push(RouteAttribute::Oif(route.link));
    let gateway = route.gateway.map(RouteAddress::from);
    attributes.extend(gateway.map(RouteAttribute::Gateway));
    let source = route.source.map(RouteAddress::from);
    attributes.extend(source.map(RouteAttribute::PrefSource));
    message
}

/// Ask for our routes of a family; a socket that filters dumps gets no others.
pub(super) fn own_routes(family: AddressFamily) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family;
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::from(ROUTE_PROTOCOL);
    message
}

pub(super) fn as_own_route(message: RouteNetlinkMessage) -> Option<PathRoute> {
    let RouteNetlinkMessage::NewRoute(message) = message else {
        return None;
    };
    let header = &message.header;
    if header.protocol != RouteProtocol::from(ROUTE_PROTOCOL)
        || header.table != RouteHeader::RT_TABLE_MAIN
        || header.flags.contains(RouteFlags::Cloned)
    {
        return None;
    }
    let ipv4 = header.address_family == AddressFamily::Inet;
    let mut dst = cidr::from_bits(0, ipv4);
    let mut route = PathRoute {
        dst: Cidr::host(dst),
        gateway: None,
        onlink: header.flags.contains(RouteFlags::Onlink),
        link: 0,
        source: None,
    };
    let prefix = header.destination_prefix_length;
    for attribute in message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => dst = ip_of(&address)?,
            RouteAttribute::Gateway(address) => route.gateway = ip_of(&address),
            RouteAttribute::Oif(link) => route.link = link,
            RouteAttribute::PrefSource(address) => route.source = ip_of(&address),
            _ => {}
        }
    }
    route.dst = Cidr::new(dst, prefix)?;
    Some(route)
}

/// A permanent neighbour of this link.
pub(super) fn as_neighbour(link: u32, message: RouteNetlinkMessage) -> Option<Neighbour> {
    let (message, mac, address) = entry(link, message)?;
    (message.header.state == NeighbourState::Permanent).then_some(Neighbour { address, mac })
}

/// A forwarding entry of this link.
pub(super) fn as_forward(link: u32, message: RouteNetlinkMessage) -> Option<ForwardEntry> {
    let (_, mac, node) = entry(link, message)?;
    Some(ForwardEntry { mac, node })
}

fn entry(link: u32, message: RouteNetlinkMessage) -> Option<(NeighbourMessage, Mac, IpAddr)> {
    let RouteNetlinkMessage::NewNeighbour(message) = message else {
        return None;
    };
    if message.header.ifindex != link {
        return None;
    }
    let mac = message.attributes.iter().find_map(|a| match a {
        NeighbourAttribute::LinkLayerAddress(bytes) => as_mac(bytes),
        _ => None,
    })?;
    let address = message.attributes.iter().find_map(|a| match a {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => Some((*v4).into()),
        NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => Some((*v6).into()),
        // The entries of a VXLAN link are of the bridge family, whatever their address is.
        NeighbourAttribute::Destination(NeighbourAddress::Other(bytes)) => as_ip(bytes),
        _ => None,
    })?;
    Some((message, mac, address))
}

fn as_mac(bytes: &[u8]) -> Option<Mac> {
    Some(Mac(bytes.try_into().ok()?))
}

fn as_ip(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        return Some(Ipv4Addr::from(v4).into());
    }
    Some(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?).into())
}

pub(super) fn as_seen_link(message: RouteNetlinkMessage) -> Option<SeenLink> {
    let RouteNetlinkMessage::NewLink(message) = message else {
        return None;
    };
    let mut link = SeenLink {
        index: message.header.index,
        name: String::new(),
        kind: String::new(),
        up: message.header.flags.contains(LinkFlags::Up),
        mtu: 0,
        mac: None,
        vxlan: None,
    };
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name,
            LinkAttribute::Address(mac) => link.mac = as_mac(&mac),
            LinkAttribute::Mtu(mtu) => link.mtu = mtu,
            LinkAttribute::LinkInfo(infos) => {
                for info in infos {
                    match info {
                        LinkInfo::Kind(kind) => link.kind = kind.to_string(),
                        LinkInfo::Data(InfoData::Vxlan(data)) => link.vxlan = Some(vxlan(&data)),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    Some(link)
}

fn vxlan(data: &[InfoVxlan]) -> SeenVxlan {
    let mut seen = SeenVxlan {
        vni: 0,
        port: 0,
        local: None,
        learning: false,
    };
    for attribute in data {
        match attribute {
            InfoVxlan::Id(vni) => seen.vni = *vni,
            InfoVxlan::Port(port) => seen.port = *port,
            InfoVxlan::Local(v4) => seen.local = Some((*v4).into()),
            InfoVxlan::Local6(v6) => seen.local = Some((*v6).into()),
            InfoVxlan::Learning(on) => seen.learning = *on,
            _ => {}
        }
    }
    seen
}
