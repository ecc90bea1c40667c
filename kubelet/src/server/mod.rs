// SPDX-License-Identifier: Apache-2.0
//! The node API on port 10250: pods, logs, exec, attach, port-forward, stats, metrics.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::node::{ImageClient, RuntimeClient};

/// Where and how to serve.
#[derive(Debug, Clone)]
pub struct ServerOptions {
    /// The Node object's name, for stats.
    pub node_name: String,
    /// Listen address of the node API.
    pub address: IpAddr,
    /// Its port; 0 takes a free one.
    pub port: u16,
    /// `127.0.0.1:<port>/healthz`; 0 turns it off.
    pub healthz_port: u16,
    /// Clients are verified against this CA. Without it every request but /healthz gets 401.
    pub client_ca_file: Option<PathBuf>,
    /// Serving certificate; without it a self-signed one is made in memory.
    pub tls_cert_file: Option<PathBuf>,
    /// Its key.
    pub tls_private_key_file: Option<PathBuf>,
    /// The filesystem that the stats report as the node's.
    pub data_dir: PathBuf,
}

/// The kubelet's pods, as the node API needs them. Both calls read memory only.
///
/// Containers and sandboxes are found through the runtime (labels `io.kubernetes.pod.uid` and
/// `io.kubernetes.container.name`), log files through `ContainerStatus.log_path`.
pub trait PodLookup: Send + Sync + 'static {
    /// Every pod of this node, with the newest status.
    fn pods(&self) -> Vec<Arc<Pod>>;
    /// One pod, with the newest status.
    fn pod(&self, namespace: &str, name: &str) -> Option<Arc<Pod>>;
}

/// Why the node API could not serve.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// Not done yet, by name.
    #[error("{0}")]
    Unsupported(String),
}

/// Serves until `stop`; `ready` gets the bound port.
///
/// # Errors
/// An address that cannot be bound, or certificates that cannot be read.
pub async fn run(
    _options: ServerOptions,
    _pods: Arc<dyn PodLookup>,
    _runtime: RuntimeClient,
    _images: ImageClient,
    _ready: oneshot::Sender<u16>,
    _stop: CancellationToken,
) -> Result<(), ServerError> {
    Err(ServerError::Unsupported(
        "the node api is not implemented yet".to_owned(),
    ))
}
