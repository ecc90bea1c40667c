// SPDX-License-Identifier: Apache-2.0
//! Pod and node conditions, which are lists keyed by type.

use k8s_openapi::api::core::v1::{Node, NodeCondition, Pod, PodCondition};

/// The condition of this type, if the pod has one.
pub(crate) fn of_pod<'a>(pod: &'a Pod, type_: &str) -> Option<&'a PodCondition> {
    pod.status
        .as_ref()?
        .conditions
        .as_ref()?
        .iter()
        .find(|c| c.type_ == type_)
}

/// The condition of this type, if the node has one.
pub(crate) fn of_node<'a>(node: &'a Node, type_: &str) -> Option<&'a NodeCondition> {
    node.status
        .as_ref()?
        .conditions
        .as_ref()?
        .iter()
        .find(|c| c.type_ == type_)
}

/// `True`, `False` or `Unknown`; a condition that is missing is `Unknown`.
pub(crate) fn node_status<'a>(node: &'a Node, type_: &str) -> &'a str {
    of_node(node, type_).map_or("Unknown", |c| c.status.as_str())
}
