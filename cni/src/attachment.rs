// SPDX-License-Identifier: Apache-2.0
//! What is attached to a network, and what is asked for it.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::conf;

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

impl fmt::Display for PortMapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(ip) = self.host_ip {
            write!(f, "{ip} ")?;
        }
        let protocol = match self.protocol {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
            Protocol::Sctp => "sctp",
        };
        write!(f, "{}/{protocol}", self.host_port)
    }
}

/// A transport protocol with ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

impl Capabilities {
    pub(crate) fn as_map(&self) -> Map<String, Value> {
        let mut map = self.other.clone();
        if !self.port_mappings.is_empty() {
            let listed =
                serde_json::to_value(&self.port_mappings).expect("plain data always encodes");
            map.insert("portMappings".to_owned(), listed);
        }
        map
    }
}

impl Attachment {
    /// STATUS and GC are about no container.
    pub(crate) fn nobody() -> Attachment {
        Attachment {
            container_id: String::new(),
            netns: PathBuf::new(),
            ifname: String::new(),
            pod_name: String::new(),
            pod_namespace: String::new(),
            pod_uid: String::new(),
            capabilities: Capabilities::default(),
        }
    }

    pub(crate) fn check(&self) -> Result<(), String> {
        if !conf::is_name(&self.container_id) {
            return Err(format!("{:?} is not a container id", self.container_id));
        }
        check_ifname(&self.ifname)
    }

    /// Container id and interface name: what tells one attachment from another.
    pub(crate) fn key(&self) -> (String, String) {
        (self.container_id.clone(), self.ifname.clone())
    }

    /// `CNI_ARGS` as container runtimes set them for Kubernetes.
    pub(crate) fn args(&self) -> String {
        if self.container_id.is_empty() {
            return String::new();
        }
        format!(
            "IgnoreUnknown=1;K8S_POD_NAMESPACE={};K8S_POD_NAME={};K8S_POD_INFRA_CONTAINER_ID={};K8S_POD_UID={}",
            self.pod_namespace, self.pod_name, self.container_id, self.pod_uid
        )
    }
}

/// The rules of the kernel and of the specification for an interface name.
pub(crate) fn check_ifname(name: &str) -> Result<(), String> {
    const LONGEST: usize = 15;
    let bad = |c: char| c == '/' || c == ':' || c.is_whitespace();
    if name.is_empty() || name.len() > LONGEST || name == "." || name == ".." || name.contains(bad)
    {
        return Err(format!("{name:?} is not an interface name"));
    }
    Ok(())
}
