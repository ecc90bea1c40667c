// SPDX-License-Identifier: Apache-2.0
//! Metrics of one container, out of what was read of it.

use super::{Collector, descriptors as d};
use crate::cgroup::{Pressure, Stats, Summary};
use crate::v1;

/// Limits above this are none: the kernel rounds "unlimited" down to a page (cAdvisor's bound).
const UNLIMITED: u64 = 1 << 62;
const NANOS: u64 = 1_000_000_000;
const MICROS: u64 = 1_000_000;

/// The filesystem of the writable layer, and what the layer occupies of it.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Disk {
    pub(crate) inodes_free: u64,
    pub(crate) inodes_total: u64,
    pub(crate) limit_bytes: u64,
    pub(crate) usage_bytes: u64,
}

/// What /proc tells of a container's processes.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Processes {
    pub(crate) processes: u64,
    pub(crate) descriptors: u64,
    pub(crate) sockets: u64,
    /// Soft limit of open files of the first process; none when it is unlimited.
    pub(crate) open_files: Option<u64>,
}

/// All that was seen of a container at one moment.
pub(crate) struct Seen {
    /// Id, image, namespace, pod, container.
    pub(crate) labels: [String; 5],
    /// Nanoseconds since the epoch, as the next.
    pub(crate) now: i64,
    pub(crate) started_at: i64,
    pub(crate) stats: Stats,
    pub(crate) summary: Summary,
    pub(crate) disk: Disk,
    pub(crate) processes: Processes,
    pub(crate) resources: v1::LinuxContainerResources,
}

/// Every metric of [`super::descriptors`] that is a container's.
pub(crate) fn of_container(seen: &Seen) -> Vec<v1::Metric> {
    let mut all = Collector::new(seen.labels.clone(), seen.now);
    all.add(&d::LAST_SEEN, seconds(seen.now));
    cpu(&mut all, &seen.stats);
    memory(&mut all, &seen.stats, &seen.summary);
    disk(&mut all, seen.disk);
    block_io(&mut all, &seen.stats);
    for (size, pages) in &seen.stats.hugetlb {
        all.add_with(&d::HUGETLB_USAGE, &[size], pages.usage);
        all.add_with(&d::HUGETLB_MAX, &[size], pages.max);
    }
    all.add(&d::OOM_EVENTS, seen.summary.oom_kills);
    processes(&mut all, seen);
    limits(&mut all, seen);
    pressures(&mut all, &seen.stats);
    all.metrics
}

fn seconds(nanos: i64) -> u64 {
    u64::try_from(nanos).unwrap_or(0) / NANOS
}

fn cpu(all: &mut Collector, stats: &Stats) {
    let (usage, throttling) = (&stats.cpu.usage, &stats.cpu.throttling);
    all.add(&d::CPU_USER, usage.user / NANOS);
    all.add(&d::CPU_SYSTEM, usage.kernel / NANOS);
    all.add_with(&d::CPU_USAGE, &["total"], usage.total / NANOS);
    all.add(&d::CFS_PERIODS, throttling.periods);
    all.add(&d::CFS_THROTTLED_PERIODS, throttling.throttled_periods);
    all.add(&d::CFS_THROTTLED_SECONDS, throttling.throttled_time / NANOS);
}

