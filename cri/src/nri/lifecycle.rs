// SPDX-License-Identifier: Apache-2.0
//! Where CRI's requests and plugins meet.
//!
//! What a plugin may refuse (running a pod, creating, starting or updating a container) fails the
//! request; what has happened already (a stop, a removal, any Post event) goes on, and a refusal is
//! logged. Each object remembers what plugins were told of it, so that they are told once, in order,
//! whichever way it ends: stopped by a request, by itself, or taken down with its pod.

use std::sync::Arc;
use std::time::Duration;

use oci_spec::runtime::Spec;
use tokio::sync::mpsc;

use super::api::{self, Event};
use super::service::Subject;
use super::{apply, view};
use crate::blocking;
use crate::cgroup::Limits;
use crate::container::{ContainerRecord, State, resources};
use crate::fault::{Fault, Result};
use crate::runtime::{Container, Runtime, Sandbox};
use crate::sandbox::SandboxRecord;
use crate::server::container_create::{linux_resources, load_spec, save_spec};
use crate::server::container_update;
use crate::{oci, v1};

/// What plugins were told of an object. Only forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Told {
    Made,
    Stopped,
    Removed,
}

/// What plugins asked for beside the matter at hand.
#[derive(Debug)]
pub(crate) struct Aftermath {
    updates: Vec<api::ContainerUpdate>,
    evictions: Vec<api::ContainerEviction>,
}

/// Whatever does not fit waits for nothing: it is dropped and logged.
pub(super) const AFTERMATH_MAX: usize = 1024;

/// Carries out what plugins ask for beside the matter at hand, in order, in a task of its own:
/// whoever told them holds locks that this needs.
pub(super) fn serve_aftermath(runtime: &Arc<Runtime>) {
    let Some(mut queue) = runtime.nri.take_queue() else {
        return;
    };
    let runtime_ = runtime.clone();
    runtime.tasks.spawn(async move {
        loop {
            let next = tokio::select! {
                next = queue.recv() => next,
                () = runtime_.stopping.cancelled() => None,
            };
            let Some(Aftermath { updates, evictions }) = next else {
                return;
            };
            match runtime_.nri_apply(updates, evictions).await {
                Ok(failed) if failed.is_empty() => {}
                Ok(failed) => {
                    let ids: Vec<_> = failed.iter().map(|u| u.container_id.as_str()).collect();
                    tracing::error!(containers = ?ids, "nri: updates that plugins asked for failed");
                }
                Err(fault) => tracing::error!(error = %fault.chain(), "nri: updates"),
            }
        }
    });
}

impl super::Nri {
    /// Has updates and evictions carried out soon.
    pub(crate) fn later(
        &self,
        updates: Vec<api::ContainerUpdate>,
        evictions: Vec<api::ContainerEviction>,
    ) {
        if updates.is_empty() && evictions.is_empty() {
            return;
        }
        let wanted = Aftermath { updates, evictions };
        if let Err(mpsc::error::TrySendError::Full(_)) = self.queue().try_send(wanted) {
            tracing::error!("nri: too many updates wait; some are dropped");
        }
    }
}

fn log(event: &str, told: Result<()>) {
    if let Err(fault) = told {
        tracing::error!(error = %fault.chain(), "nri: a plugin failed {event}");
    }
}

impl Runtime {
    /// Tells plugins of a pod.
    ///
    /// # Errors
    /// The first refusal.
    pub(crate) async fn nri_pod(&self, event: Event, record: &SandboxRecord) -> Result<()> {
        if self.nri.is_idle() {
            return Ok(());
        }
        let subject = Subject {
            pod: view::pod(record),
            container: None,
        };
        self.nri.tell(event, &subject).await
    }

    /// A pod that plugins were told of will not be: they are told that it has ended.
    pub(crate) async fn nri_pod_undone(&self, record: &SandboxRecord) {
        for event in [Event::StopPodSandbox, Event::RemovePodSandbox] {
            log("when a pod was given up", self.nri_pod(event, record).await);
        }
    }

