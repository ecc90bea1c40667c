// SPDX-License-Identifier: Apache-2.0
//! This node in the API: registration, status, conditions, images and the lease.
//!
//! [`status`] and [`pressure`] compute from plain data; [`machine`] reads the kernel;
//! [`register`] and [`lease`] write to the API. [`run`] owns two loops, status and lease, and
//! ends when both have.

mod backoff;
mod lease;
mod machine;
mod pressure;
mod register;
mod status;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, NodeStatus, ObjectReference, Taint};
use kube::{Api, Client};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

use crate::cri_v1;
use crate::ports::{EventType, Events};
use backoff::Backoff;
use machine::Machine;
pub(crate) use machine::{Filesystem, Room};
use pressure::Memory;
pub use pressure::{ThresholdError, Thresholds};
use status::{Inputs, RuntimeView};

/// While the node is not ready the runtime is asked this often, so that Ready follows within
/// a moment of the runtime being up.
const IMPATIENT: Duration = Duration::from_millis(250);
/// While it is ready, this often (upstream asks every 5 s).
const PATIENT: Duration = Duration::from_secs(5);
/// How long the runtime may take to say how it is.
const RUNTIME_DEADLINE: Duration = Duration::from_secs(10);

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
    /// Below what the node is under pressure.
    pub eviction_hard: Thresholds,
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

