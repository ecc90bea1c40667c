// SPDX-License-Identifier: Apache-2.0
//! `bridge`: a veth pair between the pod and a bridge of the host.
//!
//! With `podwright.routed` a pod sends everything to its gateway, even what is meant for another
//! pod of the same subnet: its address comes without a route to the subnet. So every packet passes
//! the host's own hooks, and the answer to a translated packet is translated back, with the pod's
//! address kept and without br_netfilter (docs/network.md says why).

use std::collections::HashSet;
use std::fs::File;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::path::Path;

use serde_json::Value;

use super::{
    DEFAULT_TABLE, EXTENSION, check_table, fields, host_local, internal, masquerade, previous,
    required_previous, unknown_verb, valid_attachments, version,
};
use crate::cidr::Cidr;
use crate::exec::Call;
use crate::fields::FieldError;
use crate::link::{AddressSpec, Link, Route, RouteSpec, VethSpec};
use crate::types::{self, AddResult, Interface, PluginError, code};
use crate::{hash, netns, sysctl};

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Conf {
    bridge: String,
    is_gateway: bool,
    is_default_gateway: bool,
    ip_masq: bool,
    hairpin: bool,
    mtu: Option<u32>,
    ipam: Option<String>,
    table: String,
    routed: bool,
    cluster: Vec<Cidr>,
}

const DEFAULT_BRIDGE: &str = "cni0";
/// IFNAMSIZ without the zero at the end.
const LONGEST_LINK_NAME: usize = 15;

impl Conf {
    pub(super) fn parse(path: &str, conf: Value) -> Result<Conf, FieldError> {
        let mut f = fields(path, conf)?;
        let is_default_gateway = f.take("isDefaultGateway")?.unwrap_or(false);
        let mut conf = Conf {
            bridge: f
                .take("bridge")?
                .unwrap_or_else(|| DEFAULT_BRIDGE.to_owned()),
            is_gateway: f.take("isGateway")?.unwrap_or(false) || is_default_gateway,
            is_default_gateway,
            ip_masq: f.take("ipMasq")?.unwrap_or(false),
            hairpin: f.take("hairpinMode")?.unwrap_or(false),
            mtu: f.take("mtu")?.filter(|mtu| *mtu != 0),
            ipam: None,
            table: DEFAULT_TABLE.to_owned(),
            routed: false,
            cluster: Vec::new(),
        };
        let valid_name = |n: &str| crate::conf::is_name(n) && n.len() <= LONGEST_LINK_NAME;
        if !valid_name(&conf.bridge) {
            return Err(FieldError::new(
                f.path_of("bridge"),
                format!("{:?} is not a link name", conf.bridge),
            ));
        }
        // False and empty are what leaving them out means.
        for name in [
            "promiscMode",
            "forceAddress",
            "macspoofchk",
            "disableContainerInterface",
            "portIsolation",
            "enabledad",
        ] {
            if f.take::<bool>(name)?.unwrap_or(false) {
                let mut error = FieldError::new(f.path_of(name), "is not supported");
                error.unsupported = true;
                return Err(error);
            }
        }
        match f.take::<String>("ipMasqBackend")?.as_deref() {
            None | Some("nftables") => {}
            Some(other) => {
                return Err(FieldError::new(
                    f.path_of("ipMasqBackend"),
                    format!("{other:?} is not nftables"),
                ));
            }
        }
        if let Some(mut own) = f.object(EXTENSION)? {
            if let Some(table) = own.take::<String>("table")? {
                check_table(own.path_of("table"), &table)?;
                conf.table = table;
            }
            conf.routed = own.take("routed")?.unwrap_or(false);
            conf.cluster = own.take("clusterCIDRs")?.unwrap_or_default();
            if conf.routed && !conf.is_gateway {
                return Err(FieldError::new(own.path_of("routed"), "needs isGateway"));
            }
            own.finish()?;
        }
        conf.take_ipam(&mut f)?;
        f.finish()?;
        Ok(conf)
    }

