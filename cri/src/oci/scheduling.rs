// SPDX-License-Identifier: Apache-2.0
//! Scheduler, I/O priority, processors, memory policy and personality of a process.

use oci_spec::runtime::{
    ExecCPUAffinity, IOPriorityClass, LinuxIOPriority, LinuxMemoryPolicy, LinuxPersonality,
    LinuxPersonalityDomain, LinuxSchedulerFlag, LinuxSchedulerPolicy, MemoryPolicyFlagType,
    MemoryPolicyModeType, Scheduler,
};
use shim::plan;

use super::compile::{CompileError, invalid, unsupported};

/// The rules are those of sched_setattr(2) and of runc: what a policy does not use must be absent.
pub(super) fn scheduler(wanted: &Scheduler) -> Result<plan::Scheduler, CompileError> {
    use LinuxSchedulerPolicy as Policy;
    let policy = match wanted.policy() {
        Policy::SchedOther => libc::SCHED_OTHER,
        Policy::SchedFifo => libc::SCHED_FIFO,
        Policy::SchedRr => libc::SCHED_RR,
        Policy::SchedBatch => libc::SCHED_BATCH,
        Policy::SchedIdle => libc::SCHED_IDLE,
        Policy::SchedDeadline => libc::SCHED_DEADLINE,
        Policy::SchedIso => {
            let reason = "Linux has no policy SCHED_ISO";
            return Err(unsupported("process.scheduler.policy", reason));
        }
    };
    let nice = wanted.nice().unwrap_or(0);
    if !(-20..=19).contains(&nice) {
        let reason = format!("{nice} is not between -20 and 19");
        return Err(invalid("process.scheduler.nice", reason));
    }
    let real_time = matches!(wanted.policy(), Policy::SchedFifo | Policy::SchedRr);
    let priority = wanted.priority().unwrap_or(0);
    if priority != 0 && !real_time {
        let reason = "only SCHED_FIFO and SCHED_RR have one";
        return Err(invalid("process.scheduler.priority", reason));
    }
    let priority = u32::try_from(priority)
        .map_err(|_| invalid("process.scheduler.priority", "it is negative"))?;
    let times = [
        ("runtime", *wanted.runtime()),
        ("deadline", *wanted.deadline()),
        ("period", *wanted.period()),
    ];
    for (name, time) in times {
        if time.unwrap_or(0) != 0 && *wanted.policy() != Policy::SchedDeadline {
            let reason = "only SCHED_DEADLINE has one";
            return Err(invalid(format!("process.scheduler.{name}"), reason));
        }
    }
    let [runtime, deadline, period] = times.map(|(_, time)| time.unwrap_or(0));
    Ok(plan::Scheduler {
        policy: policy as u32,
        flags: wanted.flags().iter().flatten().map(scheduler_flag).sum(),
        nice,
        priority,
        runtime,
        deadline,
        period,
    })
}

fn scheduler_flag(flag: &LinuxSchedulerFlag) -> u64 {
    match flag {
        LinuxSchedulerFlag::SchedResetOnFork => 0x01,
        LinuxSchedulerFlag::SchedFlagReclaim => 0x02,
        LinuxSchedulerFlag::SchedFlagDLOverrun => 0x04,
        LinuxSchedulerFlag::SchedFlagKeepPolicy => 0x08,
        LinuxSchedulerFlag::SchedFlagKeepParams => 0x10,
        LinuxSchedulerFlag::SchedFlagUtilClampMin => 0x20,
        LinuxSchedulerFlag::SchedFlagUtilClampMax => 0x40,
    }
}

pub(super) fn io_priority(wanted: &LinuxIOPriority) -> Result<u16, CompileError> {
    const LEVELS: std::ops::Range<i64> = 0..8;
    let class: u16 = match wanted.class() {
        IOPriorityClass::IoprioClassRt => 1,
        IOPriorityClass::IoprioClassBe => 2,
        IOPriorityClass::IoprioClassIdle => 3,
    };
    match u16::try_from(wanted.priority()) {
        Ok(level) if LEVELS.contains(&level.into()) => Ok(class << 13 | level),
        _ => {
            let reason = format!("{} is not between 0 and 7", wanted.priority());
            Err(invalid("process.ioPriority.priority", reason))
        }
    }
}

pub(super) fn exec_affinity(wanted: &ExecCPUAffinity) -> Result<plan::ExecAffinity, CompileError> {
    let list = |name: &str, list: &Option<String>| {
        mask(list.as_deref().unwrap_or_default()).map_err(|reason| {
            let field = format!("process.execCPUAffinity.{name}");
            invalid(field, reason)
        })
    };
    Ok(plan::ExecAffinity {
        before: list("initial", wanted.initial())?,
        after: list("final", wanted.cpu_affinity_final())?,
    })
}

/// What a kernel can have (CONFIG_NR_CPUS, MAX_NUMNODES), and more.
const NUMBERS_MAX: usize = 8192;

/// A list such as `0-3,7`; bit n stands for n. Nothing for an empty list.
fn mask(list: &str) -> Result<Vec<u64>, String> {
    let mut mask = Vec::new();
    for range in list
        .split(',')
        .map(str::trim)
        .filter(|part| !part.is_empty())
    {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let number = |text: &str| {
            let number = text.parse().ok().filter(|number| *number < NUMBERS_MAX);
            number.ok_or_else(|| format!("{range:?} is no range of numbers"))
        };
        let (first, last): (usize, usize) = (number(first)?, number(last)?);
        if first > last {
            return Err(format!("{range:?} is no range of numbers"));
        }
        mask.resize(mask.len().max(last / 64 + 1), 0);
        for number in first..=last {
            mask[number / 64] |= 1 << (number % 64);
        }
    }
    Ok(mask)
}

