// SPDX-License-Identifier: Apache-2.0
//! The plugin types that run in process. Each takes a [`Call`], as a foreign plugin would, and
//! returns the JSON that it would print.

mod bandwidth;
mod bridge;
mod firewall;
mod host_local;
mod input;
mod ipam;
mod loopback;
pub(crate) mod masquerade;
mod portmap;
mod ptp;
mod spoof;
mod static_ip;
pub(crate) mod table;
mod tuning;
mod verbs;
mod veth;

use serde_json::Value;

use crate::exec::{self, Call};
use crate::fields::{FieldError, Fields};
use crate::types::{PluginError, code};

/// Names of the built-in plugins.
pub(crate) const NAMES: [&str; 9] = [
    "bandwidth",
    "bridge",
    "firewall",
    "host-local",
    "loopback",
    "portmap",
    "ptp",
    "static",
    "tuning",
];

/// What a built-in plugin is asked, beside the protocol's own verbs: restore what is missing on the
/// host of an attachment that is there.
pub(crate) const REPAIR: &str = "REPAIR";

/// Run a plugin: in process when it is built in, else its executable.
pub(crate) fn run(plugin: &str, call: &Call) -> Result<Option<Value>, PluginError> {
    match plugin {
        "bandwidth" => bandwidth::run(call),
        "bridge" => bridge::run(call),
        "firewall" => firewall::run(call),
        "host-local" => host_local::run(call),
        "loopback" => loopback::run(call),
        "portmap" => portmap::run(call),
        "ptp" => ptp::run(call),
        "static" => static_ip::run(call),
        "tuning" => tuning::run(call),
        // The protocol doesn't have it, and what a foreign plugin has made is its own.
        _ if call.verb == REPAIR => Ok(None),
        foreign => exec::run(foreign, call),
    }
}

/// Check the configuration of a plugin, if it is built in. `path` is where it stands in its list.
pub(crate) fn check_conf(plugin: &str, path: &str, conf: Value) -> Result<(), FieldError> {
    match plugin {
        "bandwidth" => bandwidth::Conf::parse(path, conf).map(drop),
        "bridge" => bridge::Conf::parse(path, conf).map(drop),
        "firewall" => firewall::Conf::parse(path, conf).map(drop),
        "host-local" | "static" => Err(FieldError::new(
            Fields::child(path, "type"),
            format!("{plugin} gives addresses to other plugins: name it as their ipam.type"),
        )),
        "loopback" => loopback::check_conf(path, conf),
        "portmap" => portmap::Conf::parse(path, conf).map(drop),
        "ptp" => ptp::Conf::parse(path, conf).map(drop),
        "tuning" => tuning::Conf::parse(path, conf).map(drop),
        _ => Ok(()),
    }
}

/// What a plugin owns on the host for all of its attachments together.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Owned {
    /// Name of a bridge.
    pub(crate) bridge: Option<String>,
    /// Name of an nftables table.
    pub(crate) table: Option<String>,
}

/// What a plugin with this configuration owns; nothing of one that is not built in.
pub(crate) fn owned(plugin: &str, conf: Value) -> Owned {
    match plugin {
        "bridge" => bridge::Conf::parse("", conf).map(|conf| conf.owned()),
        "firewall" => firewall::Conf::parse("", conf).map(|conf| conf.owned()),
        "portmap" => portmap::Conf::parse("", conf).map(|conf| conf.owned()),
        "ptp" => ptp::Conf::parse("", conf).map(|conf| conf.owned()),
        _ => Ok(Owned::default()),
    }
    .unwrap_or_default()
}

impl From<FieldError> for PluginError {
    fn from(error: FieldError) -> PluginError {
        let code = if error.unsupported {
            code::UNSUPPORTED_FIELD
        } else {
            code::INVALID_CONFIG
        };
        PluginError::new(code, error.to_string())
    }
}

/// An error of the kernel or of the disk, with its causes.
fn internal(error: impl std::error::Error) -> PluginError {
    PluginError::from_error(code::INTERNAL, &error)
}

/// Something is not as it should be.
fn wrong(text: impl Into<String>) -> PluginError {
    PluginError::new(code::INTERNAL, text)
}

fn unknown_verb(call: &Call) -> PluginError {
    PluginError::new(
        code::INVALID_ENVIRONMENT,
        format!("CNI_COMMAND {:?} is not known", call.verb),
    )
}
