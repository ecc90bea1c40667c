// SPDX-License-Identifier: Apache-2.0
//! The pod network: one configuration list, and the operations on it.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::types::{AddResult, PluginError};

/// A pod's connection to the network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// The sandbox's id: `CNI_CONTAINERID`.
    pub container_id: String,
    /// File that holds the pod's network namespace. May be gone at DEL.
    pub netns: PathBuf,
    /// Name of the interface in the pod: `eth0`.
    pub ifname: String,
    /// Pod name, namespace and uid, for plugins that look at `CNI_ARGS`.
    pub pod_name: String,
    pub pod_namespace: String,
    pub pod_uid: String,
    /// What plugins may be asked for, if they declare that they can.
    #[serde(default)]
    pub capabilities: Capabilities,
}

/// Wishes that reach a plugin as `runtimeConfig`, when it lists the capability.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capabilities {
    /// `portMappings`: host ports of the pod's containers.
    #[serde(default)]
    pub port_mappings: Vec<PortMapping>,
    /// Any other capability by name, passed as it is (`bandwidth`, `dns`, `ips`, `mac` …).
    #[serde(default)]
    pub other: serde_json::Map<String, serde_json::Value>,
}

/// One host port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PortMapping {
    /// Port on the host, 1–65535.
    pub host_port: u16,
    /// Port in the pod, 1–65535.
    pub container_port: u16,
    /// Transport protocol.
    pub protocol: Protocol,
    /// Only on this address of the host; `None`: on all.
    #[serde(rename = "hostIP", default, skip_serializing_if = "Option::is_none")]
    pub host_ip: Option<IpAddr>,
}

/// A transport protocol with ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

/// Why an operation on the network failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration on disk cannot be used; the text names the file and the field.
    #[error("network configuration: {0}")]
    Config(String),
    /// A plugin failed.
    #[error("plugin {plugin} of network {network} failed at {verb}")]
    Plugin {
        /// Name of the network.
        network: String,
        /// Type of the plugin.
        plugin: String,
        /// `ADD`, `DEL` and so on.
        verb: &'static str,
        #[source]
        source: PluginError,
    },
    /// Reading or writing the state of attachments failed.
    #[error("{what} {path}")]
    State {
        /// What was attempted: "writing", "reading" …
        what: &'static str,
        /// On which file.
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    /// An argument of the caller breaks the rules of the specification.
    #[error("{0}")]
    Argument(String),
    /// The thread that did the work ended without an answer.
    #[error("the thread of a network operation died")]
    Died,
}

/// The pod network. Cheap to clone; all clones are the same network.
///
/// Operations on one attachment are the caller's to order; operations on different attachments
/// may run side by side. Once begun, an operation runs to its end even when its future is dropped.
#[derive(Debug, Clone)]
pub struct Network {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    conf_dir: PathBuf,
    bin_dir: PathBuf,
    state_dir: PathBuf,
}

impl Network {
    /// The network described in `conf_dir`. Reads nothing yet: [`Network::status`] says whether it
    /// can be used. Foreign plugins are looked for in `bin_dir`; what is attached is remembered in
    /// `state_dir` (leases too), which is made when it is needed.
    pub fn load(conf_dir: &Path, bin_dir: &Path, state_dir: &Path) -> Network {
        Network {
            inner: Arc::new(Inner {
                conf_dir: conf_dir.to_owned(),
                bin_dir: bin_dir.to_owned(),
                state_dir: state_dir.to_owned(),
            }),
        }
    }

    /// Can a pod be attached now? Reads the configuration, and asks every plugin (STATUS) when the
    /// configuration is 1.1 or later. The error's chain is fit for the `NetworkReady` message.
    pub async fn status(&self) -> Result<(), Error> {
        Err(self.unimplemented())
    }

    /// Attach a pod: every plugin in order. On error everything that was done is undone.
    pub async fn add(&self, _attachment: &Attachment) -> Result<AddResult, Error> {
        Err(self.unimplemented())
    }

    /// Is the pod still attached as [`Network::add`] left it?
    pub async fn check(&self, _attachment: &Attachment) -> Result<(), Error> {
        Err(self.unimplemented())
    }

    /// Detach a pod. Idempotent: succeeds when nothing is attached (any more), when the namespace
    /// is gone, and when the configuration has changed since (what was used at ADD is used again).
    pub async fn del(&self, _attachment: &Attachment) -> Result<(), Error> {
        Err(self.unimplemented())
    }

    /// Release everything that belongs to no attachment of `valid`: (container id, interface name).
    pub async fn gc(&self, _valid: &[(String, String)]) -> Result<(), Error> {
        Err(self.unimplemented())
    }

    fn unimplemented(&self) -> Error {
        Error::Config(format!(
            "not implemented yet ({}, {}, {})",
            self.inner.conf_dir.display(),
            self.inner.bin_dir.display(),
            self.inner.state_dir.display()
        ))
    }
}
