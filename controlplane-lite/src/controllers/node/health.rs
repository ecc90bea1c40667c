// SPDX-License-Identifier: Apache-2.0
//! Is a node alive? Its kubelet renews a lease and posts status; when neither has moved for the
//! grace period, its conditions are not known any more.
//!
//! "Moved" is judged by this process's clock at the moment a change is seen, never by comparing the
//! node's clock with ours.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, NodeCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, Time};
use k8s_openapi::jiff::{SignedDuration, Timestamp};

use super::super::machinery::condition;

const STOPPED: (&str, &str) = ("NodeStatusUnknown", "Kubelet stopped posting node status.");
const NEVER: (&str, &str) = (
    "NodeStatusNeverUpdated",
    "Kubelet never posted node status.",
);
const TYPES: [&str; 4] = ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"];

/// The last sign of life of a node.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Sign {
    renewed: Option<MicroTime>,
    heartbeat: Option<Time>,
    seen_at: Timestamp,
}

/// Takes note of what the node and its lease say now.
pub(crate) fn observe(
    node: &Node,
    lease: Option<&Lease>,
    before: Option<&Sign>,
    now: Timestamp,
) -> Sign {
    let renewed = lease
        .and_then(|l| l.spec.as_ref())
        .and_then(|s| s.renew_time.clone());
    let heartbeat = condition::of_node(node, "Ready").and_then(|c| c.last_heartbeat_time.clone());
    match before {
        Some(sign) if sign.renewed == renewed && sign.heartbeat == heartbeat => sign.clone(),
        _ => Sign {
            renewed,
            heartbeat,
            seen_at: now,
        },
    }
}

/// How long the node may stay silent yet; zero when it is overdue.
pub(crate) fn patience(sign: &Sign, grace: Duration, now: Timestamp) -> Duration {
    let silent = now.duration_since(sign.seen_at).max(SignedDuration::ZERO);
    grace.saturating_sub(silent.unsigned_abs())
}

/// The conditions of a silent node, if they have to change.
pub(crate) fn unknown(node: &Node, now: Timestamp) -> Option<Vec<NodeCondition>> {
    let status = node.status.as_ref();
    let old = status
        .and_then(|s| s.conditions.clone())
        .unwrap_or_default();
    let mut new = old.clone();
    for type_ in TYPES {
        match new.iter_mut().find(|c| c.type_ == type_) {
            Some(condition) if condition.status != "Unknown" => {
                condition.status = "Unknown".into();
                condition.reason = Some(STOPPED.0.into());
                condition.message = Some(STOPPED.1.into());
                condition.last_transition_time = Some(Time(now));
            }
            Some(_) => {}
            None => new.push(NodeCondition {
                type_: type_.into(),
                status: "Unknown".into(),
                reason: Some(NEVER.0.into()),
                message: Some(NEVER.1.into()),
                last_heartbeat_time: node.metadata.creation_timestamp.clone(),
                last_transition_time: Some(Time(now)),
            }),
        }
    }
    (new != old).then_some(new)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::coordination::v1::LeaseSpec;
    use k8s_openapi::api::core::v1::NodeStatus;

    use super::super::super::machinery::testing::{at, meta};
    use super::*;

    fn node() -> Node {
        Node {
            metadata: meta("", "n1"),
            spec: None,
            status: Some(NodeStatus {
                conditions: Some(vec![NodeCondition {
                    type_: "Ready".into(),
                    status: "True".into(),
                    ..NodeCondition::default()
                }]),
                ..NodeStatus::default()
            }),
        }
    }

    fn lease(renewed: i64) -> Lease {
        Lease {
            metadata: meta("kube-node-lease", "n1"),
            spec: Some(LeaseSpec {
                renew_time: Some(MicroTime(at(renewed))),
                ..LeaseSpec::default()
            }),
        }
    }

    #[test]
    fn a_renewed_lease_is_a_sign_of_life_whatever_its_clock_says() {
        let grace = Duration::from_secs(40);
        let first = observe(&node(), Some(&lease(-9999)), None, at(100));
        assert_eq!(patience(&first, grace, at(130)), Duration::from_secs(10));
        let same = observe(&node(), Some(&lease(-9999)), Some(&first), at(150));
        assert_eq!(patience(&same, grace, at(150)), Duration::ZERO);
        let renewed = observe(&node(), Some(&lease(-9990)), Some(&same), at(150));
        assert_eq!(patience(&renewed, grace, at(150)), grace);
    }

    #[test]
    fn a_silent_node_is_unknown_with_the_reason_that_people_know() {
        let conditions = unknown(&node(), at(9)).unwrap_or_default();
        let ready = conditions
            .iter()
            .find(|c| c.type_ == "Ready")
            .cloned()
            .unwrap_or_default();
        assert_eq!(
            (ready.status.as_str(), ready.reason.as_deref()),
            ("Unknown", Some("NodeStatusUnknown"))
        );
        let memory = conditions
            .iter()
            .find(|c| c.type_ == "MemoryPressure")
            .cloned();
        assert_eq!(
            memory.and_then(|c| c.reason).as_deref(),
            Some("NodeStatusNeverUpdated")
        );
        let mut again = node();
        again.status.get_or_insert_default().conditions = Some(conditions);
        assert_eq!(unknown(&again, at(10)), None);
    }
}