    /// Asks plugins whether a pod's resources may change so.
    ///
    /// # Errors
    /// The first refusal.
    pub(crate) async fn nri_update_pod(
        &self,
        record: &SandboxRecord,
        overhead: Option<&v1::LinuxContainerResources>,
        resources: Option<&v1::LinuxContainerResources>,
    ) -> Result<()> {
        if self.nri.is_idle() {
            return Ok(());
        }
        let of = |said: Option<&_>| said.map(view::from_cri).unwrap_or_default();
        let pod = view::pod(record);
        self.nri.update_pod(pod, of(overhead), of(resources)).await
    }

    /// Tells them that they have.
    pub(crate) async fn nri_pod_updated(&self, record: &SandboxRecord) {
        let event = Event::PostUpdatePodSandbox;
        log(event.as_str_name(), self.nri_pod(event, record).await);
    }

    /// Tells plugins, once, that a pod's containers have stopped and the rest of it will.
    pub(crate) async fn nri_pod_stopped(&self, sandbox: &Sandbox) {
        let mut told = sandbox.told.lock().await;
        if *told == Told::Made {
            *told = Told::Stopped;
            let record = sandbox.record.get();
            let event = Event::StopPodSandbox;
            log("StopPodSandbox", self.nri_pod(event, &record).await);
        }
    }

    /// Tells plugins, once, that a pod goes.
    pub(crate) async fn nri_pod_removed(&self, sandbox: &Sandbox) {
        let mut told = sandbox.told.lock().await;
        if *told != Told::Removed {
            *told = Told::Removed;
            let record = sandbox.record.get();
            let event = Event::RemovePodSandbox;
            log("RemovePodSandbox", self.nri_pod(event, &record).await);
        }
    }

    fn pod_of(&self, sandbox_id: &str) -> api::PodSandbox {
        match self.sandboxes.get(sandbox_id) {
            Some(sandbox) => view::pod(&sandbox.record.get()),
            None => api::PodSandbox {
                id: sandbox_id.to_owned(),
                ..api::PodSandbox::default()
            },
        }
    }

    async fn subject(&self, container: &Container) -> Subject {
        let record = container.record.get();
        let dir = container.record.dir().to_owned();
        let spec = blocking::run("reading a spec", move || load_spec(&dir)).await;
        // A container that is half gone is still known by its record.
        let spec = spec.and_then(|spec| spec).unwrap_or_default();
        Subject {
            pod: self.pod_of(&record.sandbox_id),
            container: Some(view::container(&record, &spec)),
        }
    }

    /// Tells plugins of a container.
    ///
    /// # Errors
    /// The first refusal.
    pub(crate) async fn nri_container(&self, event: Event, container: &Container) -> Result<()> {
        if self.nri.is_idle() {
            return Ok(());
        }
        let subject = self.subject(container).await;
        self.nri.tell(event, &subject).await
    }

    /// As [`Runtime::nri_container`], for what has happened already.
    pub(crate) async fn nri_done(&self, event: Event, container: &Container) {
        let told = self.nri_container(event, container).await;
        log(event.as_str_name(), told);
    }

    /// Asks plugins about a container that is being created: `spec` and `record` become what they
    /// want. Returns the CDI devices that they add. After an error, and when the creation fails
    /// later, call [`Runtime::nri_create_undone`].
    ///
    /// # Errors
    /// When a plugin refuses, two disagree, a validator rejects, or the outcome cannot be done.
    pub(crate) async fn nri_create(
        &self,
        sandbox: &SandboxRecord,
        record: &mut ContainerRecord,
        spec: &mut Spec,
    ) -> Result<Vec<String>> {
        if self.nri.is_idle() {
            return Ok(Vec::new());
        }
        let pod = view::pod(sandbox);
        let seen = view::container(record, spec);
        let wanted = self.nri.create(&pod, seen).await?;
        *spec = apply::apply(spec, &wanted.adjust)?;
        let linux = wanted.adjust.linux.clone().unwrap_or_default();
        if !linux.cgroups_path.is_empty() {
            record.cgroup = linux.cgroups_path;
        }
        if let Some(limits) = &linux.resources {
            note_limits(record, limits);
        }
        let evictions = wanted.updates.evictions.clone();
        self.nri.later(wanted.updates.into_list(), evictions);
        let devices = wanted.adjust.cdi_devices.into_iter();
        Ok(devices.map(|device| device.name).collect())
    }

