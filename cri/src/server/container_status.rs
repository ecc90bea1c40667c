// SPDX-License-Identifier: Apache-2.0
//! ContainerStatus, ListContainers and ReopenContainerLog.

use std::collections::HashMap;
use std::sync::Arc;

use super::container_create::{SPEC_FILE, linux_resources};
use crate::container::{State, resources};
use crate::fault::{Fault, Result};
use crate::lifecycle::shim_fault;
use crate::runtime::Runtime;
use crate::{blocking, filter, v1};

/// The status of one container; `verbose` adds pid, paths and the OCI spec.
///
/// # Errors
/// Not found.
pub(crate) async fn status(
    runtime: &Arc<Runtime>,
    request: &v1::ContainerStatusRequest,
) -> Result<v1::ContainerStatusResponse> {
    let container = runtime.container(&request.container_id)?;
    let record = container.record.get();
    let mut info = HashMap::new();
    if request.verbose {
        let path = container.record.dir().join(SPEC_FILE);
        let mut spec = blocking::run("reading a spec", move || std::fs::read(path))
            .await?
            .ok()
            .and_then(|text| serde_json::from_slice::<serde_json::Value>(&text).ok());
        // Limits are kept beside the spec, because they change.
        if let Some(resources) = spec
            .as_mut()
            .and_then(|spec| spec.pointer_mut("/linux/resources"))
            .and_then(serde_json::Value::as_object_mut)
        {
            resources.extend(resources::oci(&linux_resources(&record.config.0)));
        }
        let pid = match record.state {
            State::Running { pid, .. } => pid,
            _ => 0,
        };
        let text = serde_json::to_string(&serde_json::json!({
            "sandboxID": record.sandbox_id,
            "pid": pid,
            "cgroup": record.cgroup,
            "upper": container.upper(),
            "runtimeSpec": spec,
        }))
        .map_err(|e| Fault::internal("encoding container info", e))?;
        info.insert("info".to_owned(), text);
    }
    Ok(v1::ContainerStatusResponse {
        status: Some(record.status()),
        info,
    })
}

/// All containers that the filter keeps.
pub(crate) fn list(runtime: &Runtime, filter: Option<&v1::ContainerFilter>) -> Vec<v1::Container> {
    let all = runtime.containers.all();
    all.iter()
        .map(|c| c.record.get())
        .filter(|r| {
            filter::keeps_container(
                filter,
                &r.id,
                &r.sandbox_id,
                r.state.wire(),
                &r.config.0.labels,
            )
        })
        .map(|r| r.item())
        .collect()
}

/// Opens the log file anew, after the kubelet rotated it.
///
/// # Errors
/// Not found; not running; or the file cannot be opened.
pub(crate) async fn reopen_log(
    runtime: &Arc<Runtime>,
    request: &v1::ReopenContainerLogRequest,
) -> Result<v1::ReopenContainerLogResponse> {
    let container = runtime.container(&request.container_id)?;
    let record = container.record.get();
    record.state.check_running(&record.id)?;
    runtime
        .shim_of(&container)?
        .reopen_log(&record.id)
        .await
        .map_err(|e| shim_fault(format!("reopening the log of container {:?}", record.id), e))?;
    Ok(v1::ReopenContainerLogResponse {})
}
