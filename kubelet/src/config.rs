// SPDX-License-Identifier: Apache-2.0
//! What the operator may say. Plain data: the command line fills it, nothing here has a path or a
//! name of its own. Field names are those of KubeletConfiguration (kubelet.config.k8s.io/v1beta1)
//! where it has the field.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use k8s_openapi::api::core::v1::Taint;

use crate::node::Thresholds;

/// Everything one kubelet needs to know.
#[derive(Debug, Clone)]
pub struct Config {
    /// Credentials of the API server. `None`: static pods only.
    pub kubeconfig: Option<PathBuf>,
    /// The runtime's socket: a path or `unix:///path`.
    pub container_runtime_endpoint: String,
    /// A directory of manifests, or one manifest file (upstream's `staticPodPath`).
    pub pod_manifest_path: Option<PathBuf>,
    /// The name this node has in the API.
    pub node_name: String,
    /// Addresses of this node, primary first.
    pub node_ips: Vec<IpAddr>,
    /// Labels set at registration.
    pub node_labels: BTreeMap<String, String>,
    /// Taints set at registration.
    pub register_with_taints: Vec<Taint>,
    /// The node's data directory; the kubelet keeps to `<data_dir>/kubelet`.
    pub data_dir: PathBuf,
    /// The node's runtime directory; the kubelet keeps to `<run_dir>/kubelet`.
    pub run_dir: PathBuf,
    /// Container logs: `<pod_logs_dir>/<namespace>_<name>_<uid>/<container>/<attempt>.log`.
    pub pod_logs_dir: PathBuf,
    /// The cgroup below which `kubepods` is made by the runtime.
    pub cgroup_parent: String,
    /// DNS servers of `dnsPolicy: ClusterFirst`.
    pub cluster_dns: Vec<IpAddr>,
    /// The cluster's DNS domain, such as `cluster.local`; may be empty.
    pub cluster_domain: String,
    /// The resolver configuration that `dnsPolicy: Default` copies.
    pub resolv_conf: PathBuf,
    /// Where the node API listens.
    pub address: IpAddr,
    /// The node API's port; 0 lets the kernel choose.
    pub port: u16,
    /// Plain HTTP `/healthz` on 127.0.0.1; 0 turns it off.
    pub healthz_port: u16,
    /// Signs the clients that the node API lets in.
    pub client_ca_file: Option<PathBuf>,
    /// The node API's certificate; without one the node API is not served.
    pub tls_cert_file: Option<PathBuf>,
    /// The key of `tls_cert_file`.
    pub tls_private_key_file: Option<PathBuf>,
    /// Pods this node admits.
    pub max_pods: u32,
    /// Sysctls outside the safe set that pods may use; a trailing `*` matches a prefix.
    pub allowed_unsafe_sysctls: BTreeSet<String>,
    /// Write the Node object (upstream's `registerNode`).
    pub register_node: bool,
    /// Periods and deadlines.
    pub periods: Periods,
    /// Below what the node is under pressure.
    pub eviction_hard: Thresholds,
    /// Ids of pods with `hostUsers: false`.
    pub user_namespaces: UserNamespaceSettings,
}

/// Which ids pods with user namespaces of their own get.
#[derive(Debug, Clone)]
pub struct UserNamespaceSettings {
    /// Ids per pod, a multiple of 65536 (`userNamespaces.idsPerPod`).
    pub ids_per_pod: u32,
    /// subuid(5): what the user `kubelet` may give away. Without a line of that user the pods get
    /// the ids from 65536 on.
    pub subuid_file: PathBuf,
    /// subgid(5); it has to say the same.
    pub subgid_file: PathBuf,
    /// passwd(5), for lines that name the user by number.
    pub passwd_file: PathBuf,
}

/// Periods and deadlines; [`Periods::default`] is what upstream ships.
#[derive(Debug, Clone)]
pub struct Periods {
    /// A pod is looked at again at least this often.
    pub sync_frequency: Duration,
    /// The manifest directory is read again at least this often, inotify or not.
    pub file_check_frequency: Duration,
    /// Deadline of every runtime call that has no better one.
    pub runtime_request_timeout: Duration,
    /// Longest wait between two starts of a crashing container.
    pub max_container_restart_period: Duration,
    /// The runtime is listed this often while its event stream works.
    pub relist_with_events: Duration,
    /// The runtime is listed this often when it has no event stream.
    pub relist_without_events: Duration,
    /// Node status is computed and written this often.
    pub node_status_update_frequency: Duration,
    /// Duration written into the node's Lease; it is renewed four times as often.
    pub node_lease_duration: Duration,
}

impl Default for Periods {
    fn default() -> Self {
        Periods {
            sync_frequency: Duration::from_secs(60),
            file_check_frequency: Duration::from_secs(20),
            runtime_request_timeout: Duration::from_secs(120),
            max_container_restart_period: Duration::from_secs(300),
            relist_with_events: Duration::from_secs(10),
            relist_without_events: Duration::from_secs(1),
            node_status_update_frequency: Duration::from_secs(10),
            node_lease_duration: Duration::from_secs(40),
        }
    }
}

impl Config {
    /// `<data_dir>/kubelet`.
    pub fn root_dir(&self) -> PathBuf {
        self.data_dir.join("kubelet")
    }
}
