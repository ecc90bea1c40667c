// SPDX-License-Identifier: Apache-2.0
//! Label selectors inside objects.

use std::collections::BTreeMap;

use serde_json::Value;

use super::{field::FieldErrors, names};
use crate::apiserver::json::{list, text};

/// Checks a `metav1.LabelSelector`.
pub(super) fn check(selector: &Value, path: &str, errors: &mut FieldErrors) {
    names::labels(
        selector.get("matchLabels"),
        &format!("{path}.matchLabels"),
        errors,
    );
    for (at, rule) in list(selector, "/matchExpressions").iter().enumerate() {
        let path = format!("{path}.matchExpressions[{at}]");
        let values = list(rule, "/values");
        match text(rule, "/operator") {
            "In" | "NotIn" if values.is_empty() => {
                errors.required(
                    format!("{path}.values"),
                    "must be specified when `operator` is 'In' or 'NotIn'",
                );
            }
            "Exists" | "DoesNotExist" if !values.is_empty() => {
                errors.forbidden(
                    format!("{path}.values"),
                    "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
                );
            }
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            other => errors.invalid(
                format!("{path}.operator"),
                other,
                "not a valid selector operator",
            ),
        }
        if let Some(why) = names::broken_qualified(text(rule, "/key")) {
            errors.invalid(format!("{path}.key"), text(rule, "/key"), why);
        }
    }
}

/// Whether a selector selects nothing in particular.
pub(super) fn is_empty(selector: &Value) -> bool {
    let labels = selector.get("matchLabels").and_then(Value::as_object);
    labels.is_none_or(serde_json::Map::is_empty) && list(selector, "/matchExpressions").is_empty()
}

/// Whether a selector selects these labels.
pub(super) fn matches(selector: &Value, labels: Option<&Value>) -> bool {
    let labels: BTreeMap<&str, &str> = labels
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
        .filter_map(|(k, v)| Some((k.as_str(), v.as_str()?)))
        .collect();
    let wanted = selector.get("matchLabels").and_then(Value::as_object);
    let equal = wanted
        .into_iter()
        .flatten()
        .all(|(k, v)| labels.get(k.as_str()).copied() == v.as_str());
    equal
        && list(selector, "/matchExpressions").iter().all(|rule| {
            let found = labels.get(text(rule, "/key"));
            let listed = found.is_some_and(|f| list(rule, "/values").iter().any(|v| v == f));
            match text(rule, "/operator") {
                "In" => listed,
                "NotIn" => !listed,
                "Exists" => found.is_some(),
                _ => found.is_none(),
            }
        })
}
