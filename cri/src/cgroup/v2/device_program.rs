// SPDX-License-Identifier: Apache-2.0
//! Device access on cgroup v2: an eBPF program of type BPF_PROG_TYPE_CGROUP_DEVICE (kernel 4.15).
//!
//! The program compares the request with the rules, last rule first, so that the last match wins;
//! nothing matching means no. The kernel keeps it as long as the cgroup lives.
//!
//! It is attached so that others may be beside it (systemd attaches its own, and a container may
//! want to attach one to a cgroup below): all must agree. An update takes the place of the former
//! program in one step (kernel 5.6), so that there is no moment without one.
#![expect(unsafe_code, reason = "bpf(2) has no safe wrapper here")]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;

use crate::cgroup::{CgroupError, DeviceRule};

/// One eBPF instruction: `struct bpf_insn`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Instruction {
    code: u8,
    registers: u8,
    offset: i16,
    value: i32,
}

const LOAD_WORD: u8 = 0x61;
const MOVE: u8 = 0xb7;
const MOVE_REGISTER: u8 = 0xbf;
const AND32: u8 = 0x54;
const SHIFT_RIGHT: u8 = 0x77;
const JUMP_EQUAL: u8 = 0x15;
const JUMP_NOT_EQUAL: u8 = 0x55;
const JUMP_NOT_EQUAL_REGISTER: u8 = 0x5d;
const EXIT: u8 = 0x95;

const TYPE_BLOCK: i32 = 1;
const TYPE_CHAR: i32 = 2;
const MKNOD: i32 = 1;
const READ: i32 = 2;
const WRITE: i32 = 4;

fn instruction(code: u8, to: u8, from: u8, offset: i16, value: i32) -> Instruction {
    Instruction {
        code,
        registers: from << 4 | to,
        offset,
        value,
    }
}

/// r2: type, r3: access, r4: major, r5: minor, out of `struct bpf_cgroup_dev_ctx` in r1.
fn program(rules: &[DeviceRule]) -> Vec<Instruction> {
    let mut code = vec![
        instruction(LOAD_WORD, 2, 1, 0, 0),
        instruction(AND32, 2, 0, 0, 0xffff),
        instruction(LOAD_WORD, 3, 1, 0, 0),
        instruction(SHIFT_RIGHT, 3, 0, 0, 16),
        instruction(LOAD_WORD, 4, 1, 4, 0),
        instruction(LOAD_WORD, 5, 1, 8, 0),
    ];
    for rule in rules.iter().rev() {
        code.extend(block(rule));
        if rule.kind == 'a' {
            // It matches everything: what followed could not be reached, which the kernel's
            // verifier refuses (EINVAL).
            return code;
        }
    }
    code.push(instruction(MOVE, 0, 0, 0, 0));
    code.push(instruction(EXIT, 0, 0, 0, 0));
    code
}

/// Every condition that fails jumps behind the block.
fn block(rule: &DeviceRule) -> Vec<Instruction> {
    let mut conditions: Vec<Vec<Instruction>> = Vec::new();
    let equal = |register, value| vec![instruction(JUMP_NOT_EQUAL, register, 0, 0, value)];
    if rule.kind != 'a' {
        let kind = if rule.kind == 'b' {
            TYPE_BLOCK
        } else {
            TYPE_CHAR
        };
        conditions.push(equal(2, kind));
        if let Some(condition) = access(rule) {
            conditions.push(condition);
        }
        for (register, number) in [(4, rule.major), (5, rule.minor)] {
            if let Some(number) = number {
                conditions.push(equal(register, number as i32));
            }
        }
    }
    let mut code: Vec<Instruction> = conditions.into_iter().flatten().collect();
    code.push(instruction(MOVE, 0, 0, 0, i32::from(rule.allow)));
    code.push(instruction(EXIT, 0, 0, 0, 0));
    let length = code.len();
    for (index, instruction) in code.iter_mut().enumerate() {
        let jumps = [JUMP_EQUAL, JUMP_NOT_EQUAL, JUMP_NOT_EQUAL_REGISTER];
        if jumps.contains(&instruction.code) {
            instruction.offset = (length - index - 1) as i16;
        }
    }
    code
}

/// An allowing rule must cover everything that is asked for; a denying one matches if it covers
/// any of it, and a rule for all access matches always.
fn access(rule: &DeviceRule) -> Option<Vec<Instruction>> {
    let mut mask = 0;
    for (wanted, bit) in [(rule.read, READ), (rule.write, WRITE), (rule.mknod, MKNOD)] {
        if wanted {
            mask |= bit;
        }
    }
    if mask == READ | WRITE | MKNOD {
        return None;
    }
    let mut code = vec![instruction(MOVE_REGISTER, 1, 3, 0, 0)];
    code.push(instruction(AND32, 1, 0, 0, mask));
    if rule.allow {
        code.push(instruction(JUMP_NOT_EQUAL_REGISTER, 1, 3, 0, 0));
    } else {
        code.push(instruction(JUMP_EQUAL, 1, 0, 0, 0));
    }
    Some(code)
}