    /// A container that plugins were asked about will not be.
    pub(crate) async fn nri_create_undone(
        &self,
        sandbox: &SandboxRecord,
        record: &ContainerRecord,
        spec: &Spec,
    ) {
        if self.nri.is_idle() {
            return;
        }
        let subject = Subject {
            pod: view::pod(sandbox),
            container: Some(view::container(record, spec)),
        };
        let updates = self.nri.stop(&subject).await;
        self.nri.later(updates.into_list(), Vec::new());
        let told = self.nri.tell(Event::RemoveContainer, &subject).await;
        log("when a container was given up", told);
    }

    /// Tells plugins, once, that a container has stopped. Returns when they know, whoever told them.
    pub(crate) async fn nri_stopped(&self, container: &Container) {
        let mut told = container.told.lock().await;
        if *told != Told::Made {
            return;
        }
        *told = Told::Stopped;
        if !self.nri.is_idle() {
            let updates = self.nri.stop(&self.subject(container).await).await;
            self.nri.later(updates.into_list(), Vec::new());
        }
    }

    /// Tells plugins, once, that a container goes; that it has stopped, if they don't know yet.
    pub(crate) async fn nri_removed(&self, container: &Container) {
        self.nri_stopped(container).await;
        let mut told = container.told.lock().await;
        if *told != Told::Removed {
            *told = Told::Removed;
            self.nri_done(Event::RemoveContainer, container).await;
        }
    }

    /// Asks plugins about an update: returns what is to be done instead.
    ///
    /// # Errors
    /// When a plugin refuses, or two disagree.
    pub(crate) async fn nri_update(
        &self,
        container: &Container,
        wanted: v1::LinuxContainerResources,
    ) -> Result<Update> {
        if self.nri.is_idle() {
            return Update::of_client(wanted);
        }
        let subject = self.subject(container).await;
        let seen = subject.container.unwrap_or_default();
        let id = seen.id.clone();
        let asked = view::from_cri(&wanted);
        let mut updates = self.nri.update(&subject.pod, seen, asked.clone()).await?;
        let own = updates.take(&id).unwrap_or(asked);
        let evictions = std::mem::take(&mut updates.evictions);
        self.nri.later(updates.into_list(), evictions);
        let mut update = Update::of_plugins(own)?;
        update.wanted.oom_score_adj = wanted.oom_score_adj;
        Ok(update)
    }

    /// Carries out what plugins want of containers that exist. Returns what failed and may not.
    ///
    /// # Errors
    /// When the runtime is stopping.
    pub(crate) async fn nri_apply(
        self: &Arc<Self>,
        updates: Vec<api::ContainerUpdate>,
        evictions: Vec<api::ContainerEviction>,
    ) -> Result<Vec<api::ContainerUpdate>> {
        let runtime = self.clone();
        self.detached(async move {
            let mut failed = Vec::new();
            for update in updates {
                if let Err(fault) = runtime.nri_apply_one(&update).await {
                    let id = &update.container_id;
                    tracing::warn!(container.id = %id, error = %fault.chain(), ignored = update.ignore_failure, "nri: an update failed");
                    if !update.ignore_failure {
                        failed.push(update);
                    }
                }
            }
            for eviction in evictions {
                runtime.nri_evict(&eviction).await;
            }
            Ok(failed)
        })
        .await
    }

