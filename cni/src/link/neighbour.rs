// SPDX-License-Identifier: Apache-2.0
//! Neighbours that the kernel has learnt.

use std::net::IpAddr;

use netlink_packet_core::NLM_F_DUMP;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};

use super::{LinkError, Route, family};

impl Route {
    /// Delete each neighbour with a `stale` address that the kernel has learnt by itself, on any
    /// link. One that somebody wrote there stays.
    pub(crate) fn forget_neighbours(
        &mut self,
        stale: impl Fn(IpAddr) -> bool,
    ) -> Result<(), LinkError> {
        let all = RouteNetlinkMessage::GetNeighbour(NeighbourMessage::default());
        let answers = self.request(|| "listing neighbours".to_owned(), vec![(NLM_F_DUMP, all)])?;
        for (link, address) in answers.into_iter().filter_map(learnt) {
            if !stale(address) {
                continue;
            }
            let mut message = NeighbourMessage::default();
            message.header.family = family(address);
            message.header.ifindex = link;
            let destination = NeighbourAttribute::Destination(NeighbourAddress::from(address));
            message.attributes.push(destination);
            let done = self.request(
                || format!("forgetting neighbour {address} of link {link}"),
                vec![(0, RouteNetlinkMessage::DelNeighbour(message))],
            );
            match done {
                Err(error) if matches!(error.errno(), Some(libc::ENOENT | libc::ENODEV)) => {}
                other => drop(other?),
            }
        }
        Ok(())
    }
}

/// Link and address of a neighbour, unless somebody wrote it.
fn learnt(message: RouteNetlinkMessage) -> Option<(u32, IpAddr)> {
    let RouteNetlinkMessage::NewNeighbour(message) = message else {
        return None;
    };
    let written = [NeighbourState::Permanent, NeighbourState::Noarp];
    if written.contains(&message.header.state) {
        return None;
    }
    let address = message.attributes.iter().find_map(|a| match a {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => Some((*v4).into()),
        NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => Some((*v6).into()),
        _ => None,
    })?;
    Some((message.header.ifindex, address))
}
