// SPDX-License-Identifier: Apache-2.0
//! All plugins of a node, told one after the other.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedRwLockReadGuard, RwLock, mpsc};

use super::api::{self, Event};
use super::lifecycle::{AFTERMATH_MAX, Aftermath};
use super::merge::{Creation, Owners, Updates};
use super::plugin::Plugin;
use crate::fault::{Fault, Result};
use crate::settings::Live;

/// Keeps plugins from being synchronized while it lives: whoever makes or starts something holds it
/// from before plugins are told until it can be found. So a plugin that joins meanwhile either sees
/// the thing in its synchronization or is told of it, never neither.
pub(crate) type Hold = OwnedRwLockReadGuard<()>;

/// The plugins, by index.
#[derive(Debug)]
pub(crate) struct Nri {
    settings: Live,
    plugins: Mutex<Vec<Arc<Plugin>>>,
    count: AtomicUsize,
    joining: Arc<RwLock<()>>,
    /// One event at a time.
    turn: tokio::sync::Mutex<()>,
    aftermath: mpsc::Sender<Aftermath>,
    queue: Mutex<Option<mpsc::Receiver<Aftermath>>>,
}

/// A pod, or a container in it, as plugins are told of it.
#[derive(Debug, Clone)]
pub(crate) struct Subject {
    pub(crate) pod: api::PodSandbox,
    pub(crate) container: Option<api::Container>,
}

/// What all plugins want of a container that is being created.
#[derive(Debug)]
pub(crate) struct Wanted {
    pub(crate) adjust: api::ContainerAdjustment,
    pub(crate) updates: Updates,
}

impl Nri {
    pub(crate) fn new(settings: Live) -> Nri {
        let (aftermath, queue) = mpsc::channel(AFTERMATH_MAX);
        Nri {
            aftermath,
            queue: Mutex::new(Some(queue)),
            settings,
            plugins: Mutex::default(),
            count: AtomicUsize::new(0),
            joining: Arc::default(),
            turn: tokio::sync::Mutex::default(),
        }
    }

    pub(super) fn registration_timeout(&self) -> Duration {
        self.settings.get().nri.plugin_registration_timeout
    }

    /// Whether nobody listens. Cheap, for every request.
    pub(crate) fn is_idle(&self) -> bool {
        self.count.load(Ordering::Acquire) == 0
    }

    /// See [`Hold`]. Never take two of them in one task: a plugin that waits to join stands between.
    pub(crate) async fn hold(&self) -> Hold {
        self.joining.clone().read_owned().await
    }

    /// Waits until nothing is being made, and keeps it so.
    pub(super) async fn joining(&self) -> tokio::sync::OwnedRwLockWriteGuard<()> {
        self.joining.clone().write_owned().await
    }

    pub(super) fn queue(&self) -> &mpsc::Sender<Aftermath> {
        &self.aftermath
    }

    /// The other end, for the one task that serves it.
    pub(super) fn take_queue(&self) -> Option<mpsc::Receiver<Aftermath>> {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        queue.take()
    }

    fn list(&self) -> std::sync::MutexGuard<'_, Vec<Arc<Plugin>>> {
        self.plugins.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The plugins at this moment, in order.
    pub(crate) fn plugins(&self) -> Vec<Arc<Plugin>> {
        self.list().clone()
    }

    pub(super) fn add(&self, plugin: Arc<Plugin>) {
        let mut list = self.list();
        list.push(plugin);
        // Stable: of two with one index, the one that came first is asked first.
        list.sort_by(|a, b| a.identity.index.cmp(&b.identity.index));
        self.count.store(list.len(), Ordering::Release);
    }

    pub(super) fn remove(&self, plugin: &Arc<Plugin>) {
        let mut list = self.list();
        list.retain(|known| !Arc::ptr_eq(known, plugin));
        self.count.store(list.len(), Ordering::Release);
    }

    /// Tells every plugin that wants to know. The first refusal is the answer; the plugins after it
    /// are not told.
    ///
    /// # Errors
    /// That refusal.
    pub(crate) async fn tell(&self, event: Event, subject: &Subject) -> Result<()> {
        let _turn = self.turn.lock().await;
        for plugin in self.plugins() {
            tell(&plugin, event, subject).await?;
        }
        Ok(())
    }

    /// As [`Nri::tell`], before the resources of a pod change.
    ///
    /// # Errors
    /// The first refusal: the change must not be made.
    pub(crate) async fn update_pod(
        &self,
        pod: api::PodSandbox,
        overhead: api::LinuxResources,
        resources: api::LinuxResources,
    ) -> Result<()> {
        let _turn = self.turn.lock().await;
        let request = api::UpdatePodSandboxRequest {
            pod: Some(pod),
            overhead_linux_resources: Some(overhead),
            linux_resources: Some(resources),
        };
        for plugin in self.plugins() {
            plugin
                .ask::<_, api::Empty>(Event::UpdatePodSandbox, "UpdatePodSandbox", &request)
                .await?;
        }
        Ok(())
    }

    /// Asks what should be different about a container, and has the outcome validated.
    ///
    /// # Errors
    /// A plugin that refuses, two that disagree, a validator that rejects.
    pub(crate) async fn create(
        &self,
        pod: &api::PodSandbox,
        container: api::Container,
    ) -> Result<Wanted> {
        let _turn = self.turn.lock().await;
        let plugins = self.plugins();
        let pristine = container.clone();
        let mut creation = Creation::new(container);
        for plugin in &plugins {
            let request = api::CreateContainerRequest {
                pod: Some(pod.clone()),
                container: Some(creation.container.clone()),
            };
            let answer: Option<api::CreateContainerResponse> = plugin
                .ask(Event::CreateContainer, "CreateContainer", &request)
                .await?;
            let Some(answer) = answer else { continue };
            creation.updates.evictions.extend(answer.evict);
            creation
                .apply(answer.adjust, answer.update, &plugin.name())
                .map_err(|e| Fault::invalid(e.to_string()))?;
        }
        validate(&plugins, pod, pristine, &creation).await?;
        Ok(Wanted {
            adjust: creation.adjust,
            updates: creation.updates,
        })
    }

