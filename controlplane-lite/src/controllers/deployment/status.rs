// SPDX-License-Identifier: Apache-2.0
//! Counts and conditions of a Deployment's status.

use k8s_openapi::api::apps::v1::{Deployment, DeploymentCondition, DeploymentStatus, ReplicaSet};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;

use super::budget::Budget;
use super::scale::{available, size};

/// Adds a condition. One with the same status and reason is left alone, time and text included;
/// one with the same status keeps the time of its last transition.
pub(crate) fn set_condition(
    conditions: &mut Vec<DeploymentCondition>,
    mut new: DeploymentCondition,
) {
    let old = conditions.iter().find(|c| c.type_ == new.type_);
    if let Some(old) = old {
        if old.status == new.status && old.reason == new.reason {
            return;
        }
        if old.status == new.status {
            new.last_transition_time = old.last_transition_time.clone();
        }
    }
    conditions.retain(|c| c.type_ != new.type_);
    conditions.push(new);
}

pub(crate) fn condition(
    type_: &str,
    status: &str,
    reason: &str,
    message: String,
    now: Timestamp,
) -> DeploymentCondition {
    DeploymentCondition {
        type_: Some(type_.into()),
        status: Some(status.into()),
        reason: Some(reason.into()),
        message: Some(message),
        last_update_time: Some(Time(now)),
        last_transition_time: Some(Time(now)),
    }
}

/// True for a condition of this type.
pub(crate) fn is(condition: &DeploymentCondition, type_: &str) -> bool {
    condition.type_.as_deref() == Some(type_)
}

/// The counts, and the `Available` condition. Other conditions are carried over.
pub(crate) fn calculate(
    deployment: &Deployment,
    sets: &[ReplicaSet],
    new: Option<usize>,
    budget: Budget,
    now: Timestamp,
) -> DeploymentStatus {
    let old = deployment.status.clone().unwrap_or_default();
    let counts = |pick: fn(&ReplicaSet) -> i32| sets.iter().map(pick).sum::<i32>();
    let total_available = counts(available);
    let unavailable = (counts(size) - total_available).max(0);
    let mut conditions = old.conditions.unwrap_or_default();
    set_condition(
        &mut conditions,
        availability(total_available >= budget.min_available(), now),
    );
    DeploymentStatus {
        observed_generation: deployment.metadata.generation,
        replicas: Some(counts(pods)),
        updated_replicas: Some(new.map_or(0, |index| pods(&sets[index]))),
        ready_replicas: Some(counts(|set| {
            set.status
                .as_ref()
                .and_then(|s| s.ready_replicas)
                .unwrap_or(0)
        })),
        available_replicas: Some(total_available),
        unavailable_replicas: Some(unavailable),
        terminating_replicas: Some(counts(|set| {
            set.status
                .as_ref()
                .and_then(|s| s.terminating_replicas)
                .unwrap_or(0)
        })),
        collision_count: old.collision_count,
        conditions: Some(conditions),
    }
}

fn availability(enough: bool, now: Timestamp) -> DeploymentCondition {
    let (status, reason, message) = if enough {
        (
            "True",
            "MinimumReplicasAvailable",
            "Deployment has minimum availability.",
        )
    } else {
        (
            "False",
            "MinimumReplicasUnavailable",
            "Deployment does not have minimum availability.",
        )
    };
    condition("Available", status, reason, message.into(), now)
}

fn pods(set: &ReplicaSet) -> i32 {
    set.status.as_ref().map_or(0, |s| s.replicas)
}

/// The API leaves zero counts out, so absent and zero are the same.
pub(crate) fn differs(old: Option<&DeploymentStatus>, new: &DeploymentStatus) -> bool {
    let counts = |s: &DeploymentStatus| {
        [
            s.replicas,
            s.updated_replicas,
            s.ready_replicas,
            s.available_replicas,
            s.unavailable_replicas,
            s.terminating_replicas,
            s.collision_count,
        ]
        .map(|n| n.unwrap_or(0))
    };
    let conditions = |s: &DeploymentStatus| {
        let mut list = s.conditions.clone().unwrap_or_default();
        list.sort_by(|a, b| a.type_.cmp(&b.type_));
        // Times are kept to the second by the API.
        list.into_iter()
            .map(|c| {
                (
                    c.type_,
                    c.status,
                    c.reason,
                    c.message,
                    c.last_update_time.map(|t| t.0.as_second()),
                )
            })
            .collect::<Vec<_>>()
    };
    old.is_none_or(|old| {
        counts(old) != counts(new)
            || old.observed_generation != new.observed_generation
            || conditions(old) != conditions(new)
    })
}
