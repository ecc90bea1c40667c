// SPDX-License-Identifier: Apache-2.0
//! What the operator may say about the control plane, already checked by whoever fills it in.
//!
//! Nothing here has a default: defaults are a matter of the program that wires the parts together.

use std::{collections::BTreeSet, net::IpAddr, path::PathBuf};

use crate::controllers::NodePrefixes;

/// Name in [`Config::disable`] that keeps the scheduler from being started.
pub const SCHEDULER: &str = "scheduler";
/// Name in [`Config::disable`] that keeps every controller from being started.
pub const CONTROLLERS: &str = "controllers";

/// The control plane's configuration.
#[derive(Debug, Clone)]
pub struct Config {
    /// Root of everything durable. The control plane uses `<data_dir>/server` below it.
    pub data_dir: PathBuf,
    /// Address that the HTTPS listener binds.
    pub bind_address: IpAddr,
    /// Port of the HTTPS listener. 0 lets the kernel choose; the kubeconfig then names the choice.
    pub https_listen_port: u16,
    /// Address under which nodes and pods reach the API server.
    pub advertise_address: IpAddr,
    /// Address ranges of pods, for the node address controller: one, or one of each family
    /// separated by a comma.
    pub cluster_cidr: String,
    /// How much of them each node gets.
    pub node_prefixes: NodePrefixes,
    /// Address ranges of Service cluster addresses: one, or one of each family separated by a comma.
    /// The first is that of Services that do not say what they want.
    pub service_cidr: String,
    /// Addresses that nodes serve cluster DNS on, for the Service `kube-system/kube-dns`: one, or one
    /// of each family. None: it is left to somebody else to make.
    pub cluster_dns: Vec<IpAddr>,
    /// DNS domain of the cluster; part of the serving certificate's names.
    pub cluster_domain: String,
    /// More names or addresses for the serving certificate.
    pub tls_san: Vec<String>,
    /// Where to write a second copy of the admin kubeconfig.
    pub write_kubeconfig: Option<PathBuf>,
    /// Parts that must not be started: `scheduler`, `controllers`, or the name of one controller.
    /// Other names are other components' and mean nothing here.
    pub disable: BTreeSet<String>,
    /// Version of the program, appended to the Kubernetes version in `/version`.
    pub server_version: String,
}

impl Config {
    /// Folder of everything that the control plane keeps.
    pub fn server_dir(&self) -> PathBuf {
        self.data_dir.join("server")
    }

    /// Where the admin kubeconfig is written.
    pub fn kubeconfig_path(&self) -> PathBuf {
        self.server_dir().join("kubeconfig.yaml")
    }
}