    fn take_ipam(&mut self, f: &mut crate::fields::Fields) -> Result<(), FieldError> {
        let Some(mut ipam) = f.object("ipam")? else {
            if self.is_gateway || self.ip_masq {
                return Err(FieldError::new(
                    f.path_of("ipam"),
                    "is missing, and a gateway needs addresses",
                ));
            }
            return Ok(());
        };
        // An empty object is how the reference plugin spells "no addresses".
        let Some(kind) = ipam.take::<String>("type")? else {
            return ipam.finish();
        };
        crate::exec::check_name(&kind).map_err(|e| FieldError::new(ipam.path_of("type"), e))?;
        if kind == "host-local" {
            host_local::Conf::parse(ipam)?;
        }
        self.ipam = Some(kind);
        Ok(())
    }
}

pub(super) fn run(call: &Call) -> Result<Option<Value>, PluginError> {
    let conf = Conf::parse("", call.conf.clone())?;
    match call.verb {
        "ADD" => add(&conf, call).map(|result| Some(result.to_json(version(call)))),
        "DEL" => delete(&conf, call).map(|()| None),
        "CHECK" => check(&conf, call).map(|()| None),
        "GC" => collect(&conf, call).map(|()| None),
        "STATUS" => ipam(&conf, call, "STATUS").map(|_| None),
        _ => Err(unknown_verb(call)),
    }
}

/// Name of the host's end: it follows from the attachment, so DEL needs no record to find it.
fn host_name(container_id: &str, ifname: &str) -> String {
    format!(
        "pw{:08x}",
        hash::fnv32(format!("{container_id}/{ifname}").as_bytes())
    )
}

fn is_host_name(name: &str) -> bool {
    name.strip_prefix("pw").is_some_and(|rest| {
        rest.len() == 8
            && rest
                .bytes()
                .all(|b| b.is_ascii_hexdigit() && !b.is_ascii_uppercase())
    })
}

fn ipam(conf: &Conf, call: &Call, verb: &'static str) -> Result<Option<Value>, PluginError> {
    match &conf.ipam {
        None => Ok(None),
        Some(plugin) => super::run(
            plugin,
            &Call {
                verb,
                ..call.clone()
            },
        ),
    }
}

fn open_route() -> Result<Route, PluginError> {
    Route::open().map_err(internal)
}

fn add(conf: &Conf, call: &Call) -> Result<AddResult, PluginError> {
    let leased = match ipam(conf, call, "ADD")? {
        None => AddResult::default(),
        Some(value) => serde_json::from_value(value).map_err(|e| {
            PluginError::new(code::DECODING, format!("result of the ipam plugin: {e}"))
        })?,
    };
    let addresses = leased.ips.iter().map(|ip| ip.address.addr).collect();
    connect(conf, call, leased).inspect_err(|_| {
        // The first error is the one to report; GC takes what could not be undone now.
        let _ = undo(conf, call, addresses);
    })
}

/// The lease goes last: as long as it is there, GC finds the address again.
fn undo(conf: &Conf, call: &Call, addresses: Vec<IpAddr>) -> Result<(), PluginError> {
    let mut route = open_route()?;
    let host = host_name(&call.container_id, &call.ifname);
    let unlinked = match route.link(&host).map_err(internal)? {
        // Deleting a link waits for the kernel's RCU callbacks, 15 ms; with the namespace it goes
        // on its own time. Until then it is down, so the address is free to be leased again.
        Some(link) if call.drops_netns && netns::is_netns(&call.netns) => {
            route.set_down(link.index).map_err(internal)
        }
        Some(link) => route.delete(link.index).map_err(internal),
        None => Ok(()),
    };
    unmasquerade(conf, &addresses)?;
    unlinked.and(ipam(conf, call, "DEL").map(drop))
}

fn unmasquerade(conf: &Conf, addresses: &[IpAddr]) -> Result<(), PluginError> {
    if conf.ip_masq {
        masquerade::delete(&conf.table, addresses)
    } else {
        Ok(())
    }
}

/// Addresses that `host-local` has leased to the attachments that `wanted` picks.
fn leased(
    conf: &Conf,
    call: &Call,
    wanted: impl Fn(&str, &str) -> bool,
) -> Result<Vec<IpAddr>, PluginError> {
    match conf.ipam.as_deref() {
        Some("host-local") => host_local::leased(call, wanted),
        _ => Ok(Vec::new()),
    }
}

