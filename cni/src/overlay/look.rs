// SPDX-License-Identifier: Apache-2.0
//! What the kernel has of the overlay, over rtnetlink.
//!
//! What is looked at does not grow with the node's own pods or with other people's routes: links are
//! asked for by name, and the kernel filters neighbours by link and routes by protocol
//! (`NETLINK_GET_STRICT_CHK`, Linux 4.20).

use std::net::IpAddr;

use netlink_packet_core::NLM_F_DUMP;
use netlink_packet_route::link::LinkAttribute;
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage as Request};

use super::messages;
use super::model::{Own, PathRoute, Seen, SeenLink, Settings};
use crate::link::{LinkError, Route};

/// All but what WireGuard itself knows of its link.
pub(super) fn look(route: &mut Route, settings: &Settings, own: &Own) -> Result<Seen, LinkError> {
    let addresses = route.addresses()?;
    let mut seen = Seen {
        own: named(route, &settings.link)?,
        wireguard: named(route, &settings.wireguard.link)?,
        bridge: named(route, &settings.bridge)?,
        routes: own_routes(route)?,
        ..Seen::default()
    };
    if let Some(outer) = own.addresses.first() {
        seen.uplink = uplink(route, &addresses, *outer)?;
    }
    seen.addresses = addresses;
    if let Some(link) = seen.own.as_ref().map(|link| link.index) {
        let known = |family| (NLM_F_DUMP, messages::neighbours_of(link, family));
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let answers = get_neighbours(route, known(family))?;
            let found = answers.into_iter();
            seen.neighbours
                .extend(found.filter_map(|answer| messages::as_neighbour(link, answer)));
        }
        let answers = get_neighbours(route, known(AddressFamily::Bridge))?;
        let found = answers.into_iter();
        seen.forward = found
            .filter_map(|answer| messages::as_forward(link, answer))
            .collect();
    }
    Ok(seen)
}

fn get_neighbours(
    route: &mut Route,
    (flags, message): (u16, netlink_packet_route::neighbour::NeighbourMessage),
) -> Result<Vec<Request>, LinkError> {
    route.request(
        || "listing the neighbours of the overlay".to_owned(),
        vec![(flags, Request::GetNeighbour(message))],
    )
}

pub(super) fn own_routes(route: &mut Route) -> Result<Vec<PathRoute>, LinkError> {
    let mut found = Vec::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let answers = route.request(
            || "listing the overlay's routes".to_owned(),
            vec![(NLM_F_DUMP, Request::GetRoute(messages::own_routes(family)))],
        );
        match answers {
            Ok(answers) => found.extend(answers.into_iter().filter_map(messages::as_own_route)),
            // A kernel without IPv6, or with no table yet.
            Err(error) if matches!(error.errno(), Some(libc::EAFNOSUPPORT | libc::ENOENT)) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

pub(super) fn named(route: &mut Route, name: &str) -> Result<Option<SeenLink>, LinkError> {
    one(route, name, vec![LinkAttribute::IfName(name.to_owned())], 0)
}

pub(super) fn uplink(
    route: &mut Route,
    addresses: &[(u32, crate::cidr::Cidr)],
    outer: IpAddr,
) -> Result<Option<SeenLink>, LinkError> {
    let found = addresses.iter().find(|(_, cidr)| cidr.addr == outer);
    match found {
        Some((index, _)) => one(route, &index.to_string(), Vec::new(), *index),
        None => Ok(None),
    }
}

fn one(
    route: &mut Route,
    name: &str,
    attributes: Vec<LinkAttribute>,
    index: u32,
) -> Result<Option<SeenLink>, LinkError> {
    let asked = route.request(
        || format!("looking up link {name}"),
        vec![(0, Request::GetLink(messages::link(index, attributes)))],
    );
    match asked {
        Ok(answers) => Ok(answers.into_iter().find_map(messages::as_seen_link)),
        Err(error) if matches!(error.errno(), Some(libc::ENODEV | libc::ERANGE)) => Ok(None),
        Err(error) => Err(error),
    }
}
