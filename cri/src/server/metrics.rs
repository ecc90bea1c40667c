// SPDX-License-Identifier: Apache-2.0
//! ListMetricDescriptors and ListPodSandboxMetrics: reads what [`crate::metrics`] makes figures of.

use std::path::Path;
use std::sync::Arc;

use super::container_create::linux_resources;
use super::stats;
use crate::cgroup::{CgroupPath, Manager};
use crate::container::{ContainerRecord, State};
use crate::fault::{Fault, Result};
use crate::metrics::{self, Disk, Processes, Seen};
use crate::runtime::{Container, Runtime, Sandbox, cgroup_path, now};
use crate::{blocking, v1};

/// Of one container, so many descriptors are looked at: a bound on what a container can make us do.
const DESCRIPTORS_MAX: u64 = 100_000;

/// What there is.
pub(crate) fn descriptors() -> v1::ListMetricDescriptorsResponse {
    v1::ListMetricDescriptorsResponse {
        descriptors: metrics::descriptors(),
    }
}

/// The figures of every ready sandbox. A container that ends meanwhile is left out.
pub(crate) async fn list(runtime: &Arc<Runtime>) -> Vec<v1::PodSandboxMetrics> {
    let mut all = Vec::new();
    for sandbox in runtime.sandboxes.all() {
        if sandbox.record.get().state() == v1::PodSandboxState::SandboxReady {
            all.push(of_sandbox(runtime, &sandbox).await);
        }
    }
    all
}

async fn of_sandbox(runtime: &Arc<Runtime>, sandbox: &Sandbox) -> v1::PodSandboxMetrics {
    let record = sandbox.record.get();
    let pod = record.config.0.metadata.clone().unwrap_or_default();
    let interfaces = stats::interfaces(&record).await.unwrap_or_default();
    let mut container_metrics = Vec::new();
    for container in runtime.containers_of(&record.id) {
        let State::Running { started_at, .. } = container.record.get().state else {
            continue;
        };
        if let Ok(seen) = look(runtime, &pod, &container, started_at).await {
            container_metrics.push(v1::ContainerMetrics {
                container_id: seen.labels[0].clone(),
                metrics: metrics::of_container(&seen),
            });
        }
    }
    v1::PodSandboxMetrics {
        metrics: metrics::of_sandbox([&record.id, &pod.namespace, &pod.name], now(), &interfaces),
        pod_sandbox_id: record.id.clone(),
        container_metrics,
    }
}

async fn look(
    runtime: &Arc<Runtime>,
    pod: &v1::PodSandboxMetadata,
    container: &Container,
    started_at: i64,
) -> Result<Seen> {
    let record = container.record.get();
    let upper = container.upper();
    let usage = runtime.disk_usage.of(&upper).await?;
    let path = cgroup_path(&record.cgroup)?;
    let manager = runtime.cgroups.clone();
    let labels = labels(&record, pod);
    blocking::run("reading metrics", move || {
        let failed = |e| Fault::internal("reading metrics", e);
        let mut disk = disk(&upper);
        disk.usage_bytes = usage.bytes;
        Ok(Seen {
            labels,
            now: now(),
            started_at,
            stats: manager.stats(&path).map_err(failed)?,
            summary: manager.summary(&path).map_err(failed)?,
            disk,
            processes: processes(manager.as_ref(), &path),
            resources: linux_resources(&record.config.0),
        })
    })
    .await?
}

fn labels(record: &ContainerRecord, pod: &v1::PodSandboxMetadata) -> [String; 5] {
    let config = &record.config.0;
    let name = config.metadata.clone().unwrap_or_default().name;
    [
        record.id.clone(),
        record.image_ref.clone(),
        pod.namespace.clone(),
        pod.name.clone(),
        name,
    ]
}

fn disk(dir: &Path) -> Disk {
    let Ok(found) = nix::sys::statvfs::statvfs(dir) else {
        return Disk::default();
    };
    Disk {
        inodes_free: found.files_free(),
        inodes_total: found.files(),
        limit_bytes: found.blocks() * found.fragment_size(),
        usage_bytes: 0,
    }
}

/// Processes may end while they are looked at; what is gone does not count.
fn processes(manager: &dyn Manager, cgroup: &CgroupPath) -> Processes {
    let pids = manager.pids(cgroup).unwrap_or_default();
    let mut found = Processes {
        processes: u64::try_from(pids.len()).unwrap_or(0),
        ..Processes::default()
    };
    for pid in &pids {
        let entries = std::fs::read_dir(format!("/proc/{pid}/fd"));
        for entry in entries.into_iter().flatten().flatten() {
            if found.descriptors == DESCRIPTORS_MAX {
                break;
            }
            found.descriptors += 1;
            let target = std::fs::read_link(entry.path()).unwrap_or_default();
            found.sockets += u64::from(
                target
                    .as_os_str()
                    .as_encoded_bytes()
                    .starts_with(b"socket:"),
            );
        }
    }
    let limits = pids.first().map(|pid| format!("/proc/{pid}/limits"));
    found.open_files = limits
        .and_then(|path| std::fs::read_to_string(path).ok())
        .and_then(|text| open_files(&text));
    found
}

/// The soft limit in `Max open files  1024  4096  files` (proc_pid_limits(5)).
fn open_files(limits: &str) -> Option<u64> {
    let line = limits
        .lines()
        .find_map(|l| l.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_soft_limit_is_the_first_number() {
        let text = "Limit  Soft  Hard  Units\nMax open files            1024     4096     files\n";
        assert_eq!(open_files(text), Some(1024));
        assert_eq!(
            open_files("Max open files unlimited unlimited files\n"),
            None
        );
    }
}
