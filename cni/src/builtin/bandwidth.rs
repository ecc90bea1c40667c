// SPDX-License-Identifier: Apache-2.0
//! `bandwidth`: limits what goes to a pod and what comes from it.
//!
//! What goes to it leaves by the host's end of its link, and waits there in a token bucket. What
//! comes from it comes in by that end, where nothing can wait; so it takes the way through an `ifb`
//! link of the pod's, and waits there.

use serde::Deserialize;
use serde_json::Value;

use super::input::{fields, required_previous, valid_attachments, version, wish};
use super::veth::{alias, host_name_of, interface, open_route};
use super::{REPAIR, internal, unknown_verb, wrong};
use crate::exec::Call;
use crate::fields::FieldError;
use crate::hash;
use crate::link::{Bucket, Link, Route};
use crate::types::{AddResult, PluginError, code};

/// Bursts must be below this many bytes: the kernel counts in 32 bits.
const BURST_BYTES: u64 = 1 << 32;
/// What the links of these plugins have in common, before eight digits.
const PREFIX: &str = "pwb";

/// What the plugin's configuration says, or the runtime when that says nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub(super) struct Conf {
    /// To the pod: bits a second, and bits at once; 0: no limit.
    ingress_rate: u64,
    ingress_burst: u64,
    /// From the pod.
    egress_rate: u64,
    egress_burst: u64,
}

impl Conf {
    pub(super) fn parse(path: &str, conf: Value) -> Result<Conf, FieldError> {
        let mut f = fields(path, conf)?;
        let mut number = |name: &str| Ok::<u64, FieldError>(f.take(name)?.unwrap_or(0));
        let conf = Conf {
            ingress_rate: number("ingressRate")?,
            ingress_burst: number("ingressBurst")?,
            egress_rate: number("egressRate")?,
            egress_burst: number("egressBurst")?,
        };
        conf.check(path)?;
        f.finish()?;
        Ok(conf)
    }

    fn check(&self, path: &str) -> Result<(), FieldError> {
        for (name, rate, burst) in [
            ("ingressRate", self.ingress_rate, self.ingress_burst),
            ("egressRate", self.egress_rate, self.egress_burst),
        ] {
            let problem = match (rate, burst) {
                (0, 1..) => "must be set when the burst is",
                (1.., 0) => "needs a burst",
                _ if burst / 8 >= BURST_BYTES => "has a burst of 4 GiB or more",
                _ => continue,
            };
            let path = crate::fields::Fields::child(path, name);
            return Err(FieldError::new(path, problem));
        }
        Ok(())
    }

    /// The configuration's own limits count; else the runtime's.
    fn of(call: &Call) -> Result<Conf, PluginError> {
        let configured = Conf::parse("", call.conf.clone())?;
        if configured != Conf::default() {
            return Ok(configured);
        }
        let wished: Conf = wish(call, "bandwidth")?.unwrap_or_default();
        wished.check("runtimeConfig.bandwidth")?;
        Ok(wished)
    }

    fn ingress(&self) -> Option<Bucket> {
        (self.ingress_rate > 0).then(|| Bucket::new(self.ingress_rate, self.ingress_burst))
    }

    fn egress(&self) -> Option<Bucket> {
        (self.egress_rate > 0).then(|| Bucket::new(self.egress_rate, self.egress_burst))
    }
}

/// Name of the `ifb` link of an attachment.
fn ifb_name(container_id: &str, ifname: &str) -> String {
    let text = format!("ifb of {container_id}/{ifname}");
    format!("{PREFIX}{:08x}", hash::fnv32(text.as_bytes()))
}

pub(super) fn run(call: &Call) -> Result<Option<Value>, PluginError> {
    match call.verb {
        "ADD" => {
            let conf = Conf::of(call)?;
            let result = add(&conf, call, required_previous(call)?)?;
            Ok(Some(result.to_json(version(call))))
        }
        "CHECK" => check(&Conf::of(call)?, call, &required_previous(call)?).map(|()| None),
        "DEL" => delete(call).map(|()| None),
        "GC" => collect(call).map(|()| None),
        // Both limits are of links that the pod has for itself; whoever takes these, takes the pod's
        // connection.
        "STATUS" | REPAIR => Ok(None),
        _ => Err(unknown_verb(call)),
    }
}

/// The host's end of the pod's link: as our own plugins name it, or any of the result's that is a
/// veth on the host.
fn host_end(route: &mut Route, call: &Call, result: &AddResult) -> Result<Link, PluginError> {
    let own = host_name_of(call);
    let listed = result.interfaces.iter().filter(|i| i.sandbox.is_empty());
    let mut names: Vec<&str> = listed.map(|i| i.name.as_str()).collect();
    names.sort_by_key(|name| *name != own);
    for name in names {
        let link = route.link(name).map_err(internal)?;
        if let Some(link) = link.filter(|link| link.kind == "veth") {
            return Ok(link);
        }
    }
    let text = "no veth of the host is in the result before this plugin";
    Err(PluginError::new(code::INVALID_CONFIG, text))
}

