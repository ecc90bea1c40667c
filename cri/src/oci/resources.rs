// SPDX-License-Identifier: Apache-2.0
//! The `linux.resources` part of a spec: cgroup limits.

use oci_spec::runtime::{
    LinuxBlockIo, LinuxCpu, LinuxDeviceCgroup, LinuxDeviceType, LinuxHugepageLimit, LinuxMemory,
    LinuxNetwork, LinuxRdma, LinuxResources, LinuxThrottleDevice, LinuxWeightDevice,
};

use super::compile::{CompileError, invalid};
use crate::cgroup::{
    BlockIo, Cpu, DeviceRule, Limits, Memory, Network, Rdma, Throttle, ThrottleKind, WeightDevice,
};

type Result<T> = std::result::Result<T, CompileError>;

/// The limits that a spec asks for, with the devices that every container may use added to its
/// device rules (as runc does).
///
/// # Errors
/// Names a value that cannot be.
pub fn limits(resources: &LinuxResources) -> Result<Limits> {
    let rules = device_rules(resources.devices().iter().flatten())?;
    let mut limits = update_limits(resources)?;
    limits.devices = Some(rules.into_iter().chain(always_allowed()).collect());
    Ok(limits)
}

/// As [`limits`], for a container that runs already: device rules only where they are asked for.
///
/// # Errors
/// As [`limits`].
pub fn update_limits(resources: &LinuxResources) -> Result<Limits> {
    let mut limits = Limits::default();
    if let Some(memory) = resources.memory() {
        limits.memory = self::memory(memory);
        limits.notes = ignored(memory);
    }
    if let Some(cpu) = resources.cpu() {
        limits.cpu = self::cpu(cpu);
    }
    limits.pids = resources.pids().as_ref().map(|pids| pids.limit());
    // As runc: none at all cannot be meant, and is not the same as no limit.
    limits.pids = limits.pids.map(|limit| if limit == 0 { 1 } else { limit });
    if let Some(block_io) = resources.block_io() {
        limits.block_io = self::block_io(block_io)?;
    }
    let pages = resources.hugepage_limits().iter().flatten();
    limits.hugepages = pages.map(hugepages).collect::<Result<_>>()?;
    if let Some(network) = resources.network() {
        limits.network = self::network(network);
    }
    limits.rdma = rdma(resources.rdma().iter().flatten())?;
    if let Some(rules) = resources
        .devices()
        .as_ref()
        .filter(|rules| !rules.is_empty())
    {
        let rules = device_rules(rules.iter())?;
        limits.devices = Some(rules.into_iter().chain(always_allowed()).collect());
    }
    let unified = resources.unified().iter().flatten();
    limits.unified = unified.map(|(k, v)| (k.clone(), v.clone())).collect();
    limits.unified.sort();
    Ok(limits)
}

/// Zero is "not said" in every one of these.
fn memory(memory: &LinuxMemory) -> Memory {
    let said = |value: Option<i64>| value.filter(|value| *value != 0);
    Memory {
        limit: said(memory.limit()),
        swap: said(memory.swap()),
        reservation: said(memory.reservation()),
        // -1 in a signed form: what podman and docker write for "not said".
        swappiness: memory.swappiness().filter(|value| *value != u64::MAX),
        disable_oom_killer: memory.disable_oom_killer().filter(|disable| *disable),
        use_hierarchy: memory.use_hierarchy(),
        check_before_update: memory.check_before_update().unwrap_or(false),
    }
}

/// The kernel has given up limits of its own memory; every runtime lets them pass.
fn ignored(memory: &LinuxMemory) -> Vec<String> {
    let fields = [
        ("kernel", memory.kernel()),
        ("kernelTCP", memory.kernel_tcp()),
    ];
    let set = fields
        .iter()
        .filter(|(_, value)| value.is_some_and(|value| value != 0));
    let note = |(name, _): &(&str, Option<i64>)| {
        format!("linux.resources.memory.{name} is ignored: kernel memory settings have no effect")
    };
    set.map(note).collect()
}

fn cpu(cpu: &LinuxCpu) -> Cpu {
    let list = |list: &Option<String>| list.clone().filter(|list| !list.is_empty());
    Cpu {
        shares: cpu.shares().filter(|shares| *shares != 0),
        quota: cpu.quota().filter(|quota| *quota != 0),
        period: cpu.period().filter(|period| *period != 0),
        burst: cpu.burst(),
        idle: cpu.idle(),
        realtime_runtime: cpu.realtime_runtime().filter(|runtime| *runtime != 0),
        realtime_period: cpu.realtime_period().filter(|period| *period != 0),
        cpus: list(cpu.cpus()),
        mems: list(cpu.mems()),
    }
}

