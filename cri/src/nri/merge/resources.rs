// SPDX-License-Identifier: Apache-2.0
//! Limits: what a set of them claims, and laying one set over another.

use super::super::api::{Field, LinuxCpu, LinuxMemory, LinuxResources};

/// What these limits set, as (field, entry).
pub(super) fn claims(said: &LinuxResources) -> Vec<(Field, Option<&str>)> {
    let mut all = Vec::new();
    if let Some(memory) = &said.memory {
        memory_claims(memory, &mut all);
    }
    if let Some(cpu) = &said.cpu {
        cpu_claims(cpu, &mut all);
    }
    for limit in &said.hugepage_limits {
        all.push((Field::HugepageLimits, Some(limit.page_size.as_str())));
    }
    for name in said.unified.keys() {
        all.push((Field::CgroupsUnified, Some(name.as_str())));
    }
    let simple = [
        (Field::BlockioClass, said.blockio_class.is_some()),
        (Field::RdtClass, said.rdt_class.is_some()),
        (Field::PidsLimit, said.pids.is_some()),
    ];
    push(&simple, &mut all);
    all
}

fn push(fields: &[(Field, bool)], all: &mut Vec<(Field, Option<&str>)>) {
    let said = fields.iter().filter(|(_, said)| *said);
    all.extend(said.map(|(field, _)| (*field, None)));
}

fn memory_claims(memory: &LinuxMemory, all: &mut Vec<(Field, Option<&str>)>) {
    let fields = [
        (Field::MemLimit, memory.limit.is_some()),
        (Field::MemReservation, memory.reservation.is_some()),
        (Field::MemSwapLimit, memory.swap.is_some()),
        (Field::MemKernelLimit, memory.kernel.is_some()),
        (Field::MemTcpLimit, memory.kernel_tcp.is_some()),
        (Field::MemSwappiness, memory.swappiness.is_some()),
        (
            Field::MemDisableOomKiller,
            memory.disable_oom_killer.is_some(),
        ),
        (Field::MemUseHierarchy, memory.use_hierarchy.is_some()),
    ];
    push(&fields, all);
}

fn cpu_claims(cpu: &LinuxCpu, all: &mut Vec<(Field, Option<&str>)>) {
    let fields = [
        (Field::CpuShares, cpu.shares.is_some()),
        (Field::CpuQuota, cpu.quota.is_some()),
        (Field::CpuPeriod, cpu.period.is_some()),
        (Field::CpuRealtimeRuntime, cpu.realtime_runtime.is_some()),
        (Field::CpuRealtimePeriod, cpu.realtime_period.is_some()),
        (Field::CpuSetCpUs, !cpu.cpus.is_empty()),
        (Field::CpuSetMems, !cpu.mems.is_empty()),
    ];
    push(&fields, all);
}

/// Lays what is said over what was there.
pub(crate) fn overlay(into: &mut LinuxResources, said: &LinuxResources) {
    if let Some(memory) = &said.memory {
        overlay_memory(into.memory.get_or_insert_default(), memory);
    }
    if let Some(cpu) = &said.cpu {
        overlay_cpu(into.cpu.get_or_insert_default(), cpu);
    }
    for limit in &said.hugepage_limits {
        into.hugepage_limits
            .retain(|known| known.page_size != limit.page_size);
        into.hugepage_limits.push(limit.clone());
    }
    into.unified.extend(said.unified.clone());
    into.devices.extend(said.devices.iter().cloned());
    replace(&mut into.blockio_class, &said.blockio_class);
    replace(&mut into.rdt_class, &said.rdt_class);
    replace(&mut into.pids, &said.pids);
}

fn replace<T: Clone>(into: &mut Option<T>, said: &Option<T>) {
    if said.is_some() {
        into.clone_from(said);
    }
}

fn overlay_memory(into: &mut LinuxMemory, said: &LinuxMemory) {
    replace(&mut into.limit, &said.limit);
    replace(&mut into.reservation, &said.reservation);
    replace(&mut into.swap, &said.swap);
    replace(&mut into.kernel, &said.kernel);
    replace(&mut into.kernel_tcp, &said.kernel_tcp);
    replace(&mut into.swappiness, &said.swappiness);
    replace(&mut into.disable_oom_killer, &said.disable_oom_killer);
    replace(&mut into.use_hierarchy, &said.use_hierarchy);
}

fn overlay_cpu(into: &mut LinuxCpu, said: &LinuxCpu) {
    replace(&mut into.shares, &said.shares);
    replace(&mut into.quota, &said.quota);
    replace(&mut into.period, &said.period);
    replace(&mut into.realtime_runtime, &said.realtime_runtime);
    replace(&mut into.realtime_period, &said.realtime_period);
    for (into, said) in [(&mut into.cpus, &said.cpus), (&mut into.mems, &said.mems)] {
        if !said.is_empty() {
            into.clone_from(said);
        }
    }
}
