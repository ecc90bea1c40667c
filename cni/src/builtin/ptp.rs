// SPDX-License-Identifier: Apache-2.0
//! `ptp`: a veth pair between the pod and the host, without a bridge. The host's end has the
//! gateway's address, and the host a route to each address of the pod.

use std::net::IpAddr;

use serde_json::Value;

use super::input::{fields, only_nftables, previous, required_previous, table, valid_attachments};
use super::ipam::Ipam;
use super::verbs::Verbs;
use super::veth::{self, Belongings, Ends, Pod, alias, host_name_of, interface, open_route};
use super::{Owned, internal, masquerade, wrong};
use crate::cidr::Cidr;
use crate::exec::Call;
use crate::fields::FieldError;
use crate::link::{AddressSpec, Duplicates, Link, Route, RouteSpec};
use crate::sysctl;
use crate::types::{AddResult, Dns, IpConfig, PluginError, code};

/// What the plugin's configuration says.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Conf {
    ip_masq: bool,
    mtu: Option<u32>,
    dns: Option<Dns>,
    ipam: Ipam,
    table: String,
}

impl Conf {
    pub(super) fn parse(path: &str, conf: Value) -> Result<Conf, FieldError> {
        let mut f = fields(path, conf.clone())?;
        let conf = Conf {
            ip_masq: f.take("ipMasq")?.unwrap_or(false),
            mtu: f.take("mtu")?.filter(|mtu| *mtu != 0),
            dns: f.take("dns")?.filter(|dns: &Dns| !dns.is_empty()),
            ipam: Ipam::take(&mut f, &conf)?,
            table: table(&mut f)?,
        };
        only_nftables(&mut f, "ipMasqBackend")?;
        if conf.ipam.is_none() {
            return Err(FieldError::new(f.path_of("ipam"), "is missing"));
        }
        f.finish()?;
        Ok(conf)
    }

    pub(super) fn owned(&self) -> Owned {
        Owned {
            bridge: None,
            table: self.ip_masq.then(|| self.table.clone()),
        }
    }

    fn belongings(&self) -> Belongings<'_> {
        Belongings {
            ipam: &self.ipam,
            masquerade: self.ip_masq.then_some(self.table.as_str()),
        }
    }
}

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

/// The pod sends everything to its gateway, as with a bridge whose pods are routed.
fn pod(result: &AddResult) -> Pod<'_> {
    Pod {
        result,
        routed: true,
        with_source: true,
        duplicates: Duplicates::Trusted,
    }
}

fn add(conf: &Conf, call: &Call) -> Result<AddResult, PluginError> {
    let leased = conf.ipam.add(call)?;
    let addresses: Vec<IpAddr> = leased.ips.iter().map(|ip| ip.address.addr).collect();
    connect(conf, call, leased).inspect_err(|_| {
        // The first error is the one to report; GC takes what could not be undone now.
        let _ = conf.belongings().remove(call, &addresses);
    })
}

fn connect(conf: &Conf, call: &Call, mut result: AddResult) -> Result<AddResult, PluginError> {
    if let Some(ip) = result.ips.iter().find(|ip| ip.gateway.is_none()) {
        let text = format!("the ipam plugin names no gateway for {}", ip.address);
        return Err(PluginError::new(code::INVALID_CONFIG, text));
    }
    for (ipv4, name) in [
        (true, "ipv4/ip_forward"),
        (false, "ipv6/conf/all/forwarding"),
    ] {
        if result.ips.iter().any(|ip| ip.address.is_ipv4() == ipv4) {
            sysctl::set(name, "1").map_err(internal)?;
        }
    }
    let mut route = open_route()?;
    let ends = Ends {
        mtu: conf.mtu,
        ..Ends::default()
    };
    let host = veth::make(&mut route, call, ends)?;
    route
        .set_alias(host.index, &alias(call)?)
        .map_err(internal)?;
    let inner = pod(&result).configure(call)?;
    set_host_end(&mut route, &host, &result)?;
    if conf.ip_masq {
        masquerade::add(&conf.table, &cidrs(&result), &[])?;
    }
    result.interfaces = vec![interface(&host, None), interface(&inner, Some(&call.netns))];
    result.ips.iter_mut().for_each(|ip| ip.interface = Some(1));
    if let Some(dns) = &conf.dns {
        result.dns = dns.clone();
    }
    Ok(result)
}

fn cidrs(result: &AddResult) -> Vec<Cidr> {
    result.ips.iter().map(|ip| ip.address).collect()
}

/// The gateway's addresses and the routes to the pod. Idempotent.
fn set_host_end(route: &mut Route, link: &Link, result: &AddResult) -> Result<(), PluginError> {
    let gateway = |ip: &IpConfig| {
        ip.gateway.map(|gateway| AddressSpec {
            address: Cidr::host(gateway),
            no_prefix_route: false,
        })
    };
    let gateways: Vec<_> = result.ips.iter().filter_map(gateway).collect();
    let routes: Vec<_> = result
        .ips
        .iter()
        .map(|ip| {
            let mut route = RouteSpec::new(Cidr::host(ip.address.addr), None, link.index);
            route.scope = Some(libc::RT_SCOPE_HOST);
            route
        })
        .collect();
    route
        .configure(link.index, &gateways, &routes)
        .map_err(internal)
}

fn delete(conf: &Conf, call: &Call) -> Result<(), PluginError> {
    let result = previous(call)?.unwrap_or_default();
    let addresses = conf.ipam.owned(call, &result)?;
    conf.belongings().remove(call, &addresses)
}

fn repair(conf: &Conf, call: &Call) -> Result<(), PluginError> {
    let result = required_previous(call)?;
    let mut route = open_route()?;
    if let Some(host) = route.link(&host_name_of(call)).map_err(internal)? {
        set_host_end(&mut route, &host, &result)?;
    }
    if conf.ip_masq {
        masquerade::restore(&conf.table, &cidrs(&result), &[])?;
    }
    Ok(())
}

fn check(conf: &Conf, call: &Call) -> Result<(), PluginError> {
    let result = required_previous(call)?;
    conf.belongings().check(call, &result)?;
    let host = host_name_of(call);
    let mut route = open_route()?;
    let Some(link) = route.link(&host).map_err(internal)?.filter(|link| link.up) else {
        return Err(wrong(format!("link {host} is gone or down")));
    };
    for ip in &result.ips {
        let wanted = Cidr::host(ip.address.addr);
        let routes = route.routes(wanted.is_ipv4()).map_err(internal)?;
        if !routes
            .iter()
            .any(|r| r.dst == wanted && r.link == link.index)
        {
            return Err(wrong(format!("the host's route to {wanted} is gone")));
        }
    }
    veth::check_pod(call, &pod(&result))
}

fn collect(conf: &Conf, call: &Call) -> Result<(), PluginError> {
    let valid = valid_attachments(call)?;
    let ours = alias(call)?;
    let unlinked = veth::collect_links(&valid, |link| link.alias == ours);
    unlinked.and(conf.belongings().collect(call, &valid))
}
