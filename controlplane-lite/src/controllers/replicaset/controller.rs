// SPDX-License-Identifier: Apache-2.0
//! Reads caches, asks the plan, writes pods and status.

use std::sync::Arc;

use futures::future::join_all;
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::super::context::Context;
use super::super::machinery::events::Recorder;
use super::super::machinery::expectations::Expectations;
use super::super::machinery::informer::Change;
use super::super::machinery::key::Key;
use super::super::machinery::owner::{self, Claim};
use super::super::machinery::queue::{Backoff, Queue};
use super::super::machinery::selector::Selector;
use super::super::machinery::sync::{
    self, Again, Attempt, SyncError, gone_is_fine, is_namespace_terminating, is_not_found,
};
use super::plan::{self, Step};
use super::status::{self, Failure};

const WORKERS: usize = 5;

/// Pods could not be made or deleted: for the status, and for the retry.
struct Failed {
    failure: Failure,
    error: Box<SyncError>,
}

/// The ReplicaSet controller.
pub(crate) struct Controller {
    context: Arc<Context>,
    events: Recorder,
    queue: Arc<Queue<Key>>,
    expectations: Arc<Expectations>,
}

impl Controller {
    /// Puts the hooks in place.
    pub(crate) fn new(context: &Arc<Context>) -> Self {
        let queue = Arc::new(Queue::new(Backoff::CONTROLLER));
        let expectations = Arc::new(Expectations::default());
        let sets = Arc::clone(&queue);
        context
            .informers
            .replica_sets
            .on_change(move |change: &Change<'_, ReplicaSet>| {
                if let Some(set) = change.latest() {
                    sets.add(Key::of(set));
                }
            });
        hook_pods(context, &queue, &expectations);
        Self {
            context: Arc::clone(context),
            events: context.events.speaking_as("replicaset-controller"),
            queue,
            expectations,
        }
    }

    /// Reconciles until `stop`.
    pub(crate) async fn run(self, stop: CancellationToken) {
        let reconcile = |key| self.reconcile(key);
        sync::run("replicaset", &self.queue, WORKERS, &stop, reconcile).await;
    }

    async fn reconcile(&self, key: Key) -> Result<Again, SyncError> {
        let Some(set) = self.context.informers.replica_sets.get(&key) else {
            self.expectations.forget(&key);
            return Ok(None);
        };
        let Some(selector) = selector_of(&set) else {
            return Ok(None);
        };
        let seen_all = self.expectations.satisfied(&key, Instant::now());
        let owned = self.claim(&set, &selector).await?;
        let now = (self.context.clock)();
        let mut outcome = Ok(());
        if seen_all {
            let step = plan::plan(&set, &owned, &self.related(&set), now);
            outcome = self.carry_out(&key, &set, step).await;
        }
        let failure = outcome.as_ref().err().map(|failed| &failed.failure);
        let (new, next) = status::status(&set, &owned, failure, now);
        if status::differs(set.status.as_ref(), &new) {
            let mut updated = set.as_ref().clone();
            updated.status = Some(new);
            self.sets(&key)
                .replace_status(&key.name, &PostParams::default(), &updated)
                .await
                .attempt(|| format!("updating status of replicaset {key}"))?;
        }
        outcome.map_err(|failed| *failed.error)?;
        Ok(next)
    }

    fn sets(&self, key: &Key) -> Api<ReplicaSet> {
        Api::namespaced(self.context.client.clone(), &key.namespace)
    }

    fn pods(&self, set: &ReplicaSet) -> Api<Pod> {
        let namespace = set.metadata.namespace.as_deref().unwrap_or_default();
        Api::namespaced(self.context.client.clone(), namespace)
    }

    /// The pods of this set; adopts and releases on the way.
    async fn claim(
        &self,
        set: &ReplicaSet,
        selector: &Selector,
    ) -> Result<Vec<Arc<Pod>>, SyncError> {
        let namespace = set.metadata.namespace.as_deref().unwrap_or_default();
        let mut owned = Vec::new();
        let mut still_there = false;
        for pod in self.context.informers.pods.in_namespace(namespace) {
            match owner::claim(&set.metadata, selector, &pod.metadata) {
                Claim::Own => owned.push(pod),
                Claim::Leave => {}
                Claim::Release => self.release(set, &pod).await?,
                Claim::Adopt => {
                    if !still_there {
                        self.check_still_there(set).await?;
                        still_there = true;
                    }
                    if self.adopt(set, &pod).await? {
                        owned.push(pod);
                    }
                }
            }
        }
        Ok(owned)
    }

    /// A cache may be behind: before it takes a pod, the set makes sure that it still exists itself.
    async fn check_still_there(&self, set: &ReplicaSet) -> Result<(), SyncError> {
        let key = Key::of(set);
        let live = self
            .sets(&key)
            .get(&key.name)
            .await
            .attempt(|| format!("reading replicaset {key} before adopting pods"))?;
        if live.metadata.uid != set.metadata.uid || live.metadata.deletion_timestamp.is_some() {
            return Err(SyncError::Later(format!(
                "replicaset {key} is being replaced"
            )));
        }
        Ok(())
    }

    async fn adopt(&self, set: &ReplicaSet, pod: &Pod) -> Result<bool, SyncError> {
        let reference = owner::controller_reference(set);
        let patch = owner::adopt_patch(&pod.metadata, &reference);
        self.patch_owners(set, pod, &patch).await.map(|()| true)
    }

    async fn release(&self, set: &ReplicaSet, pod: &Pod) -> Result<(), SyncError> {
        let uid = set.metadata.uid.as_deref().unwrap_or_default();
        let patch = owner::release_patch(&pod.metadata, &[uid]);
        self.patch_owners(set, pod, &patch).await
    }

    async fn patch_owners(
        &self,
        set: &ReplicaSet,
        pod: &Pod,
        patch: &serde_json::Value,
    ) -> Result<(), SyncError> {
        let key = Key::of(pod);
        let result = self
            .pods(set)
            .patch(&key.name, &PatchParams::default(), &Patch::Merge(patch))
            .await;
        gone_is_fine(result).attempt(|| format!("changing owners of pod {key}"))
    }

    /// All pods of all sets of the same owner, for the ranking of victims.
    fn related(&self, set: &ReplicaSet) -> Vec<Arc<Pod>> {
        let namespace = set.metadata.namespace.as_deref().unwrap_or_default();
        let sets = self.context.informers.replica_sets.in_namespace(namespace);
        let above = owner::controller_of(&set.metadata).map(|o| o.uid.clone());
        let family: Vec<_> = sets
            .iter()
            .filter(|other| {
                other.metadata.uid == set.metadata.uid
                    || (above.is_some()
                        && owner::controller_of(&other.metadata).map(|o| o.uid.clone()) == above)
            })
            .filter_map(|other| other.metadata.uid.clone())
            .collect();
        self.context
            .informers
            .pods
            .in_namespace(namespace)
            .into_iter()
            .filter(|pod| {
                owner::controller_of(&pod.metadata).is_some_and(|o| family.contains(&o.uid))
            })
            .collect()
    }

    async fn carry_out(&self, key: &Key, set: &ReplicaSet, step: Step) -> Result<(), Failed> {
        match step {
            Step::Nothing => Ok(()),
            Step::Create(count) => self.create(key, set, count).await,
            Step::Delete(victims) => self.delete(key, set, victims).await,
        }
    }

    async fn create(&self, key: &Key, set: &ReplicaSet, count: usize) -> Result<(), Failed> {
        self.expectations
            .expect(key.clone(), count, [], Instant::now());
        let pod = plan::pod_of(set);
        let api = self.pods(set);
        let mut left = count;
        for batch in plan::slow_start(count) {
            let params = PostParams::default();
            let results = join_all((0..batch).map(|_| api.create(&params, &pod))).await;
            left -= batch;
            let mut failed = None;
            for result in results {
                match result {
                    Ok(made) => {
                        let name = made.metadata.name.unwrap_or_default();
                        let message = format!("Created pod: {name}");
                        self.events.normal(set, "SuccessfulCreate", message);
                    }
                    Err(error) => {
                        self.expectations.created(key);
                        failed = Some(error);
                    }
                }
            }
            if let Some(error) = failed {
                // The rest of the batches is not tried: they will not be seen either.
                (0..left).for_each(|_| self.expectations.created(key));
                return self.creation_failed(key, set, error);
            }
        }
        Ok(())
    }

    fn creation_failed(
        &self,
        key: &Key,
        set: &ReplicaSet,
        error: kube::Error,
    ) -> Result<(), Failed> {
        if is_namespace_terminating(&error) {
            return Ok(());
        }
        let message = reason_text(&error);
        let text = format!("Error creating: {message}");
        self.events.warning(set, "FailedCreate", text);
        let failure = Failure {
            reason: "FailedCreate",
            message,
        };
        let source = SyncError::Api {
            action: format!("creating a pod of replicaset {key}"),
            source: error,
        };
        Err(Failed {
            failure,
            error: Box::new(source),
        })
    }

    async fn delete(
        &self,
        key: &Key,
        set: &ReplicaSet,
        victims: Vec<Arc<Pod>>,
    ) -> Result<(), Failed> {
        let uids = victims.iter().filter_map(|pod| pod.metadata.uid.clone());
        self.expectations
            .expect(key.clone(), 0, uids, Instant::now());
        let results = join_all(victims.iter().map(|pod| self.delete_one(set, pod))).await;
        let mut outcome = Ok(());
        for (pod, result) in victims.iter().zip(results) {
            let name = pod.metadata.name.as_deref().unwrap_or_default();
            let uid = pod.metadata.uid.as_deref().unwrap_or_default();
            match result {
                Ok(()) => {
                    let message = format!("Deleted pod: {name}");
                    self.events.normal(set, "SuccessfulDelete", message);
                }
                Err(error) if is_not_found(&error) => self.expectations.deleted(key, uid),
                Err(error) => {
                    self.expectations.deleted(key, uid);
                    outcome = Err(self.deletion_failed(set, name, error));
                }
            }
        }
        outcome
    }

    async fn delete_one(&self, set: &ReplicaSet, pod: &Pod) -> Result<(), kube::Error> {
        let params = DeleteParams::default().preconditions(Preconditions {
            uid: pod.metadata.uid.clone(),
            resource_version: None,
        });
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        self.pods(set).delete(name, &params).await.map(|_| ())
    }

    fn deletion_failed(&self, set: &ReplicaSet, name: &str, error: kube::Error) -> Failed {
        let message = reason_text(&error);
        let text = format!("Error deleting: {message}");
        self.events.warning(set, "FailedDelete", text);
        let failure = Failure {
            reason: "FailedDelete",
            message,
        };
        let source = SyncError::Api {
            action: format!("deleting pod {name}"),
            source: error,
        };
        Failed {
            failure,
            error: Box::new(source),
        }
    }
}