    /// Asks what should be different about an update. The updates that come back have that of
    /// `container` among them.
    ///
    /// # Errors
    /// As [`Nri::create`].
    pub(crate) async fn update(
        &self,
        pod: &api::PodSandbox,
        container: api::Container,
        wanted: api::LinuxResources,
    ) -> Result<Updates> {
        let _turn = self.turn.lock().await;
        let mut updates = Updates::of_request(&container.id, wanted);
        let mut owners = Owners::default();
        for plugin in self.plugins() {
            let request = api::UpdateContainerRequest {
                pod: Some(pod.clone()),
                container: Some(container.clone()),
                linux_resources: updates.peek(&container.id).cloned(),
            };
            let answer: Option<api::UpdateContainerResponse> = plugin
                .ask(Event::UpdateContainer, "UpdateContainer", &request)
                .await?;
            let Some(answer) = answer else { continue };
            updates.evictions.extend(answer.evict);
            updates
                .apply(answer.update, &plugin.name(), &mut owners)
                .map_err(|e| Fault::invalid(e.to_string()))?;
        }
        Ok(updates)
    }

    /// Tells that a container has stopped. What plugins then want of others comes back, also when
    /// one of them failed: a stop cannot be refused.
    pub(crate) async fn stop(&self, subject: &Subject) -> Updates {
        let _turn = self.turn.lock().await;
        let mut updates = Updates::default();
        let mut owners = Owners::default();
        for plugin in self.plugins() {
            let request = api::StopContainerRequest {
                pod: Some(subject.pod.clone()),
                container: subject.container.clone(),
            };
            let answer: Result<Option<api::StopContainerResponse>> = plugin
                .ask(Event::StopContainer, "StopContainer", &request)
                .await;
            let taken = answer.and_then(|answer| {
                let wanted = answer.unwrap_or_default().update;
                updates
                    .apply(wanted, &plugin.name(), &mut owners)
                    .map_err(|e| Fault::invalid(e.to_string()))
            });
            if let Err(fault) = taken {
                tracing::error!(error = %fault.chain(), "nri: a plugin failed when a container had stopped");
            }
        }
        updates
    }
}

async fn tell(plugin: &Plugin, event: Event, subject: &Subject) -> Result<()> {
    let pod = || Some(subject.pod.clone());
    let container = || subject.container.clone();
    let change = || api::StateChangeEvent {
        event: event as i32,
        pod: pod(),
        container: container(),
    };
    let method = method(event);
    // All of these have the same two fields, with the same numbers, or the first of them alone.
    let request = api::PostStartContainerRequest {
        pod: pod(),
        container: container(),
    };
    plugin.tell(event, method, &request, change).await
}

/// The call that tells of an event.
fn method(event: Event) -> &'static str {
    match event {
        Event::RunPodSandbox => "RunPodSandbox",
        Event::UpdatePodSandbox => "UpdatePodSandbox",
        Event::PostUpdatePodSandbox => "PostUpdatePodSandbox",
        Event::StopPodSandbox => "StopPodSandbox",
        Event::RemovePodSandbox => "RemovePodSandbox",
        Event::CreateContainer => "CreateContainer",
        Event::PostCreateContainer => "PostCreateContainer",
        Event::StartContainer => "StartContainer",
        Event::PostStartContainer => "PostStartContainer",
        Event::UpdateContainer => "UpdateContainer",
        Event::PostUpdateContainer => "PostUpdateContainer",
        Event::StopContainer => "StopContainer",
        Event::RemoveContainer => "RemoveContainer",
        Event::ValidateContainerAdjustment => "ValidateContainerAdjustment",
        Event::Unknown | Event::Last => "StateChange",
    }
}

/// Every validator must agree; one that fails or is late has not agreed.
async fn validate(
    plugins: &[Arc<Plugin>],
    pod: &api::PodSandbox,
    pristine: api::Container,
    creation: &Creation,
) -> Result<()> {
    let event = Event::ValidateContainerAdjustment;
    if !plugins.iter().any(|plugin| plugin.wants(event)) {
        return Ok(());
    }
    let request = api::ValidateContainerAdjustmentRequest {
        pod: Some(pod.clone()),
        container: Some(pristine),
        adjust: Some(creation.adjust.clone()),
        update: creation.updates.clone().into_list(),
        owners: Some(creation.owners.0.clone()),
        plugins: plugins
            .iter()
            .map(|plugin| api::PluginInstance {
                name: plugin.identity.base.clone(),
                index: plugin.identity.index.clone(),
            })
            .collect(),
    };
    for plugin in plugins.iter().filter(|plugin| plugin.wants(event)) {
        let name = plugin.name();
        let answer: Option<api::ValidateContainerAdjustmentResponse> =
            plugin.ask(event, method(event), &request).await?;
        let answer =
            answer.ok_or_else(|| Fault::precondition(format!("validator plugin {name} failed")))?;
        if answer.reject {
            let reason = match answer.reason.as_str() {
                "" => "unknown rejection reason",
                reason => reason,
            };
            return Err(Fault::invalid(format!(
                "validator {name:?} rejected container adjustment, reason: {reason}"
            )));
        }
    }
    Ok(())
}
