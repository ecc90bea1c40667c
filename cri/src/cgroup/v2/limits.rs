// SPDX-License-Identifier: Apache-2.0
//! Limits in v2 files. Only what is asked for is written.

use std::path::{Path, PathBuf};

use super::{CONTROLLERS, Unified, device_program};
use crate::cgroup::convert::{self, or_max};
use crate::cgroup::files;
use crate::cgroup::{
    BlockIo, CgroupError, CgroupPath, Cpu, Limits, Memory, Network, Rdma, ThrottleKind,
};

type Result<T> = std::result::Result<T, CgroupError>;

/// A cgroup's directory.
struct Group {
    dir: PathBuf,
}

impl Group {
    fn set(&self, file: &str, value: impl ToString, field: &str) -> Result<()> {
        let controller = CONTROLLERS.iter().find(|name| file.starts_with(**name));
        let controller = controller.copied().unwrap_or("cgroup");
        let field = format!("linux.resources.{field}");
        files::set(&self.dir, controller, file, &value.to_string(), &field)
    }

    fn path(&self, file: &str) -> PathBuf {
        self.dir.join(file)
    }
}

fn unsupported(field: &str, reason: &str) -> CgroupError {
    CgroupError::Unsupported {
        field: format!("linux.resources.{field}"),
        reason: reason.to_owned(),
    }
}

impl Unified {
    pub(super) fn apply_limits(&self, path: &CgroupPath, limits: &Limits) -> Result<()> {
        let group = Group {
            dir: self.dir(path),
        };
        if limits.memory != Memory::default() {
            memory(&group, &limits.memory)?;
        }
        cpu(&group, &limits.cpu)?;
        if let Some(pids) = limits.pids {
            group.set("pids.max", convert::pids_max(pids), "pids.limit")?;
        }
        if limits.block_io != BlockIo::default() {
            block_io(&group, &limits.block_io)?;
        }
        if limits.network != Network::default() {
            let field = match limits.network.class_id {
                Some(_) => "network.classID",
                None => "network.priorities",
            };
            let reason = "cgroup v2 has no controllers net_cls and net_prio";
            return Err(unsupported(field, reason));
        }
        self.apply_hugepages(path, &limits.hugepages)?;
        self.apply_rdma(path, &limits.rdma)?;
        if let Some(rules) = &limits.devices {
            device_program::attach(&group.dir, rules)?;
        }
        // Last: a file that is named wins over what a general field was converted to.
        for (name, value) in &limits.unified {
            self.apply_file(path, name, value)?;
        }
        Ok(())
    }

    pub(in crate::cgroup) fn apply_hugepages(
        &self,
        path: &CgroupPath,
        limits: &[(String, u64)],
    ) -> Result<()> {
        if limits.is_empty() {
            return Ok(());
        }
        self.enable(path, "hugetlb", "linux.resources.hugepageLimits")?;
        files::hugepages(&self.dir(path), "hugetlb", limits, "max")
    }

    pub(in crate::cgroup) fn apply_rdma(&self, path: &CgroupPath, limits: &[Rdma]) -> Result<()> {
        if limits.is_empty() {
            return Ok(());
        }
        self.enable(path, "rdma", "linux.resources.rdma")?;
        let dir = self.dir(path);
        for limit in limits {
            let line = convert::rdma_line(limit);
            files::set(&dir, "rdma", "rdma.max", &line, "linux.resources.rdma")?;
        }
        Ok(())
    }

    /// A file of `unified`: one of a controller, in this cgroup. The cgroup.* files are no limits
    /// (cgroup.procs moves processes), but for those that bound the tree below.
    fn apply_file(&self, path: &CgroupPath, name: &str, value: &str) -> Result<()> {
        let field = format!("linux.resources.unified.{name}");
        let invalid = |reason: &str| {
            Err(CgroupError::Invalid {
                field: field.clone(),
                reason: reason.to_owned(),
            })
        };
        if name.contains('/') {
            return invalid("it must be a file name (no slashes)");
        }
        let Some((controller, _)) = name.split_once('.').filter(|(name, _)| !name.is_empty())
        else {
            return invalid("it must be in the form CONTROLLER.PARAMETER");
        };
        if controller == "cgroup" && !name.starts_with("cgroup.max.") {
            return invalid("it is not a limit");
        }
        let known = ["hugetlb", "rdma", "misc", "dmem"];
        match known.iter().find(|known| **known == controller) {
            Some(on_demand) => self.enable(path, on_demand, &field)?,
            None if controller != "cgroup" && !self.offers(controller) => {
                return Err(CgroupError::Unsupported {
                    field,
                    reason: format!("this host has no cgroup controller {controller}"),
                });
            }
            None => {}
        }
        files::write(&self.dir(path).join(name), value)
    }
}

fn memory(group: &Group, limits: &Memory) -> Result<()> {
    if limits.disable_oom_killer == Some(true) {
        let reason = "cgroup v2 cannot disable the OOM killer";
        return Err(unsupported("memory.disableOOMKiller", reason));
    }
    if limits.swappiness.is_some() {
        let reason = "cgroup v2 has no swappiness of a cgroup";
        return Err(unsupported("memory.swappiness", reason));
    }
    if limits.use_hierarchy == Some(false) {
        let reason = "cgroup v2 always counts hierarchically";
        return Err(unsupported("memory.useHierarchy", reason));
    }
    if limits.check_before_update {
        let usage = files::number(&group.path("memory.current")).ok().flatten();
        files::check_usage(usage, limits)?;
    }
    swap(group, limits)?;
    if let Some(limit) = limits.limit {
        group.set("memory.max", or_max(limit), "memory.limit")?;
    }
    match limits.reservation {
        Some(bytes) => group.set("memory.low", or_max(bytes), "memory.reservation"),
        None => Ok(()),
    }
}

