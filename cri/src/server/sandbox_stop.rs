// SPDX-License-Identifier: Apache-2.0
//! StopPodSandbox and RemovePodSandbox. Both succeed when there is nothing left to do.

use std::sync::Arc;

use crate::fault::{Kind, Result};
use crate::runtime::Runtime;
use crate::v1;

/// Stops: containers are killed, the network is taken down.
///
/// # Errors
/// The step that failed; the same request goes on from there.
pub(crate) async fn stop(
    runtime: &Arc<Runtime>,
    request: v1::StopPodSandboxRequest,
) -> Result<v1::StopPodSandboxResponse> {
    let sandbox = match runtime.sandbox(&request.pod_sandbox_id) {
        Ok(sandbox) => sandbox,
        // Gone is as stopped as can be (CRI: "must not return an error if the sandbox is gone").
        Err(fault) if fault.kind == Kind::NotFound => return Ok(v1::StopPodSandboxResponse {}),
        Err(fault) => return Err(fault),
    };
    let runtime_ = runtime.clone();
    runtime
        .detached(async move {
            let _ops = sandbox.ops.write().await;
            runtime_.stop_sandbox(&sandbox).await
        })
        .await
        .map_err(|f| f.within(format!("stopping sandbox {:?}", request.pod_sandbox_id)))?;
    Ok(v1::StopPodSandboxResponse {})
}

/// Removes a sandbox with all its containers; one that runs is stopped first.
///
/// # Errors
/// The step that failed; the same request goes on from there.
pub(crate) async fn remove(
    runtime: &Arc<Runtime>,
    request: v1::RemovePodSandboxRequest,
) -> Result<v1::RemovePodSandboxResponse> {
    let sandbox = match runtime.sandbox(&request.pod_sandbox_id) {
        Ok(sandbox) => sandbox,
        Err(fault) if fault.kind == Kind::NotFound => return Ok(v1::RemovePodSandboxResponse {}),
        Err(fault) => return Err(fault),
    };
    let runtime_ = runtime.clone();
    runtime
        .detached(async move {
            let _ops = sandbox.ops.write().await;
            runtime_.stop_sandbox(&sandbox).await?;
            runtime_.remove_sandbox(&sandbox).await
        })
        .await
        .map_err(|f| f.within(format!("removing sandbox {:?}", request.pod_sandbox_id)))?;
    Ok(v1::RemovePodSandboxResponse {})
}
