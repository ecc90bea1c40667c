// SPDX-License-Identifier: Apache-2.0
//! Steps that end things: stopping containers, taking sandboxes apart, removing both.
//!
//! Every step succeeds when there is nothing left to do, so that a request, a restart and a purge
//! can all run the same steps over what is left.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::container::{ContainerRecord, Exit, State};
use crate::daemon::CGROUP_ROOT;
use crate::fault::{Fault, Kind, Result};
use crate::runtime::{Container, Runtime, Sandbox, cgroup_path, now};
use crate::sandbox::{Phase, SandboxRecord, cgroup, network};
use crate::shim_client::{ProcessId, ShimError};
use crate::{blocking, external, v1};

/// How long a SIGKILL may take to be seen. A process in uninterruptible sleep can exceed it.
const KILL_DEADLINE: Duration = Duration::from_secs(20);
/// How long CNI may take to detach a pod; its plugins may be foreign executables.
pub(crate) const NETWORK_DEADLINE: Duration = Duration::from_secs(60);

/// The first process of a container, as its shim names it.
pub(crate) fn first_process(container_id: &str) -> ProcessId {
    ProcessId {
        container: container_id.to_owned(),
        exec: None,
    }
}

impl Runtime {
    /// Ends a container: asks with its stop signal, waits `grace`, then kills. Idempotent.
    ///
    /// # Errors
    /// When it still runs some time after SIGKILL.
    pub(crate) async fn stop_container(
        &self,
        container: &Container,
        grace: Duration,
    ) -> Result<()> {
        let record = container.record.get();
        if !matches!(record.state, State::Running { .. }) {
            return Ok(());
        }
        let Ok(shim) = self.shim_of(container) else {
            // The watcher is about to find out; nothing can be signalled.
            return self.ended(container).await;
        };
        let process = first_process(&record.id);
        if !grace.is_zero() {
            signal(&shim, &process, record.stop_signal, false).await?;
            let exited = container
                .record
                .until(|r| matches!(r.state, State::Exited(_)));
            if tokio::time::timeout(grace, exited).await.is_ok() {
                return Ok(());
            }
        }
        signal(&shim, &process, libc::SIGKILL, true).await?;
        self.ended(container).await
    }

    async fn ended(&self, container: &Container) -> Result<()> {
        let exited = container
            .record
            .until(|r| !matches!(r.state, State::Running { .. }));
        tokio::time::timeout(KILL_DEADLINE, exited)
            .await
            .map_err(|_| {
                Fault::deadline(format!(
                    "container {:?} still runs {KILL_DEADLINE:?} after SIGKILL",
                    container.record.get().id
                ))
            })
    }

    /// Removes a container and all that belongs to it; a running one is killed first. Idempotent.
    ///
    /// # Errors
    /// When it cannot be killed, or its files cannot be removed. Trying again goes on from there.
    pub(crate) async fn remove_container(&self, container: &Arc<Container>) -> Result<()> {
        let _ops = container.ops.lock().await;
        let record = container.record.get();
        self.stop_container(container, Duration::ZERO).await?;
        if let Ok(shim) = self.shim_of(container)
            && let Err(error) = shim.remove(&first_process(&record.id)).await
        {
            tracing::debug!(container.id = %record.id, %error, "the shim did not forget a container");
        }
        self.forget_in_runtime(&record).await;
        self.remove_cgroup(&record.cgroup).await?;
        self.nri_removed(container).await;
        self.remove_container_files(&record.id).await?;
        if self.containers.get(&record.id).is_some() {
            // Whoever saw it end may be about to say so, and would come too late.
            let record = container.record.get();
            self.tell_container(record.state.step(), container);
            self.containers.remove(&record.id);
            self.names.release(&record.id);
            self.tell_container(v1::ContainerEventType::ContainerDeletedEvent, container);
        }
        Ok(())
    }

    /// Removes a container's directory, record first: what a crash leaves then has no record, and
    /// is removed at the next start.
    ///
    /// # Errors
    /// When the disk refuses.
    pub(crate) async fn remove_container_files(&self, id: &str) -> Result<()> {
        let dir = self.paths.container(id);
        blocking::run("removing a container", move || remove_object_dir(&dir)).await??;
        self.images
            .release(id)
            .await
            .map_err(|e| Fault::internal(format!("releasing the image of container {id:?}"), e))
    }

    /// Records how a container ended, once, and tells subscribers. Whatever it left running in its
    /// cgroup is killed (a shared pid namespace does not do that).
    pub(crate) async fn container_exited(&self, container: &Container, exit: Exit) {
        let changed = container
            .record
            .update_regardless(|r| r.state.exit(exit.clone()))
            .await;
        if !changed {
            return;
        }
        let record = container.record.get();
        tracing::info!(container.id = %record.id, code = exit.code, reason = %exit.reason, "container ended");
        self.forget_in_runtime(&record).await;
        if let Err(fault) = self.remove_cgroup(&record.cgroup).await {
            tracing::warn!(container.id = %record.id, error = %fault.chain(), "cgroup stays for now");
        }
        self.tell_container(v1::ContainerEventType::ContainerStoppedEvent, container);
        self.nri_stopped(container).await;
    }

