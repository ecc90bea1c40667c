// SPDX-License-Identifier: Apache-2.0
//! Watches pods and nodes, asks `pick`, and binds.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Binding, Node, ObjectReference, Pod, PodCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::waiting::Waiting;
use super::{Config, Error, pick, snapshot, unsupported};
use crate::controllers::machinery::SYSTEM_CLOCK;
use crate::controllers::machinery::condition;
use crate::controllers::machinery::events::Recorder;
use crate::controllers::machinery::group::{self, Group};
use crate::controllers::machinery::informer::{Change, Informer};
use crate::controllers::machinery::key::Key;
use crate::controllers::machinery::pods;
use crate::controllers::machinery::queue::{Backoff, Queue};
use crate::controllers::machinery::sync::{self, Again, Attempt, SyncError, is_not_found};

/// Pods that did not fit are tried again at least this often, in case a change was missed.
const FLUSH: Duration = Duration::from_secs(60);
/// Failures of the API, not of fitting.
const BACKOFF: Backoff = Backoff {
    base: Duration::from_millis(50),
    max: Duration::from_secs(10),
};

struct Scheduler {
    client: Client,
    config: Config,
    pods: Arc<Informer<Pod>>,
    nodes: Arc<Informer<Node>>,
    queue: Arc<Queue<Key>>,
    waiting: Arc<Waiting>,
    events: Recorder,
}

/// Schedules pods until `stop` is cancelled; a binding that has begun is finished.
///
/// # Errors
/// Only if a task of the scheduler ends by itself, which is a fault in it. Failures of the API are
/// retried; pods that do not fit get an event.
pub async fn run(client: Client, config: Config, stop: CancellationToken) -> Result<(), Error> {
    let stop = stop.child_token();
    let mut tasks = Group::new();
    let (events, sending) = Recorder::new(
        client.clone(),
        "default-scheduler",
        SYSTEM_CLOCK,
        stop.clone(),
    );
    tasks.spawn(async move {
        sending.await;
        "events"
    });
    let scheduler = Arc::new(Scheduler {
        pods: Arc::default(),
        nodes: Arc::default(),
        queue: Arc::new(Queue::new(BACKOFF)),
        waiting: Arc::default(),
        client,
        config,
        events,
    });
    scheduler.hook();
    scheduler.start(&mut tasks, &stop);
    Ok(group::supervise(tasks, stop).await?)
}

