// SPDX-License-Identifier: Apache-2.0
//! The plugin types that run in process. Each takes a [`Call`], as a foreign plugin would, and
//! returns the JSON that it would print.

mod bridge;
mod host_local;
mod loopback;
pub(crate) mod masquerade;
mod portmap;
pub(crate) mod table;

use serde_json::Value;

use crate::exec::{self, Call};
use crate::fields::{FieldError, Fields};
use crate::types::{AddResult, PluginError, code};

/// Names of the built-in plugins.
pub(crate) const NAMES: [&str; 4] = ["bridge", "host-local", "loopback", "portmap"];

/// Fields that every plugin's input may have, besides its own.
const COMMON: [&str; 9] = [
    "cniVersion",
    "cniVersions",
    "name",
    "type",
    "capabilities",
    "runtimeConfig",
    "prevResult",
    "cni.dev/attachments",
    "cni.dev/valid-attachments",
];

/// Run a plugin: in process when it is built in, else its executable.
pub(crate) fn run(plugin: &str, call: &Call) -> Result<Option<Value>, PluginError> {
    match plugin {
        "bridge" => bridge::run(call),
        "host-local" => host_local::run(call),
        "loopback" => loopback::run(call),
        "portmap" => portmap::run(call),
        foreign => exec::run(foreign, call, exec::DEADLINE),
    }
}

/// Check the configuration of a plugin, if it is built in. `path` is where it stands in its list.
pub(crate) fn check_conf(plugin: &str, path: &str, conf: Value) -> Result<(), FieldError> {
    match plugin {
        "bridge" => bridge::Conf::parse(path, conf).map(drop),
        "host-local" => Err(FieldError::new(
            format!("{path}.type"),
            "host-local gives addresses to other plugins: name it as their ipam.type",
        )),
        "loopback" => loopback::check_conf(path, conf),
        "portmap" => portmap::Conf::parse(path, conf).map(drop),
        _ => Ok(()),
    }
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

/// Open a plugin's input, without the fields that all share.
fn fields(path: &str, conf: Value) -> Result<Fields, FieldError> {
    let mut fields = Fields::new(path, conf)?;
    fields.ignore(&COMMON);
    Ok(fields)
}

/// What the plugins before this one have returned.
fn previous(call: &Call) -> Result<Option<AddResult>, PluginError> {
    match call.conf.get("prevResult") {
        None | Some(Value::Null) => Ok(None),
        Some(value) => serde_json::from_value(value.clone())
            .map(Some)
            .map_err(|e| PluginError::new(code::DECODING, format!("field prevResult: {e}"))),
    }
}

fn required_previous(call: &Call) -> Result<AddResult, PluginError> {
    previous(call)?
        .ok_or_else(|| PluginError::new(code::INVALID_CONFIG, "field prevResult: is missing"))
}

fn network_name(call: &Call) -> Result<&str, PluginError> {
    let name = call
        .conf
        .get("name")
        .and_then(Value::as_str)
        .unwrap_or_default();
    if crate::conf::is_name(name) {
        return Ok(name);
    }
    Err(PluginError::new(
        code::INVALID_CONFIG,
        format!("field name: {name:?} is not a network name"),
    ))
}

fn version(call: &Call) -> &str {
    call.conf
        .get("cniVersion")
        .and_then(Value::as_str)
        .unwrap_or("0.3.1")
}

/// (container id, interface name) of every attachment that GC must keep.
fn valid_attachments(call: &Call) -> Result<Vec<(String, String)>, PluginError> {
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct One {
        #[serde(rename = "containerID")]
        container_id: String,
        ifname: String,
    }
    let listed = call
        .conf
        .get("cni.dev/valid-attachments")
        .or_else(|| call.conf.get("cni.dev/attachments"))
        .cloned()
        .ok_or_else(|| {
            PluginError::new(
                code::INVALID_CONFIG,
                "field cni.dev/valid-attachments: is missing",
            )
        })?;
    let listed: Vec<One> = serde_json::from_value(listed).map_err(|e| {
        PluginError::new(
            code::DECODING,
            format!("field cni.dev/valid-attachments: {e}"),
        )
    })?;
    Ok(listed
        .into_iter()
        .map(|one| (one.container_id, one.ifname))
        .collect())
}

fn unknown_verb(call: &Call) -> PluginError {
    PluginError::new(
        code::INVALID_ENVIRONMENT,
        format!("CNI_COMMAND {:?} is not known", call.verb),
    )
}

/// Where a plugin's own extension stands in its configuration: an object of this name.
const EXTENSION: &str = "podwright";
/// The nftables table of a plugin that was not told one.
const DEFAULT_TABLE: &str = "podwright-cni";

/// A table name is part of nothing but netlink messages, but must fit nft's own syntax.
fn check_table(path: String, name: &str) -> Result<(), FieldError> {
    const LONGEST: usize = 64;
    if crate::conf::is_name(name) && name.len() <= LONGEST {
        return Ok(());
    }
    Err(FieldError::new(
        path,
        format!("{name:?} is not a name for an nftables table"),
    ))
}
