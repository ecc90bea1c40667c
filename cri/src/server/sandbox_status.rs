// SPDX-License-Identifier: Apache-2.0
//! PodSandboxStatus and ListPodSandbox.

use std::collections::HashMap;

use serde_json::json;

use crate::fault::{Fault, Result};
use crate::filter;
use crate::runtime::{Runtime, now};
use crate::sandbox::SandboxRecord;
use crate::v1;

/// The status of one sandbox and of its containers.
///
/// # Errors
/// Not found.
pub(crate) fn status(
    runtime: &Runtime,
    request: &v1::PodSandboxStatusRequest,
) -> Result<v1::PodSandboxStatusResponse> {
    let sandbox = runtime.sandbox(&request.pod_sandbox_id)?;
    let record = sandbox.record.get();
    let mut info = HashMap::new();
    if request.verbose {
        let linux = record.config.0.linux.clone().unwrap_or_default();
        let text = serde_json::to_string(&json!({
            "pid": record.pid,
            "netns": record.netns,
            "cgroup": record.cgroup,
            "phase": record.phase,
            "runtimeHandler": record.runtime_handler,
            "resources": linux.resources.as_ref().map(resources_json),
            "overhead": linux.overhead.as_ref().map(resources_json),
            "runtimeSpec": runtime_spec(&record),
        }))
        .map_err(|e| Fault::internal("encoding sandbox info", e))?;
        info.insert("info".to_owned(), text);
    }
    Ok(v1::PodSandboxStatusResponse {
        status: Some(record.status()),
        info,
        containers_statuses: runtime
            .containers_of(&record.id)
            .iter()
            .map(|c| c.record.get().status())
            .collect(),
        timestamp: now(),
    })
}

/// What scripts look for in the spec that other runtimes show of a sandbox: its namespaces, of which
/// the network's has a path, its cgroup and its host name.
fn runtime_spec(record: &SandboxRecord) -> serde_json::Value {
    let mut namespaces = Vec::new();
    if let Some(netns) = &record.netns {
        namespaces.push(json!({"type": "network", "path": netns}));
        namespaces.push(json!({"type": "uts"}));
    }
    let asked = record.namespaces();
    for (name, mode) in [("ipc", asked.ipc()), ("pid", asked.pid())] {
        if mode == v1::NamespaceMode::Pod {
            namespaces.push(json!({"type": name}));
        }
    }
    json!({
        "hostname": record.config.0.hostname,
        "linux": {"cgroupsPath": record.cgroup, "namespaces": namespaces},
    })
}

/// The names are those of the proto's JSON form; what is not said is left out.
fn resources_json(resources: &v1::LinuxContainerResources) -> serde_json::Value {
    let numbers = [
        ("cpuPeriod", resources.cpu_period),
        ("cpuQuota", resources.cpu_quota),
        ("cpuShares", resources.cpu_shares),
        ("memoryLimitInBytes", resources.memory_limit_in_bytes),
        (
            "memorySwapLimitInBytes",
            resources.memory_swap_limit_in_bytes,
        ),
    ];
    let said = numbers.into_iter().filter(|(_, value)| *value != 0);
    let mut all: serde_json::Map<_, _> = said.map(|(k, v)| (k.to_owned(), v.into())).collect();
    for (key, text) in [
        ("cpusetCpus", &resources.cpuset_cpus),
        ("cpusetMems", &resources.cpuset_mems),
    ] {
        if !text.is_empty() {
            all.insert(key.to_owned(), text.as_str().into());
        }
    }
    all.into()
}

/// All sandboxes that the filter keeps.
pub(crate) fn list(
    runtime: &Runtime,
    filter: Option<&v1::PodSandboxFilter>,
) -> Vec<v1::PodSandbox> {
    let all = runtime.sandboxes.all();
    all.iter()
        .map(|s| s.record.get())
        .filter(|r| filter::keeps_sandbox(filter, &r.id, r.state(), &r.config.0.labels))
        .map(|r| r.item())
        .collect()
}
