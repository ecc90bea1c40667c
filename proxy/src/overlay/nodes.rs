// SPDX-License-Identifier: Apache-2.0
//! What the watch of Nodes has told, as far as it matters here.

use std::collections::BTreeMap;

use cni::cidr::Cidr;
use cni::overlay::{Announcement, Peer, Problem};
use k8s_openapi::api::core::v1::Node;
use kube::runtime::watcher::Event;

use super::ANNOTATION;
use crate::parse;

/// A Node.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Known {
    pub(super) uid: String,
    pub(super) pod_cidrs: Vec<Cidr>,
    pub(super) announcement: Option<String>,
}

/// The Nodes by name.
#[derive(Debug, Default)]
pub(super) struct Nodes {
    known: BTreeMap<String, Known>,
    /// A list that is still coming.
    listing: Option<BTreeMap<String, Known>>,
    complete: bool,
}

impl Nodes {
    /// Take in an event. True if something changed that matters here; most changes of Nodes are
    /// heartbeats.
    pub(super) fn event(&mut self, event: Event<Node>) -> bool {
        match event {
            Event::Init => {
                self.listing = Some(BTreeMap::new());
                false
            }
            Event::InitApply(node) => {
                let (name, known) = read(&node);
                self.listing.get_or_insert_default().insert(name, known);
                false
            }
            Event::InitDone => {
                let list = self.listing.take().unwrap_or_default();
                let changed = !self.complete || list != self.known;
                (self.known, self.complete) = (list, true);
                changed
            }
            Event::Apply(node) => {
                let (name, known) = read(&node);
                let before = self.known.insert(name.clone(), known);
                before.as_ref() != self.known.get(&name)
            }
            Event::Delete(node) => {
                let name = node.metadata.name.unwrap_or_default();
                self.known.remove(&name).is_some()
            }
        }
    }

    /// Have all Nodes been listed once?
    pub(super) fn complete(&self) -> bool {
        self.complete
    }

    pub(super) fn get(&self, name: &str) -> Option<&Known> {
        self.known.get(name)
    }

    /// Every other node that takes part, and those that say what cannot be understood.
    pub(super) fn peers(&self, own: &str) -> (Vec<Peer>, Vec<Problem>) {
        let (mut peers, mut problems) = (Vec::new(), Vec::new());
        for (name, known) in self.known.iter().filter(|(name, _)| *name != own) {
            let Some(text) = &known.announcement else {
                continue;
            };
            match Announcement::parse(text) {
                Ok(announcement) => peers.push(Peer {
                    name: name.clone(),
                    pod_cidrs: known.pod_cidrs.clone(),
                    announcement,
                }),
                Err(why) => problems.push(Problem {
                    peer: Some(name.clone()),
                    text: format!("its annotation {ANNOTATION} cannot be read: {why}"),
                }),
            }
        }
        (peers, problems)
    }
}

fn read(node: &Node) -> (String, Known) {
    let meta = &node.metadata;
    let annotations = meta.annotations.as_ref();
    let known = Known {
        uid: meta.uid.clone().unwrap_or_default(),
        pod_cidrs: parse::pod_cidrs(node),
        announcement: annotations.and_then(|a| a.get(ANNOTATION).cloned()),
    };
    (meta.name.clone().unwrap_or_default(), known)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn node(name: &str, announcement: Option<&str>, beat: u32) -> Node {
        let mut node = json!({
            "metadata": {"name": name, "uid": "u", "resourceVersion": beat.to_string()},
            "spec": {"podCIDR": "10.42.2.0/24", "podCIDRs": ["10.42.2.0/24", "fd42::/64"]},
        });
        if let Some(text) = announcement {
            node["metadata"]["annotations"] = json!({ ANNOTATION: text });
        }
        serde_json::from_value(node).expect("a node")
    }

    const GOOD: &str = r#"{"backend":"host-gw","addresses":["192.0.2.2"]}"#;

    #[test]
    fn heartbeats_are_no_changes() {
        let mut nodes = Nodes::default();
        assert!(!nodes.event(Event::Init));
        assert!(!nodes.event(Event::InitApply(node("a", None, 1))));
        assert!(!nodes.complete());
        assert!(nodes.event(Event::InitDone) && nodes.complete());
        assert!(!nodes.event(Event::Apply(node("a", None, 2))));
        assert!(nodes.event(Event::Apply(node("a", Some(GOOD), 3))));
        assert!(nodes.event(Event::Apply(node("b", Some(GOOD), 4))));
        // A list that is as it was, and one without b.
        for (last, changed) in [("b", false), ("a", true)] {
            nodes.event(Event::Init);
            nodes.event(Event::InitApply(node("a", Some(GOOD), 5)));
            nodes.event(Event::InitApply(node(last, Some(GOOD), 5)));
            assert_eq!(nodes.event(Event::InitDone), changed);
        }
        assert!(nodes.event(Event::Delete(node("a", None, 6))));
        assert!(!nodes.event(Event::Delete(node("a", None, 6))));
    }

    #[test]
    fn peers_are_those_that_announce_themselves() {
        let mut nodes = Nodes::default();
        for (name, text) in [
            ("own", Some(GOOD)),
            ("a", Some(GOOD)),
            ("b", None),
            ("c", Some("{")),
        ] {
            nodes.event(Event::Apply(node(name, text, 1)));
        }
        let (peers, problems) = nodes.peers("own");
        assert_eq!(peers.len(), 1);
        assert_eq!((peers[0].name.as_str(), peers[0].pod_cidrs.len()), ("a", 2));
        assert_eq!(problems.len(), 1);
        assert!(
            problems[0]
                .to_string()
                .starts_with("node c: its annotation")
        );
    }
}
