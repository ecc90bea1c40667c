// SPDX-License-Identifier: Apache-2.0
//! Limits in v1 files (Documentation/admin-guide/cgroup-v1). Only what is asked for is written.

use std::path::{Path, PathBuf};

use super::{Legacy, devices};
use crate::cgroup::{
    BlockIo, CgroupError, CgroupPath, Cpu, Limits, Memory, Network, Rdma, ThrottleKind,
};
use crate::cgroup::{convert, files};

type Result<T> = std::result::Result<T, CgroupError>;

/// A cgroup's directory in the tree of one controller.
struct Group {
    dir: PathBuf,
    controller: &'static str,
}

impl Group {
    fn set(&self, file: &str, value: impl ToString, field: &str) -> Result<()> {
        let field = format!("linux.resources.{field}");
        files::set(&self.dir, self.controller, file, &value.to_string(), &field)
    }

    fn has(&self, file: &str) -> bool {
        self.dir.join(file).exists()
    }
}

impl Legacy {
    /// `field` is what asks for the controller.
    fn group(&self, controller: &'static str, path: &CgroupPath, field: &str) -> Result<Group> {
        match self.dir(controller, path) {
            Some(dir) => Ok(Group { dir, controller }),
            None => Err(CgroupError::Unsupported {
                field: format!("linux.resources.{field}"),
                reason: format!("the cgroup controller {controller} is not mounted"),
            }),
        }
    }

    pub(super) fn apply_limits(&self, path: &CgroupPath, limits: &Limits) -> Result<()> {
        if let Some((name, _)) = limits.unified.first() {
            return Err(CgroupError::Unsupported {
                field: format!("linux.resources.unified.{name}"),
                reason: "invalid configuration: cannot use unified on cgroup v1".to_owned(),
            });
        }
        if limits.memory != Memory::default() {
            memory(&self.group("memory", path, "memory")?, &limits.memory)?;
        }
        self.apply_cpu(path, &limits.cpu)?;
        if let Some(pids) = limits.pids {
            let group = self.group("pids", path, "pids.limit")?;
            group.set("pids.max", convert::pids_max(pids), "pids.limit")?;
        }
        if limits.block_io != BlockIo::default() {
            block_io(&self.group("blkio", path, "blockIO")?, &limits.block_io)?;
        }
        self.apply_hugepages(path, &limits.hugepages)?;
        self.apply_network(path, &limits.network)?;
        self.apply_rdma(path, &limits.rdma)?;
        match (&limits.devices, self.dir("devices", path)) {
            (None, _) => Ok(()),
            (Some(rules), Some(dir)) => devices::apply(&dir, rules),
            (Some(_), None) => self.group("devices", path, "devices").map(drop),
        }
    }

    fn apply_cpu(&self, path: &CgroupPath, limits: &Cpu) -> Result<()> {
        let own = Cpu {
            cpus: None,
            mems: None,
            ..limits.clone()
        };
        if own != Cpu::default() {
            cpu(&self.group("cpu", path, "cpu")?, limits)?;
        }
        if limits.cpus.is_none() && limits.mems.is_none() {
            return Ok(());
        }
        let group = self.group("cpuset", path, "cpu.cpus")?;
        if let Some(cpus) = &limits.cpus {
            group.set("cpuset.cpus", cpus, "cpu.cpus")?;
        }
        match &limits.mems {
            Some(mems) => group.set("cpuset.mems", mems, "cpu.mems"),
            None => Ok(()),
        }
    }

    fn apply_hugepages(&self, path: &CgroupPath, limits: &[(String, u64)]) -> Result<()> {
        if limits.is_empty() {
            return Ok(());
        }
        if let (None, Some(unified)) = (self.dir("hugetlb", path), &self.unified) {
            return unified.apply_hugepages(path, limits);
        }
        let group = self.group("hugetlb", path, "hugepageLimits")?;
        files::hugepages(&group.dir, group.controller, limits, "limit_in_bytes")
    }