    async fn nri_apply_one(&self, update: &api::ContainerUpdate) -> Result<()> {
        let wanted = update.linux.as_ref().and_then(|l| l.resources.clone());
        let Some(wanted) = wanted else { return Ok(()) };
        let container = self.containers.get(&update.container_id);
        let container =
            container.ok_or_else(|| Fault::not_found("container", &update.container_id))?;
        let _ops = container.ops.lock().await;
        container_update::carry_out(self, &container, Update::of_plugins(wanted)?).await
    }

    async fn nri_evict(&self, eviction: &api::ContainerEviction) {
        let Some(container) = self.containers.get(&eviction.container_id) else {
            return;
        };
        let reason = shim::launch::plain(&eviction.reason);
        tracing::warn!(container.id = %eviction.container_id, %reason, "nri: a plugin evicts a container");
        let stopped = self.stop_container(&container, Duration::ZERO).await;
        log("when its eviction was carried out", stopped);
    }

    /// Everything that exists, for a plugin that joins.
    pub(crate) async fn nri_everything(&self) -> (Vec<api::PodSandbox>, Vec<api::Container>) {
        let pods = self.sandboxes.all();
        let pods = pods
            .iter()
            .map(|pod| view::pod(&pod.record.get()))
            .collect();
        let mut containers = Vec::new();
        for container in self.containers.all() {
            containers.extend(self.subject(&container).await.container);
        }
        (pods, containers)
    }
}

/// New limits for one container, in the words of CRI, of plugins and of cgroups.
#[derive(Debug)]
pub(crate) struct Update {
    pub(crate) wanted: v1::LinuxContainerResources,
    /// Those that CRI has no words for are among these. None without plugins.
    plugins: Option<api::LinuxResources>,
    pub(crate) limits: Limits,
}

impl Update {
    /// What a client wants.
    ///
    /// # Errors
    /// Names a value that cannot be.
    pub(crate) fn of_client(wanted: v1::LinuxContainerResources) -> Result<Update> {
        Ok(Update {
            limits: resources::limits(&wanted)?,
            wanted,
            plugins: None,
        })
    }

    fn of_plugins(said: api::LinuxResources) -> Result<Update> {
        let wanted = view::to_cri(&said);
        let spec = apply::limit(&Spec::default(), &only_limits(&said))?;
        let of_spec = spec.linux().as_ref().and_then(|l| l.resources().clone());
        let mut limits = oci::update_limits(&of_spec.unwrap_or_default())
            .map_err(|e| Fault::invalid(e.to_string()))?;
        limits.hugepages = resources::limits(&wanted)?.hugepages;
        limits.devices = None;
        Ok(Update {
            wanted,
            plugins: Some(said),
            limits,
        })
    }

    /// Writes to the container's spec what its record has no place for. Blocks.
    ///
    /// # Errors
    /// When the disk refuses.
    pub(crate) fn note(&self, dir: &std::path::Path) -> Result<()> {
        let Some(said) = &self.plugins else {
            return Ok(());
        };
        let spec = apply::limit(&load_spec(dir)?, &only_limits(said))?;
        save_spec(dir, &spec)
    }
}

/// Device rules and RDT classes are settled when a container is made.
fn only_limits(said: &api::LinuxResources) -> api::LinuxResources {
    api::LinuxResources {
        devices: Vec::new(),
        rdt_class: None,
        ..said.clone()
    }
}

/// The record shows the limits that plugins have set, as far as CRI has words for them.
fn note_limits(record: &mut ContainerRecord, limits: &api::LinuxResources) {
    let merged = resources::updated(&linux_resources(&record.config.0), &view::to_cri(limits));
    let linux = record.config.0.linux.get_or_insert_default();
    linux.resources = Some(merged);
}

/// What plugins have been told of a container that was found at start: those that join later learn
/// of it when they are synchronized.
pub(crate) fn told_of(state: &State) -> Told {
    match state {
        State::Exited(_) => Told::Stopped,
        _ => Told::Made,
    }
}