fn connect(conf: &Conf, call: &Call, leased: AddResult) -> Result<AddResult, PluginError> {
    let mut result = with_gateways(conf, leased)?;
    let mut route = open_route()?;
    let bridge = ensure_bridge(&mut route, conf)?;
    if conf.is_gateway {
        be_gateway(&mut route, conf, &bridge, &result)?;
    }
    let netns = File::open(&call.netns).map_err(|e| {
        PluginError::new(
            code::UNKNOWN_CONTAINER,
            format!("opening netns {}: {e}", call.netns.display()),
        )
    })?;
    let host = host_name(&call.container_id, &call.ifname);
    let spec = VethSpec {
        host_name: &host,
        master: bridge.index,
        pod_name: &call.ifname,
        pod_mac: None,
        mtu: conf.mtu,
    };
    route.add_veth(&spec, netns.as_fd()).map_err(internal)?;
    let gone = || PluginError::new(code::INTERNAL, format!("link {host} vanished"));
    let host = route.link(&host).map_err(internal)?.ok_or_else(gone)?;
    if conf.hairpin {
        route.set_hairpin(host.index, true).map_err(internal)?;
    }
    let pod = configure_pod(conf, call, &result)?;
    if conf.ip_masq {
        let addresses: Vec<Cidr> = result.ips.iter().map(|ip| ip.address).collect();
        masquerade::add(&conf.table, &addresses, &conf.cluster)?;
    }
    result.interfaces = vec![
        interface(&bridge, None),
        interface(&host, None),
        interface(&pod, Some(&call.netns)),
    ];
    result.ips.iter_mut().for_each(|ip| ip.interface = Some(2));
    Ok(result)
}

fn interface(link: &Link, sandbox: Option<&Path>) -> Interface {
    Interface {
        name: link.name.clone(),
        mac: link.mac.clone(),
        mtu: Some(link.mtu),
        sandbox: sandbox.map(|p| p.display().to_string()).unwrap_or_default(),
        ..Interface::default()
    }
}

/// Complete what the IPAM plugin said: a gateway for each address, and a default route if wanted.
fn with_gateways(conf: &Conf, mut result: AddResult) -> Result<AddResult, PluginError> {
    for ip in &mut result.ips {
        if conf.is_gateway && ip.gateway.is_none() {
            let network = ip.address.network().addr;
            ip.gateway = Some(crate::cidr::from_bits(
                crate::cidr::to_bits(network) + 1,
                network.is_ipv4(),
            ));
        }
        let Some(gateway) = ip.gateway.filter(|_| conf.is_default_gateway) else {
            continue;
        };
        let default: Cidr = if gateway.is_ipv4() {
            "0.0.0.0/0"
        } else {
            "::/0"
        }
        .parse()
        .expect("a constant");
        match result.routes.iter().find(|r| r.dst == default) {
            Some(types::Route {
                gw: Some(other), ..
            }) if *other != gateway => {
                let text = format!("isDefaultGateway, but ipam routes {default} to {other}");
                return Err(PluginError::new(code::INVALID_CONFIG, text));
            }
            Some(_) => {}
            None => result.routes.push(types::Route {
                dst: default,
                gw: Some(gateway),
                mtu: None,
                advmss: None,
                priority: None,
                table: None,
                scope: None,
            }),
        }
    }
    Ok(result)
}

fn ensure_bridge(route: &mut Route, conf: &Conf) -> Result<Link, PluginError> {
    let wrong = |text: String| PluginError::new(code::INTERNAL, text);
    if let Some(link) = route.link(&conf.bridge).map_err(internal)? {
        if link.kind != "bridge" {
            return Err(wrong(format!("link {} is not a bridge", conf.bridge)));
        }
        if !link.up {
            route.set_up(link.index).map_err(internal)?;
        }
        return Ok(link);
    }
    match route.add_bridge(&conf.bridge, random_mac(), conf.mtu) {
        Err(error) if error.errno() != Some(libc::EEXIST) => return Err(internal(error)),
        _ => {} // there now, by us or by another ADD at the same time
    }
    let link = route.link(&conf.bridge).map_err(internal)?;
    link.ok_or_else(|| wrong(format!("bridge {} vanished", conf.bridge)))
}

