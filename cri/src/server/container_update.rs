// SPDX-License-Identifier: Apache-2.0
//! UpdateContainerResources: new limits for a created or running container.

use std::path::Path;
use std::sync::Arc;

use super::container_create::{linux_resources, load_spec, save_spec};
use crate::container::{ContainerRecord, State, resources};
use crate::fault::{Fault, Result};
use crate::nri::{Update, api::Event};
use crate::runtime::{Container, Runtime, cgroup_path};
use crate::{blocking, oom_score, v1};

/// Applies the limits that are said; the others stay. The record follows, so that a restart and the
/// status show them.
///
/// # Errors
/// Not found; ended; or a limit that cannot be applied (the former ones then stay on record).
pub(crate) async fn update(
    runtime: &Arc<Runtime>,
    request: v1::UpdateContainerResourcesRequest,
) -> Result<v1::UpdateContainerResourcesResponse> {
    if request.windows.is_some() {
        return Err(Fault::invalid("windows resources are not supported"));
    }
    let container = runtime.container(&request.container_id)?;
    let Some(wanted) = request.linux else {
        return Ok(v1::UpdateContainerResourcesResponse {});
    };
    let runtime_ = runtime.clone();
    runtime
        .detached(async move {
            let _ops = container.ops.lock().await;
            let record = container.record.get();
            check_updatable(&record)?;
            // What the client asks for must be possible, whatever plugins make of it.
            resources::limits(&wanted)?;
            oom_score::checked(wanted.oom_score_adj)?;
            let _hold = runtime_.nri.hold().await;
            let update = runtime_.nri_update(&container, wanted).await?;
            carry_out(&runtime_, &container, update).await?;
            runtime_
                .nri_done(Event::PostUpdateContainer, &container)
                .await;
            Ok(())
        })
        .await?;
    Ok(v1::UpdateContainerResourcesResponse {})
}

fn check_updatable(record: &ContainerRecord) -> Result<()> {
    match record.state {
        State::Exited(_) => Err(Fault::precondition(format!(
            "container {:?} has ended",
            record.id
        ))),
        _ => Ok(()),
    }
}

/// Sets new limits and remembers them. The caller holds the container's `ops`.
///
/// # Errors
/// Ended; or a limit that cannot be applied (the former ones then stay on record).
pub(crate) async fn carry_out(
    runtime: &Runtime,
    container: &Container,
    update: Update,
) -> Result<()> {
    let record = container.record.get();
    check_updatable(&record)?;
    let old = linux_resources(&record.config.0);
    let score = new_score(&old, &update.wanted)?;
    if let State::Running { .. } = record.state {
        let path = cgroup_path(&record.cgroup)?;
        let limits = update.limits.clone();
        runtime
            .with_cgroups("updating a container's limits", move |manager| {
                manager.apply(&path, &limits)
            })
            .await?;
        if let Some(score) = score {
            set_score(runtime, &record, score).await?;
        }
    }
    let merged = resources::updated(&old, &update.wanted);
    let dir = container.record.dir().to_owned();
    blocking::run("noting a container's limits", move || {
        update.note(&dir)?;
        score.map_or(Ok(()), |score| note_score(&dir, score))
    })
    .await??;
    container
        .record
        .update(|r| {
            r.config.0.linux.get_or_insert_default().resources = Some(merged.clone());
            true
        })
        .await?;
    Ok(())
}

/// A kubelet sends the score with each change of a container's memory, on which it depends. Zero is
/// "not said".
fn new_score(
    old: &v1::LinuxContainerResources,
    wanted: &v1::LinuxContainerResources,
) -> Result<Option<i32>> {
    match wanted.oom_score_adj {
        0 => Ok(None),
        same if same == old.oom_score_adj => Ok(None),
        other => oom_score::checked(other).map(Some),
    }
}

async fn set_score(runtime: &Runtime, record: &ContainerRecord, score: i32) -> Result<()> {
    let path = cgroup_path(&record.cgroup)?;
    let manager = runtime.cgroups.clone();
    blocking::run("setting a container's OOM score", move || {
        oom_score::set(score, || {
            let found = manager.pids(&path);
            found.map_err(|e| Fault::internal("looking for the container's processes", e))
        })
    })
    .await?
}

/// Execs, and a first process that is still to come, have what the spec says. Blocks.
fn note_score(dir: &Path, score: i32) -> Result<()> {
    let mut spec = load_spec(dir)?;
    let mut process = spec.process().clone().unwrap_or_default();
    process.set_oom_score_adj(Some(score));
    spec.set_process(Some(process));
    save_spec(dir, &spec)
}
