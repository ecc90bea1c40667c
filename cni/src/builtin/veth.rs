// SPDX-License-Identifier: Apache-2.0
//! What the plugins that make a veth pair have in common: the host's end and its name, the pod's
//! end, and taking it all away.

use std::fs::File;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

use super::input::network_name;
use super::ipam::Ipam;
use super::{internal, masquerade, wrong};
use crate::cidr::Cidr;
use crate::exec::Call;
use crate::link::{AddressSpec, Duplicates, Link, Route, RouteSpec, VethSpec};
use crate::types::{AddResult, Interface, PluginError, code};
use crate::{hash, netns, sysctl};

/// How long the kernel may ask whether somebody else has an IPv6 address; it takes a second or two.
const DETECTION_DEADLINE: Duration = Duration::from_secs(10);

/// Name of the host's end: it follows from the attachment, so DEL needs no record to find it.
pub(super) fn host_name(container_id: &str, ifname: &str) -> String {
    format!(
        "pw{:08x}",
        hash::fnv32(format!("{container_id}/{ifname}").as_bytes())
    )
}

/// The host's end of the link of this call's attachment.
pub(super) fn host_name_of(call: &Call) -> String {
    host_name(&call.container_id, &call.ifname)
}

pub(super) fn is_host_name(name: &str) -> bool {
    name.strip_prefix("pw").is_some_and(|rest| {
        rest.len() == 8
            && rest
                .bytes()
                .all(|b| b.is_ascii_hexdigit() && !b.is_ascii_uppercase())
    })
}

/// What tells the links of one network from those of another, where the name does not.
pub(super) fn alias(call: &Call) -> Result<String, PluginError> {
    network_name(call).map(|name| format!("podwright {name}"))
}

pub(super) fn open_route() -> Result<Route, PluginError> {
    Route::open().map_err(internal)
}

/// A locally administered address that nobody else is likely to have.
pub(super) fn random_mac() -> [u8; 6] {
    let bytes = RandomState::new().build_hasher().finish().to_ne_bytes();
    // 0x02: locally administered, unicast.
    [0x02, bytes[0], bytes[1], bytes[2], bytes[3], bytes[4]]
}

/// What the pod's link is to be like.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Ends {
    /// Index of the bridge that the host's end is a port of; 0: none.
    pub(super) master: u32,
    pub(super) mac: Option<[u8; 6]>,
    pub(super) mtu: Option<u32>,
}

/// Make the pod's link. Returns the host's end.
pub(super) fn make(route: &mut Route, call: &Call, ends: Ends) -> Result<Link, PluginError> {
    let netns = File::open(&call.netns).map_err(|e| {
        PluginError::new(
            code::UNKNOWN_CONTAINER,
            format!("opening netns {}: {e}", call.netns.display()),
        )
    })?;
    let name = host_name_of(call);
    let spec = VethSpec {
        host_name: &name,
        master: ends.master,
        pod_name: &call.ifname,
        pod_mac: ends.mac,
        mtu: ends.mtu,
    };
    route.add_veth(&spec, netns.as_fd()).map_err(internal)?;
    let link = route.link(&name).map_err(internal)?;
    link.ok_or_else(|| wrong(format!("link {name} vanished")))
}

pub(super) fn interface(link: &Link, sandbox: Option<&Path>) -> Interface {
    Interface {
        name: link.name.clone(),
        mac: link.mac.clone(),
        mtu: Some(link.mtu),
        sandbox: sandbox.map(|p| p.display().to_string()).unwrap_or_default(),
        ..Interface::default()
    }
}

/// How the pod's end is configured.
pub(super) struct Pod<'a> {
    pub(super) result: &'a AddResult,
    /// The subnet is reached by way of the gateway.
    pub(super) routed: bool,
    /// Routes name the pod's address as their source.
    pub(super) with_source: bool,
    pub(super) duplicates: Duplicates,
}