fn block_io(block_io: &LinuxBlockIo) -> Result<BlockIo> {
    use ThrottleKind::{ReadBytes, ReadOperations, WriteBytes, WriteOperations};
    let throttles = [
        (ReadBytes, block_io.throttle_read_bps_device()),
        (WriteBytes, block_io.throttle_write_bps_device()),
        (ReadOperations, block_io.throttle_read_iops_device()),
        (WriteOperations, block_io.throttle_write_iops_device()),
    ];
    let mut throttle = Vec::new();
    for (kind, devices) in throttles {
        for device in devices.iter().flatten() {
            throttle.push(self::throttle(kind, device)?);
        }
    }
    let devices = block_io.weight_device().iter().flatten();
    Ok(BlockIo {
        weight: block_io.weight().filter(|weight| *weight != 0),
        leaf_weight: block_io.leaf_weight().filter(|weight| *weight != 0),
        devices: devices.map(weight_device).collect::<Result<_>>()?,
        throttle,
    })
}

fn block_number(value: i64) -> Result<u32> {
    u32::try_from(value).map_err(|_| {
        let reason = format!("device number {value} is out of range");
        invalid("linux.resources.blockIO", reason)
    })
}

fn throttle(kind: ThrottleKind, device: &LinuxThrottleDevice) -> Result<Throttle> {
    Ok(Throttle {
        kind,
        major: block_number(device.major())?,
        minor: block_number(device.minor())?,
        rate: device.rate(),
    })
}

fn weight_device(device: &LinuxWeightDevice) -> Result<WeightDevice> {
    Ok(WeightDevice {
        major: block_number(device.major())?,
        minor: block_number(device.minor())?,
        weight: device.weight().filter(|weight| *weight != 0),
        leaf_weight: device.leaf_weight().filter(|weight| *weight != 0),
    })
}

fn hugepages(limit: &LinuxHugepageLimit) -> Result<(String, u64)> {
    let bytes = u64::try_from(limit.limit()).map_err(|_| {
        let reason = format!("{} is negative", limit.limit());
        invalid("linux.resources.hugepageLimits.limit", reason)
    })?;
    Ok((limit.page_size().clone(), bytes))
}

fn network(network: &LinuxNetwork) -> Network {
    let priorities = network.priorities().iter().flatten();
    Network {
        class_id: network.class_id().filter(|class| *class != 0),
        priorities: priorities
            .map(|entry| (entry.name().clone(), entry.priority()))
            .collect(),
    }
}

fn rdma<'a>(limits: impl Iterator<Item = (&'a String, &'a LinuxRdma)>) -> Result<Vec<Rdma>> {
    let mut all = Vec::new();
    for (device, limit) in limits {
        if device.is_empty() || device.contains(char::is_whitespace) {
            let reason = format!("{device:?} is no device name");
            return Err(invalid("linux.resources.rdma", reason));
        }
        all.push(Rdma {
            device: device.clone(),
            handles: limit.hca_handles(),
            objects: limit.hca_objects(),
        });
    }
    all.sort_by(|a, b| a.device.cmp(&b.device));
    Ok(all)
}

fn device_rules<'a>(rules: impl Iterator<Item = &'a LinuxDeviceCgroup>) -> Result<Vec<DeviceRule>> {
    let mut all = Vec::new();
    for rule in rules {
        all.extend(self::rule(rule)?);
    }
    Ok(all)
}

