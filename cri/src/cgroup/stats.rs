// SPDX-License-Identifier: Apache-2.0
//! What is read from cgroups: [`Summary`] for the kubelet, which asks often, and [`Stats`] for
//! `events --stats`, whose JSON form is runc's.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;

use super::{CgroupError, files};

/// Usage, in the units that CRI and the kubelet's summary use.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Summary {
    pub cpu_usage_nanos: u64,
    pub memory_usage_bytes: u64,
    /// Usage without inactive file pages: what eviction looks at.
    pub memory_working_set_bytes: u64,
    pub memory_rss_bytes: u64,
    pub memory_page_faults: u64,
    pub memory_major_page_faults: u64,
    /// None when unlimited.
    pub memory_limit_bytes: Option<u64>,
    /// None where the kernel does not count swap.
    pub swap_usage_bytes: Option<u64>,
    /// Of swap alone; none when unlimited or not counted.
    pub swap_limit_bytes: Option<u64>,
    pub pids: u64,
    pub oom_kills: u64,
    pub cpu_pressure: Option<Pressure>,
    pub memory_pressure: Option<Pressure>,
    pub io_pressure: Option<Pressure>,
}

/// Pressure stall information: how long tasks waited for a resource (Documentation/accounting/psi.rst).
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Pressure {
    /// At least one task waited.
    pub some: PressureLine,
    /// All tasks waited.
    pub full: PressureLine,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct PressureLine {
    pub avg10: f64,
    pub avg60: f64,
    pub avg300: f64,
    /// Microseconds.
    pub total: u64,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Stats {
    pub cpu: CpuStats,
    pub cpuset: CpusetStats,
    pub memory: MemoryStats,
    pub pids: PidsStats,
    pub blkio: BlockIoStats,
    /// By page size.
    pub hugetlb: BTreeMap<String, HugepageStats>,
    /// By device. runc reads these and leaves them out of its output.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub rdma: BTreeMap<String, RdmaStats>,
    pub intel_rdt: RdtStats,
    pub network_interfaces: Vec<InterfaceStats>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct CpuStats {
    pub usage: CpuUsage,
    #[serde(skip_serializing_if = "unset")]
    pub throttling: Throttling,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub psi: Option<Pressure>,
}

/// Nanoseconds.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct CpuUsage {
    #[serde(skip_serializing_if = "unset")]
    pub total: u64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub percpu: Vec<u64>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub percpu_kernel: Vec<u64>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub percpu_user: Vec<u64>,
    pub kernel: u64,
    pub user: u64,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Throttling {
    #[serde(skip_serializing_if = "unset")]
    pub periods: u64,
    #[serde(skip_serializing_if = "unset")]
    pub throttled_periods: u64,
    /// Nanoseconds.
    #[serde(skip_serializing_if = "unset")]
    pub throttled_time: u64,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct CpusetStats {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cpus: Vec<u16>,
    pub cpu_exclusive: u64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub mems: Vec<u16>,
    pub mem_hardwall: u64,
    pub mem_exclusive: u64,
    pub memory_migrate: u64,
    pub memory_spread_page: u64,
    pub memory_spread_slab: u64,
    pub memory_pressure: u64,
    pub sched_load_balance: u64,
    pub sched_relax_domain_level: i64,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct MemoryStats {
    #[serde(skip_serializing_if = "unset")]
    pub cache: u64,
    #[serde(skip_serializing_if = "unset")]
    pub usage: MemoryUse,
    /// Memory and swap together, on v2 too.
    #[serde(skip_serializing_if = "unset")]
    pub swap: MemoryUse,
    #[serde(skip_serializing_if = "unset")]
    pub kernel: MemoryUse,
    #[serde(rename = "kernelTCP", skip_serializing_if = "unset")]
    pub kernel_tcp: MemoryUse,
    /// memory.stat as it is.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub raw: BTreeMap<String, u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub psi: Option<Pressure>,
}

/// Bytes; a limit of `u64::MAX` on v2 is none.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct MemoryUse {
    pub limit: u64,
    #[serde(skip_serializing_if = "unset")]
    pub usage: u64,
    #[serde(skip_serializing_if = "unset")]
    pub max: u64,
    pub failcnt: u64,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct PidsStats {
    #[serde(skip_serializing_if = "unset")]
    pub current: u64,
    /// 0 when unlimited.
    #[serde(skip_serializing_if = "unset")]
    pub limit: u64,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BlockIoStats {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub io_service_bytes_recursive: Vec<BlockIoEntry>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub io_serviced_recursive: Vec<BlockIoEntry>,
    #[serde(rename = "ioQueueRecursive", skip_serializing_if = "Vec::is_empty")]
    pub io_queued_recursive: Vec<BlockIoEntry>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub io_service_time_recursive: Vec<BlockIoEntry>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub io_wait_time_recursive: Vec<BlockIoEntry>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub io_merged_recursive: Vec<BlockIoEntry>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub io_time_recursive: Vec<BlockIoEntry>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub sectors_recursive: Vec<BlockIoEntry>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub psi: Option<Pressure>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct BlockIoEntry {
    #[serde(skip_serializing_if = "unset")]
    pub major: u64,
    #[serde(skip_serializing_if = "unset")]
    pub minor: u64,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub op: String,
    #[serde(skip_serializing_if = "unset")]
    pub value: u64,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct HugepageStats {
    #[serde(skip_serializing_if = "unset")]
    pub usage: u64,
    #[serde(skip_serializing_if = "unset")]
    pub max: u64,
    pub failcnt: u64,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct RdmaStats {
    pub handles: u64,
    pub objects: u64,
}

/// Of the resctrl group; empty where there is none.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct RdtStats {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub l3_cache_schema_root: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub l3_cache_schema: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub mem_bw_schema_root: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub mem_bw_schema: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub schemata: Vec<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct InterfaceStats {
    pub name: String,
    pub rx_bytes: u64,
    pub rx_packets: u64,
    pub rx_errors: u64,
    pub rx_dropped: u64,
    pub tx_bytes: u64,
    pub tx_packets: u64,
    pub tx_errors: u64,
    pub tx_dropped: u64,
}

/// Go's omitempty: a value that is all zero is left out.
fn unset<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// Parses `/proc/<pid>/net/dev` (proc_pid_net(5)): per interface 8 receive columns, then 8 of
/// transmit.
pub fn interfaces(net_dev: &str) -> Vec<InterfaceStats> {
    let parse = |line: &str| {
        let (name, rest) = line.split_once(':')?;
        let columns: Vec<u64> = rest
            .split_whitespace()
            .map_while(|column| column.parse().ok())
            .collect();
        let at = |index: usize| columns.get(index).copied().unwrap_or(0);
        Some(InterfaceStats {
            name: name.trim().to_owned(),
            rx_bytes: at(0),
            rx_packets: at(1),
            rx_errors: at(2),
            rx_dropped: at(3),
            tx_bytes: at(8),
            tx_packets: at(9),
            tx_errors: at(10),
            tx_dropped: at(11),
        })
    };
    net_dev.lines().filter_map(parse).collect()
}

/// Reads a `*.pressure` file; `None` where the kernel has none (built or booted without PSI).
pub(super) fn pressure(file: &Path) -> Result<Option<Pressure>, CgroupError> {
    match std::fs::read_to_string(file) {
        Ok(text) => Ok(Some(parse_pressure(&text))),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(None),
        Err(error) => Err(files::failed("reading", file)(error)),
    }
}

/// Lines such as `some avg10=0.00 avg60=0.00 avg300=0.00 total=0`. Older kernels have no `full` for
/// the cpu: it stays zero.
fn parse_pressure(text: &str) -> Pressure {
    let mut pressure = Pressure::default();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let into = match words.next() {
            Some("some") => &mut pressure.some,
            Some("full") => &mut pressure.full,
            _ => continue,
        };
        for (key, value) in words.filter_map(|word| word.split_once('=')) {
            let average = || value.parse().unwrap_or(0.0);
            match key {
                "avg10" => into.avg10 = average(),
                "avg60" => into.avg60 = average(),
                "avg300" => into.avg300 = average(),
                "total" => into.total = value.parse().unwrap_or(0),
                _ => {}
            }
        }
    }
    pressure
}

/// `mlx5_0 hca_handle=2 hca_object=2000` lines.
pub(super) fn parse_rdma(text: &str) -> BTreeMap<String, RdmaStats> {
    let parse = |line: &str| {
        let mut words = line.split_whitespace();
        let device = words.next()?.to_owned();
        let mut stats = RdmaStats::default();
        for (key, value) in words.filter_map(|word| word.split_once('=')) {
            let value = value.parse().unwrap_or(0);
            match key {
                "hca_handle" => stats.handles = value,
                "hca_object" => stats.objects = value,
                _ => {}
            }
        }
        Some((device, stats))
    };
    text.lines().filter_map(parse).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pressure_is_read_line_by_line() {
        let text = "some avg10=1.50 avg60=0.25 avg300=0.00 total=1234\n\
                    full avg10=0.00 avg60=0.00 avg300=0.10 total=7\n";
        let pressure = parse_pressure(text);
        assert_eq!((pressure.some.avg10, pressure.some.total), (1.5, 1234));
        assert_eq!((pressure.full.avg300, pressure.full.total), (0.1, 7));
    }

    #[test]
    fn the_json_form_is_runcs() {
        let mut stats = Stats::default();
        stats.memory.usage.limit = 5;
        stats.memory.kernel_tcp.usage = 1;
        stats.blkio.io_queued_recursive = vec![BlockIoEntry {
            major: 8,
            op: "Read".into(),
            value: 3,
            ..BlockIoEntry::default()
        }];
        let json = serde_json::to_value(&stats).expect("serialises");
        assert_eq!(json["memory"]["usage"]["limit"], 5);
        assert_eq!(json["memory"]["kernelTCP"]["usage"], 1);
        assert_eq!(json["blkio"]["ioQueueRecursive"][0]["op"], "Read");
        assert_eq!(json["cpu"]["usage"]["kernel"], 0);
        assert!(json["memory"].get("swap").is_none());
    }

    #[test]
    fn counters_are_read_from_the_kernels_table() {
        let text = "Inter-| Receive | Transmit\n face |bytes packets\n  eth0: 10 1 2 0 0 0 0 0 20 1 3 0 0 0 0 0\n";
        let found = interfaces(text);
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].name.as_str(), found[0].rx_bytes), ("eth0", 10));
        assert_eq!((found[0].tx_bytes, found[0].tx_errors), (20, 3));
    }

    #[test]
    fn rdma_lines_are_per_device() {
        let found = parse_rdma("mlx4_0 hca_handle=2 hca_object=max\n");
        assert_eq!(found["mlx4_0"].handles, 2);
    }
}