    fn apply_network(&self, path: &CgroupPath, limits: &Network) -> Result<()> {
        if let Some(class) = limits.class_id {
            let group = self.group("net_cls", path, "network.classID")?;
            group.set("net_cls.classid", class, "network.classID")?;
        }
        for (interface, priority) in &limits.priorities {
            let group = self.group("net_prio", path, "network.priorities")?;
            let line = format!("{interface} {priority}");
            group.set("net_prio.ifpriomap", line, "network.priorities")?;
        }
        Ok(())
    }

    fn apply_rdma(&self, path: &CgroupPath, limits: &[Rdma]) -> Result<()> {
        if limits.is_empty() {
            return Ok(());
        }
        if let (None, Some(unified)) = (self.dir("rdma", path), &self.unified) {
            return unified.apply_rdma(path, limits);
        }
        let group = self.group("rdma", path, "rdma")?;
        for limit in limits {
            group.set("rdma.max", convert::rdma_line(limit), "rdma")?;
        }
        Ok(())
    }
}

fn memory(group: &Group, limits: &Memory) -> Result<()> {
    if limits.check_before_update {
        let usage = files::number(&group.dir.join("memory.usage_in_bytes"))
            .ok()
            .flatten();
        files::check_usage(usage, limits)?;
    }
    limit_and_swap(group, limits)?;
    if let Some(bytes) = limits.reservation {
        group.set("memory.soft_limit_in_bytes", bytes, "memory.reservation")?;
    }
    if let Some(disable) = limits.disable_oom_killer {
        let value = u8::from(disable);
        group.set("memory.oom_control", value, "memory.disableOOMKiller")?;
    }
    if let Some(hierarchy) = limits.use_hierarchy {
        let value = u8::from(hierarchy);
        group.set("memory.use_hierarchy", value, "memory.useHierarchy")?;
    }
    match limits.swappiness {
        None => Ok(()),
        Some(value @ 0..=100) => group.set("memory.swappiness", value, "memory.swappiness"),
        Some(value) => Err(CgroupError::Invalid {
            field: "linux.resources.memory.swappiness".to_owned(),
            reason: format!("{value} is not within 0-100"),
        }),
    }
}

/// The kernel wants memory <= memory + swap at every moment, so a raised limit starts with the sum,
/// a lowered one ends with it.
fn limit_and_swap(group: &Group, limits: &Memory) -> Result<()> {
    const WITH_SWAP: &str = "memory.memsw.limit_in_bytes";
    let sum = |value: i64| group.set(WITH_SWAP, value, "memory.swap");
    match (limits.limit, limits.swap) {
        (None, None) => Ok(()),
        (None, Some(swap)) => sum(swap),
        // No limit on memory is none on the sum, or it would still hold.
        (Some(-1), None) if group.has(WITH_SWAP) => {
            sum(-1)?;
            limit(group, -1)
        }
        (Some(bytes), None) => limit(group, bytes),
        (Some(bytes), Some(swap)) => {
            let now = files::number(&group.dir.join("memory.limit_in_bytes"))?.unwrap_or(0);
            if swap == -1 || now < swap.unsigned_abs() {
                sum(swap)?;
                limit(group, bytes)
            } else {
                limit(group, bytes)?;
                sum(swap)
            }
        }
    }
}

fn limit(group: &Group, bytes: i64) -> Result<()> {
    match group.set("memory.limit_in_bytes", bytes, "memory.limit") {
        Err(error) if files::errno(&error) == Some(libc::EBUSY) => {
            Err(in_use(&group.dir, bytes).unwrap_or(error))
        }
        other => other,
    }
}

/// More than the limit is in use and cannot be reclaimed.
fn in_use(dir: &Path, limit: i64) -> Option<CgroupError> {
    let number = |name: &str| files::number(&dir.join(name)).ok()?;
    Some(CgroupError::MemoryInUse {
        limit,
        usage: number("memory.usage_in_bytes")?,
        peak: number("memory.max_usage_in_bytes")?,
    })
}

