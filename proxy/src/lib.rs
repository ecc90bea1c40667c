// SPDX-License-Identifier: Apache-2.0
//! Services become nftables maps: the service proxy of a node.

use std::net::IpAddr;
use std::path::PathBuf;

use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

/// What the proxy of one node must know.
#[derive(Debug, Clone)]
pub struct Config {
    /// Credentials for the API server.
    pub kubeconfig: PathBuf,
    /// Name of this node.
    pub node_name: String,
    /// Addresses of this node that answer on NodePorts.
    pub node_ips: Vec<IpAddr>,
    /// Addresses of all pods, as CIDRs separated by commas; what comes from elsewhere is masqueraded.
    pub cluster_cidr: String,
    /// Name of the nftables table; the proxy owns it alone.
    pub nft_table: String,
    /// Bridge of this node's pods.
    pub bridge: String,
}

/// Why the proxy ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not done yet.
    #[error("the service proxy is not implemented yet")]
    Unimplemented,
}

/// Run until `stop`. The rules stay in place at the end, so that Services work through a restart.
pub async fn run(
    _config: Config,
    _ready: oneshot::Sender<()>,
    _stop: CancellationToken,
) -> Result<(), Error> {
    Err(Error::Unimplemented)
}

/// Remove every rule of the proxy from this network namespace. Idempotent.
pub fn cleanup(_config: &Config) -> Result<(), Error> {
    Err(Error::Unimplemented)
}
