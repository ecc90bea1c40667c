// SPDX-License-Identifier: Apache-2.0
//! How the kernel treats the calling process: its scheduler, priorities, processors, memory nodes
//! and personality.

use super::{Sys, check, numbers};
use crate::plan::Scheduler;

/// The argument of sched_setattr(2), in its second version (kernel 5.3).
#[repr(C)]
struct SchedAttr {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    runtime: u64,
    deadline: u64,
    period: u64,
    util_min: u32,
    util_max: u32,
}

pub fn set_scheduler(wanted: &Scheduler) -> Sys<()> {
    let attr = SchedAttr {
        size: std::mem::size_of::<SchedAttr>() as u32,
        policy: wanted.policy,
        flags: wanted.flags,
        nice: wanted.nice,
        priority: wanted.priority,
        runtime: wanted.runtime,
        deadline: wanted.deadline,
        period: wanted.period,
        util_min: 0,
        util_max: 0,
    };
    // SAFETY: the kernel reads a live struct that begins with its own size.
    check(unsafe { libc::syscall(libc::SYS_sched_setattr, 0usize, &raw const attr, 0usize) })
        .map(drop)
}

/// The class in the upper three bits, the level in the lower thirteen (ioprio_set(2)).
pub fn set_io_priority(priority: u16) -> Sys<()> {
    const WHO_PROCESS: usize = 1;
    numbers(libc::SYS_ioprio_set, WHO_PROCESS, 0, priority.into(), 0, 0).map(drop)
}

/// Bit n of the mask is processor n.
pub fn set_affinity(mask: &[u64]) -> Sys<()> {
    // SAFETY: pointer and length come from one slice, which the kernel only reads.
    check(unsafe {
        libc::syscall(
            libc::SYS_sched_setaffinity,
            0usize,
            std::mem::size_of_val(mask),
            mask.as_ptr(),
        )
    })
    .map(drop)
}

/// Bit n of the mask is memory node n (set_mempolicy(2)).
pub fn set_memory_policy(mode: u32, nodes: &[u64]) -> Sys<()> {
    // The kernel takes one bit less than it is told, and no nodes are no mask at all.
    let (mask, bits) = match nodes.len() {
        0 => (std::ptr::null(), 0),
        words => (nodes.as_ptr(), words * 64 + 1),
    };
    // SAFETY: pointer and length come from one slice, which the kernel only reads; of a null pointer
    // it reads nothing.
    check(unsafe { libc::syscall(libc::SYS_set_mempolicy, mode, mask, bits) }).map(drop)
}

pub fn set_personality(domain: u32) -> Sys<()> {
    numbers(libc::SYS_personality, domain as usize, 0, 0, 0, 0).map(drop)
}
