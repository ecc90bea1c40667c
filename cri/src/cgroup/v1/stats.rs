// SPDX-License-Identifier: Apache-2.0
//! Statistics out of v1 files. A controller that is not mounted leaves its part empty.

use std::path::Path;

use super::Legacy;
use crate::cgroup::files;
use crate::cgroup::stats::{
    BlockIoEntry, BlockIoStats, CpuUsage, CpusetStats, HugepageStats, MemoryStats, MemoryUse,
    PidsStats, Stats, Summary, Throttling, parse_rdma, pressure,
};
use crate::cgroup::{CgroupError, CgroupPath};

type Result<T> = std::result::Result<T, CgroupError>;

/// Limits above this are none: the kernel rounds "unlimited" down to a page.
const UNLIMITED: u64 = 1 << 60;

impl Legacy {
    pub(super) fn read_summary(&self, path: &CgroupPath) -> Result<Summary> {
        let memory = self.need("memory", path)?;
        let number = |name: &str| files::number(&memory.join(name)).map(Option::unwrap_or_default);
        let stat = files::read(&memory.join("memory.stat"))?;
        let oom = files::read(&memory.join("memory.oom_control"))?;
        let usage = number("memory.usage_in_bytes")?;
        let limit = number("memory.limit_in_bytes")?;
        let with_swap = files::optional(&memory.join("memory.memsw.limit_in_bytes"))?;
        let cpu = self.need("cpuacct", path)?.join("cpuacct.usage");
        let pids = self.need("pids", path)?.join("pids.current");
        let mut summary = Summary {
            cpu_usage_nanos: files::number(&cpu)?.unwrap_or(0),
            memory_usage_bytes: usage,
            memory_working_set_bytes: usage
                .saturating_sub(files::keyed(&stat, "total_inactive_file")),
            memory_rss_bytes: files::keyed(&stat, "total_rss"),
            memory_page_faults: files::keyed(&stat, "total_pgfault"),
            memory_major_page_faults: files::keyed(&stat, "total_pgmajfault"),
            memory_limit_bytes: Some(limit).filter(|limit| *limit < UNLIMITED),
            swap_usage_bytes: with_swap.map(|_| files::keyed(&stat, "total_swap")),
            swap_limit_bytes: with_swap
                .filter(|sum| *sum < UNLIMITED)
                .map(|sum| sum.saturating_sub(limit)),
            pids: files::number(&pids)?.unwrap_or(0),
            oom_kills: files::keyed(&oom, "oom_kill"),
            ..Summary::default()
        };
        if let Some(unified) = self.unified(path) {
            summary.cpu_pressure = pressure(&unified.join("cpu.pressure"))?;
            summary.memory_pressure = pressure(&unified.join("memory.pressure"))?;
            summary.io_pressure = pressure(&unified.join("io.pressure"))?;
        }
        Ok(summary)
    }

    pub(super) fn read_stats(&self, path: &CgroupPath) -> Result<Stats> {
        let mut stats = Stats::default();
        // The unified tree first: its controllers and pressure are kept where v1 has none.
        if let Some(unified) = &self.unified {
            unified.add_hybrid_stats(path, &mut stats)?;
        }
        if let Some(dir) = self.dir("cpuacct", path) {
            stats.cpu.usage = cpu_usage(&dir)?;
        }
        if let Some(dir) = self.dir("cpu", path) {
            stats.cpu.throttling = throttling(&dir)?;
        }
        if let Some(dir) = self.dir("cpuset", path) {
            stats.cpuset = cpuset(&dir)?;
        }
        if let Some(dir) = self.dir("memory", path) {
            let psi = stats.memory.psi;
            stats.memory = MemoryStats {
                psi,
                ..memory(&dir)?
            };
        }
        if let Some(dir) = self.dir("pids", path) {
            stats.pids = PidsStats {
                current: files::number(&dir.join("pids.current"))?.unwrap_or(0),
                limit: files::number(&dir.join("pids.max"))?.unwrap_or(0),
            };
        }
        if let Some(dir) = self.dir("blkio", path) {
            let psi = stats.blkio.psi;
            stats.blkio = BlockIoStats {
                psi,
                ..block_io(&dir)?
            };
        }
        if let Some(dir) = self.dir("hugetlb", path) {
            stats.hugetlb = hugepages(&dir)?;
        }
        if let Some(dir) = self.dir("rdma", path) {
            stats.rdma = parse_rdma(&files::read(&dir.join("rdma.current"))?);
        }
        Ok(stats)
    }
}