/// One rule; two when it is about both types of devices without being about everything: cgroups
/// know "all" only as a whole.
fn rule(rule: &LinuxDeviceCgroup) -> Result<Vec<DeviceRule>> {
    let field = "linux.resources.devices";
    let kinds: &[char] = match rule.typ() {
        None | Some(LinuxDeviceType::A) => &['b', 'c'],
        Some(LinuxDeviceType::B) => &['b'],
        Some(LinuxDeviceType::C | LinuxDeviceType::U) => &['c'],
        Some(LinuxDeviceType::P) => return Err(invalid(field, "a FIFO is no device")),
    };
    let number = |value: Option<i64>| match value {
        None | Some(-1) => Ok(None),
        Some(value) => u32::try_from(value)
            .map(Some)
            .map_err(|_| invalid(field, "a device number is out of range")),
    };
    let access = rule.access().as_deref().filter(|access| !access.is_empty());
    let access = access.unwrap_or("rwm");
    // As runc: `a` is the word for all kinds, and says nothing here.
    if access.contains(|c| !"rwma".contains(c)) {
        return Err(invalid(field, format!("access {access:?}")));
    }
    let one = |kind| {
        Ok(DeviceRule {
            allow: rule.allow(),
            kind,
            major: number(rule.major())?,
            minor: number(rule.minor())?,
            read: access.contains('r'),
            write: access.contains('w'),
            mknod: access.contains('m'),
        })
    };
    let both = kinds.len() == 2;
    let DeviceRule {
        major,
        minor,
        read,
        write,
        mknod,
        ..
    } = one('a')?;
    let everything = (major, minor) == (None, None) && read && write && mknod;
    if both && everything {
        return Ok(vec![one('a')?]);
    }
    kinds.iter().map(|kind| one(*kind)).collect()
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

    fn compiled(resources: serde_json::Value) -> Result<Limits> {
        limits(&serde_json::from_value(resources).expect("resources"))
    }

    #[test]
    fn limits_are_taken_and_zero_means_unset() {
        let resources = json!({"memory": {"limit": 1048576, "swap": 0}, "cpu": {"shares": 512},
            "pids": {"limit": 10}, "devices": [{"allow": false}]});
        let limits = compiled(resources).expect("ok");
        assert_eq!(limits.memory.limit, Some(1 << 20));
        assert_eq!(limits.memory.swap, None);
        assert_eq!(limits.cpu.shares, Some(512));
        let rules = limits.devices.expect("rules");
        assert!(!rules[0].allow && rules[0].kind == 'a');
    }

    #[test]
    fn every_resource_is_taken() {
        let device = json!([{"major": 8, "minor": 0, "rate": 100}]);
        let resources = json!({
            "memory": {"reservation": 1, "swappiness": 5, "disableOOMKiller": true,
                "useHierarchy": true, "checkBeforeUpdate": true},
            "cpu": {"burst": 2, "idle": 1, "realtimeRuntime": 3, "realtimePeriod": 4, "cpus": "0"},
            "blockIO": {"weight": 10, "leafWeight": 20,
                "weightDevice": [{"major": 8, "minor": 1, "weight": 30}],
                "throttleReadBpsDevice": device, "throttleWriteIOPSDevice": device},
            "hugepageLimits": [{"pageSize": "2MB", "limit": 0}],
            "network": {"classID": 7, "priorities": [{"name": "lo", "priority": 3}]},
            "rdma": {"mlx": {"hcaHandles": 1}},
            "unified": {"memory.high": "1"},
        });
        let limits = compiled(resources).expect("ok");
        assert_eq!(limits.memory.swappiness, Some(5));
        assert_eq!(limits.memory.disable_oom_killer, Some(true));
        assert!(limits.memory.check_before_update);
        assert_eq!((limits.cpu.burst, limits.cpu.idle), (Some(2), Some(1)));
        assert_eq!(limits.block_io.devices[0].weight, Some(30));
        let kinds: Vec<_> = limits.block_io.throttle.iter().map(|t| t.kind).collect();
        assert_eq!(
            kinds,
            [ThrottleKind::ReadBytes, ThrottleKind::WriteOperations]
        );
        assert_eq!(limits.hugepages, [("2MB".to_owned(), 0)]);
        assert_eq!(limits.network.priorities, [("lo".to_owned(), 3)]);
        assert_eq!(
            (limits.rdma[0].handles, limits.rdma[0].objects),
            (Some(1), None)
        );
        assert_eq!(limits.unified[0].0, "memory.high");
    }

    #[test]
    fn kernel_memory_is_noted_and_dropped() {
        let limits = compiled(json!({"memory": {"kernel": 5, "kernelTCP": 0}})).expect("ok");
        assert_eq!(limits.memory, Memory::default());
        assert_eq!(limits.notes.len(), 1);
        assert!(limits.notes[0].starts_with("linux.resources.memory.kernel is"));
    }

    #[test]
    fn a_rule_for_some_of_all_devices_is_not_one_for_everything() {
        let rules = json!({"devices": [{"allow": true, "type": "a", "major": 1, "minor": 3},
            {"allow": true, "access": "r"}]});
        let rules = compiled(rules).expect("ok").devices.expect("rules");
        let kinds: Vec<char> = rules[..4].iter().map(|rule| rule.kind).collect();
        assert_eq!(kinds, ['b', 'c', 'b', 'c']);
        assert_eq!(rules[0].major, Some(1));
        assert!(rules[2].read && !rules[2].write);
    }

    #[test]
    fn an_update_leaves_devices_alone() {
        let limits = update_limits(&LinuxResources::default()).expect("ok");
        assert_eq!(limits, Limits::default());
    }

    #[test]
    fn values_that_cannot_be_are_named() {
        let negative = json!({"hugepageLimits": [{"pageSize": "2MB", "limit": -5}]});
        let error = compiled(negative).expect_err("refused").to_string();
        assert!(
            error.starts_with("linux.resources.hugepageLimits.limit is invalid"),
            "{error}"
        );
    }
}
