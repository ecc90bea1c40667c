// SPDX-License-Identifier: Apache-2.0
//! `loopback`: sets `lo` of the pod up.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde_json::Value;

use super::input::{fields, previous, version};
use super::{REPAIR, internal, unknown_verb};
use crate::cidr::Cidr;
use crate::exec::Call;
use crate::fields::FieldError;
use crate::link::Route;
use crate::netns;
use crate::types::{AddResult, Interface, IpConfig, PluginError, code};

pub(super) fn check_conf(path: &str, conf: Value) -> Result<(), FieldError> {
    fields(path, conf)?.finish()
}

pub(super) fn run(call: &Call) -> Result<Option<Value>, PluginError> {
    check_conf("", call.conf.clone())?;
    match call.verb {
        "ADD" => add(call).map(Some),
        "CHECK" => check(call).map(|()| None),
        // Going down with the namespace is all there is to it.
        "DEL" | "GC" | "STATUS" | REPAIR => Ok(None),
        _ => Err(unknown_verb(call)),
    }
}

fn add(call: &Call) -> Result<Value, PluginError> {
    netns::run(&call.netns, crate::link::loopback_up)
        .map_err(internal)?
        .map_err(internal)?;
    let result = previous(call)?.unwrap_or_else(|| own_result(call));
    Ok(result.to_json(version(call)))
}

fn own_result(call: &Call) -> AddResult {
    let ip = |addr: IpAddr, prefix| IpConfig {
        address: Cidr::new(addr, prefix).expect("a constant"),
        gateway: None,
        interface: Some(0),
    };
    AddResult {
        interfaces: vec![Interface {
            name: "lo".to_owned(),
            mac: "00:00:00:00:00:00".to_owned(),
            sandbox: call.netns.display().to_string(),
            ..Interface::default()
        }],
        ips: vec![
            ip(Ipv4Addr::LOCALHOST.into(), 8),
            ip(Ipv6Addr::LOCALHOST.into(), 128),
        ],
        ..AddResult::default()
    }
}

fn check(call: &Call) -> Result<(), PluginError> {
    let link = netns::run(&call.netns, || {
        Route::open().map(|mut route| route.link("lo"))
    })
    .map_err(internal)?
    .map_err(internal)?
    .map_err(internal)?;
    match link {
        Some(link) if link.up => Ok(()),
        _ => Err(PluginError::new(
            code::INTERNAL,
            "the loopback interface is down",
        )),
    }
}
