// SPDX-License-Identifier: Apache-2.0
//! What an actor takes over at its beginning from the last status and from the disk, so that a
//! restart of the agent changes nothing that users see: running containers that were ready stay
//! ready until a probe says otherwise (kubernetes issue 100277), restart counts go on, and a pod
//! that has ended stays ended.

use std::path::Path;

use k8s_openapi::api::core::v1::ContainerStatus;

use super::actor::Actor;
use super::jobs;
use super::memory::{ProbeMemory, Termination, Waiting};
use super::spec;
use crate::ports::EventType;

/// Takes over. Called once, after the first look at the runtime.
pub(super) async fn adopt(actor: &mut Actor) {
    if let Some(rejected) = actor.memory.rejected.clone() {
        actor.event(EventType::Warning, &rejected.reason, rejected.message);
        return;
    }
    let status = actor.pod.status.clone().unwrap_or_default();
    let inits = status.init_container_statuses.unwrap_or_default();
    let apps = status.container_statuses.unwrap_or_default();
    for last in inits.iter().chain(&apps) {
        from_status(actor, last);
    }
    from_logs(actor).await;
    if spec::is_terminal(&actor.pod) && actor.memory.termination.is_none() {
        actor.memory.termination = Some(Termination {
            since: actor.deps.clock.now(),
            grace: std::time::Duration::from_secs(
                u64::try_from(spec::grace_secs(&actor.pod)).unwrap_or(1),
            ),
            delete: false,
            failure: last_failure(&actor.pod),
        });
    }
}

fn last_failure(pod: &k8s_openapi::api::core::v1::Pod) -> Option<super::memory::Rejection> {
    let status = pod.status.as_ref()?;
    Some(super::memory::Rejection {
        reason: status.reason.clone()?,
        message: status.message.clone().unwrap_or_default(),
    })
}

fn from_status(actor: &mut Actor, last: &ContainerStatus) {
    keep_waiting(actor, last);
    let Some(id) = last
        .container_id
        .as_deref()
        .and_then(|id| id.split("://").nth(1))
    else {
        return;
    };
    let Some((_, container)) = spec::container(&actor.pod, &last.name) else {
        return;
    };
    let seen = actor.seen.container(&last.name);
    match seen.map(|seen| seen.id == id) {
        Some(true) => {
            let probes = ProbeMemory {
                started: container.startup_probe.as_ref().and(last.started),
                ready: container.readiness_probe.as_ref().map(|_| last.ready),
                condemned: None,
            };
            actor.memory.probes.insert(id.to_owned(), probes);
        }
        Some(false) => {}
        None => {
            let count = u32::try_from(last.restart_count)
                .unwrap_or(0)
                .saturating_add(1);
            actor.memory.container(&last.name).restarts_known = Some(count);
        }
    }
}

/// Why a container waits is still true until something happens to it.
fn keep_waiting(actor: &mut Actor, last: &ContainerStatus) {
    let state = last.state.as_ref();
    let Some(waiting) = state.and_then(|state| state.waiting.as_ref()) else {
        return;
    };
    let reason = waiting.reason.clone().unwrap_or_default();
    if !matches!(
        reason.as_str(),
        "" | "ContainerCreating" | "PodInitializing"
    ) {
        actor.memory.container(&last.name).waiting = Some(Waiting {
            reason,
            message: waiting.message.clone().unwrap_or_default(),
        });
    }
}

/// A container that the runtime has forgotten goes on counting from its log files.
async fn from_logs(actor: &mut Actor) {
    let directory = jobs::log_directory(&actor.deps, &actor.pod);
    let names: Vec<String> = spec::containers(&actor.pod)
        .map(|(_, container)| container.name.clone())
        .collect();
    for name in names {
        if actor.seen.container(&name).is_some() {
            continue;
        }
        if let Some(last) = last_log(&directory.join(&name)).await {
            let memory = actor.memory.container(&name);
            memory.restarts_known = Some(memory.restarts_known.unwrap_or(0).max(last + 1));
        }
    }
}

async fn last_log(directory: &Path) -> Option<u32> {
    let mut entries = tokio::fs::read_dir(directory).await.ok()?;
    let mut last = None;
    while let Ok(Some(entry)) = entries.next_entry().await {
        let name = entry.file_name();
        let number = name
            .to_str()
            .and_then(|name| name.split('.').next()?.parse().ok());
        last = last.max(number);
    }
    last
}