/// A bridge without an address of its own takes its ports' lowest, which changes as pods come and
/// go, and with it what the other pods remember of their gateway.
fn random_mac() -> [u8; 6] {
    let bytes = RandomState::new().build_hasher().finish().to_ne_bytes();
    // 0x02: locally administered, unicast.
    [0x02, bytes[0], bytes[1], bytes[2], bytes[3], bytes[4]]
}

fn be_gateway(
    route: &mut Route,
    conf: &Conf,
    bridge: &Link,
    result: &AddResult,
) -> Result<(), PluginError> {
    let mut wanted = Vec::new();
    for ip in &result.ips {
        let gateway = ip.gateway.and_then(|gw| Cidr::new(gw, ip.address.prefix));
        wanted.extend(gateway.map(|address| AddressSpec {
            address,
            no_prefix_route: false,
        }));
    }
    let present = route.addresses().map_err(internal)?;
    wanted.retain(|w| {
        !present
            .iter()
            .any(|(index, a)| *index == bridge.index && *a == w.address)
    });
    if !wanted.is_empty() {
        route
            .configure(bridge.index, &wanted, &[])
            .map_err(internal)?;
    }
    let set = |name: &str, value| sysctl::set(name, value).map_err(internal);
    if result.ips.iter().any(|ip| ip.address.is_ipv4()) {
        set("ipv4/ip_forward", "1")?;
        if conf.routed {
            // The way through the gateway is the wanted one: don't tell pods of a shorter.
            set("ipv4/conf/all/send_redirects", "0")?;
            set(&format!("ipv4/conf/{}/send_redirects", conf.bridge), "0")?;
        }
    }
    if result.ips.iter().any(|ip| !ip.address.is_ipv4()) {
        set("ipv6/conf/all/forwarding", "1")?;
    }
    Ok(())
}

/// In the pod: sysctls, then addresses and routes in one batch.
fn configure_pod(conf: &Conf, call: &Call, result: &AddResult) -> Result<Link, PluginError> {
    let ifname = call.ifname.as_str();
    let entered = netns::run(&call.netns, || -> Result<Link, PluginError> {
        let set = |name: &str, value| sysctl::set(name, value).map_err(internal);
        // A neighbour must not become a router of this pod (CVE-2020-10749).
        set(&format!("ipv6/conf/{ifname}/accept_ra"), "0")?;
        if conf.routed {
            for scope in ["all", ifname] {
                set(&format!("ipv4/conf/{scope}/accept_redirects"), "0")?;
                set(&format!("ipv6/conf/{scope}/accept_redirects"), "0")?;
            }
        }
        let mut route = open_route()?;
        let gone = || PluginError::new(code::INTERNAL, format!("link {ifname} is not in the pod"));
        let link = route.link(ifname).map_err(internal)?.ok_or_else(gone)?;
        let addresses: Vec<AddressSpec> = result
            .ips
            .iter()
            .map(|ip| AddressSpec {
                address: ip.address,
                no_prefix_route: conf.routed,
            })
            .collect();
        route
            .configure(
                link.index,
                &addresses,
                &pod_routes(conf, result, link.index),
            )
            .map_err(internal)?;
        Ok(link)
    });
    entered.map_err(internal)?
}

fn pod_routes(conf: &Conf, result: &AddResult, link: u32) -> Vec<RouteSpec> {
    let mut routes = Vec::new();
    for ip in result.ips.iter().filter(|_| conf.routed) {
        let Some(gateway) = ip.gateway else { continue };
        routes.push(RouteSpec::new(Cidr::host(gateway), None, link));
        routes.push(RouteSpec::new(ip.address.network(), Some(gateway), link));
    }
    for route in &result.routes {
        let of_family = result
            .ips
            .iter()
            .find(|ip| ip.address.is_ipv4() == route.dst.is_ipv4());
        routes.push(RouteSpec {
            dst: route.dst,
            gw: route.gw.or_else(|| of_family.and_then(|ip| ip.gateway)),
            link,
            mtu: route.mtu,
            advmss: route.advmss,
            priority: route.priority,
            table: route.table,
            scope: route.scope,
        });
    }
    routes
}

