// SPDX-License-Identifier: Apache-2.0
//! This node in the API: registration, status, conditions, images and the lease.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use k8s_openapi::api::core::v1::Taint;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

/// What the operator says about the node.
#[derive(Debug, Clone)]
pub struct NodeOptions {
    /// The Node object's name.
    pub name: String,
    /// Internal addresses, the first one is the main one.
    pub ips: Vec<IpAddr>,
    /// Extra labels of the operator.
    pub labels: BTreeMap<String, String>,
    /// Taints set when the node is first registered (`registerWithTaints`).
    pub taints: Vec<Taint>,
    /// Capacity in pods.
    pub max_pods: u32,
    /// Where the node API listens, for `daemonEndpoints`.
    pub port: u16,
    /// The filesystem behind `ephemeral-storage` and DiskPressure.
    pub data_dir: PathBuf,
    /// How often status is computed, and sent when it changed (10 s).
    pub status_update_frequency: Duration,
    /// How often an unchanged status is sent (5 min).
    pub status_report_frequency: Duration,
    /// Lease duration (40 s); renewed every quarter of it.
    pub lease_duration: Duration,
}

/// What environment and volumes need to know about the node.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NodeFacts {
    /// The Node object's name.
    pub name: String,
    /// Internal addresses.
    pub ips: Vec<IpAddr>,
    /// Allocatable CPU in thousandths of a core.
    pub allocatable_cpu_millis: i64,
    /// Allocatable memory in bytes.
    pub allocatable_memory_bytes: i64,
    /// Allocatable ephemeral storage in bytes.
    pub allocatable_storage_bytes: i64,
}

/// Why the node could not be measured or reported.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// Not done yet, by name.
    #[error("{0}")]
    Unsupported(String),
}

/// Measures this machine. Cheap; blocks for a few file reads.
///
/// # Errors
/// `/proc` or the data directory cannot be read.
pub fn facts(_options: &NodeOptions) -> Result<NodeFacts, NodeError> {
    Err(NodeError::Unsupported(
        "node facts are not implemented yet".to_owned(),
    ))
}

/// The runtime's client, as generated from the CRI contract.
pub type RuntimeClient = crate::cri_v1::runtime_service_client::RuntimeServiceClient<Channel>;
/// The image service's client.
pub type ImageClient = crate::cri_v1::image_service_client::ImageServiceClient<Channel>;

/// Registers the node and keeps its status and lease fresh until `stop`.
///
/// # Errors
/// Only what cannot be retried; everything else is retried with back-off and logged.
pub async fn run(
    _options: NodeOptions,
    _client: kube::Client,
    _runtime: RuntimeClient,
    _images: ImageClient,
    _stop: CancellationToken,
) -> Result<(), NodeError> {
    Err(NodeError::Unsupported(
        "the node is not implemented yet".to_owned(),
    ))
}
