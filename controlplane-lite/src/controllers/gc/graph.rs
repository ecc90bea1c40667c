// SPDX-License-Identifier: Apache-2.0
//! The graph of owners as the watches show it.

use std::collections::{HashMap, HashSet};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

use super::super::machinery::key::Key;

pub(crate) const FOREGROUND: &str = "foregroundDeletion";
pub(crate) const ORPHAN: &str = "orphan";

/// One object, reduced to what matters here.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Node {
    pub(crate) api_version: String,
    pub(crate) kind: String,
    pub(crate) key: Key,
    pub(crate) owners: Vec<OwnerReference>,
    /// It is being deleted.
    pub(crate) going: bool,
    /// It is being deleted and waits for us: dependents must go first, or be let go.
    pub(crate) waits: bool,
}

impl Node {
    pub(crate) fn of(api_version: &str, kind: &str, meta: &ObjectMeta) -> Self {
        let going = meta.deletion_timestamp.is_some();
        Self {
            api_version: api_version.to_owned(),
            kind: kind.to_owned(),
            key: Key::new(
                meta.namespace.clone().unwrap_or_default(),
                meta.name.clone().unwrap_or_default(),
            ),
            owners: meta.owner_references.clone().unwrap_or_default(),
            going,
            waits: going && (has_finalizer(meta, FOREGROUND) || has_finalizer(meta, ORPHAN)),
        }
    }
}

pub(crate) fn has_finalizer(meta: &ObjectMeta, finalizer: &str) -> bool {
    meta.finalizers.iter().flatten().any(|f| f == finalizer)
}

/// All objects by uid.
#[derive(Debug, Default)]
pub(crate) struct Graph {
    nodes: HashMap<String, Node>,
    dependents: HashMap<String, HashSet<String>>,
}

impl Graph {
    /// An object as it is now. Returns the uids to look at.
    pub(crate) fn put(&mut self, uid: &str, node: Node) -> Vec<String> {
        let old = self.nodes.insert(uid.to_owned(), node.clone());
        self.unlink(uid, old.as_ref());
        for owner in &node.owners {
            let dependents = self.dependents.entry(owner.uid.clone()).or_default();
            dependents.insert(uid.to_owned());
        }
        let mut look = Vec::new();
        if self.needs_look(uid) {
            look.push(uid.to_owned());
        }
        // An owner that waits for its dependents may have lost this one.
        look.extend(self.waiting_owners(old.as_ref()));
        look
    }

    /// An object is gone. Returns the uids to look at: its dependents, and owners that wait.
    pub(crate) fn remove(&mut self, uid: &str) -> Vec<String> {
        let old = self.nodes.remove(uid);
        self.unlink(uid, old.as_ref());
        let mut look: Vec<_> = self
            .dependents
            .get(uid)
            .into_iter()
            .flatten()
            .cloned()
            .collect();
        look.extend(self.waiting_owners(old.as_ref()));
        look
    }

    fn unlink(&mut self, uid: &str, old: Option<&Node>) {
        for owner in old.into_iter().flat_map(|node| &node.owners) {
            if let Some(dependents) = self.dependents.get_mut(&owner.uid) {
                dependents.remove(uid);
                if dependents.is_empty() {
                    self.dependents.remove(&owner.uid);
                }
            }
        }
    }

    fn waiting_owners(&self, node: Option<&Node>) -> Vec<String> {
        let owners = node.into_iter().flat_map(|node| &node.owners);
        owners
            .filter(|owner| self.nodes.get(&owner.uid).is_some_and(|n| n.waits))
            .map(|owner| owner.uid.clone())
            .collect()
    }

    /// True unless the graph shows that nothing is to be done: every owner is there and stays.
    pub(crate) fn needs_look(&self, uid: &str) -> bool {
        let Some(node) = self.nodes.get(uid) else {
            return false;
        };
        if node.going {
            return node.waits;
        }
        node.owners.iter().any(|owner| {
            self.nodes
                .get(&owner.uid)
                .is_none_or(|n| n.waits || n.key.name != owner.name)
        })
    }

    pub(crate) fn get(&self, uid: &str) -> Option<&Node> {
        self.nodes.get(uid)
    }

    /// The objects that name `uid` as an owner, with their uids.
    pub(crate) fn dependents(&self, uid: &str) -> Vec<(String, Node)> {
        let uids = self.dependents.get(uid).into_iter().flatten();
        uids.filter_map(|uid| Some((uid.clone(), self.nodes.get(uid)?.clone())))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::machinery::testing::meta;
    use super::*;

    fn owned_by(name: &str, owners: &[&str]) -> Node {
        let mut meta = meta("ns", name);
        meta.owner_references = Some(
            owners
                .iter()
                .map(|owner| OwnerReference {
                    name: (*owner).to_owned(),
                    uid: format!("uid-{owner}"),
                    ..OwnerReference::default()
                })
                .collect(),
        );
        Node::of("v1", "ConfigMap", &meta)
    }

    #[test]
    fn dependents_are_looked_at_when_their_owner_goes() {
        let mut graph = Graph::default();
        assert!(graph.put("uid-a", owned_by("a", &[])).is_empty());
        assert!(graph.put("uid-b", owned_by("b", &["a"])).is_empty());
        assert_eq!(graph.remove("uid-a"), ["uid-b"]);
        assert!(graph.needs_look("uid-b"));
    }

    #[test]
    fn an_object_with_an_unknown_owner_is_looked_at() {
        let mut graph = Graph::default();
        assert_eq!(graph.put("uid-b", owned_by("b", &["a"])), ["uid-b"]);
    }

    #[test]
    fn an_owner_that_waits_is_looked_at_when_a_dependent_goes() {
        let mut graph = Graph::default();
        let mut owner = owned_by("a", &[]);
        (owner.going, owner.waits) = (true, true);
        graph.put("uid-a", owner);
        graph.put("uid-b", owned_by("b", &["a"]));
        assert_eq!(graph.remove("uid-b"), ["uid-a"]);
        assert!(graph.dependents("uid-a").is_empty());
    }
}
