// SPDX-License-Identifier: Apache-2.0
//! The daemon's state and the ports it acts through: one value that every request shares.
//!
//! Who owns which task: [`Runtime::detached`] runs a request's work in `tasks`, so that a client that
//! hangs up does not stop it halfway; each sandbox has one watcher task (see [`crate::watcher`]).
//! All of them are awaited at shutdown.

use std::future::Future;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::sync::RwLock;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::cgroup::{CgroupPath, Manager};
use crate::container::ContainerRecord;
use crate::disk_usage::DiskUsage;
use crate::durable::Durable;
use crate::events::{Announced, Events};
use crate::fault::{Fault, Kind, Result};
use crate::image::ImageStore;
use crate::names::Names;
use crate::nri::{Nri, Told, told_of};
use crate::paths::Paths;
use crate::sandbox::SandboxRecord;
use crate::settings::CgroupDriver;
use crate::shim_client::{Programs, Shim};
use crate::streaming::Tokens;
use crate::table::Table;
use crate::trim::Pulse;
use crate::{Config, blocking, v1};

/// A sandbox that exists.
#[derive(Debug)]
pub(crate) struct Sandbox {
    pub(crate) record: Durable<SandboxRecord>,
    /// Read by whoever works inside the sandbox, written by whoever takes it apart.
    pub(crate) ops: RwLock<()>,
    shim: Mutex<Option<Shim>>,
    /// What subscribers know of it.
    announced: Announced,
    /// Ends the watcher of this sandbox.
    pub(crate) unwatch: CancellationToken,
    /// What NRI plugins know of it. Held while they are told.
    pub(crate) told: tokio::sync::Mutex<Told>,
    /// As that of [`Container`].
    pub(crate) cpu_sample: Mutex<Option<(i64, u64)>>,
}

/// A container that exists.
#[derive(Debug)]
pub(crate) struct Container {
    pub(crate) record: Durable<ContainerRecord>,
    /// Held while the container is started, updated or removed; not while it is stopped, so that a
    /// second stop with a shorter grace period can overtake the first.
    pub(crate) ops: tokio::sync::Mutex<()>,
    /// The last sample of cpu time: (when, nanoseconds used), for the rate.
    pub(crate) cpu_sample: Mutex<Option<(i64, u64)>>,
    /// What NRI plugins know of it. Held while they are told.
    pub(crate) told: tokio::sync::Mutex<Told>,
    /// The image's layers, from its creation in this daemon until its start: topmost first.
    layers: Mutex<Option<Vec<PathBuf>>>,
    /// What subscribers know of it.
    announced: Announced,
}

impl Sandbox {
    /// `last` is the last step of its life that subscribers may take as known.
    pub(crate) fn new(
        record: Durable<SandboxRecord>,
        shim: Option<Shim>,
        last: Option<v1::ContainerEventType>,
    ) -> Self {
        let told = match record.get().network_released {
            true => Told::Stopped,
            false => Told::Made,
        };
        Self {
            told: tokio::sync::Mutex::new(told),
            announced: Announced::upto(last),
            record,
            ops: RwLock::new(()),
            shim: Mutex::new(shim),
            unwatch: CancellationToken::new(),
            cpu_sample: Mutex::new(None),
        }
    }

    /// The shim, while one lives.
    pub(crate) fn shim(&self) -> Option<Shim> {
        let shim = self.shim.lock().unwrap_or_else(PoisonError::into_inner);
        shim.clone()
    }

    /// A fresh connection to the same shim.
    pub(crate) fn set_shim(&self, shim: Shim) {
        *self.shim.lock().unwrap_or_else(PoisonError::into_inner) = Some(shim);
    }