fn memory(all: &mut Collector, stats: &Stats, summary: &Summary) {
    let memory = &stats.memory;
    // The first that the kernel counts: of the whole tree on v1, as v2 has it, of this cgroup alone.
    let raw = |names: &[&str]| {
        let found = names.iter().find_map(|name| memory.raw.get(*name));
        found.copied().unwrap_or(0)
    };
    let kernel = match memory.kernel.usage {
        0 => raw(&["kernel"]),
        usage => usage,
    };
    all.add(&d::MEMORY_CACHE, memory.cache);
    all.add(&d::MEMORY_RSS, summary.memory_rss_bytes);
    all.add(&d::MEMORY_KERNEL, kernel);
    let mapped = raw(&["total_mapped_file", "file_mapped", "mapped_file"]);
    all.add(&d::MEMORY_MAPPED, mapped);
    all.add(&d::MEMORY_SWAP, summary.swap_usage_bytes.unwrap_or(0));
    all.add(&d::MEMORY_FAILCNT, memory.usage.failcnt);
    all.add(&d::MEMORY_USAGE, summary.memory_usage_bytes);
    all.add(&d::MEMORY_MAX, memory.usage.max);
    all.add(&d::MEMORY_WORKING_SET, summary.memory_working_set_bytes);
    for kind in ["pgfault", "pgmajfault"] {
        let whole = raw(&[&format!("total_{kind}"), kind]);
        all.add_with(&d::MEMORY_FAILURES, &[kind, "container"], raw(&[kind]));
        all.add_with(&d::MEMORY_FAILURES, &[kind, "hierarchy"], whole);
    }
}

fn disk(all: &mut Collector, disk: Disk) {
    all.add(&d::FS_INODES_FREE, disk.inodes_free);
    all.add(&d::FS_INODES_TOTAL, disk.inodes_total);
    all.add(&d::FS_LIMIT, disk.limit_bytes);
    all.add(&d::FS_USAGE, disk.usage_bytes);
}

fn block_io(all: &mut Collector, stats: &Stats) {
    for entry in &stats.blkio.io_serviced_recursive {
        let device = format!("{}:{}", entry.major, entry.minor);
        match entry.op.as_str() {
            "Read" => all.add_with(&d::FS_READS, &[&device], entry.value),
            "Write" => all.add_with(&d::FS_WRITES, &[&device], entry.value),
            _ => {}
        }
    }
    for entry in &stats.blkio.io_service_bytes_recursive {
        let (major, minor) = (entry.major.to_string(), entry.minor.to_string());
        let device = format!("{major}:{minor}");
        let operation = entry.op.to_lowercase();
        let labels = [&device, &major, &minor, &operation].map(String::as_str);
        all.add_with(&d::BLKIO_USAGE, &labels, entry.value);
        match entry.op.as_str() {
            "Read" => all.add_with(&d::FS_READS_BYTES, &[&device], entry.value),
            "Write" => all.add_with(&d::FS_WRITES_BYTES, &[&device], entry.value),
            _ => {}
        }
    }
}

fn processes(all: &mut Collector, seen: &Seen) {
    let found = seen.processes;
    all.add(&d::DESCRIPTORS, found.descriptors);
    all.add(&d::PROCESSES, found.processes);
    all.add(&d::SOCKETS, found.sockets);
    all.add(&d::THREADS, seen.stats.pids.current);
    all.add(&d::THREADS_MAX, seen.stats.pids.limit);
    if let Some(limit) = found.open_files {
        all.add_with(&d::ULIMITS_SOFT, &["max_open_files"], limit);
    }
}

fn limits(all: &mut Collector, seen: &Seen) {
    let wanted = &seen.resources;
    let number = |value: i64| u64::try_from(value).unwrap_or(0);
    let bytes = |value: i64| Some(number(value)).filter(|v| *v < UNLIMITED).unwrap_or(0);
    let kept = wanted
        .unified
        .get("memory.min")
        .and_then(|v| v.parse().ok());
    all.add(&d::SPEC_MEMORY_LIMIT, bytes(wanted.memory_limit_in_bytes));
    all.add(
        &d::SPEC_SWAP_LIMIT,
        bytes(wanted.memory_swap_limit_in_bytes),
    );
    all.add(&d::SPEC_MEMORY_RESERVATION, bytes(kept.unwrap_or(0)));
    all.add(&d::SPEC_CPU_SHARES, number(wanted.cpu_shares));
    all.add(&d::SPEC_CPU_PERIOD, number(wanted.cpu_period));
    if wanted.cpu_quota > 0 {
        all.add(&d::SPEC_CPU_QUOTA, number(wanted.cpu_quota));
    }
    all.add(&d::START_TIME, seconds(seen.started_at));
}

