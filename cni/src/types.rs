// SPDX-License-Identifier: Apache-2.0
//! What plugins return, as the CNI specification 1.1 spells it (section 5, "Result types").
//!
//! Results of versions 0.3.1 to 1.1.0 differ only in fields that one side may leave out, and in
//! `ips[].version`, which 1.0 dropped; reading ignores it and writing adds it where it is due.

use std::net::IpAddr;

use serde::{Deserialize, Deserializer, Serialize};

use crate::cidr::Cidr;

/// The versions this crate speaks, oldest first.
pub const SUPPORTED_VERSIONS: [&str; 4] = ["0.3.1", "0.4.0", "1.0.0", NEWEST_VERSION];
/// The newest of them.
pub const NEWEST_VERSION: &str = "1.1.0";

/// The outcome of ADD: which interfaces a pod has, with which addresses and routes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct AddResult {
    /// Version of the specification this result is written in.
    pub cni_version: String,
    /// Every interface that was made, on the host and in the pod.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "or_default")]
    pub interfaces: Vec<Interface>,
    /// Addresses, each with the interface it sits on.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "or_default")]
    pub ips: Vec<IpConfig>,
    /// Routes in the pod.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "or_default")]
    pub routes: Vec<Route>,
    /// Name resolution, as the network wants it.
    #[serde(skip_serializing_if = "Dns::is_empty", deserialize_with = "or_default")]
    pub dns: Dns,
}

/// A plugin in Go may print null for what is empty.
fn or_default<'de, T: Default + Deserialize<'de>, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<T, D::Error> {
    Option::<T>::deserialize(deserializer).map(Option::unwrap_or_default)
}

impl AddResult {
    /// As JSON in the form of `version`: before 1.0 each address says its family (`"version": "4"`).
    pub fn to_json(&self, version: &str) -> serde_json::Value {
        let mut result = self.clone();
        result.cni_version = version.to_owned();
        if version != NEWEST_VERSION {
            result.drop_newest();
        }
        let mut json = serde_json::to_value(&result).expect("plain data always encodes");
        if version.starts_with("0.") {
            let ips = json.get_mut("ips").and_then(|ips| ips.as_array_mut());
            for ip in ips.into_iter().flatten() {
                let v6 = ip["address"].as_str().is_some_and(|a| a.contains(':'));
                ip["version"] = if v6 { "6" } else { "4" }.into();
            }
        }
        json
    }

    /// What came with 1.1, an older reader may take for a mistake.
    fn drop_newest(&mut self) {
        for interface in &mut self.interfaces {
            interface.mtu = None;
            interface.socket_path.clear();
            interface.pci_id.clear();
        }
        for route in &mut self.routes {
            *route = Route::new(route.dst, route.gw);
        }
    }
}

/// One network interface.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Hardware address, if it has one.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub mac: String,
    /// Largest packet (1.1).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// Path of the network namespace; empty on the host.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub sandbox: String,
    /// Socket file of the interface (1.1), for virtio-user and its like.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub socket_path: String,
    /// PCI device of the interface (1.1).
    #[serde(rename = "pciID", skip_serializing_if = "String::is_empty")]
    pub pci_id: String,
}

/// One address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpConfig {
    /// The address with the prefix length of its subnet.
    pub address: Cidr,
    /// The subnet's gateway.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
    /// Index into [`AddResult::interfaces`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<usize>,
}

/// One route.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// Where to.
    pub dst: Cidr,
    /// By way of; none: the gateway of the address of the same family.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gw: Option<IpAddr>,
    /// Largest packet on this route (1.1).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// Largest TCP segment to advertise (1.1).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advmss: Option<u32>,
    /// Metric; lower wins (1.1).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<u32>,
    /// Routing table (1.1).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table: Option<u32>,
    /// Scope (1.1).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<u8>,
}

impl Route {
    /// A route without metrics.
    pub fn new(dst: Cidr, gw: Option<IpAddr>) -> Route {
        Route {
            dst,
            gw,
            mtu: None,
            advmss: None,
            priority: None,
            table: None,
            scope: None,
        }
    }
}

/// Name resolution.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Dns {
    /// Name servers, by priority.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "or_default")]
    pub nameservers: Vec<String>,
    /// Local domain for short names.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub domain: String,
    /// Search domains.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "or_default")]
    pub search: Vec<String>,
    /// Resolver options.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "or_default")]
    pub options: Vec<String>,
}

impl Dns {
    /// Is nothing set?
    pub fn is_empty(&self) -> bool {
        *self == Dns::default()
    }
}

/// An error in the form of the protocol: plugins print it on stdout and exit with 1.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{msg}{}{details}", if details.is_empty() { "" } else { ": " })]
pub struct PluginError {
    /// Number, see [`code`].
    pub code: u32,
    /// Short text.
    #[serde(default)]
    pub msg: String,
    /// Longer text.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub details: String,
}

impl PluginError {
    /// Make one without details.
    pub fn new(code: u32, msg: impl Into<String>) -> PluginError {
        PluginError {
            code,
            msg: msg.into(),
            details: String::new(),
        }
    }

    /// Make one whose details are the chain of causes of `error`.
    pub fn from_error(code: u32, error: &dyn std::error::Error) -> PluginError {
        let mut details = Vec::new();
        let mut cause = error.source();
        while let Some(source) = cause {
            details.push(source.to_string());
            cause = source.source();
        }
        PluginError {
            code,
            msg: error.to_string(),
            details: details.join(": "),
        }
    }
}

/// Error numbers of the specification (section 5, "Error"), and those of the reference plugins.
pub mod code {
    /// The plugin does not speak this `cniVersion`.
    pub const INCOMPATIBLE_VERSION: u32 = 1;
    /// A field of the configuration is not supported; the message names it.
    pub const UNSUPPORTED_FIELD: u32 = 2;
    /// The container is unknown or does not exist.
    pub const UNKNOWN_CONTAINER: u32 = 3;
    /// An environment variable is missing or wrong; the message names it.
    pub const INVALID_ENVIRONMENT: u32 = 4;
    /// Input or output failed.
    pub const IO: u32 = 5;
    /// The input could not be decoded.
    pub const DECODING: u32 = 6;
    /// The network configuration is wrong.
    pub const INVALID_CONFIG: u32 = 7;
    /// A passing condition: try again later.
    pub const TRY_AGAIN: u32 = 11;
    /// STATUS: ADD cannot be served now.
    pub const NOT_AVAILABLE: u32 = 50;
    /// STATUS: ADD cannot be served, and pods that have a network may lose it.
    pub const LIMITED_CONNECTIVITY: u32 = 51;
    /// Anything else (the reference plugins' number for it).
    pub const INTERNAL: u32 = 999;
}
