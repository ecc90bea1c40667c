// SPDX-License-Identifier: Apache-2.0
//! The nodes and what their pods take, at one moment.

use std::collections::HashMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Pod};

use super::pod_request::{self, Amounts, HostPort};
use crate::controllers::machinery::pods;

/// One node with what is left of it.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) node: Arc<Node>,
    pub(crate) allocatable: Amounts,
    pub(crate) taken: Amounts,
    pub(crate) pods: usize,
    pub(crate) ports: Vec<HostPort>,
}

impl Place {
    pub(crate) fn new(node: Arc<Node>) -> Self {
        let status = node.status.as_ref();
        // A kubelet that reports no allocatable amounts offers its whole capacity.
        let quantities = status
            .and_then(|s| s.allocatable.as_ref())
            .or_else(|| status.and_then(|s| s.capacity.as_ref()));
        Self {
            allocatable: pod_request::amounts(quantities),
            node,
            taken: Amounts::new(),
            pods: 0,
            ports: Vec::new(),
        }
    }

    pub(crate) fn name(&self) -> &str {
        self.node.metadata.name.as_deref().unwrap_or_default()
    }

    pub(crate) fn add(&mut self, pod: &Pod) {
        pod_request::add(&mut self.taken, &pod_request::of(pod));
        self.ports.extend(pod_request::host_ports(pod));
        self.pods += 1;
    }
}

/// Every node with the pods that are bound to it. Pods that have finished take nothing; pods that
/// are going away still do.
pub(crate) fn places(nodes: Vec<Arc<Node>>, bound: &[Arc<Pod>]) -> Vec<Place> {
    let mut places: HashMap<String, Place> = nodes
        .into_iter()
        .map(Place::new)
        .map(|place| (place.name().to_owned(), place))
        .collect();
    for pod in bound.iter().filter(|pod| !pods::is_finished(pod)) {
        if let Some(place) = pods::node_name(pod).and_then(|name| places.get_mut(name)) {
            place.add(pod);
        }
    }
    let mut places: Vec<_> = places.into_values().collect();
    places.sort_by(|a, b| a.name().cmp(b.name()));
    places
}