    /// Has the container's external runtime, if it has one, forget it.
    async fn forget_in_runtime(&self, record: &ContainerRecord) {
        if let Some(sandbox) = self.sandboxes.get(&record.sandbox_id) {
            self.forget_external(&sandbox.record.get(), &record.id)
                .await;
        }
    }

    /// Kills what is in a cgroup and removes it.
    ///
    /// # Errors
    /// When processes survive.
    pub(crate) async fn remove_cgroup(&self, path: &str) -> Result<()> {
        let path = cgroup_path(path)?;
        self.with_cgroups("removing a cgroup", move |manager| manager.destroy(&path))
            .await
    }

    /// Stops a sandbox: kills its containers, ends its shim, takes its network down. Idempotent;
    /// after an error, trying again goes on from there.
    ///
    /// # Errors
    /// The first step that failed.
    pub(crate) async fn stop_sandbox(&self, sandbox: &Arc<Sandbox>) -> Result<()> {
        let id = sandbox.record.get().id.clone();
        for container in self.containers_of(&id) {
            self.stop_container(&container, Duration::ZERO).await?;
            if matches!(container.record.get().state, State::Exited(_)) {
                self.nri_stopped(&container).await;
            }
        }
        self.nri_pod_stopped(sandbox).await;
        self.sandbox_stopped(sandbox).await;
        if let Some(shim) = sandbox.shim() {
            sandbox.unwatch.cancel();
            shim.shutdown()
                .await
                .map_err(|e| Fault::internal(format!("ending the shim of sandbox {id:?}"), e))?;
            sandbox.forget_shim();
        }
        let record = sandbox.record.get();
        self.forget_external(&record, &record.id).await;
        if !record.network_released {
            self.release_network(&record).await?;
            sandbox
                .record
                .update(|r| {
                    r.network_released = true;
                    r.pid = None;
                    true
                })
                .await?;
        }
        self.remove_cgroup(&cgroup::member(&record.cgroup, &record.id))
            .await
    }

    /// Marks a sandbox as not ready, once, and tells subscribers.
    pub(crate) async fn sandbox_stopped(&self, sandbox: &Sandbox) {
        let changed = sandbox
            .record
            .update_regardless(|r| {
                std::mem::replace(&mut r.phase, Phase::Stopped) != Phase::Stopped
            })
            .await;
        if changed {
            self.tell_sandbox(v1::ContainerEventType::ContainerStoppedEvent, sandbox);
        }
    }

    /// CNI DEL, then the namespace goes.
    ///
    /// # Errors
    /// When a plugin fails or takes too long; the namespace then stays, so that DEL can be tried again.
    pub(crate) async fn release_network(&self, record: &SandboxRecord) -> Result<()> {
        let Some(netns) = &record.netns else {
            return Ok(());
        };
        let mut attachment =
            network::attachment(&record.id, netns, &v1::PodSandboxConfig::default())?;
        if let Ok(full) = network::attachment(&record.id, netns, &record.config.0) {
            attachment = full;
        }
        let attempt = || format!("tearing down the network of sandbox {:?}", record.id);
        tokio::time::timeout(NETWORK_DEADLINE, self.network.del_with_netns(&attachment))
            .await
            .map_err(|_| Fault::deadline(attempt()))?
            .map_err(|e| Fault::internal(attempt(), e))
    }

    /// Removes a stopped sandbox with everything in it. Idempotent.
    ///
    /// # Errors
    /// The first step that failed; trying again goes on from there.
    pub(crate) async fn remove_sandbox(&self, sandbox: &Arc<Sandbox>) -> Result<()> {
        let record = sandbox.record.get();
        for container in self.containers_of(&record.id) {
            self.remove_container(&container).await?;
        }
        self.nri_pod_removed(sandbox).await;
        self.remove_sandbox_files(&record).await?;
        if self.sandboxes.get(&record.id).is_some() {
            self.tell_sandbox(v1::ContainerEventType::ContainerDeletedEvent, sandbox);
            self.sandboxes.remove(&record.id);
            self.names.release(&record.id);
        }
        Ok(())
    }