fn numbers(text: &str) -> Vec<u64> {
    text.split_whitespace()
        .filter_map(|word| word.parse().ok())
        .collect()
}

fn cpu_usage(dir: &Path) -> Result<CpuUsage> {
    /// cpuacct.stat counts in USER_HZ, which is 100 for every program.
    const NANOS_PER_TICK: u64 = 1_000_000_000 / 100;
    let stat = files::read(&dir.join("cpuacct.stat"))?;
    let mut usage = CpuUsage {
        total: files::number(&dir.join("cpuacct.usage"))?.unwrap_or(0),
        user: files::keyed(&stat, "user") * NANOS_PER_TICK,
        kernel: files::keyed(&stat, "system") * NANOS_PER_TICK,
        percpu: numbers(&files::read(&dir.join("cpuacct.usage_percpu"))?),
        ..CpuUsage::default()
    };
    // A heading, then `cpu user system` for each.
    let table = files::read(&dir.join("cpuacct.usage_all")).unwrap_or_default();
    for line in table.lines().skip(1) {
        if let [_, user, system] = numbers(line)[..] {
            usage.percpu_user.push(user);
            usage.percpu_kernel.push(system);
        }
    }
    Ok(usage)
}

fn throttling(dir: &Path) -> Result<Throttling> {
    let stat = files::read(&dir.join("cpu.stat"))?;
    Ok(Throttling {
        periods: files::keyed(&stat, "nr_periods"),
        throttled_periods: files::keyed(&stat, "nr_throttled"),
        throttled_time: files::keyed(&stat, "throttled_time"),
    })
}

fn cpuset(dir: &Path) -> Result<CpusetStats> {
    let number = |name: &str| files::optional(&dir.join(name)).map(Option::unwrap_or_default);
    let list = |name: &str| files::read(&dir.join(name)).map(|text| expand(&text));
    let level = files::read(&dir.join("cpuset.sched_relax_domain_level"))?;
    Ok(CpusetStats {
        cpus: list("cpuset.cpus")?,
        mems: list("cpuset.mems")?,
        cpu_exclusive: number("cpuset.cpu_exclusive")?,
        mem_exclusive: number("cpuset.mem_exclusive")?,
        mem_hardwall: number("cpuset.mem_hardwall")?,
        memory_migrate: number("cpuset.memory_migrate")?,
        memory_spread_page: number("cpuset.memory_spread_page")?,
        memory_spread_slab: number("cpuset.memory_spread_slab")?,
        memory_pressure: number("cpuset.memory_pressure")?,
        sched_load_balance: number("cpuset.sched_load_balance")?,
        sched_relax_domain_level: level.trim().parse().unwrap_or(-1),
    })
}

/// `0-2,5` to its members.
fn expand(list: &str) -> Vec<u16> {
    let mut all = Vec::new();
    for part in list.trim().split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        if let (Ok(first), Ok(last)) = (first.parse::<u16>(), last.parse::<u16>()) {
            all.extend(first..=last);
        }
    }
    all
}

