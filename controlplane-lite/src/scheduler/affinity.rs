// SPDX-License-Identifier: Apache-2.0
//! Node selectors and node affinity.

use k8s_openapi::api::core::v1::{Node, NodeSelectorRequirement, NodeSelectorTerm, Pod};

/// True if the node's labels and name satisfy `nodeSelector` and the required node affinity.
pub(crate) fn matches(pod: &Pod, node: &Node) -> bool {
    let Some(spec) = &pod.spec else {
        return true;
    };
    let labels = node.metadata.labels.clone().unwrap_or_default();
    let selected = spec
        .node_selector
        .iter()
        .flatten()
        .all(|(key, value)| labels.get(key) == Some(value));
    let required = spec
        .affinity
        .as_ref()
        .and_then(|a| a.node_affinity.as_ref())
        .and_then(|a| {
            a.required_during_scheduling_ignored_during_execution
                .as_ref()
        });
    selected && required.is_none_or(|r| r.node_selector_terms.iter().any(|t| term(t, node)))
}

/// The sum of the weights of the preferred terms that match.
pub(crate) fn preference(pod: &Pod, node: &Node) -> i64 {
    let affinity = pod.spec.as_ref().and_then(|s| s.affinity.as_ref());
    let preferred = affinity
        .and_then(|a| a.node_affinity.as_ref())
        .and_then(|a| {
            a.preferred_during_scheduling_ignored_during_execution
                .as_ref()
        });
    preferred
        .into_iter()
        .flatten()
        .filter(|p| term(&p.preference, node))
        .map(|p| i64::from(p.weight))
        .sum()
}

/// All requirements of a term must hold; a term without any matches nothing.
fn term(term: &NodeSelectorTerm, node: &Node) -> bool {
    let labels = node.metadata.labels.clone().unwrap_or_default();
    let expressions = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    let name = node.metadata.name.as_deref();
    (!expressions.is_empty() || !fields.is_empty())
        && expressions.iter().all(|r| holds(r, labels.get(&r.key).map(String::as_str)))
        // `metadata.name` is the only field that the API allows.
        && fields.iter().all(|r| holds(r, name.filter(|_| r.key == "metadata.name")))
}

fn holds(requirement: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let values = requirement.values.as_deref().unwrap_or_default();
    let number = |text: &str| text.parse::<i64>().ok();
    let compare = || Some((number(value?)?, number(values.first()?)?));
    match requirement.operator.as_str() {
        "In" => value.is_some_and(|v| values.iter().any(|w| w == v)),
        "NotIn" => value.is_none_or(|v| values.iter().all(|w| w != v)),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => compare().is_some_and(|(own, wanted)| own > wanted),
        "Lt" => compare().is_some_and(|(own, wanted)| own < wanted),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controllers::machinery::testing::{labels, meta};

    fn check(operator: &str, values: &[&str]) -> bool {
        let mut node = Node {
            metadata: meta("", "n1"),
            ..Node::default()
        };
        node.metadata.labels = Some(labels(&[("size", "8")]));
        let requirement = NodeSelectorRequirement {
            key: "size".into(),
            operator: operator.into(),
            values: Some(values.iter().map(|v| (*v).to_owned()).collect()),
        };
        let selector = NodeSelectorTerm {
            match_expressions: Some(vec![requirement]),
            match_fields: None,
        };
        term(&selector, &node)
    }

    #[test]
    fn every_operator_works() {
        assert!(check("In", &["8", "16"]));
        assert!(!check("In", &["4"]));
        assert!(check("NotIn", &["4"]));
        assert!(check("Exists", &[]));
        assert!(!check("DoesNotExist", &[]));
        assert!(check("Gt", &["4"]));
        assert!(!check("Lt", &["4"]));
        assert!(!check("Sounds", &["4"]));
    }
}
