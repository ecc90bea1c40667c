// SPDX-License-Identifier: Apache-2.0
//! A pod sandbox: its durable record, its states, and what CRI shows of it.

pub(crate) mod apparmor;
pub(crate) mod bandwidth;
pub(crate) mod cgroup;
pub(crate) mod dns;
pub(crate) mod network;
pub(crate) mod security;
pub(crate) mod sysctl;
pub(crate) mod userns;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::record::{Subject, Wire};
use crate::v1;

/// Where a sandbox is in its life. Only forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Phase {
    /// Being made. Found after a crash, it is taken apart: nobody was told its id.
    Creating,
    /// Its namespaces stand, containers may be created.
    Ready,
    /// Stopped, or its sandbox process died. Its network is or is being taken apart.
    Stopped,
}

/// Everything that must outlive the daemon.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct SandboxRecord {
    pub(crate) id: String,
    /// The reserved name, see [`crate::ids::sandbox_name`].
    pub(crate) name: String,
    pub(crate) phase: Phase,
    /// Nanoseconds since the epoch.
    pub(crate) created_at: i64,
    /// As the client sent it.
    pub(crate) config: Wire<v1::PodSandboxConfig>,
    pub(crate) runtime_handler: String,
    /// The pod's cgroup, made for this sandbox and removed with the last sandbox in it.
    pub(crate) cgroup: String,
    /// Whether that cgroup was not there before, so that its limits are this runtime's to keep. One
    /// that a kubelet made is the kubelet's.
    #[serde(default)]
    pub(crate) cgroup_is_ours: bool,
    /// The file that holds the network namespace; none with the host's network.
    pub(crate) netns: Option<PathBuf>,
    /// Addresses, the first one is the pod's IP.
    #[serde(default)]
    pub(crate) ips: Vec<String>,
    /// The sandbox process, while there is one.
    #[serde(default)]
    pub(crate) pid: Option<u32>,
    /// The network was taken down; CNI DEL has nothing left to do.
    #[serde(default)]
    pub(crate) network_released: bool,
}

impl Subject for SandboxRecord {
    /// A sandbox that ended with the machine is as good as one that ended before.
    fn has_ended(&self) -> bool {
        false
    }
}

/// A label that kubelets give, and an annotation of those pods that they have read from files.
const POD_UID: &str = "io.kubernetes.pod.uid";
const CONFIG_SOURCE: &str = "kubernetes.io/config.source";

impl SandboxRecord {
    /// Is it a kubelet's pod that the API server told it of? Then it tells others, too.
    pub(crate) fn is_of_the_api(&self) -> bool {
        let source = self.config.0.annotations.get(CONFIG_SOURCE);
        self.config.0.labels.contains_key(POD_UID) && source.is_none_or(|source| source == "api")
    }

    /// The state as CRI names it.
    pub(crate) fn state(&self) -> v1::PodSandboxState {
        match self.phase {
            Phase::Ready => v1::PodSandboxState::SandboxReady,
            Phase::Creating | Phase::Stopped => v1::PodSandboxState::SandboxNotready,
        }
    }

    /// The namespaces that the pod asked for.
    pub(crate) fn namespaces(&self) -> v1::NamespaceOption {
        namespaces(&self.config.0)
    }

    /// The list entry.
    pub(crate) fn item(&self) -> v1::PodSandbox {
        let config = &self.config.0;
        v1::PodSandbox {
            id: self.id.clone(),
            metadata: config.metadata.clone(),
            state: self.state() as i32,
            created_at: self.created_at,
            labels: config.labels.clone(),
            annotations: config.annotations.clone(),
            runtime_handler: self.runtime_handler.clone(),
        }
    }

    /// The full status.
    pub(crate) fn status(&self) -> v1::PodSandboxStatus {
        let config = &self.config.0;
        let ips = if self.phase == Phase::Ready {
            self.ips.as_slice()
        } else {
            &[]
        };
        let (first, rest) = ips
            .split_first()
            .map_or((None, &[][..]), |(f, r)| (Some(f), r));
        v1::PodSandboxStatus {
            id: self.id.clone(),
            metadata: config.metadata.clone(),
            state: self.state() as i32,
            created_at: self.created_at,
            network: Some(v1::PodSandboxNetworkStatus {
                ip: first.cloned().unwrap_or_default(),
                additional_ips: rest.iter().map(|ip| v1::PodIp { ip: ip.clone() }).collect(),
            }),
            linux: Some(v1::LinuxPodSandboxStatus {
                namespaces: Some(v1::Namespace {
                    options: Some(self.namespaces()),
                }),
            }),
            labels: config.labels.clone(),
            annotations: config.annotations.clone(),
            runtime_handler: self.runtime_handler.clone(),
        }
    }
}

/// The namespaces that a pod asks for; the proto's defaults when it says nothing.
pub(crate) fn namespaces(config: &v1::PodSandboxConfig) -> v1::NamespaceOption {
    security_context(config)
        .namespace_options
        .unwrap_or_default()
}

/// The sandbox's security context; all defaults when it says nothing.
pub(crate) fn security_context(config: &v1::PodSandboxConfig) -> v1::LinuxSandboxSecurityContext {
    config
        .linux
        .as_ref()
        .and_then(|l| l.security_context.clone())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(phase: Phase) -> SandboxRecord {
        SandboxRecord {
            id: "s".into(),
            name: "n".into(),
            phase,
            created_at: 1,
            config: Wire::default(),
            runtime_handler: String::new(),
            cgroup: "/p".into(),
            cgroup_is_ours: false,
            netns: None,
            ips: vec!["10.0.0.2".into(), "fd00::2".into()],
            pid: None,
            network_released: false,
        }
    }

    #[test]
    fn a_ready_sandbox_shows_its_addresses_and_a_stopped_one_none() {
        let network = record(Phase::Ready).status().network.unwrap();
        assert_eq!(network.ip, "10.0.0.2");
        assert_eq!(network.additional_ips[0].ip, "fd00::2");
        let stopped = record(Phase::Stopped).status();
        assert_eq!(stopped.network.unwrap().ip, "");
        assert_eq!(stopped.state, v1::PodSandboxState::SandboxNotready as i32);
    }
}
