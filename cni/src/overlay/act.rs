// SPDX-License-Identifier: Apache-2.0
//! Steps over rtnetlink, and why one failed.

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::RouteNetlinkMessage as Request;
use netlink_packet_route::link::LinkAttribute;

use super::kernel::OverlayError;
use super::messages;
use super::model::{PathRoute, Settings, Step};
use crate::link::{AddressSpec, LinkError, Route};
use crate::{chain, sysctl};

/// Why a step failed, and what to do.
pub(super) fn words(settings: &Settings, step: &Step, error: &LinkError) -> String {
    match (step, error.errno()) {
        (Step::AddRoute(path), Some(libc::EEXIST)) => format!(
            "somebody else has a route to {}; it is left alone, remove it if it is stale",
            path.dst
        ),
        (Step::AddVxlan(spec), Some(libc::EEXIST)) => format!(
            "cannot make link {}: there is a link of that name or a VXLAN link with vni {} on port {}; choose others with --vxlan-vni and --vxlan-port",
            spec.name, spec.vni, spec.port
        ),
        (Step::AddVxlan(spec), Some(libc::EOPNOTSUPP)) => format!(
            "cannot make link {}: this kernel has no VXLAN (module vxlan)",
            spec.name
        ),
        (Step::AddWireGuard(..), Some(libc::EOPNOTSUPP)) => OverlayError::NoWireGuard.to_string(),
        (Step::SetUp(_) | Step::SetSocket(..), Some(libc::EADDRINUSE)) => format!(
            "UDP port {0} is taken on this node; end what listens there, or choose another with --wireguard-port",
            settings.wireguard.port
        ),
        _ => chain(error),
    }
}

/// A link without a link-local address, which learns nothing from routers: all that is sent by itself
/// would go to nobody.
pub(super) fn quiet(link: &str) -> Result<(), String> {
    for (name, value) in [("addr_gen_mode", "1"), ("accept_ra", "0")] {
        let name = format!("ipv6/conf/{link}/{name}");
        sysctl::set(&name, value).map_err(|e| chain(&e))?;
    }
    Ok(())
}

/// What is done already, or gone already, is no failure.
pub(super) fn is_done(step: &Step, errno: Option<i32>) -> bool {
    match step {
        Step::DeleteLink(..) => errno == Some(libc::ENODEV),
        Step::DeleteAddress(..) => errno == Some(libc::EADDRNOTAVAIL),
        Step::DeleteNeighbour(..) | Step::DeleteForward(..) => errno == Some(libc::ENOENT),
        Step::DeleteRoute(_) => errno == Some(libc::ESRCH),
        _ => false,
    }
}

pub(super) fn perform(route: &mut Route, step: &Step) -> Result<(), LinkError> {
    const NEW: u16 = NLM_F_CREATE | NLM_F_EXCL;
    const SET: u16 = NLM_F_CREATE | NLM_F_REPLACE;
    let host = |cidr| AddressSpec {
        address: cidr,
        no_prefix_route: false,
    };
    let set = |index: u32, what| Request::SetLink(messages::link(index, vec![what]));
    let request = match step {
        Step::DeleteLink(index, _) => return route.delete(*index),
        Step::SetUp(index) => return route.set_up(*index),
        Step::DeleteRoute(path) => return delete_route(route, path),
        // Not rtnetlink's: without a tunnel nobody decides the first four.
        Step::SetUntracked(_)
        | Step::SetKey(..)
        | Step::SetSocket(..)
        | Step::SetPeer(..)
        | Step::DeletePeer(..) => {
            return Ok(());
        }
        Step::AddVxlan(spec) => (NEW, Request::NewLink(messages::new_vxlan(spec))),
        Step::AddWireGuard(name, mtu) => {
            (NEW, Request::NewLink(messages::new_wireguard(name, *mtu)))
        }
        Step::SetMtu(index, mtu) => (0, set(*index, LinkAttribute::Mtu(*mtu))),
        Step::SetMac(index, mac) => (0, set(*index, LinkAttribute::Address(mac.0.to_vec()))),
        Step::AddAddress(index, cidr) => (SET, Request::NewAddress(host(*cidr).message(*index))),
        Step::DeleteAddress(index, cidr) => (0, Request::DelAddress(host(*cidr).message(*index))),
        Step::SetNeighbour(link, n) => (SET, Request::NewNeighbour(messages::neighbour(*link, n))),
        Step::DeleteNeighbour(link, n) => (0, Request::DelNeighbour(messages::neighbour(*link, n))),
        Step::SetForward(link, e) => (SET, Request::NewNeighbour(messages::forward(*link, e))),
        Step::DeleteForward(link, e) => (0, Request::DelNeighbour(messages::forward(*link, e))),
        Step::AddRoute(path) => (NEW, Request::NewRoute(messages::route(path))),
    };
    route.request(|| step.to_string(), vec![request]).map(drop)
}

pub(super) fn delete_route(route: &mut Route, path: &PathRoute) -> Result<(), LinkError> {
    let request = Request::DelRoute(messages::route(path));
    route
        .request(|| format!("delete route {path}"), vec![(0, request)])
        .map(drop)
}