fn memory(dir: &Path) -> Result<MemoryStats> {
    let raw = files::map(&files::read(&dir.join("memory.stat"))?);
    let of = |prefix: &str| {
        let number = |name: &str| files::optional(&dir.join(format!("{prefix}.{name}")));
        let Some(usage) = number("usage_in_bytes")? else {
            // Swap and kernel memory are counted only where the kernel is told to.
            return Ok(MemoryUse::default());
        };
        Ok(MemoryUse {
            usage,
            limit: number("limit_in_bytes")?.unwrap_or(0),
            max: number("max_usage_in_bytes")?.unwrap_or(0),
            failcnt: number("failcnt")?.unwrap_or(0),
        })
    };
    Ok(MemoryStats {
        cache: raw.get("cache").copied().unwrap_or(0),
        usage: of("memory")?,
        swap: of("memory.memsw")?,
        kernel: of("memory.kmem")?,
        kernel_tcp: of("memory.kmem.tcp")?,
        raw,
        psi: None,
    })
}

/// BFQ counts what goes through it. Where it has seen nothing, the throttle layer's figures hold,
/// which count for every scheduler.
fn block_io(dir: &Path) -> Result<BlockIoStats> {
    let table = |names: [&str; 2]| -> Result<Vec<BlockIoEntry>> {
        for name in names {
            match std::fs::read_to_string(dir.join(name)) {
                Ok(text) => {
                    let entries = entries(&text);
                    if !entries.is_empty() {
                        return Ok(entries);
                    }
                }
                Err(error) if files::absent(&error) => {}
                Err(error) => return Err(files::failed("reading", &dir.join(name))(error)),
            }
        }
        Ok(Vec::new())
    };
    let bfq = |name: &str| {
        let (new, old) = (format!("blkio.bfq.{name}"), format!("blkio.{name}"));
        table([&new, &old])
    };
    Ok(BlockIoStats {
        io_service_bytes_recursive: table([
            "blkio.bfq.io_service_bytes_recursive",
            "blkio.throttle.io_service_bytes_recursive",
        ])?,
        io_serviced_recursive: table([
            "blkio.bfq.io_serviced_recursive",
            "blkio.throttle.io_serviced_recursive",
        ])?,
        io_queued_recursive: bfq("io_queued_recursive")?,
        io_service_time_recursive: bfq("io_service_time_recursive")?,
        io_wait_time_recursive: bfq("io_wait_time_recursive")?,
        io_merged_recursive: bfq("io_merged_recursive")?,
        io_time_recursive: bfq("time_recursive")?,
        sectors_recursive: bfq("sectors_recursive")?,
        psi: None,
    })
}

/// `8:0 Read 4096` lines; a line without an operation is a total of the device, and one without a
/// device the total of all, which is left out.
fn entries(text: &str) -> Vec<BlockIoEntry> {
    let parse = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let (device, op, value) = match words[..] {
            [device, op, value] => (device, op, value),
            [device, value] if device != "Total" => (device, "", value),
            _ => return None,
        };
        let (major, minor) = device.split_once(':')?;
        Some(BlockIoEntry {
            major: major.parse().ok()?,
            minor: minor.parse().ok()?,
            op: op.to_owned(),
            value: value.parse().ok()?,
        })
    };
    text.lines().filter_map(parse).collect()
}

fn hugepages(dir: &Path) -> Result<std::collections::BTreeMap<String, HugepageStats>> {
    let mut all = std::collections::BTreeMap::new();
    for size in files::hugepage_sizes() {
        let number = |name: &str| files::optional(&dir.join(format!("hugetlb.{size}.{name}")));
        if let Some(usage) = number("usage_in_bytes")? {
            let stats = HugepageStats {
                usage,
                max: number("max_usage_in_bytes")?.unwrap_or(0),
                failcnt: number("failcnt")?.unwrap_or(0),
            };
            all.insert(size, stats);
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_expanded() {
        assert_eq!(expand("0-2,5\n"), [0, 1, 2, 5]);
        assert_eq!(expand("\n"), [0u16; 0]);
    }

    #[test]
    fn block_io_lines_are_per_device_and_operation() {
        let found = entries("8:0 Read 4096\n8:0 Total 4096\n8:16 512\nTotal 4608\n");
        assert_eq!(found.len(), 3);
        assert_eq!((found[0].major, found[0].op.as_str()), (8, "Read"));
        assert_eq!((found[2].minor, found[2].value), (16, 512));
    }
}