/// Idempotent, and independent of what is left: link, rules and lease are each taken if there.
fn delete(conf: &Conf, call: &Call) -> Result<(), PluginError> {
    let result = previous(call)?.unwrap_or_default();
    let mut addresses: Vec<IpAddr> = result.ips.iter().map(|ip| ip.address.addr).collect();
    if addresses.is_empty() {
        // ADD was cut off: the lease tells the addresses.
        let own = |id: &str, ifname: &str| id == call.container_id && ifname == call.ifname;
        addresses = leased(conf, call, own)?;
    } else if conf.ipam.as_deref() == Some("host-local") {
        // A DEL that was cut off after it gave the lease back is repeated; somebody may have it.
        addresses = host_local::without_others(call, addresses)?;
    }
    undo(conf, call, addresses)
}

fn check(conf: &Conf, call: &Call) -> Result<(), PluginError> {
    ipam(conf, call, "CHECK")?;
    let wrong = |text: String| Err(PluginError::new(code::INTERNAL, text));
    let result = required_previous(call)?;
    let mut route = open_route()?;
    let Some(bridge) = route.link(&conf.bridge).map_err(internal)? else {
        return wrong(format!("bridge {} is gone", conf.bridge));
    };
    let host = host_name(&call.container_id, &call.ifname);
    match route.link(&host).map_err(internal)? {
        Some(link) if link.master == Some(bridge.index) && link.up => {}
        Some(_) => {
            return wrong(format!(
                "link {host} is down or not a port of {}",
                conf.bridge
            ));
        }
        None => return wrong(format!("link {host} is gone")),
    }
    let in_pod = netns::run(&call.netns, || -> Result<_, PluginError> {
        let mut route = open_route()?;
        let link = route.link(&call.ifname).map_err(internal)?;
        Ok((link, route.addresses().map_err(internal)?))
    });
    let (link, addresses) = in_pod.map_err(internal)??;
    let Some(link) = link.filter(|link| link.up) else {
        return wrong(format!("link {} in the pod is gone or down", call.ifname));
    };
    for ip in &result.ips {
        if !addresses.contains(&(link.index, ip.address)) {
            return wrong(format!("address {} is not on {}", ip.address, call.ifname));
        }
        if conf.ip_masq && !masquerade::has(&conf.table, ip.address.addr)? {
            return wrong(format!("address {} is not masqueraded", ip.address));
        }
    }
    Ok(())
}

/// Delete the bridge's ports that belong to no attachment, then let the IPAM plugin collect.
fn collect(conf: &Conf, call: &Call) -> Result<(), PluginError> {
    let attachments = valid_attachments(call)?;
    let valid: HashSet<String> = attachments
        .iter()
        .map(|(id, ifname)| host_name(id, ifname))
        .collect();
    let stale = |id: &str, ifname: &str| !attachments.iter().any(|(i, n)| i == id && n == ifname);
    unmasquerade(conf, &leased(conf, call, stale)?)?;
    let mut route = open_route()?;
    let mut outcome = Ok(());
    if let Some(bridge) = route.link(&conf.bridge).map_err(internal)? {
        for link in route.links().map_err(internal)? {
            let ours = link.master == Some(bridge.index) && is_host_name(&link.name);
            if ours && !valid.contains(&link.name) {
                outcome = outcome.and(route.delete(link.index).map_err(internal));
            }
        }
    }
    outcome.and(ipam(conf, call, "GC").map(drop))
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

    #[test]
    fn a_routed_pod_reaches_its_subnet_through_the_gateway() {
        let list = serde_json::from_str(&crate::default_conflist(
            "pw0",
            "10.42.0.0/24",
            "10.42.0.0/16",
            "t",
        ));
        let list: Value = list.expect("JSON");
        let conf = Conf::parse("", list["plugins"][0].clone()).expect("valid");
        let leased: AddResult = serde_json::from_value(serde_json::json!({
            "ips": [{"address": "10.42.0.5/24"}], "routes": [{"dst": "0.0.0.0/0"}]
        }))
        .expect("a result");
        let result = with_gateways(&conf, leased).expect("consistent");
        let routes: Vec<_> = pod_routes(&conf, &result, 2)
            .into_iter()
            .map(|r| format!("{} {:?}", r.dst, r.gw.map(|g| g.to_string())))
            .collect();
        assert_eq!(
            routes,
            [
                "10.42.0.1/32 None",
                "10.42.0.0/24 Some(\"10.42.0.1\")",
                "0.0.0.0/0 Some(\"10.42.0.1\")",
            ]
        );
    }
}
