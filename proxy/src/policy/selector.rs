// SPDX-License-Identifier: Apache-2.0
//! Label selectors.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

/// Labels of an object.
pub type Labels = BTreeMap<Box<str>, Box<str>>;

/// A label selector. Without requirements it selects everything.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Selector {
    /// Labels that must be there with these values.
    pub equal: Box<[(Box<str>, Box<str>)]>,
    /// Further requirements.
    pub rules: Box<[(Box<str>, Requirement)]>,
}

/// What is asked of one label.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Requirement {
    /// It is there with one of these values.
    In(Box<[Box<str>]>),
    /// It is not there, or has none of these values.
    NotIn(Box<[Box<str>]>),
    /// It is there.
    Exists,
    /// It is not there.
    DoesNotExist,
}

impl Selector {
    /// Of the API's object; the text says what is wrong with it.
    pub fn parse(selector: &LabelSelector) -> Result<Selector, String> {
        let equal = selector.match_labels.iter().flatten();
        let rules = selector.match_expressions.iter().flatten().map(|rule| {
            let values = rule.values.iter().flatten();
            let values = values.map(|v| v.as_str().into()).collect();
            let requirement = match rule.operator.as_str() {
                "In" => Requirement::In(values),
                "NotIn" => Requirement::NotIn(values),
                "Exists" => Requirement::Exists,
                "DoesNotExist" => Requirement::DoesNotExist,
                other => return Err(format!("{other:?} is not a label selector operator")),
            };
            Ok((rule.key.as_str().into(), requirement))
        });
        Ok(Selector {
            equal: equal
                .map(|(key, value)| (key.as_str().into(), value.as_str().into()))
                .collect(),
            rules: rules.collect::<Result<_, _>>()?,
        })
    }

    /// Does it select an object with these labels?
    pub fn matches(&self, labels: &Labels) -> bool {
        let equal = |(key, value): &(Box<str>, Box<str>)| labels.get(key) == Some(value);
        self.equal.iter().all(equal)
            && self.rules.iter().all(|(key, requirement)| {
                let found = labels.get(key);
                match requirement {
                    Requirement::In(values) => found.is_some_and(|v| values.contains(v)),
                    Requirement::NotIn(values) => found.is_none_or(|v| !values.contains(v)),
                    Requirement::Exists => found.is_some(),
                    Requirement::DoesNotExist => found.is_none(),
                }
            })
    }
}