/// The parts of `union bpf_attr` that loading uses.
#[repr(C, align(8))]
#[derive(Default)]
struct LoadAttributes {
    program_type: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buffer: u64,
    kernel_version: u32,
    flags: u32,
}

/// The parts of `union bpf_attr` that attaching and detaching use.
#[repr(C, align(8))]
#[derive(Default)]
struct AttachAttributes {
    target: u32,
    program: u32,
    attach_type: u32,
    flags: u32,
    replaced: u32,
    /// The kernel wants zeros behind the last field, and padding may hold anything.
    zero: u32,
}

/// The parts of `union bpf_attr` that asking for attached programs uses.
#[repr(C, align(8))]
#[derive(Default)]
struct QueryAttributes {
    target: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    ids: u64,
    count: u32,
    zero: u32,
}

/// The parts of `union bpf_attr` that opening a program uses.
#[repr(C, align(8))]
#[derive(Default)]
struct OpenAttributes {
    id: u32,
    next_id: u32,
    flags: u32,
    zero: u32,
}

const BPF_PROG_LOAD: usize = 5;
const BPF_PROG_ATTACH: usize = 8;
const BPF_PROG_DETACH: usize = 9;
const BPF_PROG_GET_FD_BY_ID: usize = 13;
const BPF_PROG_QUERY: usize = 16;
const PROGRAM_TYPE_CGROUP_DEVICE: u32 = 15;
const ATTACH_CGROUP_DEVICE: u32 = 6;
const ALLOW_MULTI: u32 = 1 << 1;
const REPLACE: u32 = 1 << 2;

/// Replaces the device program of a cgroup.
pub(super) fn attach(dir: &Path, rules: &[DeviceRule]) -> Result<(), CgroupError> {
    load(&program(rules))
        .and_then(|program| replace(&File::open(dir)?, &program))
        .map_err(|source| CgroupError::DeviceProgram {
            path: dir.to_path_buf(),
            source,
        })
}

/// bpf(2) with one of the attribute structures above.
fn bpf<T>(command: usize, attributes: &mut T) -> io::Result<i64> {
    // SAFETY: the structure is a prefix of `union bpf_attr` and its size is passed; it lives across
    // the call, and what it points to is kept alive by the callers, all in this file.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_mut(attributes),
            size_of::<T>(),
        )
    };
    match result {
        0.. => Ok(result),
        _ => Err(io::Error::last_os_error()),
    }
}

/// As [`bpf`], for the commands that return a descriptor.
fn bpf_descriptor<T>(command: usize, attributes: &mut T) -> io::Result<OwnedFd> {
    let raw = bpf(command, attributes)?;
    // SAFETY: the callers, both in this file, pass commands whose result is a descriptor that the
    // kernel has just made for this call; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(raw as i32) })
}

fn load(code: &[Instruction]) -> io::Result<OwnedFd> {
    let mut bytes = Vec::with_capacity(code.len() * 8);
    for instruction in code {
        bytes.extend_from_slice(&[instruction.code, instruction.registers]);
        bytes.extend_from_slice(&instruction.offset.to_ne_bytes());
        bytes.extend_from_slice(&instruction.value.to_ne_bytes());
    }
    let mut load = LoadAttributes {
        program_type: PROGRAM_TYPE_CGROUP_DEVICE,
        instruction_count: code.len() as u32,
        instructions: bytes.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        ..LoadAttributes::default()
    };
    bpf_descriptor(BPF_PROG_LOAD, &mut load)
}

/// Attaches a program in place of those that are there.
fn replace(cgroup: &File, program: &OwnedFd) -> io::Result<()> {
    let (flags, ids) = attached(cgroup)?;
    let old = ids.iter().map(|id| open(*id));
    let old = old.collect::<io::Result<Vec<OwnedFd>>>()?;
    let mut attributes = AttachAttributes {
        target: cgroup.as_raw_fd() as u32,
        program: program.as_raw_fd() as u32,
        attach_type: ATTACH_CGROUP_DEVICE,
        ..AttachAttributes::default()
    };
    if !ids.is_empty() && flags & ALLOW_MULTI == 0 {
        // One that is alone is replaced by any other that wants to be alone, too.
        return bpf(BPF_PROG_ATTACH, &mut attributes).map(drop);
    }
    attributes.flags = ALLOW_MULTI;
    if let [one] = &old[..] {
        attributes.flags |= REPLACE;
        attributes.replaced = one.as_raw_fd() as u32;
        return bpf(BPF_PROG_ATTACH, &mut attributes).map(drop);
    }
    // All must agree, so a moment with the old and the new allows less, not more.
    bpf(BPF_PROG_ATTACH, &mut attributes)?;
    old.iter().try_for_each(|old| detach(cgroup, old))
}

