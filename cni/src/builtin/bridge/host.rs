// SPDX-License-Identifier: Apache-2.0
//! The host's side: the bridge, its addresses as a gateway, and what makes it forward.

use super::super::{internal, veth, wrong};
use super::conf::Conf;
use super::vlan;
use crate::cidr::Cidr;
use crate::link::{AddressSpec, Change, Link, Route, parse_mac};
use crate::sysctl;
use crate::types::{AddResult, PluginError};

/// The bridge, made and set up if it has to be. A new one gets the hardware address `mac`, if one is
/// given: pods remember that of their gateway.
pub(super) fn ensure_bridge(
    route: &mut Route,
    conf: &Conf,
    mac: Option<&str>,
) -> Result<Link, PluginError> {
    let link = match route.link(&conf.bridge).map_err(internal)? {
        Some(link) => link,
        None => make_bridge(route, conf, mac)?,
    };
    if link.kind != "bridge" {
        return Err(wrong(format!("link {} is not a bridge", conf.bridge)));
    }
    if !link.up {
        route.set_up(link.index).map_err(internal)?;
    }
    if conf.promisc && !link.promisc {
        let change = Change {
            promisc: Some(true),
            ..Change::default()
        };
        route.change(link.index, &change).map_err(internal)?;
    }
    if conf.vlans.any() {
        route.filter_vlans(link.index).map_err(internal)?;
    }
    Ok(link)
}

fn make_bridge(route: &mut Route, conf: &Conf, mac: Option<&str>) -> Result<Link, PluginError> {
    // A bridge without an address of its own takes its ports' lowest, which changes as pods come
    // and go, and with it what the other pods remember of their gateway.
    let mac = mac.and_then(parse_mac).unwrap_or_else(veth::random_mac);
    match route.add_bridge(&conf.bridge, mac, conf.mtu) {
        Err(error) if error.errno() != Some(libc::EEXIST) => return Err(internal(error)),
        _ => {} // there now, by us or by another ADD at the same time
    }
    sysctl::set(&format!("ipv6/conf/{}/accept_ra", conf.bridge), "0").map_err(internal)?;
    let link = route.link(&conf.bridge).map_err(internal)?;
    link.ok_or_else(|| wrong(format!("bridge {} vanished", conf.bridge)))
}

/// Let the host be the pods' gateway. Returns the link of their VLAN, if they are in one: it has the
/// addresses then.
pub(super) fn be_gateway(
    route: &mut Route,
    conf: &Conf,
    bridge: &Link,
    result: &AddResult,
) -> Result<Option<Link>, PluginError> {
    let vlan = conf
        .vlans
        .native()
        .map(|id| vlan::ensure_link(route, conf, bridge, id))
        .transpose()?;
    let link = vlan.as_ref().unwrap_or(bridge);
    let mut wanted: Vec<Cidr> = Vec::new();
    for ip in &result.ips {
        wanted.extend(ip.gateway.and_then(|gw| Cidr::new(gw, ip.address.prefix)));
    }
    let present = route.addresses_of(link.index).map_err(internal)?;
    wanted.retain(|address| !present.contains(address));
    for address in &wanted {
        make_room(route, conf, link, *address, &present)?;
    }
    if !wanted.is_empty() {
        let spec = |address| AddressSpec {
            address,
            no_prefix_route: false,
        };
        let wanted: Vec<_> = wanted.into_iter().map(spec).collect();
        route
            .configure(link.index, &wanted, &[])
            .map_err(internal)?;
    }
    forward(conf, link, result)?;
    Ok(vlan)
}

/// As the reference plugin: one IPv4 address, and no IPv6 addresses of overlapping subnets, unless
/// `forceAddress` lets the new one replace them. Pods that are routed don't mind several gateways:
/// a node whose range has changed has pods of both.
fn make_room(
    route: &mut Route,
    conf: &Conf,
    link: &Link,
    wanted: Cidr,
    present: &[Cidr],
) -> Result<(), PluginError> {
    if conf.routed && !conf.force_address {
        return Ok(());
    }
    let in_the_way = |a: &&Cidr| {
        a.is_ipv4() == wanted.is_ipv4()
            && (a.is_ipv4() || a.contains(wanted.addr) || wanted.contains(a.addr))
    };
    for address in present.iter().filter(in_the_way) {
        if !conf.force_address {
            let text = format!(
                "{:?} already has an IP address different from {wanted}",
                link.name
            );
            return Err(wrong(text));
        }
        route
            .delete_address(link.index, *address)
            .map_err(internal)?;
    }
    Ok(())
}

fn forward(conf: &Conf, link: &Link, result: &AddResult) -> Result<(), PluginError> {
    let set = |name: &str, value| sysctl::set(name, value).map_err(internal);
    if result.ips.iter().any(|ip| ip.address.is_ipv4()) {
        set("ipv4/ip_forward", "1")?;
        if conf.routed {
            // The way through the gateway is the wanted one: don't tell pods of a shorter.
            set("ipv4/conf/all/send_redirects", "0")?;
            set(&format!("ipv4/conf/{}/send_redirects", link.name), "0")?;
        }
    }
    if result.ips.iter().any(|ip| !ip.address.is_ipv4()) {
        set("ipv6/conf/all/forwarding", "1")?;
    }
    Ok(())
}