fn swap(group: &Group, limits: &Memory) -> Result<()> {
    // An update may change the sum alone: then the limit that holds is the kernel's.
    let limit = match (limits.limit, limits.swap) {
        (None, Some(_)) => {
            files::number(&group.path("memory.max"))?.and_then(|bytes| i64::try_from(bytes).ok())
        }
        (limit, _) => limit,
    };
    let Some(value) = convert::swap_alone(limit, limits.swap)? else {
        return Ok(());
    };
    match group.set("memory.swap.max", &value, "memory.swap") {
        // A kernel without swap keeps both of these by itself.
        Err(CgroupError::Absent { .. }) if value == "max" || value == "0" => Ok(()),
        other => other,
    }
}

fn cpu(group: &Group, limits: &Cpu) -> Result<()> {
    if limits.realtime_runtime.is_some() || limits.realtime_period.is_some() {
        let field = match limits.realtime_runtime {
            Some(_) => "cpu.realtimeRuntime",
            None => "cpu.realtimePeriod",
        };
        return Err(unsupported(
            field,
            "cgroup v2 does not control realtime scheduling",
        ));
    }
    // An idle cgroup has no weight to set: out of idleness first, into it last.
    if limits.idle == Some(0) {
        group.set("cpu.idle", 0, "cpu.idle")?;
    }
    if let Some(shares) = limits.shares {
        group.set("cpu.weight", convert::weight(shares), "cpu.shares")?;
    }
    bandwidth(group, limits)?;
    if let Some(idle) = limits.idle.filter(|idle| *idle != 0) {
        group.set("cpu.idle", idle, "cpu.idle")?;
    }
    if let Some(cpus) = &limits.cpus {
        group.set("cpuset.cpus", cpus, "cpu.cpus")?;
    }
    match &limits.mems {
        Some(mems) => group.set("cpuset.mems", mems, "cpu.mems"),
        None => Ok(()),
    }
}

fn bandwidth(group: &Group, limits: &Cpu) -> Result<()> {
    let burst = |value| group.set("cpu.max.burst", value, "cpu.burst");
    let mut later = None;
    if let Some(value) = limits.burst {
        match burst(value) {
            // A burst that does not fit the present quota may fit the new one.
            Err(error) if files::errno(&error) == Some(libc::EINVAL) && limits.quota.is_some() => {
                later = Some(value);
            }
            other => other?,
        }
    }
    if limits.quota.is_some() || limits.period.is_some() {
        let quota = match limits.quota {
            Some(quota) => or_max(quota),
            None => present_quota(&group.dir)?,
        };
        let value = match limits.period {
            Some(period) => format!("{quota} {period}"),
            None => quota,
        };
        let field = match limits.quota {
            Some(_) => "cpu.quota",
            None => "cpu.period",
        };
        group.set("cpu.max", value, field)?;
    }
    later.map_or(Ok(()), burst)
}

fn present_quota(dir: &Path) -> Result<String> {
    let now = files::read(&dir.join("cpu.max"))?;
    let quota = now.split_whitespace().next().unwrap_or("max");
    Ok(quota.to_owned())
}

/// BFQ's weights where a device uses it, else those of io.cost.
fn block_io(group: &Group, limits: &BlockIo) -> Result<()> {
    const BFQ: &str = "io.bfq.weight";
    let leaf = limits.devices.iter().any(|d| d.leaf_weight.is_some());
    if leaf || limits.leaf_weight.is_some() {
        return Err(unsupported(
            "blockIO.leafWeight",
            "cgroup v2 has no leaf weights",
        ));
    }
    let bfq = group.path(BFQ).exists();
    let file = if bfq { BFQ } else { "io.weight" };
    let value = |weight: u16| match bfq {
        true => u64::from(weight),
        false => convert::io_weight(weight),
    };
    if let Some(weight) = limits.weight {
        group.set(file, value(weight), "blockIO.weight")?;
    }
    for device in &limits.devices {
        if let Some(weight) = device.weight {
            let line = format!("{}:{} {}", device.major, device.minor, value(weight));
            group.set(file, line, "blockIO.weightDevice")?;
        }
    }
    for throttle in &limits.throttle {
        let (key, field) = match throttle.kind {
            ThrottleKind::ReadBytes => ("rbps", "throttleReadBpsDevice"),
            ThrottleKind::WriteBytes => ("wbps", "throttleWriteBpsDevice"),
            ThrottleKind::ReadOperations => ("riops", "throttleReadIOPSDevice"),
            ThrottleKind::WriteOperations => ("wiops", "throttleWriteIOPSDevice"),
        };
        // v1 takes 0 for no limit; v2 refuses it.
        let rate = match throttle.rate {
            0 => "max".to_owned(),
            rate => rate.to_string(),
        };
        let line = format!("{}:{} {key}={rate}", throttle.major, throttle.minor);
        group.set("io.max", line, &format!("blockIO.{field}"))?;
    }
    Ok(())
}
