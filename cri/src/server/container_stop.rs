// SPDX-License-Identifier: Apache-2.0
//! StopContainer and RemoveContainer. Both succeed when there is nothing left to do.

use std::sync::Arc;
use std::time::Duration;

use crate::container::State;
use crate::fault::{Kind, Result};
use crate::runtime::Runtime;
use crate::v1;

/// Asks with the stop signal, waits `timeout` seconds, kills.
///
/// # Errors
/// When it still runs some time after SIGKILL.
pub(crate) async fn stop(
    runtime: &Arc<Runtime>,
    request: v1::StopContainerRequest,
) -> Result<v1::StopContainerResponse> {
    let container = match runtime.container(&request.container_id) {
        Ok(container) => container,
        Err(fault) if fault.kind == Kind::NotFound => return Ok(v1::StopContainerResponse {}),
        Err(fault) => return Err(fault),
    };
    let grace = Duration::from_secs(u64::try_from(request.timeout).unwrap_or(0));
    let runtime_ = runtime.clone();
    runtime
        .detached(async move {
            runtime_.stop_container(&container, grace).await?;
            if let State::Exited(_) = container.record.get().state {
                runtime_.nri_stopped(&container).await;
            }
            Ok(())
        })
        .await
        .map_err(|f| f.within(format!("stopping container {:?}", request.container_id)))?;
    Ok(v1::StopContainerResponse {})
}

/// Removes a container; one that runs is killed first.
///
/// # Errors
/// The step that failed; the same request goes on from there.
pub(crate) async fn remove(
    runtime: &Arc<Runtime>,
    request: v1::RemoveContainerRequest,
) -> Result<v1::RemoveContainerResponse> {
    let container = match runtime.container(&request.container_id) {
        Ok(container) => container,
        Err(fault) if fault.kind == Kind::NotFound => return Ok(v1::RemoveContainerResponse {}),
        Err(fault) => return Err(fault),
    };
    let runtime_ = runtime.clone();
    runtime
        .detached(async move { runtime_.remove_container(&container).await })
        .await
        .map_err(|f| f.within(format!("removing container {:?}", request.container_id)))?;
    Ok(v1::RemoveContainerResponse {})
}
