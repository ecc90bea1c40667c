// SPDX-License-Identifier: Apache-2.0
//! Reads caches, asks the plan, writes ReplicaSets and status.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::{Api, ResourceExt};
use tokio_util::sync::CancellationToken;

use super::super::context::Context;
use super::super::machinery::events::Recorder;
use super::super::machinery::informer::Change;
use super::super::machinery::key::Key;
use super::super::machinery::owner::{self, Claim};
use super::super::machinery::pods;
use super::super::machinery::queue::{Backoff, Queue};
use super::super::machinery::selector::Selector;
use super::super::machinery::sync::{
    self, Again, Attempt, SyncError, gone_is_fine, is_already_exists, is_namespace_terminating,
};
use super::plan::{self, Seen, Step};
use super::{revision, scale, status, template};

const WORKERS: usize = 5;

/// The Deployment controller.
pub(crate) struct Controller {
    context: Arc<Context>,
    events: Recorder,
    queue: Arc<Queue<Key>>,
}

impl Controller {
    /// Puts the hooks in place.
    pub(crate) fn new(context: &Arc<Context>) -> Self {
        let queue = Arc::new(Queue::new(Backoff::CONTROLLER));
        let own = Arc::clone(&queue);
        let informers = &context.informers;
        informers
            .deployments
            .on_change(move |change: &Change<'_, Deployment>| {
                if let Some(deployment) = change.latest() {
                    own.add(Key::of(deployment));
                }
            });
        hook_sets(context, &queue);
        hook_pods(context, &queue);
        Self {
            context: Arc::clone(context),
            events: context.events.speaking_as("deployment-controller"),
            queue,
        }
    }

    /// Reconciles until `stop`.
    pub(crate) async fn run(self, stop: CancellationToken) {
        let reconcile = |key| self.reconcile(key);
        sync::run("deployment", &self.queue, WORKERS, &stop, reconcile).await;
    }

    async fn reconcile(&self, key: Key) -> Result<Again, SyncError> {
        let Some(deployment) = self.context.informers.deployments.get(&key) else {
            return Ok(None);
        };
        let Some(selector) = selector_of(&deployment) else {
            return Ok(None);
        };
        let sets = self.claim(&deployment, &selector).await?;
        let seen = Seen {
            deployment: &deployment,
            old_pods_running: self.old_pods_running(&deployment, &sets),
            sets,
        };
        let plan = plan::plan(seen, (self.context.clock)())
            .map_err(|error| SyncError::Later(error.to_string()))?;
        let mut current = None;
        for step in plan.steps {
            if let Some(newer) = self.carry_out(&deployment, step).await? {
                current = Some(newer);
            }
        }
        if status::differs(deployment.status.as_ref(), &plan.status) {
            let mut updated = current.unwrap_or_else(|| deployment.as_ref().clone());
            updated.status = Some(plan.status);
            self.deployments(&key)
                .replace_status(&key.name, &PostParams::default(), &updated)
                .await
                .attempt(|| format!("updating status of deployment {key}"))?;
        }
        Ok(plan.again)
    }

    fn deployments(&self, key: &Key) -> Api<Deployment> {
        Api::namespaced(self.context.client.clone(), &key.namespace)
    }

    fn sets(&self, deployment: &Deployment) -> Api<ReplicaSet> {
        let namespace = deployment.metadata.namespace.as_deref().unwrap_or_default();
        Api::namespaced(self.context.client.clone(), namespace)
    }

    /// The sets of this Deployment; adopts and releases on the way.
    async fn claim(
        &self,
        deployment: &Deployment,
        selector: &Selector,
    ) -> Result<Vec<ReplicaSet>, SyncError> {
        let namespace = deployment.metadata.namespace.as_deref().unwrap_or_default();
        let mut owned = Vec::new();
        let mut still_there = false;
        for set in self.context.informers.replica_sets.in_namespace(namespace) {
            match owner::claim(&deployment.metadata, selector, &set.metadata) {
                Claim::Own => owned.push(set.as_ref().clone()),
                Claim::Leave => {}
                Claim::Release => {
                    let uid = deployment.metadata.uid.as_deref().unwrap_or_default();
                    let patch = owner::release_patch(&set.metadata, &[uid]);
                    self.patch_owners(deployment, &set, &patch).await?;
                }
                Claim::Adopt => {
                    if !still_there {
                        self.check_still_there(deployment).await?;
                        still_there = true;
                    }
                    let reference = owner::controller_reference(deployment);
                    let patch = owner::adopt_patch(&set.metadata, &reference);
                    self.patch_owners(deployment, &set, &patch).await?;
                    // The adopted set comes back through the watch, with its new resourceVersion.
                }
            }
        }
        Ok(owned)
    }

    async fn check_still_there(&self, deployment: &Deployment) -> Result<(), SyncError> {
        let key = Key::of(deployment);
        let live = self
            .deployments(&key)
            .get(&key.name)
            .await
            .attempt(|| format!("reading deployment {key} before adopting replicasets"))?;
        if live.metadata.uid != deployment.metadata.uid
            || live.metadata.deletion_timestamp.is_some()
        {
            return Err(SyncError::Later(format!(
                "deployment {key} is being replaced"
            )));
        }
        Ok(())
    }

    async fn patch_owners(
        &self,
        deployment: &Deployment,
        set: &ReplicaSet,
        patch: &serde_json::Value,
    ) -> Result<(), SyncError> {
        let name = set.name_any();
        let result = self
            .sets(deployment)
            .patch(&name, &PatchParams::default(), &Patch::Merge(patch))
            .await;
        gone_is_fine(result).attempt(|| format!("changing owners of replicaset {name}"))
    }

    fn old_pods_running(&self, deployment: &Deployment, sets: &[ReplicaSet]) -> bool {
        let template = template::of(deployment);
        let old: Vec<_> = sets
            .iter()
            .filter(|set| !template::is_from(set, &template))
            .filter_map(|set| set.metadata.uid.clone())
            .collect();
        let namespace = deployment.metadata.namespace.as_deref().unwrap_or_default();
        let pods = self.context.informers.pods.in_namespace(namespace);
        pods.iter().any(|pod| {
            !pods::is_finished(pod)
                && owner::controller_of(&pod.metadata).is_some_and(|o| old.contains(&o.uid))
        })
    }

    /// Returns the Deployment if the step changed it.
    async fn carry_out(
        &self,
        deployment: &Deployment,
        step: Step,
    ) -> Result<Option<Deployment>, SyncError> {
        match step {
            Step::Create(set) => self.create(deployment, &set).await.map(|()| None),
            Step::Update(set, before) => self.update(deployment, &set, before).await.map(|()| None),
            Step::Delete(set) => self.delete(deployment, &set).await.map(|()| None),
            Step::Revision(number) => self.set_revision(deployment, number).await.map(Some),
        }
    }

    async fn create(&self, deployment: &Deployment, set: &ReplicaSet) -> Result<(), SyncError> {
        let name = set.name_any();
        let result = self
            .sets(deployment)
            .create(&PostParams::default(), set)
            .await;
        match result {
            Ok(_) => {
                self.note_scaled(deployment, &name, 0, scale::size(set));
                Ok(())
            }
            Err(error) if is_already_exists(&error) => self.collided(deployment, set).await,
            Err(error) if is_namespace_terminating(&error) => Ok(()),
            Err(error) => {
                let text = format!("Failed to create new replica set {name:?}: {error}");
                self.events
                    .warning(deployment, "ReplicaSetCreateError", text);
                Err(error).attempt(|| format!("creating replicaset {name}"))
            }
        }
    }

    /// The name is taken: by our own set that the cache does not show yet, or by another template
    /// with the same hash. In the second case the hash is drawn anew.
    async fn collided(&self, deployment: &Deployment, set: &ReplicaSet) -> Result<(), SyncError> {
        let name = set.name_any();
        let live = self
            .sets(deployment)
            .get(&name)
            .await
            .attempt(|| format!("reading replicaset {name}"))?;
        let ours = owner::controller_of(&live.metadata).map(|o| &o.uid)
            == deployment.metadata.uid.as_ref();
        if ours && template::is_from(&live, &template::of(deployment)) {
            return Err(SyncError::Later(format!(
                "replicaset {name} is not in the cache yet"
            )));
        }
        let key = Key::of(deployment);
        let mut updated = deployment.clone();
        let status = updated.status.get_or_insert_default();
        status.collision_count = Some(status.collision_count.unwrap_or(0) + 1);
        self.deployments(&key)
            .replace_status(&key.name, &PostParams::default(), &updated)
            .await
            .attempt(|| format!("counting a hash collision of deployment {key}"))?;
        Err(SyncError::Later(format!(
            "the name {name} is taken by another replicaset"
        )))
    }

    async fn update(
        &self,
        deployment: &Deployment,
        set: &ReplicaSet,
        before: i32,
    ) -> Result<(), SyncError> {
        let name = set.name_any();
        self.sets(deployment)
            .replace(&name, &PostParams::default(), set)
            .await
            .attempt(|| format!("updating replicaset {name}"))?;
        if scale::size(set) != before {
            self.note_scaled(deployment, &name, before, scale::size(set));
        }
        Ok(())
    }

    fn note_scaled(&self, deployment: &Deployment, set: &str, from: i32, to: i32) {
        let direction = if to >= from { "up" } else { "down" };
        let text = format!("Scaled {direction} replica set {set} from {from} to {to}");
        self.events.normal(deployment, "ScalingReplicaSet", text);
    }

    async fn delete(&self, deployment: &Deployment, set: &ReplicaSet) -> Result<(), SyncError> {
        let name = set.name_any();
        let params = DeleteParams::background().preconditions(Preconditions {
            uid: set.metadata.uid.clone(),
            resource_version: set.metadata.resource_version.clone(),
        });
        let result = self.sets(deployment).delete(&name, &params).await;
        gone_is_fine(result).attempt(|| format!("deleting replicaset {name}"))
    }

    async fn set_revision(
        &self,
        deployment: &Deployment,
        to: i64,
    ) -> Result<Deployment, SyncError> {
        let key = Key::of(deployment);
        let patch = serde_json::json!({"metadata": {
            "resourceVersion": deployment.metadata.resource_version,
            "annotations": {revision::REVISION: to.to_string()},
        }});
        self.deployments(&key)
            .patch(&key.name, &PatchParams::default(), &Patch::Merge(&patch))
            .await
            .attempt(|| format!("writing the revision of deployment {key}"))
    }
}