/// How programs are attached to this cgroup itself, and their ids.
fn attached(cgroup: &File) -> io::Result<(u32, Vec<u32>)> {
    /// The kernel takes no more on one cgroup.
    const PROGRAMS_MAX: usize = 64;
    let mut ids = [0u32; PROGRAMS_MAX];
    let mut query = QueryAttributes {
        target: cgroup.as_raw_fd() as u32,
        attach_type: ATTACH_CGROUP_DEVICE,
        ids: ids.as_mut_ptr() as u64,
        count: PROGRAMS_MAX as u32,
        ..QueryAttributes::default()
    };
    bpf(BPF_PROG_QUERY, &mut query)?;
    let count = (query.count as usize).min(PROGRAMS_MAX);
    Ok((query.attach_flags, ids[..count].to_vec()))
}

fn open(id: u32) -> io::Result<OwnedFd> {
    let mut attributes = OpenAttributes {
        id,
        ..OpenAttributes::default()
    };
    bpf_descriptor(BPF_PROG_GET_FD_BY_ID, &mut attributes)
}

fn detach(cgroup: &File, program: &OwnedFd) -> io::Result<()> {
    let mut attributes = AttachAttributes {
        target: cgroup.as_raw_fd() as u32,
        program: program.as_raw_fd() as u32,
        attach_type: ATTACH_CGROUP_DEVICE,
        ..AttachAttributes::default()
    };
    bpf(BPF_PROG_DETACH, &mut attributes).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_follows_a_rule_that_matches_everything() {
        let deny_all = DeviceRule {
            allow: false,
            kind: 'a',
            major: None,
            minor: None,
            read: true,
            write: true,
            mknod: true,
        };
        let code = program(&[deny_all]);
        let exits = code.iter().filter(|step| step.code == EXIT).count();
        assert_eq!((exits, code.last().map(|step| step.code)), (1, Some(EXIT)));
    }

    /// Runs the program as the kernel would.
    fn allows(rules: &[DeviceRule], kind: i32, access: i32, major: u32, minor: u32) -> bool {
        let code = program(rules);
        let context = [(access << 16 | kind) as u32, major, minor];
        let mut registers = [0u64; 11];
        let mut at = 0usize;
        loop {
            let step = code[at];
            let to = usize::from(step.registers & 15);
            let from = registers[usize::from(step.registers >> 4)];
            let value = step.value as u32 as u64;
            let mut jump = false;
            match step.code {
                LOAD_WORD => registers[to] = u64::from(context[step.offset as usize / 4]),
                MOVE => registers[to] = value,
                MOVE_REGISTER => registers[to] = from,
                AND32 => registers[to] &= value,
                SHIFT_RIGHT => registers[to] >>= value,
                JUMP_NOT_EQUAL => jump = registers[to] as u32 != step.value as u32,
                JUMP_NOT_EQUAL_REGISTER => jump = registers[to] != from,
                JUMP_EQUAL => jump = registers[to] as u32 == step.value as u32,
                EXIT => return registers[0] == 1,
                other => panic!("unknown instruction {other:#x}"),
            }
            at += 1 + if jump { step.offset as usize } else { 0 };
        }
    }

    fn rule(
        allow: bool,
        kind: char,
        numbers: (Option<u32>, Option<u32>),
        access: &str,
    ) -> DeviceRule {
        DeviceRule {
            allow,
            kind,
            major: numbers.0,
            minor: numbers.1,
            read: access.contains('r'),
            write: access.contains('w'),
            mknod: access.contains('m'),
        }
    }

    #[test]
    fn the_last_matching_rule_decides_and_none_means_no() {
        let rules = [
            rule(false, 'a', (None, None), "rwm"),
            rule(true, 'c', (None, None), "m"),
            rule(true, 'c', (Some(1), Some(3)), "rw"),
            rule(true, 'b', (Some(8), None), "r"),
        ];
        assert!(allows(&rules, TYPE_CHAR, READ | WRITE, 1, 3));
        assert!(allows(&rules, TYPE_CHAR, MKNOD, 9, 9));
        assert!(!allows(&rules, TYPE_CHAR, READ, 1, 5));
        assert!(allows(&rules, TYPE_BLOCK, READ, 8, 1));
        assert!(!allows(&rules, TYPE_BLOCK, READ | WRITE, 8, 1));
        assert!(!allows(&[], TYPE_CHAR, READ, 1, 3));
        assert!(allows(
            &[rule(true, 'a', (None, None), "rwm")],
            TYPE_BLOCK,
            WRITE,
            7,
            7
        ));
    }

    #[test]
    fn a_denial_of_some_access_matches_any_of_it() {
        let rules = [
            rule(true, 'a', (None, None), "rwm"),
            rule(false, 'c', (Some(1), None), "w"),
        ];
        assert!(allows(&rules, TYPE_CHAR, READ, 1, 3));
        assert!(!allows(&rules, TYPE_CHAR, WRITE, 1, 3));
        assert!(!allows(&rules, TYPE_CHAR, READ | WRITE, 1, 3));
    }
}
