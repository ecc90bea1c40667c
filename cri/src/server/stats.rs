// SPDX-License-Identifier: Apache-2.0
//! Container and pod statistics, out of cgroups, the writable layer and the pod's network.

use std::sync::{Arc, Mutex, PoisonError};

use crate::cgroup::{self, Pressure, PressureLine, Summary};
use crate::container::{ContainerRecord, State};
use crate::fault::Result;
use crate::runtime::{Container, Runtime, Sandbox, cgroup_path, now};
use crate::sandbox::{SandboxRecord, network};
use crate::{blocking, filter, v1};

fn number(value: u64) -> Option<v1::UInt64Value> {
    Some(v1::UInt64Value { value })
}

fn psi(pressure: Option<Pressure>) -> Option<v1::PsiStats> {
    let line = |line: PressureLine| v1::PsiData {
        total: line.total,
        avg10: line.avg10,
        avg60: line.avg60,
        avg300: line.avg300,
    };
    pressure.map(|pressure| v1::PsiStats {
        full: Some(line(pressure.full)),
        some: Some(line(pressure.some)),
    })
}

fn io(stats: &Summary) -> Option<v1::IoUsage> {
    psi(stats.io_pressure).map(|psi| v1::IoUsage {
        timestamp: now(),
        psi: Some(psi),
    })
}

/// None where the kernel does not count swap.
fn swap(stats: &Summary) -> Option<v1::SwapUsage> {
    let usage = stats.swap_usage_bytes?;
    let left = stats
        .swap_limit_bytes
        .map(|limit| limit.saturating_sub(usage));
    Some(v1::SwapUsage {
        timestamp: now(),
        swap_available_bytes: left.and_then(number),
        swap_usage_bytes: number(usage),
    })
}

fn cpu(stats: &Summary, rate: Option<u64>) -> v1::CpuUsage {
    v1::CpuUsage {
        timestamp: now(),
        usage_core_nano_seconds: number(stats.cpu_usage_nanos),
        usage_nano_cores: rate.map(|value| v1::UInt64Value { value }),
        psi: psi(stats.cpu_pressure),
    }
}

fn memory(stats: &Summary) -> v1::MemoryUsage {
    v1::MemoryUsage {
        timestamp: now(),
        working_set_bytes: number(stats.memory_working_set_bytes),
        available_bytes: stats
            .memory_limit_bytes
            .and_then(|limit| number(limit.saturating_sub(stats.memory_working_set_bytes))),
        usage_bytes: number(stats.memory_usage_bytes),
        rss_bytes: number(stats.memory_rss_bytes),
        page_faults: number(stats.memory_page_faults),
        major_page_faults: number(stats.memory_major_page_faults),
        psi: psi(stats.memory_pressure),
    }
}

/// Nanoseconds of cpu per second between two samples.
fn rate(before: (i64, u64), after: (i64, u64)) -> Option<u64> {
    let elapsed = u128::try_from(after.0.checked_sub(before.0)?).ok()?;
    let used = u128::from(after.1.checked_sub(before.1)?);
    if elapsed == 0 {
        return None;
    }
    u64::try_from(used * 1_000_000_000 / elapsed).ok()
}

/// The rate since the last time that somebody asked.
fn sample(last: &Mutex<Option<(i64, u64)>>, stats: &Summary) -> Option<u64> {
    let sample = (now(), stats.cpu_usage_nanos);
    let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
    last.replace(sample).and_then(|before| rate(before, sample))
}

async fn read(runtime: &Runtime, cgroup: &str) -> Result<Summary> {
    let path = cgroup_path(cgroup)?;
    runtime
        .with_cgroups("reading statistics", move |manager| manager.summary(&path))
        .await
}

fn attributes(record: &ContainerRecord) -> v1::ContainerAttributes {
    v1::ContainerAttributes {
        id: record.id.clone(),
        metadata: record.config.0.metadata.clone(),
        labels: record.config.0.labels.clone(),
        annotations: record.config.0.annotations.clone(),
    }
}

async fn of_container(runtime: &Runtime, container: &Container) -> Result<v1::ContainerStats> {
    let record = container.record.get();
    let mut answer = v1::ContainerStats {
        attributes: Some(attributes(&record)),
        ..Default::default()
    };
    let usage = runtime.disk_usage.of(&container.upper()).await?;
    answer.writable_layer = Some(v1::FilesystemUsage {
        timestamp: now(),
        fs_id: Some(v1::FilesystemIdentifier {
            // The filesystem, as ImageFsInfo names it: kubelets look each name up once.
            mountpoint: runtime.paths.containers().display().to_string(),
        }),
        used_bytes: number(usage.bytes),
        inodes_used: number(usage.inodes),
    });
    if matches!(record.state, State::Running { .. }) {
        let stats = read(runtime, &record.cgroup).await?;
        answer.cpu = Some(cpu(&stats, sample(&container.cpu_sample, &stats)));
        answer.memory = Some(memory(&stats));
        answer.swap = swap(&stats);
        answer.io = io(&stats);
    }
    Ok(answer)
}

/// The statistics of one container.
///
/// # Errors
/// Not found; or its cgroup cannot be read.
pub(crate) async fn container(
    runtime: &Arc<Runtime>,
    request: &v1::ContainerStatsRequest,
) -> Result<v1::ContainerStatsResponse> {
    let container = runtime.container(&request.container_id)?;
    Ok(v1::ContainerStatsResponse {
        stats: Some(of_container(runtime, &container).await?),
    })
}