pub(super) fn memory_policy(
    wanted: &LinuxMemoryPolicy,
) -> Result<plan::MemoryPolicy, CompileError> {
    let mode: u32 = match wanted.mode() {
        MemoryPolicyModeType::MpolDefault => 0,
        MemoryPolicyModeType::MpolPreferred => 1,
        MemoryPolicyModeType::MpolBind => 2,
        MemoryPolicyModeType::MpolInterleave => 3,
        MemoryPolicyModeType::MpolLocal => 4,
        MemoryPolicyModeType::MpolPreferredMany => 5,
        MemoryPolicyModeType::MpolWeightedInterleave => 6,
    };
    let flags = wanted.flags().iter().flatten().map(|flag| match flag {
        MemoryPolicyFlagType::MpolFNumaBalancing => 1 << 13,
        MemoryPolicyFlagType::MpolFRelativeNodes => 1 << 14,
        MemoryPolicyFlagType::MpolFStaticNodes => 1 << 15,
    });
    let nodes = mask(wanted.nodes().as_deref().unwrap_or_default())
        .map_err(|reason| format!("invalid memory policy nodes: {reason}"))
        .and_then(|nodes| fitting(wanted.mode(), nodes))
        .map_err(|reason| invalid("linux.memoryPolicy.nodes", reason))?;
    Ok(plan::MemoryPolicy {
        mode: flags.fold(mode, |mode, flag: u32| mode | flag),
        nodes,
    })
}

/// As set_mempolicy(2) has it, which only says that something is invalid. The words are runc's.
fn fitting(mode: MemoryPolicyModeType, nodes: Vec<u64>) -> Result<Vec<u64>, String> {
    use MemoryPolicyModeType as Mode;
    let count: u32 = nodes.iter().map(|word| word.count_ones()).sum();
    match mode {
        Mode::MpolDefault | Mode::MpolLocal if count > 0 => Err(format!(
            "memory policy mode requires 0 nodes but got {count}"
        )),
        Mode::MpolBind
        | Mode::MpolInterleave
        | Mode::MpolPreferredMany
        | Mode::MpolWeightedInterleave
            if count == 0 =>
        {
            Err("memory policy mode requires at least one node but got 0".to_owned())
        }
        _ => Ok(nodes),
    }
}

pub(super) fn personality(wanted: &LinuxPersonality) -> Result<u32, CompileError> {
    if let Some(flag) = wanted.flags().iter().flatten().next() {
        let reason = format!("{flag:?}: the specification names no flags");
        return Err(unsupported("linux.personality.flags", reason));
    }
    Ok(match wanted.domain() {
        LinuxPersonalityDomain::PerLinux => 0,
        LinuxPersonalityDomain::PerLinux32 => 8,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn lists_become_masks() {
        assert_eq!(mask("0-3,7"), Ok(vec![0x8f]));
        assert_eq!(mask("64"), Ok(vec![0, 1]));
        assert_eq!(mask(""), Ok(vec![]));
        for bad in ["x", "3-1", "-1", "1-", "8192"] {
            assert!(mask(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_memory_policy_has_the_nodes_that_its_mode_takes() {
        let compile = |mode: &str, nodes: &str| {
            let wanted = json!({"mode": mode, "nodes": nodes});
            let wanted = serde_json::from_value(wanted).expect("a policy");
            memory_policy(&wanted).map_err(|error| error.to_string())
        };
        for (mode, nodes) in [
            ("MPOL_DEFAULT", ""),
            ("MPOL_LOCAL", ""),
            ("MPOL_PREFERRED", ""),
            ("MPOL_PREFERRED", "0"),
            ("MPOL_BIND", "0-1"),
        ] {
            compile(mode, nodes).expect(mode);
        }
        for (mode, nodes, expected) in [
            ("MPOL_DEFAULT", "0-7", "requires 0 nodes but got 8"),
            ("MPOL_LOCAL", "0", "requires 0 nodes but got 1"),
            ("MPOL_INTERLEAVE", "", "at least one node but got 0"),
            ("MPOL_BIND", "0-9876543210", "invalid memory policy nodes"),
        ] {
            let said = compile(mode, nodes).expect_err(mode);
            assert!(said.contains(expected), "{said}");
            assert!(said.starts_with("linux.memoryPolicy.nodes"), "{said}");
        }
    }

    #[test]
    fn a_policy_has_only_what_belongs_to_it() {
        let compile = |value| {
            let wanted = serde_json::from_value(value).expect("a scheduler");
            scheduler(&wanted).map_err(|error| error.to_string())
        };
        let round_robin = compile(json!({"policy": "SCHED_RR", "priority": 5})).expect("compiles");
        assert_eq!((round_robin.policy, round_robin.priority), (2, 5));
        for (value, field) in [
            (
                json!({"policy": "SCHED_BATCH", "priority": 5}),
                "priority is invalid",
            ),
            (
                json!({"policy": "SCHED_OTHER", "nice": 20}),
                "nice is invalid",
            ),
            (
                json!({"policy": "SCHED_FIFO", "period": 7}),
                "period is invalid",
            ),
            (json!({"policy": "SCHED_ISO"}), "policy is not supported"),
        ] {
            let error = compile(value).expect_err("refused");
            assert!(
                error.starts_with(&format!("process.scheduler.{field}")),
                "{error}"
            );
        }
    }

    #[test]
    fn io_priorities_have_a_class_and_a_level() {
        let wanted = |level| {
            let value = json!({"class": "IOPRIO_CLASS_IDLE", "priority": level});
            io_priority(&serde_json::from_value(value).expect("a priority"))
        };
        assert_eq!(wanted(7), Ok(0x6007));
        assert!(wanted(8).is_err() && wanted(-1).is_err());
    }
}
