// SPDX-License-Identifier: Apache-2.0
//! `static`: addresses that the configuration or the runtime says. Nothing is remembered, and nobody
//! is kept from using them twice.

use std::net::IpAddr;

use serde_json::Value;

use super::input::{argument, environment, fields, previous, required_previous, version, wish};
use super::{unknown_verb, wrong};
use crate::cidr::Cidr;
use crate::exec::Call;
use crate::fields::{FieldError, Fields};
use crate::types::{AddResult, Dns, IpConfig, PluginError, Route, code};

/// The `ipam` object of a plugin's configuration.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Conf {
    addresses: Vec<IpConfig>,
    routes: Vec<Route>,
    dns: Dns,
}

impl Conf {
    pub(super) fn parse(mut ipam: Fields) -> Result<Conf, FieldError> {
        ipam.ignore(&["type"]);
        let mut addresses = Vec::new();
        for mut one in ipam.objects("addresses")? {
            addresses.push(IpConfig {
                address: one.require("address")?,
                gateway: one.take("gateway")?,
                interface: None,
            });
            one.finish()?;
        }
        let conf = Conf {
            addresses,
            routes: ipam.take("routes")?.unwrap_or_default(),
            dns: ipam.take("dns")?.unwrap_or_default(),
        };
        ipam.finish()?;
        Ok(conf)
    }

    /// With what the call says: `CNI_ARGS` adds, `args` and then the runtime replace.
    fn addresses(&self, call: &Call) -> Result<Vec<IpConfig>, PluginError> {
        let plain = |address| IpConfig {
            address,
            gateway: None,
            interface: None,
        };
        let invalid = |name: &str, problem: String| {
            let text = format!("environment variable CNI_ARGS: {name}: {problem}");
            PluginError::new(code::INVALID_ENVIRONMENT, text)
        };
        let listed: Option<Vec<Cidr>> = match wish(call, "ips")? {
            Some(ips) => Some(ips),
            None => argument(call, "ips")?,
        };
        if let Some(ips) = listed.filter(|ips| !ips.is_empty()) {
            return Ok(ips.into_iter().map(plain).collect());
        }
        let mut addresses = self.addresses.clone();
        for text in environment(call, "IP")?
            .into_iter()
            .flat_map(|t| t.split(','))
        {
            let address: Cidr = text
                .trim()
                .parse()
                .map_err(|e| invalid("IP", format!("{e}")))?;
            addresses.push(plain(address));
        }
        for text in environment(call, "GATEWAY")?
            .into_iter()
            .flat_map(|t| t.split(','))
        {
            let gateway: IpAddr = text
                .trim()
                .parse()
                .map_err(|_| invalid("GATEWAY", format!("{text:?} is not an address")))?;
            for ip in &mut addresses {
                if ip.address.contains(gateway) {
                    ip.gateway = Some(gateway);
                }
            }
        }
        Ok(addresses)
    }
}

pub(super) fn run(call: &Call) -> Result<Option<Value>, PluginError> {
    let Some(ipam) = fields("", call.conf.clone())?.object("ipam")? else {
        return Err(FieldError::new("ipam", "is missing").into());
    };
    answer(&Conf::parse(ipam)?, call)
}

pub(super) fn answer(conf: &Conf, call: &Call) -> Result<Option<Value>, PluginError> {
    match call.verb {
        "ADD" => {
            let result = AddResult {
                ips: conf.addresses(call)?,
                routes: conf.routes.clone(),
                dns: conf.dns.clone(),
                ..AddResult::default()
            };
            Ok(Some(result.to_json(version(call))))
        }
        "CHECK" => check(conf, call).map(|()| None),
        "DEL" => previous(call).map(|_| None),
        "GC" | "STATUS" => Ok(None),
        _ => Err(unknown_verb(call)),
    }
}

fn check(conf: &Conf, call: &Call) -> Result<(), PluginError> {
    let result = required_previous(call)?;
    for wanted in conf.addresses(call)? {
        let has = |ip: &IpConfig| {
            ip.address == wanted.address
                && (wanted.gateway.is_none() || ip.gateway == wanted.gateway)
        };
        if !result.ips.iter().any(has) {
            return Err(wrong(format!(
                "address {} is not in the result",
                wanted.address
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::path::Path;

    #[test]
    fn addresses_come_from_the_configuration_or_the_call() {
        let mut call = Call::of_test(
            Path::new("/"),
            "ADD",
            json!({"cniVersion": "1.0.0", "name": "n",
            "ipam": {"type": "static", "addresses": [{"address": "10.0.0.5/24", "gateway": "10.0.0.254"}],
                "routes": [{"dst": "0.0.0.0/0"}], "dns": {"nameservers": ["10.0.0.53"]}}}),
        );
        let ips = |call: &Call| run(call).expect("works").expect("a result")["ips"].clone();
        let configured = json!({"address": "10.0.0.5/24", "gateway": "10.0.0.254"});
        assert_eq!(ips(&call), json!([configured]));
        call.args = "IP=10.0.1.7/24, fd00::7/64;GATEWAY=10.0.1.1".into();
        assert_eq!(
            ips(&call),
            json!([configured, {"address": "10.0.1.7/24", "gateway": "10.0.1.1"}, {"address": "fd00::7/64"}])
        );
        call.conf["args"] = json!({"cni": {"ips": ["10.0.2.7/24"]}});
        assert_eq!(ips(&call), json!([{"address": "10.0.2.7/24"}]));
        call.conf["runtimeConfig"] = json!({"ips": ["10.0.3.7/24"]});
        assert_eq!(ips(&call), json!([{"address": "10.0.3.7/24"}]));
        call.verb = "CHECK";
        call.conf["prevResult"] = json!({"ips": [{"address": "10.0.3.7/24"}]});
        run(&call).expect("as it was");
        call.conf["prevResult"] = json!({"ips": [{"address": "10.0.3.8/24"}]});
        run(&call).expect_err("another one");
        call.verb = "ADD";
        call.conf["runtimeConfig"] = json!({"ips": ["10.0.3.7"]});
        let text = run(&call).expect_err("no prefix length").msg;
        assert!(text.starts_with("field runtimeConfig.ips"), "{text}");
    }
}
