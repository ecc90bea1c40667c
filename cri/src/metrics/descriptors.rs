// SPDX-License-Identifier: Apache-2.0
//! Which metrics there are: one row for each.

use super::BASE_LABELS;
use crate::v1;
use crate::v1::MetricType::{self, Counter, Gauge};

/// One metric: its name, what it is, the labels that it has after the base ones.
pub(crate) struct Row {
    pub(crate) name: &'static str,
    pub(crate) help: &'static str,
    pub(crate) labels: &'static [&'static str],
    pub(crate) kind: MetricType,
}

macro_rules! rows {
    ($($row:ident: $kind:ident $name:literal [$($label:literal),*] $help:literal;)*) => {
        $(pub(super) const $row: Row = Row {
            name: $name,
            help: $help,
            labels: &[$($label),*],
            kind: $kind,
        };)*
        const ROWS: &[&Row] = &[$(&$row),*];
    };
}

rows! {
    LAST_SEEN: Gauge "container_last_seen" [] "Last time the container was seen, in seconds since the epoch.";
    CPU_USER: Counter "container_cpu_user_seconds_total" [] "CPU time spent in user mode, in seconds.";
    CPU_SYSTEM: Counter "container_cpu_system_seconds_total" [] "CPU time spent in the kernel, in seconds.";
    CPU_USAGE: Counter "container_cpu_usage_seconds_total" ["cpu"] "CPU time consumed, in seconds.";
    CFS_PERIODS: Counter "container_cpu_cfs_periods_total" [] "Periods in which the CPU quota was enforced.";
    CFS_THROTTLED_PERIODS: Counter "container_cpu_cfs_throttled_periods_total" [] "Periods in which the container was throttled.";
    CFS_THROTTLED_SECONDS: Counter "container_cpu_cfs_throttled_seconds_total" [] "Time for which the container was throttled, in seconds.";
    FS_INODES_FREE: Gauge "container_fs_inodes_free" [] "Free inodes of the filesystem that holds the writable layer.";
    FS_INODES_TOTAL: Gauge "container_fs_inodes_total" [] "Inodes of the filesystem that holds the writable layer.";
    FS_LIMIT: Gauge "container_fs_limit_bytes" [] "Bytes that the filesystem of the writable layer can hold.";
    FS_USAGE: Gauge "container_fs_usage_bytes" [] "Bytes that the writable layer occupies.";
    FS_READS_BYTES: Counter "container_fs_reads_bytes_total" ["device"] "Bytes read from a device.";
    FS_READS: Counter "container_fs_reads_total" ["device"] "Reads from a device.";
    FS_WRITES_BYTES: Counter "container_fs_writes_bytes_total" ["device"] "Bytes written to a device.";
    FS_WRITES: Counter "container_fs_writes_total" ["device"] "Writes to a device.";
    BLKIO_USAGE: Counter "container_blkio_device_usage_total" ["device", "major", "minor", "operation"] "Bytes moved to and from a device, by operation.";
    HUGETLB_USAGE: Gauge "container_hugetlb_usage_bytes" ["pagesize"] "Huge pages in use, in bytes.";
    HUGETLB_MAX: Gauge "container_hugetlb_max_usage_bytes" ["pagesize"] "Most huge pages ever in use, in bytes.";
    MEMORY_CACHE: Gauge "container_memory_cache" [] "Bytes of page cache.";
    MEMORY_RSS: Gauge "container_memory_rss" [] "Bytes of anonymous memory.";
    MEMORY_KERNEL: Gauge "container_memory_kernel_usage" [] "Bytes of kernel memory.";
    MEMORY_MAPPED: Gauge "container_memory_mapped_file" [] "Bytes of mapped files.";
    MEMORY_SWAP: Gauge "container_memory_swap" [] "Bytes of swap in use.";
    MEMORY_FAILCNT: Counter "container_memory_failcnt" [] "How often the memory limit was met.";
    MEMORY_USAGE: Gauge "container_memory_usage_bytes" [] "Bytes of memory in use, whenever they were last touched.";
    MEMORY_MAX: Gauge "container_memory_max_usage_bytes" [] "Most memory ever in use, in bytes.";
    MEMORY_WORKING_SET: Gauge "container_memory_working_set_bytes" [] "Bytes of memory in use without inactive file pages.";
    MEMORY_FAILURES: Counter "container_memory_failures_total" ["failure_type", "scope"] "Page faults.";
    OOM_EVENTS: Counter "container_oom_events_total" [] "Processes that the kernel killed for want of memory.";
    DESCRIPTORS: Gauge "container_file_descriptors" [] "Open file descriptors of all processes.";
    PROCESSES: Gauge "container_processes" [] "Processes.";
    SOCKETS: Gauge "container_sockets" [] "Open sockets of all processes.";
    THREADS: Gauge "container_threads" [] "Threads of all processes.";
    THREADS_MAX: Gauge "container_threads_max" [] "Most threads allowed; 0 is no limit.";
    ULIMITS_SOFT: Gauge "container_ulimits_soft" ["ulimit"] "Soft resource limits of the first process.";
    SPEC_CPU_PERIOD: Gauge "container_spec_cpu_period" [] "CPU period in microseconds.";
    SPEC_CPU_SHARES: Gauge "container_spec_cpu_shares" [] "CPU shares.";
    SPEC_CPU_QUOTA: Gauge "container_spec_cpu_quota" [] "CPU quota in microseconds for each period.";
    SPEC_MEMORY_LIMIT: Gauge "container_spec_memory_limit_bytes" [] "Memory limit in bytes; 0 is none.";
    SPEC_MEMORY_RESERVATION: Gauge "container_spec_memory_reservation_limit_bytes" [] "Memory that is kept for the container, in bytes.";
    SPEC_SWAP_LIMIT: Gauge "container_spec_memory_swap_limit_bytes" [] "Limit of memory and swap together in bytes; 0 is none.";
    START_TIME: Gauge "container_start_time_seconds" [] "Start of the container, in seconds since the epoch.";
    PRESSURE_CPU_STALLED: Counter "container_pressure_cpu_stalled_seconds_total" [] "Time for which all tasks waited for CPU, in seconds.";
    PRESSURE_CPU_WAITING: Counter "container_pressure_cpu_waiting_seconds_total" [] "Time for which some task waited for CPU, in seconds.";
    PRESSURE_MEMORY_STALLED: Counter "container_pressure_memory_stalled_seconds_total" [] "Time for which all tasks waited for memory, in seconds.";
    PRESSURE_MEMORY_WAITING: Counter "container_pressure_memory_waiting_seconds_total" [] "Time for which some task waited for memory, in seconds.";
    PRESSURE_IO_STALLED: Counter "container_pressure_io_stalled_seconds_total" [] "Time for which all tasks waited for a device, in seconds.";
    PRESSURE_IO_WAITING: Counter "container_pressure_io_waiting_seconds_total" [] "Time for which some task waited for a device, in seconds.";
    RECEIVE_BYTES: Counter "container_network_receive_bytes_total" ["interface"] "Bytes received.";
    RECEIVE_PACKETS: Counter "container_network_receive_packets_total" ["interface"] "Packets received.";
    RECEIVE_DROPPED: Counter "container_network_receive_packets_dropped_total" ["interface"] "Packets dropped while receiving.";
    RECEIVE_ERRORS: Counter "container_network_receive_errors_total" ["interface"] "Errors while receiving.";
    TRANSMIT_BYTES: Counter "container_network_transmit_bytes_total" ["interface"] "Bytes sent.";
    TRANSMIT_PACKETS: Counter "container_network_transmit_packets_total" ["interface"] "Packets sent.";
    TRANSMIT_DROPPED: Counter "container_network_transmit_packets_dropped_total" ["interface"] "Packets dropped while sending.";
    TRANSMIT_ERRORS: Counter "container_network_transmit_errors_total" ["interface"] "Errors while sending.";
}

/// What ListMetricDescriptors answers.
pub(crate) fn all() -> Vec<v1::MetricDescriptor> {
    let keys = |row: &Row| {
        let all = BASE_LABELS.iter().chain(row.labels);
        all.map(|key| (*key).to_owned()).collect()
    };
    let descriptor = |row: &&Row| v1::MetricDescriptor {
        name: row.name.to_owned(),
        help: row.help.to_owned(),
        label_keys: keys(row),
    };
    ROWS.iter().map(descriptor).collect()
}