    async fn remove_sandbox_files(&self, record: &SandboxRecord) -> Result<()> {
        let shared = self
            .sandboxes
            .all()
            .iter()
            .any(|s| s.record.get().id != record.id && s.record.get().cgroup == record.cgroup);
        if !shared {
            self.remove_cgroup(&record.cgroup).await?;
            if !external::is_built_in(&record.runtime_handler) {
                let (pod, parent) = (record.cgroup.clone(), self.config.cgroup_parent.clone());
                blocking::run("removing stray cgroups", move || {
                    external::remove_stray_cgroups(Path::new(CGROUP_ROOT), &pod, &parent);
                })
                .await?;
            }
        }
        let (shim_dir, dir) = (self.paths.shim(&record.id), self.paths.sandbox(&record.id));
        let roots = self.paths.roots(&record.id);
        blocking::run("removing a sandbox", move || {
            remove_dir(&roots)?;
            remove_dir(&shim_dir)?;
            remove_object_dir(&dir)
        })
        .await?
    }

    /// Takes apart what there is of a sandbox that nobody knows: one whose creation failed or was
    /// cut short. Carries on after failures and returns the first.
    ///
    /// # Errors
    /// The first step that failed.
    pub(crate) async fn destroy_sandbox(&self, record: &SandboxRecord) -> Result<()> {
        let mut first: Result<()> = Ok(());
        let mut note = |result: Result<()>| {
            if first.is_ok() {
                first = result;
            }
        };
        note(self.end_shim(&record.id).await);
        self.forget_external(record, &record.id).await;
        note(self.release_network(record).await);
        note(
            self.remove_cgroup(&cgroup::member(&record.cgroup, &record.id))
                .await,
        );
        if first.is_ok() {
            first = self.remove_sandbox_files(record).await;
        }
        first
    }

    /// Ends the shim of a sandbox by its directory, if one lives there.
    ///
    /// # Errors
    /// When it does not go.
    pub(crate) async fn end_shim(&self, sandbox_id: &str) -> Result<()> {
        match crate::shim_client::Shim::connect(&self.paths.shim(sandbox_id)).await {
            Ok(shim) => shim.shutdown().await.map_err(|e| {
                Fault::internal(format!("ending the shim of sandbox {sandbox_id:?}"), e)
            }),
            Err(ShimError::Gone { .. }) => Ok(()),
            Err(error) => Err(Fault::internal("connecting to a shim", error)),
        }
    }

    /// Kills every process of a sandbox whose shim is dead: nobody would collect them, write their
    /// logs or learn how they end. A container that is still written down as running stays so until
    /// its end is recorded.
    pub(crate) async fn kill_orphans(&self, record: &SandboxRecord) {
        let mut cgroups = vec![cgroup::member(&record.cgroup, &record.id)];
        cgroups.extend(
            self.containers_of(&record.id)
                .iter()
                .map(|c| c.record.get().cgroup.clone()),
        );
        for path in cgroups {
            if let Err(fault) = self.remove_cgroup(&path).await {
                tracing::warn!(sandbox.id = %record.id, error = %fault.chain(), "killing what a dead shim left");
            }
        }
    }

    /// A container whose process can no longer be asked about: its shim is gone.
    pub(crate) async fn container_lost(&self, container: &Container, exit: Option<Exit>) {
        let record = container.record.get();
        let State::Running { started_at, .. } = record.state else {
            return;
        };
        let exit = exit.unwrap_or_else(|| Exit::unknown(started_at, now()));
        self.container_exited(container, exit).await;
    }
}

async fn signal(
    shim: &crate::shim_client::Shim,
    process: &ProcessId,
    number: i32,
    all: bool,
) -> Result<()> {
    match shim.signal(process, number, all).await {
        Ok(()) | Err(ShimError::Gone { .. }) => Ok(()),
        Err(ShimError::Refused {
            kind: crate::shim_client::FailureKind::NotFound,
            ..
        }) => Ok(()),
        Err(error) => Err(Fault::internal(
            format!(
                "sending signal {number} to container {:?}",
                process.container
            ),
            error,
        )),
    }
}

/// Removes a directory tree; absent is fine.
///
/// # Errors
/// Names the directory.
pub(crate) fn remove_dir(dir: &Path) -> Result<()> {
    match std::fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Fault::internal(
            format!("removing {}", dir.display()),
            error,
        )),
        _ => Ok(()),
    }
}

fn remove_object_dir(dir: &Path) -> Result<()> {
    let file = dir.join(crate::record::FILE);
    match std::fs::remove_file(&file) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(Fault::internal(
                format!("removing {}", file.display()),
                error,
            ));
        }
        _ => {}
    }
    remove_dir(dir)
}

/// The kind of fault that a shim's refusal is.
pub(crate) fn shim_fault(attempt: String, error: ShimError) -> Fault {
    let kind = match &error {
        ShimError::Refused { kind, .. } => match kind {
            crate::shim_client::FailureKind::NotFound => Kind::NotFound,
            crate::shim_client::FailureKind::State => Kind::Precondition,
            crate::shim_client::FailureKind::Invalid => Kind::Invalid,
            _ => Kind::Internal,
        },
        ShimError::Timeout { .. } => Kind::Deadline,
        _ => Kind::Internal,
    };
    Fault::internal(attempt, error).of_kind(kind)
}
