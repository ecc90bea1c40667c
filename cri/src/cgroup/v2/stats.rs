// SPDX-License-Identifier: Apache-2.0
//! Statistics out of v2 files, in v1's terms where `events --stats` has those. A controller that is
//! not enabled for the cgroup leaves its part empty.

use std::collections::BTreeMap;
use std::path::Path;

use super::Unified;
use crate::cgroup::files;
use crate::cgroup::stats::{
    BlockIoEntry, BlockIoStats, CpuStats, CpuUsage, HugepageStats, MemoryStats, MemoryUse,
    PidsStats, RdmaStats, Stats, Summary, Throttling, parse_rdma, pressure,
};
use crate::cgroup::{CgroupError, CgroupPath};

type Result<T> = std::result::Result<T, CgroupError>;

const NANOS_PER_MICRO: u64 = 1_000;

pub(super) fn summary(dir: &Path) -> Result<Summary> {
    let read = |name: &str| files::read(&dir.join(name));
    let (cpu, memory, events) = (
        read("cpu.stat")?,
        read("memory.stat")?,
        read("memory.events")?,
    );
    let usage = files::number(&dir.join("memory.current"))?.unwrap_or(0);
    let swap = files::optional(&dir.join("memory.swap.current"))?;
    let swap_limit = match swap {
        Some(_) => files::number(&dir.join("memory.swap.max"))?,
        None => None,
    };
    Ok(Summary {
        cpu_usage_nanos: files::keyed(&cpu, "usage_usec") * NANOS_PER_MICRO,
        memory_usage_bytes: usage,
        memory_working_set_bytes: usage.saturating_sub(files::keyed(&memory, "inactive_file")),
        memory_rss_bytes: files::keyed(&memory, "anon"),
        memory_page_faults: files::keyed(&memory, "pgfault"),
        memory_major_page_faults: files::keyed(&memory, "pgmajfault"),
        memory_limit_bytes: files::number(&dir.join("memory.max"))?,
        swap_usage_bytes: swap,
        swap_limit_bytes: swap_limit,
        pids: files::number(&dir.join("pids.current"))?.unwrap_or(0),
        oom_kills: files::keyed(&events, "oom_kill"),
        cpu_pressure: pressure(&dir.join("cpu.pressure"))?,
        memory_pressure: pressure(&dir.join("memory.pressure"))?,
        io_pressure: pressure(&dir.join("io.pressure"))?,
    })
}

pub(super) fn stats(dir: &Path) -> Result<Stats> {
    Ok(Stats {
        cpu: cpu(dir)?,
        memory: memory(dir)?,
        pids: PidsStats {
            current: files::optional(&dir.join("pids.current"))?.unwrap_or(0),
            limit: files::optional(&dir.join("pids.max"))?.unwrap_or(0),
        },
        blkio: block_io(dir)?,
        hugetlb: hugepages(dir)?,
        rdma: rdma(dir)?,
        ..Stats::default()
    })
}

impl Unified {
    /// What a hybrid host has in this tree only. The cgroup may be missing in it: whoever made it
    /// may have known v1 alone.
    pub(in crate::cgroup) fn add_hybrid_stats(
        &self,
        path: &CgroupPath,
        stats: &mut Stats,
    ) -> Result<()> {
        let dir = self.dir(path);
        stats.cpu.psi = pressure(&dir.join("cpu.pressure"))?;
        stats.memory.psi = pressure(&dir.join("memory.pressure"))?;
        stats.blkio.psi = pressure(&dir.join("io.pressure"))?;
        stats.hugetlb = hugepages(&dir)?;
        stats.rdma = rdma(&dir)?;
        Ok(())
    }
}

fn cpu(dir: &Path) -> Result<CpuStats> {
    let stat = files::read(&dir.join("cpu.stat"))?;
    let nanos = |key| files::keyed(&stat, key) * NANOS_PER_MICRO;
    Ok(CpuStats {
        usage: CpuUsage {
            total: nanos("usage_usec"),
            user: nanos("user_usec"),
            kernel: nanos("system_usec"),
            ..CpuUsage::default()
        },
        throttling: Throttling {
            periods: files::keyed(&stat, "nr_periods"),
            throttled_periods: files::keyed(&stat, "nr_throttled"),
            throttled_time: nanos("throttled_usec"),
        },
        psi: pressure(&dir.join("cpu.pressure"))?,
    })
}

