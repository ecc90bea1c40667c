// SPDX-License-Identifier: Apache-2.0
//! The `Progressing` and `ReplicaFailure` conditions: `kubectl rollout status` reads them.

use std::time::Duration;

use k8s_openapi::api::apps::v1::{
    Deployment, DeploymentCondition, DeploymentStatus, ReplicaSet, ReplicaSetCondition,
};
use k8s_openapi::jiff::Timestamp;

use super::budget::Budget;
use super::status::{condition, is, set_condition};

pub(crate) const PROGRESSING: &str = "Progressing";
pub(crate) const AVAILABLE: &str = "NewReplicaSetAvailable";
const UPDATED: &str = "ReplicaSetUpdated";
const TIMED_OUT: &str = "ProgressDeadlineExceeded";
const PAUSED: &str = "DeploymentPaused";
const RESUMED: &str = "DeploymentResumed";

/// The deadline in seconds. The largest number means none.
pub(crate) fn deadline(deployment: &Deployment) -> Option<i64> {
    deployment
        .spec
        .progress_deadline_seconds
        .filter(|seconds| *seconds != i32::MAX)
        .map(i64::from)
}

fn progressing(status: Option<&DeploymentStatus>) -> Option<&DeploymentCondition> {
    let conditions = status?.conditions.as_ref()?;
    conditions.iter().find(|c| is(c, PROGRESSING))
}

fn reason(condition: Option<&DeploymentCondition>) -> &str {
    condition
        .and_then(|c| c.reason.as_deref())
        .unwrap_or_default()
}

/// Every replica is of the new version, available, and no old one is left.
pub(crate) fn is_complete(
    deployment: &Deployment,
    status: &DeploymentStatus,
    budget: Budget,
) -> bool {
    let all = Some(budget.replicas);
    status.updated_replicas == all
        && status.replicas == all
        && status.available_replicas == all
        && status.observed_generation >= deployment.metadata.generation
}

/// A number moved the right way since the last status.
fn has_progressed(old: &DeploymentStatus, new: &DeploymentStatus) -> bool {
    let n = |count: Option<i32>| count.unwrap_or(0);
    let outdated = |s: &DeploymentStatus| n(s.replicas) - n(s.updated_replicas);
    n(new.updated_replicas) > n(old.updated_replicas)
        || outdated(new) < outdated(old)
        || n(new.ready_replicas) > n(old.ready_replicas)
        || n(new.available_replicas) > n(old.available_replicas)
}

/// Seconds that are left until the deadline; negative when it has passed.
fn left(condition: Option<&DeploymentCondition>, deadline: i64, now: Timestamp) -> Option<i64> {
    let since = condition?.last_update_time.as_ref()?.0.as_second();
    Some(since + deadline - now.as_second())
}

fn has_timed_out(old: Option<&DeploymentCondition>, deadline: i64, now: Timestamp) -> bool {
    match reason(old) {
        AVAILABLE => false,
        TIMED_OUT => true,
        _ => left(old, deadline, now).is_some_and(|left| left < 0),
    }
}

