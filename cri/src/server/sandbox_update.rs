// SPDX-License-Identifier: Apache-2.0
//! UpdatePodSandboxResources: what a pod may use has changed (KEP-1287).

use std::sync::Arc;

use crate::container::resources;
use crate::fault::{Fault, Result};
use crate::runtime::{Runtime, cgroup_path};
use crate::sandbox::Phase;
use crate::v1;

/// Records what is said; the rest stays. The pod's cgroup follows if this runtime made it. One that a
/// kubelet made has the kubelet's own limits, which know of more than this call says: it leaves out
/// containers without limits.
///
/// # Errors
/// Not found; not ready; or a limit that cannot be applied (the former ones then stay on record).
pub(crate) async fn update(
    runtime: &Arc<Runtime>,
    request: v1::UpdatePodSandboxResourcesRequest,
) -> Result<v1::UpdatePodSandboxResourcesResponse> {
    let sandbox = runtime.sandbox(&request.pod_sandbox_id)?;
    let runtime_ = runtime.clone();
    runtime
        .detached(async move {
            // Alone: two updates at once would each miss what the other says.
            let _ops = sandbox.ops.write().await;
            let record = sandbox.record.get();
            if record.phase != Phase::Ready {
                return Err(Fault::precondition(format!(
                    "sandbox {:?} is not running",
                    record.id
                )));
            }
            let linux = merged(record.config.0.linux.clone().unwrap_or_default(), &request);
            let limits = resources::pod_limits(&linux)?;
            let _hold = runtime_.nri.hold().await;
            let (overhead, wanted) = (request.overhead.as_ref(), request.resources.as_ref());
            runtime_.nri_update_pod(&record, overhead, wanted).await?;
            if let (true, Some(limits)) = (record.cgroup_is_ours, limits) {
                let path = cgroup_path(&record.cgroup)?;
                runtime_
                    .with_cgroups("updating a pod's limits", move |manager| {
                        manager.apply(&path, &limits)
                    })
                    .await?;
            }
            sandbox
                .record
                .update(|r| {
                    let changed = r.config.0.linux.as_ref() != Some(&linux);
                    r.config.0.linux = Some(linux);
                    changed
                })
                .await?;
            runtime_.nri_pod_updated(&sandbox.record.get()).await;
            Ok(v1::UpdatePodSandboxResourcesResponse {})
        })
        .await
}

fn merged(
    mut linux: v1::LinuxPodSandboxConfig,
    request: &v1::UpdatePodSandboxResourcesRequest,
) -> v1::LinuxPodSandboxConfig {
    for (into, said) in [
        (&mut linux.overhead, &request.overhead),
        (&mut linux.resources, &request.resources),
    ] {
        if let Some(said) = said {
            *into = Some(resources::updated(&into.clone().unwrap_or_default(), said));
        }
    }
    linux
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_said_stays() {
        let memory = |bytes| v1::LinuxContainerResources {
            memory_limit_in_bytes: bytes,
            ..Default::default()
        };
        let old = v1::LinuxPodSandboxConfig {
            overhead: Some(memory(1)),
            resources: Some(memory(10)),
            ..Default::default()
        };
        let request = v1::UpdatePodSandboxResourcesRequest {
            pod_sandbox_id: "s".into(),
            overhead: None,
            resources: Some(memory(20)),
        };
        let new = merged(old, &request);
        assert_eq!(new.overhead, Some(memory(1)));
        assert_eq!(new.resources, Some(memory(20)));
    }
}
