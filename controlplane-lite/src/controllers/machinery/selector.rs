// SPDX-License-Identifier: Apache-2.0
//! Label selectors, parsed once and matched often.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

#[derive(Clone, Debug, PartialEq, Eq)]
enum Operator {
    In,
    NotIn,
    Exists,
    DoesNotExist,
}

/// A label selector. One without requirements matches nothing here, because no controller may claim
/// everything by accident; the API server refuses such selectors for workloads anyway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Selector {
    requirements: Vec<(String, Operator, Vec<String>)>,
}

/// The selector has an operator that does not exist.
#[derive(Debug, thiserror::Error)]
#[error(
    "selector operator {operator:?} of key {key:?} is not one of In, NotIn, Exists, DoesNotExist"
)]
pub(crate) struct SelectorError {
    key: String,
    operator: String,
}

impl Selector {
    /// Every label must be present with its value.
    pub(crate) fn from_labels(labels: &BTreeMap<String, String>) -> Self {
        let requirements = labels
            .iter()
            .map(|(key, value)| (key.clone(), Operator::In, vec![value.clone()]))
            .collect();
        Self { requirements }
    }

    /// Parses `matchLabels` and `matchExpressions`.
    pub(crate) fn parse(selector: &LabelSelector) -> Result<Self, SelectorError> {
        let empty = BTreeMap::new();
        let mut parsed = Self::from_labels(selector.match_labels.as_ref().unwrap_or(&empty));
        for requirement in selector.match_expressions.iter().flatten() {
            let operator = match requirement.operator.as_str() {
                "In" => Operator::In,
                "NotIn" => Operator::NotIn,
                "Exists" => Operator::Exists,
                "DoesNotExist" => Operator::DoesNotExist,
                other => {
                    return Err(SelectorError {
                        key: requirement.key.clone(),
                        operator: other.to_owned(),
                    });
                }
            };
            let values = requirement.values.clone().unwrap_or_default();
            parsed
                .requirements
                .push((requirement.key.clone(), operator, values));
        }
        Ok(parsed)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.requirements.is_empty()
    }

    pub(crate) fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        !self.is_empty()
            && self.requirements.iter().all(|(key, operator, values)| {
                let value = labels.get(key);
                match operator {
                    Operator::In => value.is_some_and(|v| values.contains(v)),
                    Operator::NotIn => value.is_none_or(|v| !values.contains(v)),
                    Operator::Exists => value.is_some(),
                    Operator::DoesNotExist => value.is_none(),
                }
            })
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelectorRequirement;

    use super::super::testing::labels;
    use super::*;

    #[test]
    fn expressions_and_labels_must_all_hold() {
        let selector = Selector::parse(&LabelSelector {
            match_labels: Some(labels(&[("app", "x")])),
            match_expressions: Some(vec![LabelSelectorRequirement {
                key: "tier".into(),
                operator: "NotIn".into(),
                values: Some(vec!["db".into()]),
            }]),
        })
        .expect("the operators exist");
        assert!(selector.matches(&labels(&[("app", "x")])));
        assert!(selector.matches(&labels(&[("app", "x"), ("tier", "web")])));
        assert!(!selector.matches(&labels(&[("app", "x"), ("tier", "db")])));
        assert!(!selector.matches(&labels(&[("tier", "web")])));
    }

    #[test]
    fn an_empty_selector_matches_nothing() {
        let selector = Selector::from_labels(&BTreeMap::new());
        assert!(!selector.matches(&labels(&[("app", "x")])));
    }
}