/// The statistics of all running containers that the filter keeps. One that ends meanwhile is left out.
pub(crate) async fn containers(
    runtime: &Arc<Runtime>,
    wanted: Option<&v1::ContainerStatsFilter>,
) -> Vec<v1::ContainerStats> {
    let mut all = Vec::new();
    for container in runtime.containers.all() {
        let record = container.record.get();
        let keeps = wanted.is_none_or(|f| {
            record.id.starts_with(&f.id)
                && record.sandbox_id.starts_with(&f.pod_sandbox_id)
                && filter::labels_match(&f.label_selector, &record.config.0.labels)
        });
        if !keeps || !matches!(record.state, State::Running { .. }) {
            continue;
        }
        if let Ok(stats) = of_container(runtime, &container).await {
            all.push(stats);
        }
    }
    all
}

async fn of_sandbox(runtime: &Arc<Runtime>, sandbox: &Sandbox) -> Result<v1::PodSandboxStats> {
    let record = sandbox.record.get();
    let stats = read(runtime, &record.cgroup).await?;
    let in_pod = v1::ContainerStatsFilter {
        pod_sandbox_id: record.id.clone(),
        ..Default::default()
    };
    Ok(v1::PodSandboxStats {
        attributes: Some(v1::PodSandboxAttributes {
            id: record.id.clone(),
            metadata: record.config.0.metadata.clone(),
            labels: record.config.0.labels.clone(),
            annotations: record.config.0.annotations.clone(),
        }),
        linux: Some(v1::LinuxPodSandboxStats {
            cpu: Some(cpu(&stats, sample(&sandbox.cpu_sample, &stats))),
            memory: Some(memory(&stats)),
            network: network_usage(&record).await?,
            process: Some(v1::ProcessUsage {
                timestamp: now(),
                process_count: number(stats.pids),
            }),
            containers: containers(runtime, Some(&in_pod)).await,
            io: io(&stats),
        }),
        windows: None,
    })
}

/// The statistics of one sandbox.
///
/// # Errors
/// Not found; or its cgroup cannot be read.
pub(crate) async fn sandbox(
    runtime: &Arc<Runtime>,
    request: &v1::PodSandboxStatsRequest,
) -> Result<v1::PodSandboxStatsResponse> {
    let sandbox = runtime.sandbox(&request.pod_sandbox_id)?;
    Ok(v1::PodSandboxStatsResponse {
        stats: Some(of_sandbox(runtime, &sandbox).await?),
    })
}

/// The statistics of all ready sandboxes that the filter keeps.
pub(crate) async fn sandboxes(
    runtime: &Arc<Runtime>,
    wanted: Option<&v1::PodSandboxStatsFilter>,
) -> Vec<v1::PodSandboxStats> {
    let mut all = Vec::new();
    for sandbox in runtime.sandboxes.all() {
        let record = sandbox.record.get();
        let keeps = wanted.is_none_or(|f| {
            record.id.starts_with(&f.id)
                && filter::labels_match(&f.label_selector, &record.config.0.labels)
        });
        if !keeps || record.state() != v1::PodSandboxState::SandboxReady {
            continue;
        }
        if let Ok(stats) = of_sandbox(runtime, &sandbox).await {
            all.push(stats);
        }
    }
    all
}

/// The counters of the pod's interfaces but loopback, from the sandbox process's view. Empty with
/// the host's network.
pub(super) async fn interfaces(record: &SandboxRecord) -> Result<Vec<cgroup::InterfaceStats>> {
    let (Some(pid), Some(_)) = (record.pid, &record.netns) else {
        return Ok(Vec::new());
    };
    let path = format!("/proc/{pid}/net/dev");
    let text = blocking::run("reading network counters", move || {
        std::fs::read_to_string(path).unwrap_or_default()
    })
    .await?;
    let mut all = cgroup::interfaces(&text);
    all.retain(|counters| counters.name != "lo");
    Ok(all)
}

/// None with the host's network.
async fn network_usage(record: &SandboxRecord) -> Result<Option<v1::NetworkUsage>> {
    if record.netns.is_none() || record.pid.is_none() {
        return Ok(None);
    }
    let found = interfaces(record).await?;
    let mut interfaces: Vec<_> = found.into_iter().map(interface).collect();
    let default = interfaces
        .iter()
        .position(|i| i.name == network::INTERFACE)
        .map(|at| interfaces.remove(at));
    Ok(Some(v1::NetworkUsage {
        timestamp: now(),
        default_interface: default,
        interfaces,
    }))
}

fn interface(counters: cgroup::InterfaceStats) -> v1::NetworkInterfaceUsage {
    v1::NetworkInterfaceUsage {
        rx_bytes: number(counters.rx_bytes),
        rx_errors: number(counters.rx_errors),
        tx_bytes: number(counters.tx_bytes),
        tx_errors: number(counters.tx_errors),
        name: counters.name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_per_second() {
        assert_eq!(
            rate((0, 0), (2_000_000_000, 1_000_000_000)),
            Some(500_000_000)
        );
        assert_eq!(rate((5, 0), (5, 10)), None);
        assert_eq!(rate((5, 10), (9, 3)), None);
    }
}
