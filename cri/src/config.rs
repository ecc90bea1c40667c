// SPDX-License-Identifier: Apache-2.0
//! What the operator may say, as plain data. Defaults live in `podwright`.

use std::path::PathBuf;

use crate::paths::Paths;
use crate::settings::Live;

/// Everything that tells one runtime from another on the same machine.
#[derive(Debug, Clone)]
pub struct Config {
    /// The unix socket that CRI is served on.
    pub listen: PathBuf,
    /// The node's data directory; the runtime keeps to `<data_dir>/cri`.
    pub data_dir: PathBuf,
    /// The node's runtime directory; the runtime keeps to `<run_dir>/cri`.
    pub run_dir: PathBuf,
    /// The cgroup that all pods without a parent of their own go under, as `/podwright`.
    pub cgroup_parent: String,
    /// Where CNI configuration lists are read from.
    pub cni_conf_dir: PathBuf,
    /// Where CNI plugins that are not built in are found.
    pub cni_bin_dir: PathBuf,
    /// Directory of `<registry>/hosts.toml` files.
    pub registries_dir: PathBuf,
    /// Which pods the rules of NetworkPolicies know, when they are written in the same process. A
    /// kubelet's pod is waited for before its first container can be made.
    pub known: cni::Known,
    /// Everything else, which may change while the daemon runs.
    pub settings: Live,
}

impl Config {
    /// The network that this runtime attaches pods to, whether or not it runs.
    pub fn network(&self) -> cni::Network {
        let state = Paths::new(self).network();
        cni::Network::load(&self.cni_conf_dir, &self.cni_bin_dir, &state)
            .with_patience(self.settings.get().network.plugin_timeout)
    }
}