/// Updates `Progressing` after a step of a rollout (`syncRolloutStatus`).
pub(crate) fn roll_out(
    deployment: &Deployment,
    new_set: Option<&ReplicaSet>,
    status: &mut DeploymentStatus,
    budget: Budget,
    now: Timestamp,
) {
    let Some(deadline) = deadline(deployment) else {
        // Without a deadline there is no such condition.
        status
            .conditions
            .get_or_insert_default()
            .retain(|c| !is(c, PROGRESSING));
        return;
    };
    let current = progressing(Some(status)).cloned();
    let was_complete =
        status.replicas == status.updated_replicas && reason(current.as_ref()) == AVAILABLE;
    if was_complete {
        return;
    }
    let what = subject(deployment, new_set);
    let old = deployment.status.clone().unwrap_or_default();
    let conditions = status.conditions.clone().unwrap_or_default();
    let mut conditions = conditions;
    if is_complete(deployment, status, budget) {
        let text = format!("{what} has successfully progressed.");
        set_condition(
            &mut conditions,
            condition(PROGRESSING, "True", AVAILABLE, text, now),
        );
    } else if has_progressed(&old, status) {
        let text = format!("{what} is progressing.");
        let mut new = condition(PROGRESSING, "True", UPDATED, text, now);
        if let Some(current) = current.filter(|c| c.status.as_deref() == Some("True")) {
            new.last_transition_time = current.last_transition_time;
        }
        // Replaced even if equal: the deadline counts from the last progress.
        conditions.retain(|c| !is(c, PROGRESSING));
        conditions.push(new);
    } else if has_timed_out(current.as_ref(), deadline, now) {
        let text = format!("{what} has timed out progressing.");
        set_condition(
            &mut conditions,
            condition(PROGRESSING, "False", TIMED_OUT, text, now),
        );
    }
    status.conditions = Some(conditions);
}

fn subject(deployment: &Deployment, new_set: Option<&ReplicaSet>) -> String {
    let name = |meta: &Option<String>| meta.clone().unwrap_or_default();
    match new_set {
        Some(set) => format!("ReplicaSet {:?}", name(&set.metadata.name)),
        None => format!("Deployment {:?}", name(&deployment.metadata.name)),
    }
}

/// Carries `ReplicaFailure` over from the sets, the newest first; removes it when none has it.
pub(crate) fn failures(sets: &[ReplicaSet], new: Option<usize>, status: &mut DeploymentStatus) {
    let failure = |set: &ReplicaSet| -> Option<ReplicaSetCondition> {
        let conditions = set.status.as_ref()?.conditions.as_ref()?;
        conditions
            .iter()
            .find(|c| c.type_.as_deref() == Some("ReplicaFailure"))
            .cloned()
    };
    let found = new
        .and_then(|index| failure(&sets[index]))
        .or_else(|| sets.iter().find_map(failure));
    let conditions = status.conditions.get_or_insert_default();
    match found {
        None => conditions.retain(|c| !is(c, "ReplicaFailure")),
        Some(found) => {
            let new = DeploymentCondition {
                type_: found.type_,
                status: found.status,
                reason: found.reason,
                message: found.message,
                last_update_time: found.last_transition_time.clone(),
                last_transition_time: found.last_transition_time,
            };
            set_condition(conditions, new);
        }
    }
}

/// Pausing stops the deadline; resuming starts it anew.
pub(crate) fn pause(deployment: &Deployment, status: &mut DeploymentStatus, now: Timestamp) {
    if deadline(deployment).is_none() {
        return;
    }
    let current = reason(progressing(Some(status))).to_owned();
    let paused = is_paused(deployment);
    let (reason, text) = match (paused, current.as_str()) {
        (_, TIMED_OUT) => return,
        (true, PAUSED) => return,
        (true, _) => (PAUSED, "Deployment is paused"),
        (false, PAUSED) => (RESUMED, "Deployment is resumed"),
        (false, _) => return,
    };
    let new = condition(PROGRESSING, "Unknown", reason, text.into(), now);
    set_condition(status.conditions.get_or_insert_default(), new);
}

pub(crate) fn is_paused(deployment: &Deployment) -> bool {
    deployment.spec.paused == Some(true)
}

/// When to look again so that a missed deadline is noticed though nothing happens.
pub(crate) fn check_after(
    deployment: &Deployment,
    status: &DeploymentStatus,
    budget: Budget,
    now: Timestamp,
) -> Option<Duration> {
    let deadline = deadline(deployment)?;
    let current = progressing(Some(status));
    if is_paused(deployment)
        || matches!(reason(current), TIMED_OUT | PAUSED)
        || is_complete(deployment, status, budget)
    {
        return None;
    }
    let left = left(current, deadline, now)?;
    // One second more than what is left, because the API keeps whole seconds.
    Some(Duration::from_secs(u64::try_from(left + 1).unwrap_or(0)))
}