/// Why the node could not be measured.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The kernel's files can't be read.
    #[error("reading {path}")]
    Machine {
        /// Which one.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Measures this machine. Cheap; blocks for a few file reads.
///
/// # Errors
/// `/proc` or the data directory cannot be read.
pub fn facts(options: &NodeOptions) -> Result<NodeFacts, NodeError> {
    let machine = Machine::read(Path::new("/"), &options.data_dir)?;
    Ok(status::facts(options, &machine))
}

/// The runtime's client, as generated from the CRI contract.
pub type RuntimeClient = cri_v1::runtime_service_client::RuntimeServiceClient<Channel>;
/// The image service's client.
pub type ImageClient = cri_v1::image_service_client::ImageServiceClient<Channel>;

/// Registers the node and keeps its status and lease fresh until `stop`. Everything that can
/// fail is retried with back-off and logged. Dropping it is safe at any moment.
///
/// # Errors
/// The machine cannot be measured at all.
pub async fn run(
    options: NodeOptions,
    client: Client,
    runtime: RuntimeClient,
    images: ImageClient,
    events: Arc<dyn Events>,
    stop: CancellationToken,
) -> Result<(), NodeError> {
    let machine = Machine::read(Path::new("/"), &options.data_dir)?;
    let mut reporter = Reporter {
        nodes: Api::all(client.clone()),
        options,
        machine,
        runtime,
        images,
        events,
        view: RuntimeView::default(),
        pressure: Memory::default(),
        known: None,
        last_seen: Instant::now(),
        sent: None,
        last_sent: None,
    };
    let Some(node) = reporter.register(&stop).await else {
        return Ok(());
    };
    reporter.event("Starting", "Starting kubelet.".to_owned());
    let name = reporter.options.name.clone();
    let uid = node.metadata.uid.clone().unwrap_or_default();
    let duration = reporter.options.lease_duration;
    let lease = lease::run(client, name, uid, duration, stop.clone());
    tokio::join!(lease, reporter.report(&stop));
    Ok(())
}

/// Owns the status: nobody else writes the conditions that it writes.
struct Reporter {
    nodes: Api<Node>,
    options: NodeOptions,
    machine: Machine,
    runtime: RuntimeClient,
    images: ImageClient,
    events: Arc<dyn Events>,
    view: RuntimeView,
    pressure: Memory,
    /// The status as the API last returned it.
    known: Option<NodeStatus>,
    /// When the API last returned the node.
    last_seen: Instant,
    /// The status as it was last sent.
    sent: Option<NodeStatus>,
    last_sent: Option<Instant>,
}

impl Reporter {
    /// Tries until the Node is there; `None` when stopped before.
    async fn register(&mut self, stop: &CancellationToken) -> Option<Node> {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(7));
        loop {
            self.look().await;
            let status = self.compute().await;
            let wanted = status::initial_node(&self.options, &self.machine, status);
            let attempt = tokio::select! {
                () = stop.cancelled() => return None,
                attempt = register::ensure(&self.nodes, &wanted) => attempt,
            };
            let error = match attempt {
                Ok(node) => {
                    self.known = node.status.clone();
                    return Some(node);
                }
                Err(error) => error,
            };
            tracing::warn!(
                node = self.options.name,
                error = &error as &dyn std::error::Error,
                "node not registered"
            );
            tokio::select! {
                () = stop.cancelled() => return None,
                () = tokio::time::sleep(backoff.next()) => {}
            }
        }
    }

    /// Looks, and sends when something changed or the last report is old.
    async fn report(&mut self, stop: &CancellationToken) {
        let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(7));
        while !stop.is_cancelled() {
            self.look().await;
            let wanted = self.compute().await;
            let ready = status::is_true(&wanted, "Ready");
            let calm = PATIENT.min(self.options.status_update_frequency);
            let mut wait = if ready { calm } else { IMPATIENT };
            let mut result = self.look_back(stop).await;
            if result.is_ok() && self.is_due(&wanted) {
                result = self.send(&wanted).await;
            }
            match result {
                Ok(()) => backoff.reset(),
                Err(error) => {
                    tracing::warn!(
                        node = self.options.name,
                        error = &error as &dyn std::error::Error,
                        "node status not written"
                    );
                    wait = backoff.next();
                }
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    fn is_due(&self, wanted: &NodeStatus) -> bool {
        let frequency = self.options.status_report_frequency;
        let overdue = self.last_sent.is_none_or(|at| at.elapsed() >= frequency);
        let known = self.known.as_ref();
        overdue
            || !self
                .sent
                .as_ref()
                .is_some_and(|sent| status::same(sent, wanted))
            || !known.is_some_and(|known| status::same_conditions(known, wanted))
    }

    async fn send(&mut self, wanted: &NodeStatus) -> Result<(), kube::Error> {
        let name = self.options.name.clone();
        let known = self.known.as_ref();
        let patched = register::patch_status(&self.nodes, &name, known, wanted).await?;
        self.known = patched.status;
        let before = self.sent.replace(wanted.clone());
        self.last_sent = Some(Instant::now());
        self.last_seen = Instant::now();
        self.announce(before.as_ref(), wanted);
        Ok(())
    }

    /// Reads the node back now and then. The controller that watches leases may have called it
    /// unknown while the API server was away, and somebody may have deleted it.
    async fn look_back(&mut self, stop: &CancellationToken) -> Result<(), kube::Error> {
        if self.last_seen.elapsed() < self.options.status_update_frequency {
            return Ok(());
        }
        self.last_seen = Instant::now();
        match lease::within(self.nodes.get_opt(&self.options.name)).await? {
            Some(node) => self.known = node.status,
            None => {
                tracing::warn!(
                    node = self.options.name,
                    "the node was deleted, registering it again"
                );
                self.sent = None;
                self.register(stop).await;
            }
        }
        Ok(())
    }

    /// Asks the runtime how it is. No answer is an answer.
    async fn look(&mut self) {
        let mut client = self.runtime.clone();
        let asked = client.status(cri_v1::StatusRequest { verbose: false });
        self.view.status = answer("Status", asked).await;
        if self.view.status.is_none() {
            return;
        }
        self.view.seen_before = true;
        let asked = client.version(cri_v1::VersionRequest::default());
        // The last known version stays when the runtime is busy.
        if let Some(version) = answer("Version", asked).await {
            self.view.version = Some(version);
        }
        let mut images = self.images.clone();
        let asked = images.list_images(cri_v1::ListImagesRequest::default());
        if let Some(list) = answer("ListImages", asked).await {
            self.view.images = list.images;
        }
    }

    /// The status as it should be now.
    async fn compute(&mut self) -> NodeStatus {
        let now = Timestamp::now();
        let image_dir = self.image_dir().await;
        let measured = Room::measure(Path::new("/"), &self.options.data_dir, image_dir.as_deref());
        let pressure = match measured {
            Ok(room) => self
                .pressure
                .observe(&room, &self.options.eviction_hard, now),
            Err(error) => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "node not measured"
                );
                pressure::Pressure::default()
            }
        };
        let conditions = self.known.as_ref().and_then(|s| s.conditions.as_deref());
        status::status(&Inputs {
            options: &self.options,
            machine: &self.machine,
            runtime: &self.view,
            pressure,
            previous: conditions.unwrap_or_default(),
            now,
        })
    }

    async fn image_dir(&mut self) -> Option<PathBuf> {
        self.view.status.as_ref()?;
        let mut images = self.images.clone();
        let asked = images.image_fs_info(cri_v1::ImageFsInfoRequest::default());
        let info = answer("ImageFsInfo", asked).await?;
        let first = info.image_filesystems.into_iter().next()?;
        Some(PathBuf::from(first.fs_id?.mountpoint))
    }

    /// Events for what changed; for everything at the first report.
    fn announce(&self, before: Option<&NodeStatus>, now: &NodeStatus) {
        const NAMES: [(&str, &str, &str); 4] = [
            (
                "MemoryPressure",
                "NodeHasInsufficientMemory",
                "NodeHasSufficientMemory",
            ),
            (
                "DiskPressure",
                "NodeHasDiskPressure",
                "NodeHasNoDiskPressure",
            ),
            (
                "PIDPressure",
                "NodeHasInsufficientPID",
                "NodeHasSufficientPID",
            ),
            ("Ready", "NodeReady", "NodeNotReady"),
        ];
        for (type_, when_true, when_false) in NAMES {
            let holds = status::is_true(now, type_);
            if before.is_none_or(|before| status::is_true(before, type_) != holds) {
                let reason = if holds { when_true } else { when_false };
                let text = format!("Node {} status is now: {reason}", self.options.name);
                self.event(reason, text);
            }
        }
    }

    fn event(&self, reason: &str, message: String) {
        // Upstream's kubelet puts the name into the uid, and describe searches for that.
        let about = ObjectReference {
            kind: Some("Node".to_owned()),
            name: Some(self.options.name.clone()),
            uid: Some(self.options.name.clone()),
            ..ObjectReference::default()
        };
        self.events
            .record(about, EventType::Normal, reason, message);
    }
}

async fn answer<T>(
    call: &'static str,
    request: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
) -> Option<T> {
    match tokio::time::timeout(RUNTIME_DEADLINE, request).await {
        Ok(Ok(response)) => Some(response.into_inner()),
        Ok(Err(status)) => {
            tracing::debug!(call, %status, "the runtime did not answer");
            None
        }
        Err(_) => {
            tracing::warn!(call, "the runtime did not answer in time");
            None
        }
    }
}
