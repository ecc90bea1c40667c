// SPDX-License-Identifier: Apache-2.0
//! Watches over nodes: conditions of silent ones, taints of all, readiness of pods on lost ones.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::super::context::{Context, LEASE_NAMESPACE};
use super::super::machinery::condition;
use super::super::machinery::events::Recorder;
use super::super::machinery::informer::Change;
use super::super::machinery::key::Key;
use super::super::machinery::pods;
use super::super::machinery::queue::{Backoff, Queue};
use super::super::machinery::sync::{self, Again, Attempt, SyncError, gone_is_fine};
use super::health::{self, Sign};
use super::taints;

const WORKERS: usize = 4;

/// The node lifecycle controller.
pub(crate) struct Controller {
    context: Arc<Context>,
    events: Recorder,
    queue: Arc<Queue<Key>>,
    grace: Duration,
    period: Duration,
    signs: Mutex<HashMap<Key, Sign>>,
}

impl Controller {
    /// Puts the hooks in place.
    pub(crate) fn new(context: &Arc<Context>, grace: Duration, period: Duration) -> Self {
        let queue = Arc::new(Queue::new(Backoff::CONTROLLER));
        let own = Arc::clone(&queue);
        context
            .informers
            .nodes
            .on_change(move |change: &Change<'_, Node>| {
                if let Some(node) = change.latest() {
                    own.add(Key::of(node));
                }
            });
        let own = Arc::clone(&queue);
        context
            .informers
            .leases
            .on_change(move |change: &Change<'_, Lease>| {
                let lease = change.latest().map(Key::of);
                if let Some(key) = lease.filter(|key| key.namespace == LEASE_NAMESPACE) {
                    own.add(Key::new("", key.name));
                }
            });
        Self {
            context: Arc::clone(context),
            events: context.events.speaking_as("node-controller"),
            queue,
            grace,
            period,
            signs: Mutex::default(),
        }
    }

    /// Reconciles until `stop`.
    pub(crate) async fn run(self, stop: CancellationToken) {
        let reconcile = |key| self.reconcile(key);
        sync::run("nodelifecycle", &self.queue, WORKERS, &stop, reconcile).await;
    }

    async fn reconcile(&self, key: Key) -> Result<Again, SyncError> {
        let Some(node) = self.context.informers.nodes.get(&key) else {
            self.signs
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .remove(&key);
            return Ok(None);
        };
        let patience = self.patience(&key, &node);
        if patience.is_zero() {
            let now = (self.context.clock)();
            if let Some(conditions) = health::unknown(&node, now) {
                // The changed node comes back through the watch and is tainted then.
                self.mark_unknown(&node, conditions).await?;
                return Ok(Some(self.period));
            }
        }
        self.taint(&node).await?;
        if condition::node_status(&node, "Ready") != "True" {
            self.mark_pods(&key).await?;
        }
        // A little more than what is left, so that the next look finds it used up.
        let again = patience.min(self.period).max(Duration::from_secs(1));
        Ok(Some(again))
    }

    fn patience(&self, key: &Key, node: &Node) -> Duration {
        let now = (self.context.clock)();
        let lease = self
            .context
            .informers
            .leases
            .get(&Key::new(LEASE_NAMESPACE, &key.name));
        let mut signs = self.signs.lock().unwrap_or_else(PoisonError::into_inner);
        let sign = health::observe(node, lease.as_deref(), signs.get(key), now);
        let patience = health::patience(&sign, self.grace, now);
        signs.insert(key.clone(), sign);
        patience
    }

    async fn mark_unknown(
        &self,
        node: &Node,
        conditions: Vec<k8s_openapi::api::core::v1::NodeCondition>,
    ) -> Result<(), SyncError> {
        let key = Key::of(node);
        let mut updated = node.clone();
        updated.status.get_or_insert_default().conditions = Some(conditions);
        let api: Api<Node> = Api::all(self.context.client.clone());
        api.replace_status(&key.name, &PostParams::default(), &updated)
            .await
            .attempt(|| format!("marking node {key} as unknown"))?;
        let text = format!("Node {key} status is now: NodeNotReady");
        self.events.normal(node, "NodeNotReady", text);
        Ok(())
    }

    async fn taint(&self, node: &Node) -> Result<(), SyncError> {
        let Some(taints) = taints::change(node, (self.context.clock)()) else {
            return Ok(());
        };
        let key = Key::of(node);
        let patch = json!({
            "metadata": {"uid": node.metadata.uid, "resourceVersion": node.metadata.resource_version},
            "spec": {"taints": taints},
        });
        let api: Api<Node> = Api::all(self.context.client.clone());
        let result = api
            .patch(&key.name, &PatchParams::default(), &Patch::Merge(&patch))
            .await;
        gone_is_fine(result).attempt(|| format!("tainting node {key}"))
    }

    /// Pods of a node that nobody hears from do not answer for Services.
    async fn mark_pods(&self, node: &Key) -> Result<(), SyncError> {
        for pod in self.context.informers.pods.all() {
            if pods::node_name(&pod) == Some(&node.name) && pods::is_ready(&pod) {
                self.mark_pod(&pod).await?;
            }
        }
        Ok(())
    }

    async fn mark_pod(&self, pod: &Pod) -> Result<(), SyncError> {
        let key = Key::of(pod);
        let mut updated = pod.clone();
        let conditions = updated
            .status
            .get_or_insert_default()
            .conditions
            .get_or_insert_default();
        for condition in conditions.iter_mut().filter(|c| c.type_ == "Ready") {
            condition.status = "False".into();
            condition.last_transition_time = Some(Time((self.context.clock)()));
        }
        let api: Api<Pod> = Api::namespaced(self.context.client.clone(), &key.namespace);
        let result = api
            .replace_status(&key.name, &PostParams::default(), &updated)
            .await;
        gone_is_fine(result).attempt(|| format!("marking pod {key} as not ready"))?;
        self.events
            .warning(pod, "NodeNotReady", "Node is not ready");
        Ok(())
    }
}