    /// The shim is gone for good.
    pub(crate) fn forget_shim(&self) {
        *self.shim.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

impl Container {
    /// `last` as for [`Sandbox::new`].
    pub(crate) fn new(
        record: Durable<ContainerRecord>,
        last: Option<v1::ContainerEventType>,
    ) -> Self {
        Self {
            told: tokio::sync::Mutex::new(told_of(&record.get().state)),
            announced: Announced::upto(last),
            record,
            ops: tokio::sync::Mutex::new(()),
            cpu_sample: Mutex::new(None),
            layers: Mutex::new(None),
        }
    }

    /// Keeps what the start would have to look up again.
    pub(crate) fn keep_layers(&self, layers: Vec<PathBuf>) {
        *self.layers.lock().unwrap_or_else(PoisonError::into_inner) = Some(layers);
    }

    /// What was kept; once.
    pub(crate) fn take_layers(&self) -> Option<Vec<PathBuf>> {
        let mut layers = self.layers.lock().unwrap_or_else(PoisonError::into_inner);
        layers.take()
    }

    /// The overlay's writable directory.
    pub(crate) fn upper(&self) -> PathBuf {
        self.record.dir().join("upper")
    }
}

/// Everything the requests share.
#[derive(Debug)]
pub(crate) struct Runtime {
    pub(crate) config: Config,
    pub(crate) paths: Paths,
    pub(crate) images: ImageStore,
    pub(crate) disk_usage: DiskUsage,
    pub(crate) network: cni::Network,
    pub(crate) cgroups: Arc<dyn Manager>,
    pub(crate) programs: Programs,
    /// The cgroup of all shims: neither the daemon's nor a pod's.
    pub(crate) shim_cgroup: CgroupPath,
    pub(crate) sandboxes: Table<Sandbox>,
    pub(crate) containers: Table<Container>,
    pub(crate) names: Names,
    pub(crate) events: Events,
    pub(crate) tokens: Tokens,
    pub(crate) nri: Nri,
    pub(crate) tasks: TaskTracker,
    /// Stands still while the daemon rests.
    pub(crate) pulse: Pulse,
    pub(crate) stopping: CancellationToken,
}

impl Runtime {
    /// Runs work that changes the node in a task of its own, and waits for it. When the caller is
    /// dropped (its client hung up), the work goes on to its end.
    ///
    /// # Errors
    /// Those of the work; Unavailable while the daemon stops; Internal when the work panicked.
    pub(crate) async fn detached<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        if self.stopping.is_cancelled() {
            return Err(Fault::new(Kind::Unavailable, "the runtime is stopping"));
        }
        self.pulse.beat();
        let done = self.tasks.spawn(work).await;
        self.pulse.beat();
        done.map_err(|e| Fault::internal("a request's work ended early", e))?
    }

    /// The sandbox of this identifier or prefix.
    ///
    /// # Errors
    /// Not found, or ambiguous.
    pub(crate) fn sandbox(&self, id: &str) -> Result<Arc<Sandbox>> {
        self.sandboxes.find(id)
    }

    /// The container of this identifier or prefix.
    ///
    /// # Errors
    /// Not found, or ambiguous.
    pub(crate) fn container(&self, id: &str) -> Result<Arc<Container>> {
        self.containers.find(id)
    }

    /// All containers of a sandbox.
    pub(crate) fn containers_of(&self, sandbox_id: &str) -> Vec<Arc<Container>> {
        let mut all = self.containers.all();
        all.retain(|c| c.record.get().sandbox_id == sandbox_id);
        all
    }

    /// The shim that a container lives in.
    ///
    /// # Errors
    /// When its sandbox or the sandbox's shim is gone.
    pub(crate) fn shim_of(&self, container: &Container) -> Result<Shim> {
        let record = container.record.get();
        self.sandboxes
            .get(&record.sandbox_id)
            .and_then(|s| s.shim())
            .ok_or_else(|| {
                Fault::precondition(format!(
                    "the sandbox of container {:?} does not run",
                    record.id
                ))
            })
    }

    /// Work on cgroups, off the executor.
    ///
    /// # Errors
    /// Those of the work, seen as Internal.
    pub(crate) async fn with_cgroups<T: Send + 'static>(
        &self,
        attempt: &'static str,
        work: impl FnOnce(&dyn Manager) -> std::result::Result<T, crate::cgroup::CgroupError>
        + Send
        + 'static,
    ) -> Result<T> {
        let manager = self.cgroups.clone();
        blocking::run(attempt, move || work(manager.as_ref()))
            .await?
            .map_err(|e| Fault::internal(attempt, e))
    }

    /// A process is in a new cgroup, or will never be: systemd's placeholder is let go.
    ///
    /// # Errors
    /// When the work could not be run.
    pub(crate) async fn settle_cgroup(&self, path: &CgroupPath) -> Result<()> {
        if self.config.settings.get().cgroup_driver == CgroupDriver::Cgroupfs {
            return Ok(());
        }
        let path = path.clone();
        self.with_cgroups("settling a cgroup", move |manager| {
            manager.settle(&path);
            Ok(())
        })
        .await
    }

    /// Tells subscribers what happened to a sandbox. An event has the sandbox's own id.
    pub(crate) fn tell_sandbox(&self, kind: v1::ContainerEventType, sandbox: &Sandbox) {
        sandbox.announced.tell(kind, &[], |step| {
            let record = sandbox.record.get();
            self.publish(step, &record.id, &record);
        });
    }

    /// Tells subscribers what happened to a container, if its sandbox exists.
    pub(crate) fn tell_container(&self, kind: v1::ContainerEventType, container: &Container) {
        let record = container.record.get();
        let Some(sandbox) = self.sandboxes.get(&record.sandbox_id) else {
            return;
        };
        container
            .announced
            .tell(kind, record.state.skipped(), |step| {
                self.publish(step, &record.id, &sandbox.record.get());
            });
    }

    fn publish(&self, kind: v1::ContainerEventType, id: &str, sandbox: &SandboxRecord) {
        if !self.events.has_subscribers() {
            return;
        }
        let containers = self.containers_of(&sandbox.id);
        self.events.publish(v1::ContainerEventResponse {
            container_id: id.to_owned(),
            container_event_type: kind as i32,
            created_at: now(),
            pod_sandbox_status: Some(sandbox.status()),
            containers_statuses: containers.iter().map(|c| c.record.get().status()).collect(),
        });
    }
}

/// A checked cgroup path.
///
/// # Errors
/// When it is not a plain path.
pub(crate) fn cgroup_path(path: &str) -> Result<CgroupPath> {
    CgroupPath::new(path).map_err(|e| Fault::internal("naming a cgroup", e))
}

/// Below which all cgroups are that no kubelet gave a place to: our own, and with systemd also the
/// slice of that name.
///
/// # Errors
/// When the configured parent is not a plain path.
pub(crate) fn cgroup_roots(runtime: &Runtime) -> Result<Vec<CgroupPath>> {
    let parent = cgroup_path(&runtime.config.cgroup_parent)?;
    let slice = match runtime.config.settings.get().cgroup_driver {
        CgroupDriver::Cgroupfs => None,
        CgroupDriver::Systemd => crate::cgroup::slice_path(parent.as_str()).ok(),
    };
    Ok([Some(parent), slice].into_iter().flatten().collect())
}

/// Nanoseconds since the epoch, for what is shown to people. Nothing is identified or ordered by it.
pub(crate) fn now() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .ok()
        .and_then(|d| i64::try_from(d.as_nanos()).ok())
        .unwrap_or_default()
}
