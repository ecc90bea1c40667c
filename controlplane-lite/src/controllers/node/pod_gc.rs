// SPDX-License-Identifier: Apache-2.0
//! Removes pods that no kubelet will ever report on: those of nodes that are gone, and those that
//! were deleted before they were bound.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, Pod, PodCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::Api;
use kube::api::{DeleteParams, PostParams, Preconditions};
use tokio_util::sync::CancellationToken;

use super::super::context::Context;
use super::super::machinery::informer::Change;
use super::super::machinery::key::Key;
use super::super::machinery::pods;
use super::super::machinery::queue::{Backoff, Queue};
use super::super::machinery::sync::{self, Again, Attempt, SyncError, gone_is_fine};

/// A node that vanished may be re-registered by its kubelet; upstream waits as long.
const QUARANTINE: SignedDuration = SignedDuration::from_secs(40);
/// How often all pods are looked at.
const PERIOD: Duration = Duration::from_secs(20);

/// The pod garbage collector. It has one key, since it always looks at everything.
pub(crate) struct Controller {
    context: Arc<Context>,
    queue: Arc<Queue<Key>>,
    missing: Mutex<HashMap<String, Timestamp>>,
}

fn everything() -> Key {
    Key::new("", "all")
}

/// The nodes that are named by pods, are not there, and have been missing for the quarantine.
fn lost(
    missing: &mut HashMap<String, Timestamp>,
    named: &[String],
    exists: &dyn Fn(&str) -> bool,
    now: Timestamp,
) -> Vec<String> {
    missing.retain(|node, _| named.contains(node) && !exists(node));
    for node in named.iter().filter(|node| !exists(node)) {
        missing.entry(node.clone()).or_insert(now);
    }
    let over = missing
        .iter()
        .filter(|(_, since)| now.duration_since(**since) >= QUARANTINE);
    over.map(|(node, _)| node.clone()).collect()
}

impl Controller {
    /// Puts the hooks in place.
    pub(crate) fn new(context: &Arc<Context>) -> Self {
        let queue = Arc::new(Queue::new(Backoff::CONTROLLER));
        queue.add(everything());
        let own = Arc::clone(&queue);
        context
            .informers
            .nodes
            .on_change(move |change: &Change<'_, Node>| {
                if change.new.is_none() {
                    own.add(everything());
                }
            });
        let own = Arc::clone(&queue);
        context
            .informers
            .pods
            .on_change(move |change: &Change<'_, Pod>| {
                if change.new.is_some_and(|pod| is_unbound_and_going(pod)) {
                    own.add(everything());
                }
            });
        Self {
            context: Arc::clone(context),
            queue,
            missing: Mutex::default(),
        }
    }

    /// Reconciles until `stop`.
    pub(crate) async fn run(self, stop: CancellationToken) {
        let reconcile = |_| self.sweep();
        sync::run("podgc", &self.queue, 1, &stop, reconcile).await;
    }

    async fn sweep(&self) -> Result<Again, SyncError> {
        let all = self.context.informers.pods.all();
        let lost = self.lost_nodes(&all).await?;
        for pod in &all {
            let on_lost = pods::node_name(pod).is_some_and(|name| lost.iter().any(|l| l == name));
            if on_lost && !pods::is_finished(pod) {
                self.fail(pod).await?;
            }
            if on_lost || is_unbound_and_going(pod) {
                self.delete(pod).await?;
            }
        }
        Ok(Some(PERIOD))
    }

    /// The cache proposes, the server confirms.
    async fn lost_nodes(&self, all: &[Arc<Pod>]) -> Result<Vec<String>, SyncError> {
        let mut named: Vec<_> = all
            .iter()
            .filter_map(|p| pods::node_name(p))
            .map(str::to_owned)
            .collect();
        named.sort();
        named.dedup();
        let nodes = &self.context.informers.nodes;
        let exists = |name: &str| nodes.get(&Key::new("", name)).is_some();
        let now = (self.context.clock)();
        let suspects = {
            let mut missing = self.missing.lock().unwrap_or_else(PoisonError::into_inner);
            lost(&mut missing, &named, &exists, now)
        };
        let api: Api<Node> = Api::all(self.context.client.clone());
        let mut lost = Vec::new();
        for name in suspects {
            let live = api
                .get_opt(&name)
                .await
                .attempt(|| format!("reading node {name}"))?;
            if live.is_none() {
                lost.push(name);
            }
        }
        Ok(lost)
    }

    async fn fail(&self, pod: &Pod) -> Result<(), SyncError> {
        let key = Key::of(pod);
        let mut updated = pod.clone();
        let status = updated.status.get_or_insert_default();
        status.phase = Some("Failed".into());
        let conditions = status.conditions.get_or_insert_default();
        conditions.retain(|c| c.type_ != "DisruptionTarget");
        conditions.push(PodCondition {
            type_: "DisruptionTarget".into(),
            status: "True".into(),
            reason: Some("DeletionByPodGC".into()),
            message: Some("PodGC: node no longer exists".into()),
            last_transition_time: Some(Time((self.context.clock)())),
            ..PodCondition::default()
        });
        let api: Api<Pod> = Api::namespaced(self.context.client.clone(), &key.namespace);
        let result = api
            .replace_status(&key.name, &PostParams::default(), &updated)
            .await;
        gone_is_fine(result).attempt(|| format!("failing pod {key}"))
    }

    async fn delete(&self, pod: &Pod) -> Result<(), SyncError> {
        let key = Key::of(pod);
        let api: Api<Pod> = Api::namespaced(self.context.client.clone(), &key.namespace);
        let params = DeleteParams::default()
            .grace_period(0)
            .preconditions(Preconditions {
                uid: pod.metadata.uid.clone(),
                resource_version: None,
            });
        tracing::info!(pod = %key, "removing a pod that no node reports on");
        gone_is_fine(api.delete(&key.name, &params).await).attempt(|| format!("removing pod {key}"))
    }
}

fn is_unbound_and_going(pod: &Pod) -> bool {
    pods::is_terminating(pod) && pods::node_name(pod).is_none()
}

#[cfg(test)]
mod tests {
    use super::super::super::machinery::testing::at;
    use super::*;

    #[test]
    fn a_node_is_lost_only_after_the_quarantine() {
        let mut missing = HashMap::new();
        let named = ["n1".to_owned(), "n2".to_owned()];
        let one = |name: &str| name == "n1";
        assert!(lost(&mut missing, &named, &one, at(0)).is_empty());
        assert!(lost(&mut missing, &named, &one, at(39)).is_empty());
        assert_eq!(lost(&mut missing, &named, &one, at(40)), ["n2"]);
        assert!(lost(&mut missing, &named, &|_| true, at(41)).is_empty());
        assert!(lost(&mut missing, &named, &one, at(42)).is_empty());
    }
}