impl Pod<'_> {
    /// In the pod: sysctls, then addresses and routes in one batch.
    pub(super) fn configure(&self, call: &Call) -> Result<Link, PluginError> {
        let entered = netns::run(&call.netns, || self.configure_here(&call.ifname));
        entered.map_err(internal)?
    }

    fn configure_here(&self, ifname: &str) -> Result<Link, PluginError> {
        self.set_sysctls(ifname)?;
        let mut route = open_route()?;
        let gone = || wrong(format!("link {ifname} is not in the pod"));
        let link = route.link(ifname).map_err(internal)?.ok_or_else(gone)?;
        let addresses: Vec<AddressSpec> = self
            .result
            .ips
            .iter()
            .map(|ip| AddressSpec {
                address: ip.address,
                no_prefix_route: self.routed,
            })
            .collect();
        route
            .configure_with(
                link.index,
                &addresses,
                &self.routes(link.index),
                self.duplicates,
            )
            .map_err(internal)?;
        if self.duplicates == Duplicates::Detected {
            wait_for_addresses(&mut route, link.index)?;
        }
        Ok(link)
    }

    fn set_sysctls(&self, ifname: &str) -> Result<(), PluginError> {
        let set = |name: &str, value| sysctl::put(name, value).map_err(internal);
        // A neighbour must not become a router of this pod (CVE-2020-10749).
        set(&format!("ipv6/conf/{ifname}/accept_ra"), "0")?;
        if self.routed {
            for scope in ["all", ifname] {
                set(&format!("ipv4/conf/{scope}/accept_redirects"), "0")?;
                set(&format!("ipv6/conf/{scope}/accept_redirects"), "0")?;
            }
        }
        if self.duplicates == Duplicates::Detected {
            set(&format!("ipv6/conf/{ifname}/enhanced_dad"), "1")?;
            set(&format!("ipv6/conf/{ifname}/accept_dad"), "1")?;
        }
        // Neighbours that remember the address as another pod's hear of its new owner.
        set(&format!("ipv4/conf/{ifname}/arp_notify"), "1")
    }

    pub(super) fn routes(&self, link: u32) -> Vec<RouteSpec> {
        let result = self.result;
        let mut routes = Vec::new();
        for ip in result.ips.iter().filter(|_| self.routed) {
            let Some(gateway) = ip.gateway else { continue };
            let src = self.with_source.then_some(ip.address.addr);
            for (dst, gw) in [
                (Cidr::host(gateway), None),
                (ip.address.network(), Some(gateway)),
            ] {
                let mut route = RouteSpec::new(dst, gw, link);
                route.src = src;
                routes.push(route);
            }
        }
        for route in &result.routes {
            let of_family = result
                .ips
                .iter()
                .find(|ip| ip.address.is_ipv4() == route.dst.is_ipv4());
            let gw = route.gw.or_else(|| of_family.and_then(|ip| ip.gateway));
            let mut spec = RouteSpec::new(route.dst, gw, link);
            spec.mtu = route.mtu;
            spec.advmss = route.advmss;
            spec.priority = route.priority;
            spec.table = route.table;
            spec.scope = route.scope;
            routes.push(spec);
        }
        routes
    }
}

/// Until the kernel knows whether somebody else has an IPv6 address.
fn wait_for_addresses(route: &mut Route, link: u32) -> Result<(), PluginError> {
    const TICK: Duration = Duration::from_millis(20);
    let deadline = Instant::now() + DETECTION_DEADLINE;
    loop {
        let (asked, duplicate) = route.tentative(link).map_err(internal)?;
        if let Some(address) = duplicate.first() {
            return Err(wrong(format!("somebody else has the address {address}")));
        }
        if asked.is_empty() {
            return Ok(());
        }
        if Instant::now() > deadline {
            let text =
                format!("the addresses {asked:?} are tentative after {DETECTION_DEADLINE:?}");
            return Err(wrong(text));
        }
        std::thread::sleep(TICK);
    }
}

/// What a plugin that makes a link has beside it.
pub(super) struct Belongings<'a> {
    pub(super) ipam: &'a Ipam,
    /// The table with the pod's masquerade, if it has one.
    pub(super) masquerade: Option<&'a str>,
}

