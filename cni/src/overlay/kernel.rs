// SPDX-License-Identifier: Apache-2.0
//! Looks at the kernel and carries out steps, over rtnetlink.
//!
//! What is looked at does not grow with the node's own pods or with other people's routes: links are
//! asked for by name, and the kernel filters neighbours by link and routes by protocol
//! (`NETLINK_GET_STRICT_CHK`, Linux 4.20).

use std::io;
use std::net::IpAddr;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::link::LinkAttribute;
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage as Request};

use super::model::{Backend, Own, PathRoute, Peer, Problem, Seen, SeenLink, Settings, Step};
use super::{decide, messages, mtu};
use crate::link::{AddressSpec, LinkError, Route};
use crate::{chain, sysctl};

/// How often steps are decided anew within one call: make the link, fill it, see that it is done.
const ROUNDS: usize = 4;

/// Why the overlay could not be looked at or removed.
#[derive(Debug, thiserror::Error)]
pub enum OverlayError {
    /// No netlink socket.
    #[error("opening a netlink socket")]
    Socket(#[source] io::Error),
    /// The kernel did not say what it has, or did not let go of it.
    #[error("the network between nodes")]
    Link(#[from] LinkError),
}

/// What one call of [`Kernel::sync`] did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Report {
    /// The steps that were carried out, in words.
    pub done: Vec<String>,
    /// What keeps pods from reaching each other.
    pub problems: Vec<Problem>,
}

/// The overlay of one network namespace: that of the thread which opened it.
#[derive(Debug)]
pub struct Kernel {
    settings: Settings,
    route: Route,
}

impl Kernel {
    /// Open a socket. Changes nothing yet.
    pub fn open(settings: Settings) -> Result<Kernel, OverlayError> {
        let route = Route::open_filtering().map_err(OverlayError::Socket)?;
        Ok(Kernel { settings, route })
    }

    /// Make it so: look, decide, act, until nothing is left to do. Blocks for less than a
    /// millisecond when there is nothing to do, and some 20 µs for each step. A step that fails is a
    /// problem and not an error; the next call tries it again.
    ///
    /// # Errors
    /// When the kernel does not say what it has.
    pub fn sync(&mut self, own: &Own, peers: &[Peer]) -> Result<Report, OverlayError> {
        let mut report = Report::default();
        let mut failed = Vec::new();
        for _ in 0..ROUNDS {
            let seen = look(&mut self.route, &self.settings, own)?;
            let decision = decide(&self.settings, own, peers, &seen);
            report.problems = decision.problems;
            let steps = decision.steps.into_iter();
            let steps: Vec<Step> = steps.filter(|step| !tried(&failed, step)).collect();
            if steps.is_empty() {
                break;
            }
            for step in steps {
                match act(&mut self.route, &step) {
                    Ok(()) => report.done.push(step.to_string()),
                    Err(text) => failed.push((step, text)),
                }
            }
        }
        let failures = failed
            .into_iter()
            .map(|(_, text)| Problem { peer: None, text });
        report.problems.extend(failures);
        Ok(report)
    }
}

fn tried(failed: &[(Step, String)], step: &Step) -> bool {
    failed.iter().any(|(other, _)| other == step)
}

/// The largest packet of this node's pods, by what the link with this node's address takes. `None`
/// without a back end, or when no link has the address.
pub fn pod_mtu(backend: Backend, outer: IpAddr) -> Result<Option<u32>, OverlayError> {
    if backend == Backend::None {
        return Ok(None);
    }
    let mut route = Route::open_filtering().map_err(OverlayError::Socket)?;
    let addresses = route.addresses()?;
    let uplink = uplink(&mut route, &addresses, outer)?;
    Ok(uplink.map(|link| mtu::inner(backend, link.mtu, outer.is_ipv4())))
}

/// Remove the link and every route of ours from the network namespace of the calling thread.
/// Idempotent. Blocks for some milliseconds.
pub fn cleanup(link: &str) -> Result<(), OverlayError> {
    let mut route = Route::open_filtering().map_err(OverlayError::Socket)?;
    for path in own_routes(&mut route)? {
        delete_route(&mut route, &path)?;
    }
    if let Some(link) = named(&mut route, link)?.filter(|link| link.kind == "vxlan") {
        route.delete(link.index)?;
    }
    Ok(())
}

fn look(route: &mut Route, settings: &Settings, own: &Own) -> Result<Seen, LinkError> {
    let addresses = route.addresses()?;
    let mut seen = Seen {
        own: named(route, &settings.link)?,
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

fn own_routes(route: &mut Route) -> Result<Vec<PathRoute>, LinkError> {
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

fn named(route: &mut Route, name: &str) -> Result<Option<SeenLink>, LinkError> {
    one(route, name, vec![LinkAttribute::IfName(name.to_owned())], 0)
}

fn uplink(
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

/// What is done already, or gone already, is no failure.
fn act(route: &mut Route, step: &Step) -> Result<(), String> {
    let words = |error: LinkError| match (step, error.errno()) {
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
        _ => chain(&error),
    };
    match perform(route, step) {
        Err(error) if is_done(step, error.errno()) => Ok(()),
        other => other.map_err(words),
    }?;
    if let Step::AddVxlan(spec) = step {
        // No link-local address and nothing learnt from routers: all that is sent by itself would
        // go to nobody.
        for (name, value) in [("addr_gen_mode", "1"), ("accept_ra", "0")] {
            let name = format!("ipv6/conf/{}/{name}", spec.name);
            sysctl::set(&name, value).map_err(|e| chain(&e))?;
        }
    }
    Ok(())
}

fn is_done(step: &Step, errno: Option<i32>) -> bool {
    match step {
        Step::DeleteLink(..) => errno == Some(libc::ENODEV),
        Step::DeleteAddress(..) => errno == Some(libc::EADDRNOTAVAIL),
        Step::DeleteNeighbour(..) | Step::DeleteForward(..) => errno == Some(libc::ENOENT),
        Step::DeleteRoute(_) => errno == Some(libc::ESRCH),
        _ => false,
    }
}

fn perform(route: &mut Route, step: &Step) -> Result<(), LinkError> {
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
        Step::AddVxlan(spec) => (NEW, Request::NewLink(messages::new_vxlan(spec))),
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

fn delete_route(route: &mut Route, path: &PathRoute) -> Result<(), LinkError> {
    let request = Request::DelRoute(messages::route(path));
    route
        .request(|| format!("delete route {path}"), vec![(0, request)])
        .map(drop)
}
