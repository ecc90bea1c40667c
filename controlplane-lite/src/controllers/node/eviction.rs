// SPDX-License-Identifier: Apache-2.0
//! Deletes pods from nodes whose `NoExecute` taints they do not tolerate, or not any longer.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, Pod, PodCondition, Taint, Toleration};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::Api;
use kube::api::{DeleteParams, PostParams, Preconditions};
use tokio_util::sync::CancellationToken;

use super::super::context::Context;
use super::super::machinery::events::Recorder;
use super::super::machinery::informer::Change;
use super::super::machinery::key::Key;
use super::super::machinery::pods;
use super::super::machinery::queue::{Backoff, Queue};
use super::super::machinery::sync::{self, Again, Attempt, SyncError, gone_is_fine};
use super::super::machinery::taints::tolerates;

const WORKERS: usize = 4;

/// When a pod must leave.
#[derive(Debug, PartialEq, Eq)]
enum Leave {
    Never,
    In(Duration),
}

fn tolerations(pod: &Pod) -> Vec<Toleration> {
    let spec = pod.spec.as_ref();
    spec.and_then(|s| s.tolerations.clone()).unwrap_or_default()
}

/// Each `NoExecute` taint must be tolerated; the shortest `tolerationSeconds` counts, from the time
/// at which its taint was added.
fn leave(taints: &[Taint], tolerations: &[Toleration], now: Timestamp) -> Leave {
    let mut soonest: Option<Duration> = None;
    for taint in taints.iter().filter(|t| t.effect == "NoExecute") {
        let matching: Vec<_> = tolerations.iter().filter(|t| tolerates(t, taint)).collect();
        if matching.is_empty() {
            return Leave::In(Duration::ZERO);
        }
        let Some(seconds) = matching.iter().filter_map(|t| t.toleration_seconds).min() else {
            continue;
        };
        let since = taint.time_added.as_ref().map_or(now, |time| time.0);
        let passed = now
            .duration_since(since)
            .max(SignedDuration::ZERO)
            .unsigned_abs();
        let allowed = Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
        let left = allowed.saturating_sub(passed);
        soonest = Some(soonest.map_or(left, |s| s.min(left)));
    }
    soonest.map_or(Leave::Never, Leave::In)
}

/// The taint eviction controller. Its keys are pods.
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
        context
            .informers
            .pods
            .on_change(move |change: &Change<'_, Pod>| {
                if let Some(pod) = change.new {
                    own.add(Key::of(pod.as_ref()));
                }
            });
        let own = Arc::clone(&queue);
        let all = Arc::clone(&context.informers.pods);
        context
            .informers
            .nodes
            .on_change(move |change: &Change<'_, Node>| {
                let taints = |n: Option<&Arc<Node>>| n.map(|n| no_execute(n)).unwrap_or_default();
                if taints(change.old) == taints(change.new) {
                    return;
                }
                let name = change.latest().and_then(|n| n.metadata.name.clone());
                for pod in all.all() {
                    if pods::node_name(&pod) == name.as_deref() {
                        own.add(Key::of(pod.as_ref()));
                    }
                }
            });
        Self {
            context: Arc::clone(context),
            events: context.events.speaking_as("taint-eviction-controller"),
            queue,
        }
    }

    /// Reconciles until `stop`.
    pub(crate) async fn run(self, stop: CancellationToken) {
        let reconcile = |key| self.reconcile(key);
        sync::run("tainteviction", &self.queue, WORKERS, &stop, reconcile).await;
    }

    async fn reconcile(&self, key: Key) -> Result<Again, SyncError> {
        let Some(pod) = self.context.informers.pods.get(&key) else {
            return Ok(None);
        };
        let node = pods::node_name(&pod).map(|name| Key::new("", name));
        let node = node.and_then(|key| self.context.informers.nodes.get(&key));
        let Some(node) = node.filter(|_| !pods::is_terminating(&pod)) else {
            return Ok(None);
        };
        let now = (self.context.clock)();
        match leave(&no_execute(&node), &tolerations(&pod), now) {
            Leave::Never => Ok(None),
            Leave::In(Duration::ZERO) => self.evict(&key, &pod).await.map(|()| None),
            Leave::In(wait) => Ok(Some(wait)),
        }
    }

    async fn evict(&self, key: &Key, pod: &Pod) -> Result<(), SyncError> {
        let text = format!("Marking for deletion Pod {key}");
        self.events.normal(pod, "TaintManagerEviction", text);
        let api: Api<Pod> = Api::namespaced(self.context.client.clone(), &key.namespace);
        let mut updated = pod.clone();
        let conditions = updated
            .status
            .get_or_insert_default()
            .conditions
            .get_or_insert_default();
        conditions.retain(|c| c.type_ != "DisruptionTarget");
        conditions.push(PodCondition {
            type_: "DisruptionTarget".into(),
            status: "True".into(),
            reason: Some("DeletionByTaintManager".into()),
            message: Some("Taint manager: deleting due to NoExecute taint".into()),
            last_transition_time: Some(Time((self.context.clock)())),
            ..PodCondition::default()
        });
        let result = api
            .replace_status(&key.name, &PostParams::default(), &updated)
            .await;
        gone_is_fine(result).attempt(|| format!("marking pod {key} for eviction"))?;
        let params = DeleteParams::default().preconditions(Preconditions {
            uid: pod.metadata.uid.clone(),
            resource_version: None,
        });
        gone_is_fine(api.delete(&key.name, &params).await).attempt(|| format!("evicting pod {key}"))
    }
}

fn no_execute(node: &Node) -> Vec<Taint> {
    let taints = node
        .spec
        .as_ref()
        .and_then(|s| s.taints.clone())
        .unwrap_or_default();
    taints
        .into_iter()
        .filter(|t| t.effect == "NoExecute")
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::super::machinery::testing::at;
    use super::*;

    fn check(seconds: &[Option<i64>], now: i64) -> Leave {
        let taint = Taint {
            key: "node.kubernetes.io/unreachable".into(),
            effect: "NoExecute".into(),
            value: None,
            time_added: Some(Time(at(100))),
        };
        let tolerations: Vec<_> = seconds
            .iter()
            .map(|seconds| Toleration {
                key: Some(taint.key.clone()),
                operator: Some("Exists".into()),
                toleration_seconds: *seconds,
                ..Toleration::default()
            })
            .collect();
        leave(&[taint], &tolerations, at(now))
    }

    #[test]
    fn toleration_seconds_count_from_the_taint() {
        assert_eq!(check(&[], 100), Leave::In(Duration::ZERO));
        assert_eq!(check(&[None], 9999), Leave::Never);
        assert_eq!(
            check(&[Some(300)], 150),
            Leave::In(Duration::from_secs(250))
        );
        assert_eq!(
            check(&[Some(300), Some(60)], 150),
            Leave::In(Duration::from_secs(10))
        );
        assert_eq!(check(&[Some(300)], 400), Leave::In(Duration::ZERO));
    }
}