/// The server's own words where it answered.
fn reason_text(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => other.to_string(),
    }
}

fn selector_of(set: &ReplicaSet) -> Option<Selector> {
    let selector = &set.spec.selector;
    Selector::parse(selector)
        .inspect_err(|error| tracing::warn!(replicaset = %Key::of(set), %error, "selector ignored"))
        .ok()
}

/// Pods tick off expectations and wake their set; an orphan wakes every set that would adopt it.
fn hook_pods(context: &Arc<Context>, queue: &Arc<Queue<Key>>, expectations: &Arc<Expectations>) {
    let queue = Arc::clone(queue);
    let expectations = Arc::clone(expectations);
    let sets = Arc::clone(&context.informers.replica_sets);
    context
        .informers
        .pods
        .on_change(move |change: &Change<'_, Pod>| {
            tick(change, &expectations);
            for pod in change.versions() {
                if let Some(key) = set_of(pod) {
                    queue.add(key);
                }
            }
            let orphan = change
                .new
                .filter(|pod| owner::controller_of(&pod.metadata).is_none());
            if let Some(pod) = orphan {
                let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
                let labels = pod.metadata.labels.clone().unwrap_or_default();
                for set in sets.in_namespace(namespace) {
                    if selector_of(&set).is_some_and(|s| s.matches(&labels)) {
                        queue.add(Key::of(set.as_ref()));
                    }
                }
            }
        });
}

fn tick(change: &Change<'_, Pod>, expectations: &Expectations) {
    let going = |pod: &Pod| pod.metadata.deletion_timestamp.is_some();
    match (change.old, change.new) {
        (None, Some(pod)) => {
            if let Some(key) = set_of(pod) {
                expectations.created(&key);
            }
        }
        (Some(old), new) if new.is_none_or(|new| going(new) && !going(old)) => {
            if let (Some(key), Some(uid)) = (set_of(old), &old.metadata.uid) {
                expectations.deleted(&key, uid);
            }
        }
        _ => {}
    }
}

fn set_of(pod: &Pod) -> Option<Key> {
    owner::controller_of(&pod.metadata)
        .filter(|owner| owner.kind == "ReplicaSet")
        .map(|owner| {
            Key::new(
                pod.metadata.namespace.clone().unwrap_or_default(),
                &owner.name,
            )
        })
}