fn cpu(group: &Group, limits: &Cpu) -> Result<()> {
    // An idle cgroup has no shares to set: out of idleness first, into it last.
    if limits.idle == Some(0) {
        group.set("cpu.idle", 0, "cpu.idle")?;
    }
    if let Some(shares) = limits.shares {
        group.set("cpu.shares", shares, "cpu.shares")?;
    }
    bandwidth(group, limits)?;
    if let Some(idle) = limits.idle.filter(|idle| *idle != 0) {
        group.set("cpu.idle", idle, "cpu.idle")?;
    }
    realtime(group, limits)
}

/// A period that is too short for the present runtime (EINVAL) may be long enough for the new one.
fn realtime(group: &Group, limits: &Cpu) -> Result<()> {
    let period = |value| group.set("cpu.rt_period_us", value, "cpu.realtimePeriod");
    let first = limits.realtime_period.map(period).transpose();
    let again = match first {
        Err(error)
            if files::errno(&error) == Some(libc::EINVAL) && limits.realtime_runtime.is_some() =>
        {
            limits.realtime_period
        }
        other => other.map(|_| None)?,
    };
    if let Some(runtime) = limits.realtime_runtime {
        group.set("cpu.rt_runtime_us", runtime, "cpu.realtimeRuntime")?;
    }
    again.map_or(Ok(()), period)
}

/// A period or burst that does not fit the present quota (EINVAL) may fit the new one.
fn bandwidth(group: &Group, limits: &Cpu) -> Result<()> {
    let again = |result: Result<()>| match result {
        Err(error) if files::errno(&error) == Some(libc::EINVAL) && limits.quota.is_some() => {
            Ok(true)
        }
        other => other.map(|()| false),
    };
    let period = |value| group.set("cpu.cfs_period_us", value, "cpu.period");
    let burst = |value| group.set("cpu.cfs_burst_us", value, "cpu.burst");
    let period_again = limits.period.map(period).map(again).transpose()?;
    let burst_again = limits.burst.map(burst).map(again).transpose()?;
    if let Some(quota) = limits.quota {
        group.set("cpu.cfs_quota_us", quota, "cpu.quota")?;
    }
    if let (Some(true), Some(value)) = (period_again, limits.period) {
        period(value)?;
    }
    if let (Some(true), Some(value)) = (burst_again, limits.burst) {
        burst(value)?;
    }
    Ok(())
}

/// BFQ has files of its own; CFQ's went with it, from kernel 5.0.
fn block_io(group: &Group, limits: &BlockIo) -> Result<()> {
    let named = |bfq: &'static str, cfq: &'static str| if group.has(bfq) { bfq } else { cfq };
    if let Some(weight) = limits.weight {
        let file = named("blkio.bfq.weight", "blkio.weight");
        group.set(file, weight, "blockIO.weight")?;
    }
    if let Some(weight) = limits.leaf_weight {
        group.set("blkio.leaf_weight", weight, "blockIO.leafWeight")?;
    }
    for device in &limits.devices {
        let line = |weight| format!("{}:{} {weight}", device.major, device.minor);
        if let Some(weight) = device.weight {
            let file = named("blkio.bfq.weight_device", "blkio.weight_device");
            group.set(file, line(weight), "blockIO.weightDevice")?;
        }
        if let Some(weight) = device.leaf_weight {
            let file = "blkio.leaf_weight_device";
            group.set(file, line(weight), "blockIO.weightDevice")?;
        }
    }
    for throttle in &limits.throttle {
        let (file, field) = match throttle.kind {
            ThrottleKind::ReadBytes => ("read_bps", "throttleReadBpsDevice"),
            ThrottleKind::WriteBytes => ("write_bps", "throttleWriteBpsDevice"),
            ThrottleKind::ReadOperations => ("read_iops", "throttleReadIOPSDevice"),
            ThrottleKind::WriteOperations => ("write_iops", "throttleWriteIOPSDevice"),
        };
        let line = format!("{}:{} {}", throttle.major, throttle.minor, throttle.rate);
        let file = format!("blkio.throttle.{file}_device");
        group.set(&file, line, &format!("blockIO.{field}"))?;
    }
    Ok(())
}