fn memory(dir: &Path) -> Result<MemoryStats> {
    let Some(usage) = memory_use(dir, "memory")? else {
        return Ok(MemoryStats::default());
    };
    let raw = files::map(&files::read(&dir.join("memory.stat"))?);
    // v1 counts memory and swap together; a peak of both together nobody counts.
    let swap = memory_use(dir, "memory.swap")?.map(|swap| MemoryUse {
        usage: swap.usage + usage.usage,
        limit: swap.limit.saturating_add(usage.limit),
        max: 0,
        failcnt: swap.failcnt,
    });
    Ok(MemoryStats {
        cache: raw.get("file").copied().unwrap_or(0),
        usage,
        swap: swap.unwrap_or_default(),
        raw,
        psi: pressure(&dir.join("memory.pressure"))?,
        ..MemoryStats::default()
    })
}

fn memory_use(dir: &Path, prefix: &str) -> Result<Option<MemoryUse>> {
    let file = |name: &str| dir.join(format!("{prefix}.{name}"));
    let Some(usage) = files::optional(&file("current"))? else {
        return Ok(None);
    };
    // How often the limit was met is a line of the events.
    let events = files::read(&file("events")).unwrap_or_default();
    Ok(Some(MemoryUse {
        usage,
        limit: files::number(&file("max"))?.unwrap_or(u64::MAX),
        max: files::optional(&file("peak"))?.unwrap_or(0),
        failcnt: files::keyed(&events, "max"),
    }))
}

fn block_io(dir: &Path) -> Result<BlockIoStats> {
    let mut stats = BlockIoStats {
        psi: pressure(&dir.join("io.pressure"))?,
        ..BlockIoStats::default()
    };
    match std::fs::read_to_string(dir.join("io.stat")) {
        Ok(text) => add_io(&text, &mut stats),
        Err(error) if files::absent(&error) => {}
        Err(error) => return Err(files::failed("reading", &dir.join("io.stat"))(error)),
    }
    Ok(stats)
}

/// `8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6` lines, to v1's tables.
fn add_io(text: &str, stats: &mut BlockIoStats) {
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let device = words.next().and_then(|device| device.split_once(':'));
        let numbers = device.map(|(major, minor)| (major.parse(), minor.parse()));
        let Some((Ok(major), Ok(minor))) = numbers else {
            continue;
        };
        for (key, value) in words.filter_map(|word| word.split_once('=')) {
            let (table, op) = match key {
                "rbytes" => (&mut stats.io_service_bytes_recursive, "Read"),
                "wbytes" => (&mut stats.io_service_bytes_recursive, "Write"),
                "rios" => (&mut stats.io_serviced_recursive, "Read"),
                "wios" => (&mut stats.io_serviced_recursive, "Write"),
                _ => continue,
            };
            table.push(BlockIoEntry {
                major,
                minor,
                op: op.to_owned(),
                value: value.parse().unwrap_or(0),
            });
        }
    }
}

fn hugepages(dir: &Path) -> Result<BTreeMap<String, HugepageStats>> {
    let mut all = BTreeMap::new();
    for size in files::hugepage_sizes() {
        let file = |name: &str| dir.join(format!("hugetlb.{size}.{name}"));
        if let Some(usage) = files::optional(&file("current"))? {
            let events = files::read(&file("events"))?;
            let stats = HugepageStats {
                usage,
                max: 0,
                failcnt: files::keyed(&events, "max"),
            };
            all.insert(size, stats);
        }
    }
    Ok(all)
}

fn rdma(dir: &Path) -> Result<BTreeMap<String, RdmaStats>> {
    match std::fs::read_to_string(dir.join("rdma.current")) {
        Ok(text) => Ok(parse_rdma(&text)),
        Err(error) if files::absent(&error) => Ok(BTreeMap::new()),
        Err(error) => Err(files::failed("reading", &dir.join("rdma.current"))(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn io_lines_become_v1_tables() {
        let mut stats = BlockIoStats::default();
        add_io(
            "8:0 rbytes=10 wbytes=20 rios=1 wios=2 dbytes=0 dios=0\n",
            &mut stats,
        );
        let values = |table: &[BlockIoEntry]| table.iter().map(|e| e.value).collect::<Vec<_>>();
        assert_eq!(values(&stats.io_service_bytes_recursive), [10, 20]);
        assert_eq!(values(&stats.io_serviced_recursive), [1, 2]);
        assert_eq!(stats.io_serviced_recursive[1].op, "Write");
    }
}
