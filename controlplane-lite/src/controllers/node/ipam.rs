// SPDX-License-Identifier: Apache-2.0
//! Gives every node a range of pod addresses out of the cluster's. Which ranges are taken is what
//! the nodes say; nothing is stored elsewhere.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use k8s_openapi::api::core::v1::Node;
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::super::context::Context;
use super::super::machinery::cidr::Cidr;
use super::super::machinery::events::Recorder;
use super::super::machinery::informer::Change;
use super::super::machinery::key::Key;
use super::super::machinery::queue::{Backoff, Queue};
use super::super::machinery::sync::{self, Again, Attempt, SyncError, gone_is_fine};

/// The node address controller. One worker, because two could give the same range away.
pub(crate) struct Controller {
    context: Arc<Context>,
    events: Recorder,
    queue: Arc<Queue<Key>>,
    cluster: Cidr,
    /// Given away, but not yet seen in the cache; by node uid.
    given: Mutex<HashMap<String, Cidr>>,
}

impl Controller {
    /// Puts the hooks in place.
    pub(crate) fn new(context: &Arc<Context>, cluster: Cidr) -> Self {
        let queue = Arc::new(Queue::new(Backoff::CONTROLLER));
        let own = Arc::clone(&queue);
        context
            .informers
            .nodes
            .on_change(move |change: &Change<'_, Node>| {
                if let Some(node) = change.new {
                    own.add(Key::of(node.as_ref()));
                }
            });
        Self {
            context: Arc::clone(context),
            events: context.events.speaking_as("cidrAllocator"),
            queue,
            cluster,
            given: Mutex::default(),
        }
    }

    /// Reconciles until `stop`.
    pub(crate) async fn run(self, stop: CancellationToken) {
        let reconcile = |key| self.reconcile(key);
        sync::run("nodeipam", &self.queue, 1, &stop, reconcile).await;
    }

    async fn reconcile(&self, key: Key) -> Result<Again, SyncError> {
        let nodes = self.context.informers.nodes.all();
        let Some(node) = self.context.informers.nodes.get(&key) else {
            return Ok(None);
        };
        let uid = node.metadata.uid.clone().unwrap_or_default();
        let range = {
            let mut given = self.given.lock().unwrap_or_else(PoisonError::into_inner);
            settle(&mut given, &nodes);
            if !ranges(&node).is_empty() {
                return Ok(None);
            }
            let taken = taken(&given, &nodes);
            let range = given
                .get(&uid)
                .copied()
                .or_else(|| self.cluster.first_free(self.cluster.node_prefix(), &taken));
            if let Some(range) = range {
                given.insert(uid.clone(), range);
            }
            range
        };
        let Some(range) = range else {
            let text = format!("Node {key} status is now: CIDRNotAvailable");
            self.events.normal(node.as_ref(), "CIDRNotAvailable", text);
            return Err(SyncError::Later(format!("no range is free for node {key}")));
        };
        let text = range.to_string();
        let patch = json!({
            "metadata": {"uid": uid},
            "spec": {"podCIDR": text, "podCIDRs": [text]},
        });
        let api: Api<Node> = Api::all(self.context.client.clone());
        let result = api
            .patch(&key.name, &PatchParams::default(), &Patch::Merge(&patch))
            .await;
        gone_is_fine(result).attempt(|| format!("giving {range} to node {key}"))?;
        Ok(None)
    }
}

/// The ranges that a node has.
fn ranges(node: &Node) -> Vec<Cidr> {
    let Some(spec) = &node.spec else {
        return Vec::new();
    };
    let all = spec.pod_cidrs.iter().flatten().chain(spec.pod_cidr.iter());
    all.filter_map(|text| text.parse().ok()).collect()
}

/// Forgets what the cache shows by now, and nodes that are gone.
fn settle(given: &mut HashMap<String, Cidr>, nodes: &[Arc<Node>]) {
    given.retain(|uid, _| {
        nodes
            .iter()
            .any(|n| n.metadata.uid.as_ref() == Some(uid) && ranges(n).is_empty())
    });
}

fn taken(given: &HashMap<String, Cidr>, nodes: &[Arc<Node>]) -> Vec<Cidr> {
    nodes
        .iter()
        .flat_map(|n| ranges(n))
        .chain(given.values().copied())
        .collect()
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::NodeSpec;

    use super::super::super::machinery::testing::meta;
    use super::*;

    fn node(name: &str, range: Option<&str>) -> Arc<Node> {
        Arc::new(Node {
            metadata: meta("", name),
            spec: Some(NodeSpec {
                pod_cidr: range.map(str::to_owned),
                ..NodeSpec::default()
            }),
            status: None,
        })
    }

    #[test]
    fn a_range_that_was_given_but_is_not_seen_yet_is_taken() {
        let nodes = [node("a", Some("10.42.0.0/24")), node("b", None)];
        let mut given = HashMap::new();
        given.insert("uid-b".to_owned(), "10.42.1.0/24".parse().expect("a range"));
        settle(&mut given, &nodes);
        let cluster: Cidr = "10.42.0.0/16".parse().expect("a range");
        let free = cluster.first_free(24, &taken(&given, &nodes));
        assert_eq!(free.map(|c| c.to_string()).as_deref(), Some("10.42.2.0/24"));
        settle(&mut given, &[node("b", Some("10.42.1.0/24"))]);
        assert!(given.is_empty());
    }
}