fn selector_of(deployment: &Deployment) -> Option<Selector> {
    let selector = &deployment.spec.selector;
    Selector::parse(selector)
        .inspect_err(|error| {
            tracing::warn!(deployment = %Key::of(deployment), %error, "selector ignored");
        })
        .ok()
        .filter(|selector| !selector.is_empty())
}

/// A set wakes its Deployment; an orphan wakes every Deployment that would adopt it.
fn hook_sets(context: &Arc<Context>, queue: &Arc<Queue<Key>>) {
    let queue = Arc::clone(queue);
    let deployments = Arc::clone(&context.informers.deployments);
    let informer = &context.informers.replica_sets;
    informer.on_change(move |change: &Change<'_, ReplicaSet>| {
        for set in change.versions() {
            if let Some(key) = deployment_of(set) {
                queue.add(key);
            }
        }
        let orphan = change
            .new
            .filter(|set| owner::controller_of(&set.metadata).is_none());
        if let Some(set) = orphan {
            let namespace = set.metadata.namespace.as_deref().unwrap_or_default();
            for deployment in deployments.in_namespace(namespace) {
                if selector_of(&deployment).is_some_and(|s| s.matches(set.labels())) {
                    queue.add(Key::of(deployment.as_ref()));
                }
            }
        }
    });
}

/// A pod that is gone may be what a `Recreate` Deployment waits for.
fn hook_pods(context: &Arc<Context>, queue: &Arc<Queue<Key>>) {
    let queue = Arc::clone(queue);
    let sets = Arc::clone(&context.informers.replica_sets);
    context
        .informers
        .pods
        .on_change(move |change: &Change<'_, Pod>| {
            let ended = change.new.is_none_or(|pod| pods::is_finished(pod));
            let Some(pod) = change.latest().filter(|_| ended) else {
                return;
            };
            let set = owner::controller_of(&pod.metadata)
                .filter(|owner| owner.kind == "ReplicaSet")
                .map(|owner| {
                    Key::new(
                        pod.metadata.namespace.clone().unwrap_or_default(),
                        &owner.name,
                    )
                })
                .and_then(|key| sets.get(&key));
            if let Some(key) = set.and_then(|set| deployment_of(&set)) {
                queue.add(key);
            }
        });
}

fn deployment_of(set: &ReplicaSet) -> Option<Key> {
    owner::controller_of(&set.metadata)
        .filter(|owner| owner.kind == "Deployment")
        .map(|owner| {
            Key::new(
                set.metadata.namespace.clone().unwrap_or_default(),
                &owner.name,
            )
        })
}
