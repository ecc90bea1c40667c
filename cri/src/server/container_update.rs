// SPDX-License-Identifier: Apache-2.0
//! UpdateContainerResources: new limits for a created or running container.

use std::sync::Arc;

use super::container_create::linux_resources;
use crate::container::{ContainerRecord, State, resources};
use crate::fault::{Fault, Result};
use crate::nri::{Update, api::Event};
use crate::runtime::{Container, Runtime, cgroup_path};
use crate::{blocking, v1};

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
            let old = linux_resources(&record.config.0);
            if wanted.oom_score_adj != 0 && wanted.oom_score_adj != old.oom_score_adj {
                return Err(Fault::invalid(
                    "resources.oom_score_adj of a created container cannot be changed",
                ));
            }
            // What the client asks for must be possible, whatever plugins make of it.
            resources::limits(&wanted)?;
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
    if let State::Running { .. } = record.state {
        let path = cgroup_path(&record.cgroup)?;
        let limits = update.limits.clone();
        runtime
            .with_cgroups("updating a container's limits", move |manager| {
                manager.apply(&path, &limits)
            })
            .await?;
    }
    let merged = resources::updated(&old, &update.wanted);
    let dir = container.record.dir().to_owned();
    blocking::run("noting a container's limits", move || update.note(&dir)).await??;
    container
        .record
        .update(|r| {
            r.config.0.linux.get_or_insert_default().resources = Some(merged.clone());
            true
        })
        .await?;
    Ok(())
}
