// SPDX-License-Identifier: Apache-2.0
//! What a list request leaves out. Identifiers match by prefix, labels by equality, states exactly.

use std::collections::HashMap;

use crate::v1;

/// Whether every wanted label is there with its value.
pub(crate) fn labels_match(
    wanted: &HashMap<String, String>,
    labels: &HashMap<String, String>,
) -> bool {
    wanted
        .iter()
        .all(|(key, value)| labels.get(key) == Some(value))
}

/// Whether `filter` keeps this sandbox. No filter keeps all.
pub(crate) fn keeps_sandbox(
    filter: Option<&v1::PodSandboxFilter>,
    id: &str,
    state: v1::PodSandboxState,
    labels: &HashMap<String, String>,
) -> bool {
    filter.is_none_or(|f| {
        id.starts_with(&f.id)
            && f.state.is_none_or(|wanted| wanted.state == state as i32)
            && labels_match(&f.label_selector, labels)
    })
}

/// Whether `filter` keeps this container. No filter keeps all.
pub(crate) fn keeps_container(
    filter: Option<&v1::ContainerFilter>,
    id: &str,
    sandbox_id: &str,
    state: v1::ContainerState,
    labels: &HashMap<String, String>,
) -> bool {
    filter.is_none_or(|f| {
        id.starts_with(&f.id)
            && sandbox_id.starts_with(&f.pod_sandbox_id)
            && f.state
                .as_ref()
                .is_none_or(|wanted| wanted.state == state as i32)
            && labels_match(&f.label_selector, labels)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> HashMap<String, String> {
        pairs
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect()
    }

    #[test]
    fn every_part_of_a_filter_must_agree() {
        let ours = labels(&[("app", "web"), ("tier", "front")]);
        let ready = v1::PodSandboxState::SandboxReady;
        let check =
            |filter: v1::PodSandboxFilter| keeps_sandbox(Some(&filter), "abc", ready, &ours);
        assert!(keeps_sandbox(None, "abc", ready, &ours));
        assert!(check(v1::PodSandboxFilter {
            id: "ab".into(),
            state: Some(v1::PodSandboxStateValue {
                state: ready as i32
            }),
            label_selector: labels(&[("app", "web")]),
        }));
        assert!(!check(v1::PodSandboxFilter {
            id: "b".into(),
            ..Default::default()
        }));
        assert!(!check(v1::PodSandboxFilter {
            label_selector: labels(&[("app", "db")]),
            ..Default::default()
        }));
        assert!(!check(v1::PodSandboxFilter {
            state: Some(v1::PodSandboxStateValue {
                state: v1::PodSandboxState::SandboxNotready as i32
            }),
            ..Default::default()
        }));
    }

    #[test]
    fn containers_are_kept_by_sandbox_prefix() {
        let none = HashMap::new();
        let running = v1::ContainerState::ContainerRunning;
        let filter = v1::ContainerFilter {
            pod_sandbox_id: "5a".into(),
            ..Default::default()
        };
        assert!(keeps_container(Some(&filter), "c", "5abc", running, &none));
        assert!(!keeps_container(Some(&filter), "c", "6abc", running, &none));
    }
}