fn add(conf: &Conf, call: &Call, mut result: AddResult) -> Result<AddResult, PluginError> {
    if *conf == Conf::default() {
        return Ok(result);
    }
    let mut route = open_route()?;
    let host = host_end(&mut route, call, &result)?;
    if let Some(bucket) = conf.ingress() {
        route.limit(host.index, bucket).map_err(internal)?;
    }
    let Some(bucket) = conf.egress() else {
        return Ok(result);
    };
    let name = ifb_name(&call.container_id, &call.ifname);
    match limit_egress(&mut route, call, &host, &name, bucket) {
        Ok(link) => result.interfaces.push(interface(&link, None)),
        Err(error) => {
            // The first error is the one to report; GC takes what could not be undone now.
            let _ = delete(call);
            return Err(error);
        }
    }
    Ok(result)
}

fn limit_egress(
    route: &mut Route,
    call: &Call,
    host: &Link,
    name: &str,
    bucket: Bucket,
) -> Result<Link, PluginError> {
    route.add_ifb(name, host.mtu).map_err(internal)?;
    let link = route.link(name).map_err(internal)?;
    let link = link.ok_or_else(|| wrong(format!("link {name} vanished")))?;
    route
        .set_alias(link.index, &alias(call)?)
        .map_err(internal)?;
    route.limit(link.index, bucket).map_err(internal)?;
    route.redirect(host.index, link.index).map_err(internal)?;
    Ok(link)
}

/// The queues of the pod's own link go with it.
fn delete(call: &Call) -> Result<(), PluginError> {
    let mut route = open_route()?;
    let name = ifb_name(&call.container_id, &call.ifname);
    match route.link(&name).map_err(internal)? {
        Some(link) => route.delete(link.index).map_err(internal),
        None => Ok(()),
    }
}

fn check(conf: &Conf, call: &Call, result: &AddResult) -> Result<(), PluginError> {
    let mut route = open_route()?;
    let mut limits = Vec::new();
    if let Some(bucket) = conf.ingress() {
        limits.push((host_end(&mut route, call, result)?, bucket));
    }
    if let Some(bucket) = conf.egress() {
        let name = ifb_name(&call.container_id, &call.ifname);
        let link = route.link(&name).map_err(internal)?;
        let link = link.ok_or_else(|| wrong(format!("link {name} is gone")))?;
        limits.push((link, bucket));
    }
    for (link, bucket) in limits {
        if route.limit_of(link.index).map_err(internal)? != Some(bucket) {
            return Err(wrong(format!(
                "link {} is not limited as it was",
                link.name
            )));
        }
    }
    Ok(())
}

fn collect(call: &Call) -> Result<(), PluginError> {
    let valid = valid_attachments(call)?;
    let ours = alias(call)?;
    let kept: Vec<String> = valid.iter().map(|(id, n)| ifb_name(id, n)).collect();
    let mut route = open_route()?;
    let mut outcome = Ok(());
    for link in route.links().map_err(internal)? {
        if link.kind == "ifb" && link.alias == ours && !kept.contains(&link.name) {
            outcome = outcome.and(route.delete(link.index).map_err(internal));
        }
    }
    outcome
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::path::Path;

    #[test]
    fn limits_come_from_the_configuration_or_the_runtime() {
        let mut call = Call::of_test(Path::new("/"), "ADD", json!({"name": "n"}));
        assert_eq!(Conf::of(&call).expect("none"), Conf::default());
        call.conf["runtimeConfig"] =
            json!({"bandwidth": {"ingressRate": 1000, "ingressBurst": 2000}});
        assert_eq!(Conf::of(&call).expect("one").ingress_rate, 1000);
        call.conf["egressRate"] = json!(3000);
        call.conf["egressBurst"] = json!(4000);
        let conf = Conf::of(&call).expect("one");
        assert_eq!((conf.ingress_rate, conf.egress_rate), (0, 3000));
        for (conf, problem) in [
            (json!({"egressRate": 1}), "field egressRate: needs a burst"),
            (
                json!({"ingressBurst": 1}),
                "field ingressRate: must be set when the burst is",
            ),
            (
                json!({"ingressRate": 1, "ingressBurst": 8_u64 << 32}),
                "field ingressRate: has a burst of 4 GiB or more",
            ),
            (
                json!({"runtimeConfig": {"bandwidth": {"egressRate": 1}}}),
                "field runtimeConfig.bandwidth.egressRate: needs a burst",
            ),
            (json!({"egressRate": -1}), "field egressRate: invalid value"),
        ] {
            call.conf = conf;
            let text = Conf::of(&call).expect_err("wrong").msg;
            assert!(text.starts_with(problem), "{text}\nwanted {problem}");
        }
    }

    #[test]
    fn an_ifb_is_never_taken_for_a_pods_link() {
        let name = ifb_name("c1", "eth0");
        assert!(
            name.len() <= 15 && !super::super::veth::is_host_name(&name),
            "{name}"
        );
    }
}
