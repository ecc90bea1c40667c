// SPDX-License-Identifier: Apache-2.0
//! UpdateContainerResources: new limits for a created or running container.

use std::sync::Arc;

use super::container_create::linux_resources;
use crate::container::{State, resources};
use crate::fault::{Fault, Result};
use crate::runtime::{Runtime, cgroup_path};
use crate::v1;

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
            if let State::Exited(_) = record.state {
                return Err(Fault::precondition(format!(
                    "container {:?} has ended",
                    record.id
                )));
            }
            let old = linux_resources(&record.config.0);
            if wanted.oom_score_adj != 0 && wanted.oom_score_adj != old.oom_score_adj {
                return Err(Fault::invalid(
                    "resources.oom_score_adj of a created container cannot be changed",
                ));
            }
            let limits = resources::limits(&wanted)?;
            if let State::Running { .. } = record.state {
                let path = cgroup_path(&record.cgroup)?;
                runtime_
                    .with_cgroups("updating a container's limits", move |manager| {
                        manager.apply(&path, &limits)
                    })
                    .await?;
            }
            container
                .record
                .update(|r| {
                    let linux = r.config.0.linux.get_or_insert_default();
                    linux.resources = Some(resources::updated(&old, &wanted));
                    true
                })
                .await?;
            Ok(())
        })
        .await?;
    Ok(v1::UpdateContainerResourcesResponse {})
}
