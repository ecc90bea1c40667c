// SPDX-License-Identifier: Apache-2.0
//! What can be limited, in the OCI spec's terms. Plain data: each layout converts it its own way.

/// Limits; what is `None` or empty stays as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Limits {
    pub memory: Memory,
    pub cpu: Cpu,
    /// 0 or less: no limit.
    pub pids: Option<i64>,
    pub block_io: BlockIo,
    /// (page size as the kernel writes it, such as `2MB`; bytes).
    pub hugepages: Vec<(String, u64)>,
    pub network: Network,
    pub rdma: Vec<Rdma>,
    /// The complete list of device rules, evaluated in order; the default is to deny.
    pub devices: Option<Vec<DeviceRule>>,
    /// v2 files to write as they are. An error on v1 unless empty.
    pub unified: Vec<(String, String)>,
    /// What was asked for and has no effect any more, for the operator to read.
    pub notes: Vec<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Memory {
    /// Bytes; -1 removes the limit.
    pub limit: Option<i64>,
    /// Memory plus swap, bytes, as in v1 and the OCI spec; -1 removes the limit.
    pub swap: Option<i64>,
    /// What is left to the cgroup when memory is short. -1 removes it.
    pub reservation: Option<i64>,
    /// 0 to 100; v1 only.
    pub swappiness: Option<u64>,
    /// v1 only.
    pub disable_oom_killer: Option<bool>,
    /// Always so on v2, and on v1 with present kernels.
    pub use_hierarchy: Option<bool>,
    /// Refuses a limit below what is in use, rather than have the kernel reclaim or kill.
    pub check_before_update: bool,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cpu {
    /// v1 units (2 to 262144); converted to cpu.weight on v2.
    pub shares: Option<u64>,
    /// Microseconds per period; -1 removes the limit.
    pub quota: Option<i64>,
    pub period: Option<u64>,
    /// Microseconds that may be saved up and used later.
    pub burst: Option<u64>,
    /// 1 makes the cgroup run when nobody else wants to; 0 ends that.
    pub idle: Option<i64>,
    /// Microseconds of realtime scheduling per realtime period; v1 only.
    pub realtime_runtime: Option<i64>,
    pub realtime_period: Option<u64>,
    /// A list such as `0-3,8`.
    pub cpus: Option<String>,
    pub mems: Option<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BlockIo {
    /// 10 to 1000.
    pub weight: Option<u16>,
    /// v1 only.
    pub leaf_weight: Option<u16>,
    pub devices: Vec<WeightDevice>,
    pub throttle: Vec<Throttle>,
}

/// Weights for one device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WeightDevice {
    pub major: u32,
    pub minor: u32,
    pub weight: Option<u16>,
    pub leaf_weight: Option<u16>,
}

/// One upper limit for one device; a rate of 0 removes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Throttle {
    pub kind: ThrottleKind,
    pub major: u32,
    pub minor: u32,
    pub rate: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ThrottleKind {
    ReadBytes,
    WriteBytes,
    ReadOperations,
    WriteOperations,
}

/// v1 only: v2 classifies packets by cgroup itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Network {
    pub class_id: Option<u32>,
    /// (interface, priority)
    pub priorities: Vec<(String, u32)>,
}

/// Limits of one RDMA device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rdma {
    pub device: String,
    pub handles: Option<u32>,
    pub objects: Option<u32>,
}

/// One device rule, in the OCI spec's terms.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceRule {
    pub allow: bool,
    /// `a` for everything (numbers and access are then not looked at), `b` or `c`.
    pub kind: char,
    pub major: Option<u32>,
    pub minor: Option<u32>,
    pub read: bool,
    pub write: bool,
    pub mknod: bool,
}
