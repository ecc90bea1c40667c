// SPDX-License-Identifier: Apache-2.0
//! Objects for tests, as a server would return them.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Pod, PodCondition, PodSpec, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::jiff::{Timestamp, ToSpan};

pub(crate) fn at(seconds: i64) -> Timestamp {
    Timestamp::UNIX_EPOCH + seconds.seconds()
}

pub(crate) fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs
        .iter()
        .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
        .collect()
}

/// Metadata with a uid that is derived from the name.
pub(crate) fn meta(namespace: &str, name: &str) -> ObjectMeta {
    ObjectMeta {
        namespace: Some(namespace.into()).filter(|n: &String| !n.is_empty()),
        name: Some(name.into()),
        uid: Some(format!("uid-{name}")),
        resource_version: Some("1".into()),
        generation: Some(1),
        creation_timestamp: Some(Time(at(0))),
        ..ObjectMeta::default()
    }
}

/// A pod in a phase, ready since `ready_since` if given.
pub(crate) fn pod(name: &str, phase: &str, ready_since: Option<i64>) -> Pod {
    let ready = PodCondition {
        type_: "Ready".into(),
        status: if ready_since.is_some() {
            "True"
        } else {
            "False"
        }
        .into(),
        last_transition_time: ready_since.map(|s| Time(at(s))),
        ..PodCondition::default()
    };
    Pod {
        metadata: meta("ns", name),
        spec: Some(PodSpec {
            node_name: Some("n1".into()),
            ..PodSpec::default()
        }),
        status: Some(PodStatus {
            phase: Some(phase.into()),
            conditions: Some(vec![ready]),
            ..PodStatus::default()
        }),
    }
}
