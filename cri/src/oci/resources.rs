// SPDX-License-Identifier: Apache-2.0
//! The `linux.resources` part of a spec: cgroup limits.

use oci_spec::runtime::{
    LinuxCpu, LinuxDeviceCgroup, LinuxDeviceType, LinuxMemory, LinuxResources,
};

use super::compile::{CompileError, invalid, refuse};
use crate::cgroup::{DeviceRule, Limits};

/// The limits that a spec asks for, with the devices that every container may use added to its
/// device rules (as runc does).
///
/// # Errors
/// Names a resource that is not supported.
pub fn limits(resources: &LinuxResources) -> Result<Limits, CompileError> {
    fn filled<T>(list: &Option<Vec<T>>) -> bool {
        list.as_ref().is_some_and(|list| !list.is_empty())
    }
    refuse("linux.resources.blockIO", resources.block_io().is_some())?;
    refuse("linux.resources.network", resources.network().is_some())?;
    let rdma = resources.rdma().as_ref();
    refuse(
        "linux.resources.rdma",
        rdma.is_some_and(|map| !map.is_empty()),
    )?;
    let pages = resources.hugepage_limits();
    refuse("linux.resources.hugepageLimits", filled(pages))?;
    let mut limits = Limits::default();
    if let Some(memory) = resources.memory() {
        add_memory(memory, &mut limits)?;
    }
    if let Some(cpu) = resources.cpu() {
        add_cpu(cpu, &mut limits)?;
    }
    limits.pids = resources.pids().as_ref().map(|pids| pids.limit());
    let rules = resources.devices().iter().flatten();
    let mut rules = rules.map(rule).collect::<Result<Vec<_>, _>>()?;
    rules.extend(always_allowed());
    limits.devices = Some(rules);
    let unified = resources.unified().iter().flatten();
    limits.unified = unified.map(|(k, v)| (k.clone(), v.clone())).collect();
    limits.unified.sort();
    Ok(limits)
}

fn add_memory(memory: &LinuxMemory, limits: &mut Limits) -> Result<(), CompileError> {
    let refuse = |part: &str, present| refuse(&format!("linux.resources.memory.{part}"), present);
    refuse("reservation", memory.reservation().is_some_and(|n| n != 0))?;
    refuse("kernel", memory.kernel().is_some_and(|n| n > 0))?;
    refuse("kernelTCP", memory.kernel_tcp().is_some_and(|n| n > 0))?;
    refuse("swappiness", memory.swappiness().is_some())?;
    let no_killer = memory.disable_oom_killer().unwrap_or(false);
    refuse("disableOOMKiller", no_killer)?;
    limits.memory_bytes = memory.limit().filter(|limit| *limit != 0);
    limits.memory_swap_bytes = memory.swap().filter(|limit| *limit != 0);
    Ok(())
}

fn add_cpu(cpu: &LinuxCpu, limits: &mut Limits) -> Result<(), CompileError> {
    let refuse = |part: &str, present| refuse(&format!("linux.resources.cpu.{part}"), present);
    refuse("idle", cpu.idle().is_some_and(|n| n != 0))?;
    refuse("burst", cpu.burst().is_some_and(|n| n != 0))?;
    refuse(
        "realtimeRuntime",
        cpu.realtime_runtime().is_some_and(|n| n != 0),
    )?;
    refuse(
        "realtimePeriod",
        cpu.realtime_period().is_some_and(|n| n != 0),
    )?;
    limits.cpu_shares = cpu.shares().filter(|shares| *shares != 0);
    limits.cpu_quota = cpu.quota().filter(|quota| *quota != 0);
    limits.cpu_period = cpu.period().filter(|period| *period != 0);
    limits.cpuset_cpus = cpu.cpus().clone().filter(|cpus| !cpus.is_empty());
    limits.cpuset_mems = cpu.mems().clone().filter(|mems| !mems.is_empty());
    Ok(())
}

fn rule(rule: &LinuxDeviceCgroup) -> Result<DeviceRule, CompileError> {
    let field = "linux.resources.devices";
    let kind = match rule.typ() {
        None | Some(LinuxDeviceType::A) => 'a',
        Some(LinuxDeviceType::B) => 'b',
        Some(LinuxDeviceType::C | LinuxDeviceType::U) => 'c',
        Some(LinuxDeviceType::P) => return Err(invalid(field, "a FIFO is no device")),
    };
    let number = |value: Option<i64>| match value {
        None | Some(-1) => Ok(None),
        Some(value) => u32::try_from(value)
            .map(Some)
            .map_err(|_| invalid(field, "a device number is out of range")),
    };
    let access = rule.access().as_deref().unwrap_or("rwm");
    if access.contains(|c| !"rwm".contains(c)) {
        return Err(invalid(field, format!("access {access:?}")));
    }
    Ok(DeviceRule {
        allow: rule.allow(),
        kind,
        major: number(rule.major())?,
        minor: number(rule.minor())?,
        read: access.contains('r'),
        write: access.contains('w'),
        mknod: access.contains('m'),
    })
}

/// Making any node, and using the default devices and terminals.
fn always_allowed() -> Vec<DeviceRule> {
    let rule = |kind, major, minor, use_it| DeviceRule {
        allow: true,
        kind,
        major,
        minor,
        read: use_it,
        write: use_it,
        mknod: true,
    };
    let mut rules = vec![rule('c', None, None, false), rule('b', None, None, false)];
    for (major, minor) in [
        (1, Some(3)),
        (1, Some(5)),
        (1, Some(7)),
        (1, Some(8)),
        (1, Some(9)),
        (5, Some(0)),
        (5, Some(1)),
        (5, Some(2)),
        (136, None),
    ] {
        rules.push(rule('c', Some(major), minor, true));
    }
    rules
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn limits_are_taken_and_zero_means_unset() {
        let resources = json!({"memory": {"limit": 1048576, "swap": 0}, "cpu": {"shares": 512},
            "pids": {"limit": 10}, "devices": [{"allow": false}]});
        let limits = limits(&serde_json::from_value(resources).expect("resources")).expect("ok");
        assert_eq!(limits.memory_bytes, Some(1 << 20));
        assert_eq!(limits.memory_swap_bytes, None);
        assert_eq!(limits.cpu_shares, Some(512));
        let rules = limits.devices.expect("rules");
        assert!(!rules[0].allow && rules[0].kind == 'a');
    }

    #[test]
    fn unsupported_resources_are_named() {
        let resources = json!({"memory": {"swappiness": 5}});
        let error = limits(&serde_json::from_value(resources).expect("resources"));
        let error = error.expect_err("refused").to_string();
        assert!(
            error.starts_with("linux.resources.memory.swappiness"),
            "{error}"
        );
    }
}
