// SPDX-License-Identifier: Apache-2.0
//! Taints and tolerations, for the scheduler and for eviction.

use k8s_openapi::api::core::v1::{Taint, Toleration};

/// One toleration against one taint (`ToleratesTaint` of k8s.io/component-helpers): an empty effect
/// matches all effects; an empty key with `Exists` matches all keys. `Lt` and `Gt` compare numbers.
pub(crate) fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let text = |field: &Option<String>| field.clone().unwrap_or_default();
    let (effect, key) = (text(&toleration.effect), text(&toleration.key));
    if !effect.is_empty() && effect != taint.effect {
        return false;
    }
    if !key.is_empty() && key != taint.key {
        return false;
    }
    let (wanted, actual) = (text(&toleration.value), text(&taint.value));
    match text(&toleration.operator).as_str() {
        "" | "Equal" => !key.is_empty() && wanted == actual,
        "Exists" => true,
        "Lt" => compare(&actual, &wanted).is_some_and(std::cmp::Ordering::is_lt),
        "Gt" => compare(&actual, &wanted).is_some_and(std::cmp::Ordering::is_gt),
        _ => false,
    }
}

fn compare(actual: &str, wanted: &str) -> Option<std::cmp::Ordering> {
    Some(
        actual
            .parse::<i64>()
            .ok()?
            .cmp(&wanted.parse::<i64>().ok()?),
    )
}

/// The first taint with one of these effects that no toleration matches.
pub(crate) fn first_untolerated<'a>(
    taints: &'a [Taint],
    tolerations: &[Toleration],
    effects: &[&str],
) -> Option<&'a Taint> {
    taints
        .iter()
        .filter(|taint| effects.contains(&taint.effect.as_str()))
        .find(|taint| !tolerations.iter().any(|t| tolerates(t, taint)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taint(key: &str, value: &str, effect: &str) -> Taint {
        Taint {
            key: key.into(),
            value: Some(value.into()),
            effect: effect.into(),
            time_added: None,
        }
    }

    fn toleration(key: &str, operator: &str, value: &str, effect: &str) -> Toleration {
        Toleration {
            key: Some(key.into()),
            operator: Some(operator.into()),
            value: Some(value.into()),
            effect: Some(effect.into()),
            toleration_seconds: None,
        }
    }

    #[test]
    fn operators_keys_and_effects_decide() {
        let gpu = taint("gpu", "a", "NoSchedule");
        let check = |key, operator, value, effect| {
            tolerates(&toleration(key, operator, value, effect), &gpu)
        };
        assert!(check("gpu", "Equal", "a", "NoSchedule"));
        assert!(check("gpu", "", "a", ""));
        assert!(check("gpu", "Exists", "", ""));
        assert!(check("", "Exists", "", ""));
        assert!(!check("", "Equal", "a", ""));
        assert!(!check("gpu", "Equal", "b", ""));
        assert!(!check("gpu", "Exists", "", "NoExecute"));
        assert!(!check("cpu", "Exists", "", ""));
    }
}
