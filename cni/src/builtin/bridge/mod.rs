// SPDX-License-Identifier: Apache-2.0
//! `bridge`: a veth pair between the pod and a bridge of the host.
//!
//! With `podwright.routed` a pod sends everything to its gateway, even what is meant for another
//! pod of the same subnet: its address comes without a route to the subnet. So every packet passes
//! the host's own hooks, and the answer to a translated packet is translated back, with the pod's
//! address kept and without br_netfilter (docs/network.md says why).

mod conf;
mod host;
mod vlan;

use std::net::IpAddr;

use serde_json::Value;

pub(super) use self::conf::Conf;
use super::input::{mac, previous, required_previous, valid_attachments};
use super::verbs::Verbs;
use super::veth::{self, Belongings, Ends, Pod, host_name_of, interface, open_route};
use super::{internal, masquerade, spoof, wrong};
use crate::cidr::Cidr;
use crate::exec::Call;
use crate::link::{Link, PortSpec, Route};
use crate::netns;
use crate::types::{self, AddResult, PluginError, code};

pub(super) fn run(call: &Call) -> Result<Option<Value>, PluginError> {
    let conf = Conf::parse("", call.conf.clone())?;
    let verbs = Verbs {
        add,
        delete,
        check,
        collect,
        repair,
    };
    verbs.run(&conf, &conf.ipam, call)
}

fn belongings(conf: &Conf) -> Belongings<'_> {
    Belongings {
        ipam: &conf.ipam,
        masquerade: conf.ip_masq.then_some(conf.table.as_str()),
    }
}

fn pod<'a>(conf: &Conf, result: &'a AddResult) -> Pod<'a> {
    Pod {
        result,
        routed: conf.routed,
        with_source: false,
        duplicates: conf.duplicates,
    }
}

fn add(conf: &Conf, call: &Call) -> Result<AddResult, PluginError> {
    let leased = conf.ipam.add(call)?;
    let addresses: Vec<IpAddr> = leased.ips.iter().map(|ip| ip.address.addr).collect();
    connect(conf, call, leased).inspect_err(|_| {
        // The first error is the one to report; GC takes what could not be undone now.
        let _ = undo(conf, call, &addresses);
    })
}

fn undo(conf: &Conf, call: &Call, addresses: &[IpAddr]) -> Result<(), PluginError> {
    let unguarded = match conf.spoof_check {
        true => spoof::delete(&conf.table, &host_name_of(call), pod_mac(conf, call)?),
        false => Ok(()),
    };
    belongings(conf).remove(call, addresses).and(unguarded)
}

/// The hardware address that the pod is to have. With a check on it, it follows from the attachment,
/// so DEL needs no record to find it.
fn pod_mac(conf: &Conf, call: &Call) -> Result<Option<[u8; 6]>, PluginError> {
    let wanted = mac(call)?;
    Ok(wanted.or_else(|| {
        conf.spoof_check
            .then(|| spoof::mac_of(&call.container_id, &call.ifname))
    }))
}

fn connect(conf: &Conf, call: &Call, leased: AddResult) -> Result<AddResult, PluginError> {
    let mut result = with_gateways(conf, leased)?;
    let mut route = open_route()?;
    let bridge = host::ensure_bridge(&mut route, conf, None)?;
    let vlan = match conf.is_gateway {
        true => host::be_gateway(&mut route, conf, &bridge, &result)?,
        false => None,
    };
    let ends = Ends {
        master: bridge.index,
        mac: pod_mac(conf, call)?,
        mtu: conf.mtu,
    };
    let port = veth::make(&mut route, call, ends)?;
    set_port(&mut route, conf, call, &port)?;
    let pod = match conf.bare {
        true => end_in_pod(call)?,
        false => pod(conf, &result).configure(call)?,
    };
    if conf.ip_masq {
        masquerade::add(&conf.table, &cidrs(&result), &conf.cluster)?;
    }
    result.interfaces = vec![
        interface(&bridge, None),
        interface(&port, None),
        interface(&pod, Some(&call.netns)),
    ];
    result
        .interfaces
        .extend(vlan.iter().map(|link| interface(link, None)));
    result.ips.iter_mut().for_each(|ip| ip.interface = Some(2));
    if let Some(dns) = &conf.dns {
        result.dns = dns.clone();
    }
    Ok(result)
}

fn cidrs(result: &AddResult) -> Vec<Cidr> {
    result.ips.iter().map(|ip| ip.address).collect()
}

/// What makes the pod's port more than a port.
fn set_port(route: &mut Route, conf: &Conf, call: &Call, port: &Link) -> Result<(), PluginError> {
    let spec = PortSpec {
        hairpin: conf.hairpin,
        isolated: conf.isolated,
    };
    if spec != PortSpec::default() {
        route.set_port(port.index, spec).map_err(internal)?;
    }
    conf.vlans.apply(route, port.index)?;
    match (conf.spoof_check, pod_mac(conf, call)?) {
        (true, Some(mac)) => spoof::add(&conf.table, &port.name, mac),
        _ => Ok(()),
    }
}