impl Belongings<'_> {
    /// Idempotent, and independent of what is left: link, rules and lease are each taken if there.
    /// The lease goes last: as long as it is there, GC finds the address again.
    pub(super) fn remove(&self, call: &Call, addresses: &[IpAddr]) -> Result<(), PluginError> {
        let unlinked = unlink(call);
        if let Some(table) = self.masquerade {
            masquerade::delete(table, addresses)?;
        }
        unlinked.and(self.ipam.ask(call, "DEL").map(drop))
    }

    /// Check what does not belong to the link itself.
    pub(super) fn check(&self, call: &Call, result: &AddResult) -> Result<(), PluginError> {
        self.ipam.ask(call, "CHECK")?;
        let Some(table) = self.masquerade else {
            return Ok(());
        };
        for ip in &result.ips {
            if !masquerade::has(table, ip.address.addr)? {
                return Err(wrong(format!("address {} is not masqueraded", ip.address)));
            }
        }
        Ok(())
    }

    /// GC: forget what attachments that are not `valid` have, except their links.
    pub(super) fn collect(
        &self,
        call: &Call,
        valid: &[(String, String)],
    ) -> Result<(), PluginError> {
        let is_stale = |id: &str, ifname: &str| !valid.iter().any(|(i, n)| i == id && n == ifname);
        if let Some(table) = self.masquerade {
            masquerade::delete(table, &self.ipam.leased(call, is_stale)?)?;
        }
        self.ipam.ask(call, "GC")?;
        self.ipam.forget_the_gone(call)
    }
}

fn unlink(call: &Call) -> Result<(), PluginError> {
    let mut route = open_route()?;
    match route.link(&host_name_of(call)).map_err(internal)? {
        // Deleting a link waits for the kernel's RCU callbacks, 15 ms; with the namespace it goes
        // on its own time. Until then it is down, so the address is free to be leased again.
        Some(link) if call.drops_netns && netns::is_netns(&call.netns) => {
            route.set_down(link.index).map_err(internal)
        }
        Some(link) => route.delete(link.index).map_err(internal),
        None => Ok(()),
    }
}

/// Delete the links that `is_ours` picks and no attachment of `valid` has.
pub(super) fn collect_links(
    valid: &[(String, String)],
    is_ours: impl Fn(&Link) -> bool,
) -> Result<(), PluginError> {
    let kept: Vec<String> = valid.iter().map(|(id, n)| host_name(id, n)).collect();
    let mut route = open_route()?;
    let mut outcome = Ok(());
    for link in route.links().map_err(internal)? {
        if is_host_name(&link.name) && is_ours(&link) && !kept.contains(&link.name) {
            outcome = outcome.and(route.delete(link.index).map_err(internal));
        }
    }
    outcome
}

/// Is the pod's end up, with all addresses and routes of the result?
pub(super) fn check_pod(call: &Call, pod: &Pod<'_>) -> Result<(), PluginError> {
    let in_pod = netns::run(&call.netns, || -> Result<_, PluginError> {
        let mut route = open_route()?;
        let link = route.link(&call.ifname).map_err(internal)?;
        let addresses = route.addresses().map_err(internal)?;
        let mut routes = Vec::new();
        for ipv4 in [true, false] {
            if pod.result.ips.iter().any(|ip| ip.address.is_ipv4() == ipv4) {
                routes.extend(route.routes(ipv4).map_err(internal)?);
            }
        }
        Ok((link, addresses, routes))
    });
    let (link, addresses, routes) = in_pod.map_err(internal)??;
    let Some(link) = link.filter(|link| link.up) else {
        return Err(wrong(format!(
            "link {} in the pod is gone or down",
            call.ifname
        )));
    };
    for ip in &pod.result.ips {
        if !addresses.contains(&(link.index, ip.address)) {
            let text = format!("address {} is not on {}", ip.address, call.ifname);
            return Err(wrong(text));
        }
    }
    // What is in another table than the main one is not listed.
    for wanted in pod.routes(link.index).iter().filter(|r| r.table.is_none()) {
        let same = |route: &RouteSpec| {
            (route.dst.network(), route.gw, route.link)
                == (wanted.dst.network(), wanted.gw, wanted.link)
        };
        if !routes.iter().any(same) {
            return Err(wrong(format!("the route to {} is gone", wanted.dst)));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_names_are_stable() {
        let name = host_name("0123456789abcdef", "eth0");
        assert!(is_host_name(&name), "{name}");
        assert_eq!(name, host_name("0123456789abcdef", "eth0"));
        assert_ne!(name, host_name("0123456789abcdef", "eth1"));
        for other in ["pw0", "pwABCDEF01", "pw012345678", "veth0000"] {
            assert!(!is_host_name(other), "{other}");
        }
    }
}
