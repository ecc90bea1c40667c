// SPDX-License-Identifier: Apache-2.0
//! The plugin that gives addresses to another plugin, as that one's configuration names it.

use std::collections::HashSet;
use std::net::IpAddr;

use serde_json::Value;

use super::{host_local, internal, static_ip};
use crate::exec::{self, Call};
use crate::fields::{FieldError, Fields};
use crate::forget;
use crate::types::{AddResult, PluginError, code};

/// Which one, with its configuration when it is built in.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Ipam {
    /// No addresses.
    None,
    HostLocal(host_local::Conf),
    Static(static_ip::Conf),
    /// An executable.
    Foreign(String),
}

impl Ipam {
    /// Take `ipam` out of a plugin's fields. `conf` is all of them: capabilities may give what the
    /// object leaves out.
    pub(super) fn take(fields: &mut Fields, conf: &Value) -> Result<Ipam, FieldError> {
        let Some(mut ipam) = fields.object("ipam")? else {
            return Ok(Ipam::None);
        };
        // An empty object is how the reference plugin spells "no addresses".
        let Some(kind) = ipam.take::<String>("type")?.filter(|kind| !kind.is_empty()) else {
            return ipam.finish().map(|()| Ipam::None);
        };
        exec::check_name(&kind).map_err(|e| FieldError::new(ipam.path_of("type"), e))?;
        Ok(match kind.as_str() {
            "host-local" => Ipam::HostLocal(host_local::Conf::parse(ipam, conf)?),
            "static" => Ipam::Static(static_ip::Conf::parse(ipam)?),
            _ => Ipam::Foreign(kind),
        })
    }

    pub(super) fn is_none(&self) -> bool {
        *self == Ipam::None
    }

    /// Ask for addresses.
    pub(super) fn add(&self, call: &Call) -> Result<AddResult, PluginError> {
        let Some(value) = self.ask(call, "ADD")? else {
            return Ok(AddResult::default());
        };
        let result: AddResult = serde_json::from_value(value).map_err(|e| {
            PluginError::new(code::DECODING, format!("result of the ipam plugin: {e}"))
        })?;
        if result.ips.is_empty() {
            let text = "IPAM plugin returned missing IP config";
            return Err(PluginError::new(code::DECODING, text));
        }
        Ok(result)
    }

    /// Pass a verb on.
    pub(super) fn ask(
        &self,
        call: &Call,
        verb: &'static str,
    ) -> Result<Option<Value>, PluginError> {
        let own = || Call {
            verb,
            ..call.clone()
        };
        match self {
            Ipam::None => Ok(None),
            Ipam::HostLocal(conf) => host_local::answer(conf, &own()),
            Ipam::Static(conf) => static_ip::answer(conf, &own()),
            Ipam::Foreign(plugin) => exec::run(plugin, &own()),
        }
    }

    /// Addresses that are leased to the attachments that `wanted` picks; what a foreign plugin has
    /// leased is not known.
    pub(super) fn leased(
        &self,
        call: &Call,
        wanted: impl Fn(&str, &str) -> bool,
    ) -> Result<Vec<IpAddr>, PluginError> {
        match self {
            Ipam::HostLocal(conf) => conf.store(call)?.addresses(wanted),
            _ => Ok(Vec::new()),
        }
    }

    /// Forget tracked connections and neighbours of pods that are gone. Only `host-local` knows which
    /// addresses these had.
    pub(super) fn forget_the_gone(&self, call: &Call) -> Result<(), PluginError> {
        let Ipam::HostLocal(conf) = self else {
            return Ok(());
        };
        let mut route = super::veth::open_route()?;
        let of_host = route.addresses().map_err(internal)?;
        let mut kept: HashSet<IpAddr> = of_host.into_iter().map(|(_, a)| a.addr).collect();
        kept.extend(conf.store(call)?.addresses(|_, _| true)?);
        let stale = |address: IpAddr| conf.can_lease(address) && !kept.contains(&address);
        forget::addresses(stale).map_err(internal)
    }

    /// Those addresses of an attachment that somebody else has not got meanwhile. They are those of
    /// the result of ADD; when ADD was cut off, its leases tell them.
    pub(super) fn owned(
        &self,
        call: &Call,
        result: &AddResult,
    ) -> Result<Vec<IpAddr>, PluginError> {
        let known: Vec<IpAddr> = result.ips.iter().map(|ip| ip.address.addr).collect();
        match self {
            Ipam::HostLocal(conf) => {
                let store = conf.store(call)?;
                let (id, ifname) = (call.container_id.as_str(), call.ifname.as_str());
                if known.is_empty() {
                    return store.of(id, ifname);
                }
                // A DEL that was cut off after it gave the lease back is repeated.
                store.without_others(known, id, ifname)
            }
            _ => Ok(known),
        }
    }
}