fn end_in_pod(call: &Call) -> Result<Link, PluginError> {
    let link = netns::run(&call.netns, || {
        open_route()?.link(&call.ifname).map_err(internal)
    });
    let link = link.map_err(internal)??;
    link.ok_or_else(|| wrong(format!("link {} is not in the pod", call.ifname)))
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
            None => result
                .routes
                .push(types::Route::new(default, Some(gateway))),
        }
    }
    Ok(result)
}

/// Idempotent, and independent of what is left.
fn delete(conf: &Conf, call: &Call) -> Result<(), PluginError> {
    let result = previous(call)?.unwrap_or_default();
    let addresses = conf.ipam.owned(call, &result)?;
    undo(conf, call, &addresses)
}

/// Make the bridge again with the hardware address that pods remember, and the pod's link its port.
fn repair(conf: &Conf, call: &Call) -> Result<(), PluginError> {
    let result = required_previous(call)?;
    let known = result
        .interfaces
        .iter()
        .find(|i| i.sandbox.is_empty() && i.name == conf.bridge)
        .map(|i| i.mac.as_str());
    let mut route = open_route()?;
    let bridge = host::ensure_bridge(&mut route, conf, known)?;
    if conf.is_gateway {
        host::be_gateway(&mut route, conf, &bridge, &result)?;
    }
    // Without it the pod's end is gone too, and with it what only ADD can make again.
    let port = route.link(&host_name_of(call)).map_err(internal)?;
    if let Some(port) = port.filter(|port| port.master != Some(bridge.index) || !port.up) {
        route
            .set_master(port.index, bridge.index)
            .map_err(internal)?;
        set_port(&mut route, conf, call, &port)?;
    }
    if let (true, Some(mac)) = (conf.spoof_check, pod_mac(conf, call)?) {
        spoof::add(&conf.table, &host_name_of(call), mac)?;
    }
    if conf.ip_masq {
        masquerade::restore(&conf.table, &cidrs(&result), &conf.cluster)?;
    }
    Ok(())
}

fn check(conf: &Conf, call: &Call) -> Result<(), PluginError> {
    let result = required_previous(call)?;
    belongings(conf).check(call, &result)?;
    let mut route = open_route()?;
    let Some(bridge) = route.link(&conf.bridge).map_err(internal)? else {
        return Err(wrong(format!("bridge {} is gone", conf.bridge)));
    };
    if conf.promisc && !bridge.promisc {
        return Err(wrong(format!("bridge {} is not promiscuous", conf.bridge)));
    }
    let host = host_name_of(call);
    match route.link(&host).map_err(internal)? {
        Some(link) if link.master == Some(bridge.index) && link.up => {}
        Some(_) => {
            let text = format!("link {host} is down or not a port of {}", conf.bridge);
            return Err(wrong(text));
        }
        None => return Err(wrong(format!("link {host} is gone"))),
    }
    if let (true, Some(mac)) = (conf.spoof_check, pod_mac(conf, call)?) {
        spoof::check(&conf.table, &host, mac)?;
    }
    match conf.bare {
        true => end_in_pod(call).map(drop),
        false => veth::check_pod(call, &pod(conf, &result)),
    }
}

/// Delete the bridge's ports that belong to no attachment, then let the IPAM plugin collect.
fn collect(conf: &Conf, call: &Call) -> Result<(), PluginError> {
    let valid = valid_attachments(call)?;
    let bridge = open_route()?.link(&conf.bridge).map_err(internal)?;
    let unlinked = match &bridge {
        Some(bridge) => veth::collect_links(&valid, |link| link.master == Some(bridge.index)),
        None => Ok(()),
    };
    let unguarded = match conf.spoof_check {
        true => spoof::collect(&conf.table),
        false => Ok(()),
    };
    let collected = belongings(conf).collect(call, &valid);
    unlinked.and(unguarded).and(collected)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_routed_pod_reaches_its_subnet_through_the_gateway() {
        let network = crate::PodNetwork::new("pw0", "t", "10.42.0.0/24", "10.42.0.0/16");
        let list = crate::default_conflist(&network.expect("lists"));
        let list = serde_json::from_str(&list);
        let list: Value = list.expect("JSON");
        let conf = Conf::parse("", list["plugins"][0].clone()).expect("valid");
        let leased: AddResult = serde_json::from_value(serde_json::json!({
            "ips": [{"address": "10.42.0.5/24"}], "routes": [{"dst": "0.0.0.0/0"}]
        }))
        .expect("a result");
        let result = with_gateways(&conf, leased).expect("consistent");
        let routes: Vec<_> = pod(&conf, &result)
            .routes(2)
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
