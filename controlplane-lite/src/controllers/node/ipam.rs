// SPDX-License-Identifier: Apache-2.0
//! Gives every node a range of pod addresses out of each of the cluster's. Which ranges are taken is
//! what the nodes say; nothing is stored elsewhere.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use k8s_openapi::api::core::v1::Node;
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::super::config::NodePrefixes;
use super::super::context::Context;
use super::super::machinery::cidr::{Cidr, CidrError};
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
    cluster: Vec<Pool>,
    /// Given away, but not yet seen in the cache; by node uid.
    given: Mutex<HashMap<String, Vec<Cidr>>>,
}

/// A range of the cluster, and how much of it a node gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Pool {
    range: Cidr,
    node_prefix: u8,
}

/// The pools of a list of ranges separated by commas: one of each family at most, in this order.
///
/// # Errors
/// When one is no range, or there are two of a family, or none.
pub(crate) fn pools(text: &str, node_prefixes: NodePrefixes) -> Result<Vec<Pool>, CidrError> {
    let mut pools: Vec<Pool> = Vec::new();
    for part in text.split(',').map(str::trim) {
        let range: Cidr = part.parse()?;
        if pools.iter().any(|p| p.range.is_v6() == range.is_v6()) {
            return Err(CidrError::Family(text.to_owned()));
        }
        let wanted = if range.is_v6() {
            node_prefixes.ipv6
        } else {
            node_prefixes.ipv4
        };
        let node_prefix = range.node_prefix(wanted);
        pools.push(Pool { range, node_prefix });
    }
    Ok(pools)
}

impl Pool {
    fn free(self, taken: &[Cidr]) -> Option<Cidr> {
        self.range.first_free(self.node_prefix, taken)
    }
}

impl Controller {
    /// Puts the hooks in place.
    pub(crate) fn new(context: &Arc<Context>, cluster: Vec<Pool>) -> Self {
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
        let found = {
            let mut given = self.given.lock().unwrap_or_else(PoisonError::into_inner);
            settle(&mut given, &nodes);
            if !ranges(&node).is_empty() {
                return Ok(None);
            }
            let taken = taken(&given, &nodes);
            // All of them or none: a node without one family would stay so for good.
            let found: Option<Vec<Cidr>> = match given.get(&uid) {
                Some(found) => Some(found.clone()),
                None => self.cluster.iter().map(|pool| pool.free(&taken)).collect(),
            };
            if let Some(found) = &found {
                given.insert(uid.clone(), found.clone());
            }
            found
        };
        let Some(found) = found else {
            let text = format!("Node {key} status is now: CIDRNotAvailable");
            self.events.normal(node.as_ref(), "CIDRNotAvailable", text);
            return Err(SyncError::Later(format!("no range is free for node {key}")));
        };
        let texts: Vec<String> = found.iter().map(Cidr::to_string).collect();
        let patch = json!({
            "metadata": {"uid": uid},
            "spec": {"podCIDR": texts[0], "podCIDRs": texts},
        });
        let api: Api<Node> = Api::all(self.context.client.clone());
        let result = api
            .patch(&key.name, &PatchParams::default(), &Patch::Merge(&patch))
            .await;
        gone_is_fine(result).attempt(|| format!("giving {} to node {key}", texts.join(", ")))?;
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
fn settle(given: &mut HashMap<String, Vec<Cidr>>, nodes: &[Arc<Node>]) {
    given.retain(|uid, _| {
        nodes
            .iter()
            .any(|n| n.metadata.uid.as_ref() == Some(uid) && ranges(n).is_empty())
    });
}

fn taken(given: &HashMap<String, Vec<Cidr>>, nodes: &[Arc<Node>]) -> Vec<Cidr> {
    nodes
        .iter()
        .flat_map(|n| ranges(n))
        .chain(given.values().flatten().copied())
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
        let range = "10.42.1.0/24".parse().expect("a range");
        given.insert("uid-b".to_owned(), vec![range]);
        settle(&mut given, &nodes);
        let cluster: Cidr = "10.42.0.0/16".parse().expect("a range");
        let free = cluster.first_free(24, &taken(&given, &nodes));
        assert_eq!(free.map(|c| c.to_string()).as_deref(), Some("10.42.2.0/24"));
        settle(&mut given, &[node("b", Some("10.42.1.0/24"))]);
        assert!(given.is_empty());
    }

    #[test]
    fn a_cluster_of_both_families_has_a_pool_of_each() {
        let prefixes = NodePrefixes::default();
        let found = pools("10.42.0.0/16, fd42::/48", prefixes).expect("two ranges");
        let free: Vec<_> = found
            .iter()
            .map(|p| p.free(&[]).expect("room").to_string())
            .collect();
        assert_eq!(free, ["10.42.0.0/24", "fd42::/64"]);
        for wrong in [
            "",
            "10.42.0.0/16,10.43.0.0/16",
            "10.42.0.0/16,",
            "fd42::/48,x",
        ] {
            assert!(pools(wrong, prefixes).is_err(), "{wrong}");
        }
        let small = NodePrefixes { ipv4: 26, ipv6: 80 };
        let free = pools("10.42.0.0/16", small).expect("a range")[0].free(&[]);
        assert_eq!(free.expect("room").to_string(), "10.42.0.0/26");
    }
}