impl Scheduler {
    fn hook(self: &Arc<Self>) {
        let (queue, waiting) = (Arc::clone(&self.queue), Arc::clone(&self.waiting));
        let name = self.config.scheduler_name.clone();
        self.pods.on_change(move |change: &Change<'_, Pod>| {
            let Some(key) = change.latest().map(Key::of) else {
                return;
            };
            match change.new {
                Some(pod) if is_pending(pod, &name) => {
                    if !waiting.is_parked(&key) || may_fit_now(change) {
                        queue.add(key);
                    }
                }
                Some(pod) => {
                    if pods::node_name(pod).is_some() {
                        waiting.forget(&key);
                    }
                    waiting.unpark(&key);
                }
                None => {
                    waiting.forget(&key);
                    waiting.unpark(&key);
                }
            }
            if frees_room(change) {
                retry_parked(&waiting, &queue);
            }
        });
        let (queue, waiting) = (Arc::clone(&self.queue), Arc::clone(&self.waiting));
        self.nodes.on_change(move |change: &Change<'_, Node>| {
            if changes_fit(change) {
                retry_parked(&waiting, &queue);
            }
        });
    }

    fn start(self: &Arc<Self>, tasks: &mut Group, stop: &CancellationToken) {
        let (this, token) = (Arc::clone(self), stop.clone());
        tasks.spawn(async move {
            this.pods.run(Api::all(this.client.clone()), token).await;
            "watch of pods"
        });
        let (this, token) = (Arc::clone(self), stop.clone());
        tasks.spawn(async move {
            this.nodes.run(Api::all(this.client.clone()), token).await;
            "watch of nodes"
        });
        let (this, token) = (Arc::clone(self), stop.clone());
        tasks.spawn(async move {
            let synced = async { tokio::join!(this.pods.synced(), this.nodes.synced()) };
            tokio::select! {
                _ = synced => this.work(&token).await,
                () = token.cancelled() => {}
            }
            "worker"
        });
    }

    /// One worker: each decision sees the one before it.
    async fn work(&self, stop: &CancellationToken) {
        let flush = async {
            loop {
                tokio::time::sleep(FLUSH).await;
                retry_parked(&self.waiting, &self.queue);
            }
        };
        let schedule = sync::run("scheduler", &self.queue, 1, stop, |key| self.schedule(key));
        tokio::select! {
            () = schedule => {}
            () = flush => {}
        }
    }

    async fn schedule(&self, key: Key) -> Result<Again, SyncError> {
        let pod = self.pods.get(&key);
        let Some(pod) = pod.filter(|pod| is_pending(pod, &self.config.scheduler_name)) else {
            return Ok(None);
        };
        if self.waiting.is_assumed(&key) {
            return Ok(None);
        }
        if let Some(field) = unsupported::field(&pod) {
            let message = format!("{field} is not supported by this scheduler");
            self.waiting.park(&key);
            self.refuse(&pod, &message).await?;
            return Ok(None);
        }
        let bound = self.waiting.overlay(self.pods.all());
        let places = snapshot::places(self.nodes.all(), &bound);
        match pick::pick(&pod, &places) {
            Ok(node) => self.bind(&key, &pod, node).await.map(|()| None),
            Err(none) => {
                self.waiting.park(&key);
                self.refuse(&pod, &none.message).await?;
                Ok(None)
            }
        }
    }

    async fn bind(&self, key: &Key, pod: &Pod, node: String) -> Result<(), SyncError> {
        let mut assumed = pod.clone();
        assumed.spec.get_or_insert_default().node_name = Some(node.clone());
        self.waiting.assume(assumed);
        let binding = Binding {
            metadata: ObjectMeta {
                name: Some(key.name.clone()),
                namespace: Some(key.namespace.clone()),
                uid: pod.metadata.uid.clone(),
                ..ObjectMeta::default()
            },
            target: ObjectReference {
                api_version: Some("v1".into()),
                kind: Some("Node".into()),
                name: Some(node.clone()),
                ..ObjectReference::default()
            },
        };
        let result = self.send(key, &binding).await;
        match result {
            Ok(()) => {
                let text = format!("Successfully assigned {key} to {node}");
                self.events.normal(pod, "Scheduled", text);
                self.waiting.unpark(key);
                // If the pod went while it was being bound, its delete event came before `assume`
                // could be undone by it.
                if self.pods.get(key).is_none() {
                    self.waiting.forget(key);
                }
                Ok(())
            }
            Err(error) => {
                self.waiting.forget(key);
                if is_not_found(&error) {
                    return Ok(());
                }
                Err(error).attempt(|| format!("binding pod {key} to {node}"))
            }
        }
    }

    async fn send(&self, key: &Key, binding: &Binding) -> Result<(), kube::Error> {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &key.namespace);
        let _: serde_json::Value = api
            .create_subresource("binding", &key.name, &PostParams::default(), binding)
            .await?;
        Ok(())
    }

    /// Condition and event. An unchanged condition is not written again.
    async fn refuse(&self, pod: &Pod, message: &str) -> Result<(), SyncError> {
        let key = Key::of(pod);
        self.events.warning(pod, "FailedScheduling", message);
        let old = condition::of_pod(pod, "PodScheduled");
        let same = old.is_some_and(|c| {
            c.status == "False"
                && c.reason.as_deref() == Some("Unschedulable")
                && c.message.as_deref() == Some(message)
        });
        if same {
            return Ok(());
        }
        let since = old
            .filter(|c| c.status == "False")
            .and_then(|c| c.last_transition_time.clone());
        let new = PodCondition {
            type_: "PodScheduled".into(),
            status: "False".into(),
            reason: Some("Unschedulable".into()),
            message: Some(message.to_owned()),
            observed_generation: pod.metadata.generation,
            last_transition_time: since.or_else(|| Some(Time(SYSTEM_CLOCK()))),
            ..PodCondition::default()
        };
        // Conditions merge by type, so this leaves the others alone.
        let patch = json!({
            "metadata": {"uid": pod.metadata.uid},
            "status": {"conditions": [new]},
        });
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &key.namespace);
        let result = api
            .patch_status(
                &key.name,
                &PatchParams::default(),
                &Patch::Strategic(&patch),
            )
            .await;
        sync::gone_is_fine(result).attempt(|| format!("marking pod {key} as unschedulable"))
    }
}

/// Ours, not bound, not going, and not held back by a gate.
fn is_pending(pod: &Pod, scheduler: &str) -> bool {
    let spec = pod.spec.as_ref();
    let name = spec
        .and_then(|s| s.scheduler_name.as_deref())
        .unwrap_or("default-scheduler");
    let gated = spec
        .and_then(|s| s.scheduling_gates.as_ref())
        .is_some_and(|g| !g.is_empty());
    name == scheduler && !gated && pods::node_name(pod).is_none() && pods::is_active(pod)
}

/// A bound pod has ended.
fn frees_room(change: &Change<'_, Pod>) -> bool {
    let takes = |pod: Option<&Arc<Pod>>| {
        pod.is_some_and(|pod| pods::node_name(pod).is_some() && !pods::is_finished(pod))
    };
    takes(change.old) && !takes(change.new)
}

/// A pod that did not fit wants something else now. Our own writes to its status do not count.
fn may_fit_now(change: &Change<'_, Pod>) -> bool {
    match (change.old, change.new) {
        (Some(old), Some(new)) => {
            old.spec != new.spec
                || old.metadata.labels != new.metadata.labels
                || old.metadata.uid != new.metadata.uid
        }
        _ => true,
    }
}

/// Heartbeats change nothing that matters for fitting.
fn changes_fit(change: &Change<'_, Node>) -> bool {
    match (change.old, change.new) {
        (Some(old), Some(new)) => {
            let allocatable = |n: &Node| n.status.as_ref().and_then(|s| s.allocatable.clone());
            old.spec != new.spec
                || old.metadata.labels != new.metadata.labels
                || allocatable(old) != allocatable(new)
        }
        (_, new) => new.is_some(),
    }
}

fn retry_parked(waiting: &Waiting, queue: &Queue<Key>) {
    for (key, wait) in waiting.parked() {
        queue.add_after(key, wait);
    }
}
