// SPDX-License-Identifier: Apache-2.0
//! What the operator may say, as plain data. Defaults live in `podwright`.

use std::net::SocketAddr;
use std::path::PathBuf;

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
    /// Where exec, attach and port-forward are served; port 0 picks a free one.
    pub streaming_address: SocketAddr,
}