/// Nothing where the kernel does not count pressure.
fn pressures(all: &mut Collector, stats: &Stats) {
    let mut add = |pressure: Option<Pressure>, stalled, waiting| {
        if let Some(pressure) = pressure {
            all.add(stalled, pressure.full.total / MICROS);
            all.add(waiting, pressure.some.total / MICROS);
        }
    };
    add(
        stats.cpu.psi,
        &d::PRESSURE_CPU_STALLED,
        &d::PRESSURE_CPU_WAITING,
    );
    add(
        stats.memory.psi,
        &d::PRESSURE_MEMORY_STALLED,
        &d::PRESSURE_MEMORY_WAITING,
    );
    add(
        stats.blkio.psi,
        &d::PRESSURE_IO_STALLED,
        &d::PRESSURE_IO_WAITING,
    );
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;
    use crate::cgroup::{BlockIoEntry, HugepageStats, InterfaceStats};
    use crate::metrics::{descriptors, of_sandbox};

    fn seen() -> Seen {
        let entry = |op: &str| BlockIoEntry {
            major: 8,
            minor: 1,
            op: op.into(),
            value: 7,
        };
        let mut stats = Stats::default();
        stats.cpu.usage.total = 3 * NANOS + 5;
        stats.cpu.psi = Some(Pressure::default());
        stats.memory.psi = Some(Pressure::default());
        stats.blkio.psi = Some(Pressure::default());
        stats.blkio.io_serviced_recursive = vec![entry("Read"), entry("Write")];
        stats.blkio.io_service_bytes_recursive = vec![entry("Read"), entry("Write")];
        stats.memory.raw = BTreeMap::from([("pgfault".into(), 4), ("total_pgfault".into(), 5)]);
        stats.hugetlb = BTreeMap::from([("2MB".into(), HugepageStats::default())]);
        Seen {
            labels: ["c", "image", "ns", "pod", "main"].map(str::to_owned),
            now: 9_000_000_000,
            started_at: 2_500_000_000,
            stats,
            summary: Summary::default(),
            disk: Disk::default(),
            processes: Processes {
                open_files: Some(1024),
                ..Processes::default()
            },
            resources: v1::LinuxContainerResources {
                cpu_quota: 5,
                memory_limit_in_bytes: i64::MAX,
                ..Default::default()
            },
        }
    }

    #[test]
    fn every_metric_is_described_and_every_description_has_a_metric() {
        let mut metrics = of_container(&seen());
        let eth0 = InterfaceStats {
            name: "eth0".into(),
            ..InterfaceStats::default()
        };
        metrics.extend(of_sandbox(["s", "ns", "pod"], 1, &[eth0]));
        let described: BTreeMap<String, usize> = descriptors()
            .into_iter()
            .map(|d| (d.name, d.label_keys.len()))
            .collect();
        assert_eq!(described.len(), descriptors().len(), "a name twice");
        for metric in &metrics {
            assert_eq!(
                described[&metric.name],
                metric.label_values.len(),
                "{metric:?}"
            );
        }
        let there: BTreeSet<&String> = metrics.iter().map(|m| &m.name).collect();
        let missing: Vec<_> = described.keys().filter(|n| !there.contains(n)).collect();
        assert_eq!(missing, Vec::<&String>::new());
    }

    #[test]
    fn values_are_in_cadvisors_units() {
        let metrics = of_container(&seen());
        let value = |name: &str, last: &str| {
            let found = metrics.iter().find(|m| {
                m.name == name
                    && (last.is_empty() || m.label_values.last().is_some_and(|l| l == last))
            });
            found.unwrap().value.unwrap().value
        };
        assert_eq!(value("container_cpu_usage_seconds_total", "total"), 3);
        assert_eq!(value("container_start_time_seconds", ""), 2);
        assert_eq!(value("container_last_seen", ""), 9);
        assert_eq!(value("container_spec_memory_limit_bytes", ""), 0);
        assert_eq!(value("container_memory_failures_total", "container"), 4);
        assert_eq!(value("container_memory_failures_total", "hierarchy"), 5);
    }
}
