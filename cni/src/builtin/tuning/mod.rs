// SPDX-License-Identifier: Apache-2.0
//! `tuning`: sysctls of a pod, and properties of its link.

mod backup;
mod conf;
mod sysctls;

use serde_json::Value;

use self::backup::Backups;
pub(super) use self::conf::Conf;
use super::input::{required_previous, valid_attachments, version};
use super::{REPAIR, internal, unknown_verb, wrong};
use crate::exec::Call;
use crate::link::{Change, Link, Route, parse_mac};
use crate::netns;
use crate::types::{AddResult, PluginError};

/// Administrators say here which sysctls may be set, as with the reference plugin.
const ALLOWLIST: &str = "/etc/cni/tuning/allowlist.conf";

pub(super) fn run(call: &Call) -> Result<Option<Value>, PluginError> {
    let conf = Conf::of(call)?;
    match call.verb {
        "ADD" => {
            sysctls::check_allowed(&conf.sysctls, ALLOWLIST.as_ref())?;
            let result = add(&conf, call, required_previous(call)?)?;
            Ok(Some(result.to_json(version(call))))
        }
        "CHECK" => {
            required_previous(call)?;
            in_pod(call, |call, route| check(&conf, call, route)).map(|()| None)
        }
        "DEL" => delete(&conf, call).map(|()| None),
        "GC" => {
            let valid = valid_attachments(call)?;
            Backups::of(&conf, call)
                .collect(call, &valid)
                .map(|()| None)
        }
        "STATUS" | REPAIR => Ok(None),
        _ => Err(unknown_verb(call)),
    }
}

/// Run something on a thread in the pod's namespace, with a socket there.
fn in_pod<T: Send>(
    call: &Call,
    work: impl FnOnce(&Call, &mut Route) -> Result<T, PluginError> + Send,
) -> Result<T, PluginError> {
    let entered = netns::run(&call.netns, || {
        let mut route = Route::open().map_err(internal)?;
        work(call, &mut route)
    });
    entered.map_err(internal)?
}

fn link(call: &Call, route: &mut Route) -> Result<Link, PluginError> {
    let link = route.link(&call.ifname).map_err(internal)?;
    link.ok_or_else(|| wrong(format!("link {} is not in the pod", call.ifname)))
}

fn add(conf: &Conf, call: &Call, mut result: AddResult) -> Result<AddResult, PluginError> {
    in_pod(call, |call, route| {
        for (key, value) in &conf.sysctls {
            sysctls::set(key, &call.ifname, value)?;
        }
        if conf.change == Change::default() {
            return Ok(());
        }
        let link = link(call, route)?;
        Backups::of(conf, call).write(call, &conf.change, &link)?;
        route.change(link.index, &conf.change).map_err(internal)
    })?;
    // What is said about the link is true after it was changed.
    let inner = result
        .interfaces
        .iter_mut()
        .find(|i| i.name == call.ifname && !i.sandbox.is_empty());
    if let Some(interface) = inner {
        if let Some(mac) = conf.change.mac {
            interface.mac = crate::link::format_mac(&mac);
        }
        if let (Some(mtu), Some(_)) = (conf.change.mtu, interface.mtu) {
            interface.mtu = Some(mtu);
        }
    }
    Ok(result)
}

/// A link that goes with the pod needs no restoring; one that was lent to it does.
fn delete(conf: &Conf, call: &Call) -> Result<(), PluginError> {
    let backups = Backups::of(conf, call);
    if !call.drops_netns && netns::is_netns(&call.netns) {
        in_pod(call, |call, route| {
            match (
                route.link(&call.ifname).map_err(internal)?,
                backups.read(call),
            ) {
                (Some(link), Some(before)) => route.change(link.index, &before).map_err(internal),
                _ => Ok(()),
            }
        })?;
    }
    backups.remove(call)
}

fn check(conf: &Conf, call: &Call, route: &mut Route) -> Result<(), PluginError> {
    for (key, value) in &conf.sysctls {
        let found = sysctls::get(key, &call.ifname)?;
        if found != *value {
            let text = format!("{key} is configured as {value:?}, and is {found:?}");
            return Err(wrong(text));
        }
    }
    let link = link(call, route)?;
    let (wanted, name) = (&conf.change, &link.name);
    let differs = |what: &str| Err(wrong(format!("link {name} has another {what}")));
    if wanted
        .mac
        .is_some_and(|mac| parse_mac(&link.mac) != Some(mac))
    {
        return differs("hardware address");
    }
    if wanted.mtu.is_some_and(|mtu| link.mtu != mtu) {
        return differs("MTU");
    }
    if wanted.promisc.is_some_and(|on| link.promisc != on) {
        return differs("promiscuous mode");
    }
    if wanted.allmulti.is_some_and(|on| link.allmulti != on) {
        return differs("all-multicast mode");
    }
    if wanted.queue.is_some_and(|length| link.queue != length) {
        return differs("transmit queue length");
    }
    Ok(())
}
