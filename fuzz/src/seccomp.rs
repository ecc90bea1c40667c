// SPDX-License-Identifier: Apache-2.0
//! A seccomp profile of anybody's making: the program that comes of it is one that the kernel takes,
//! and decides as the profile says.

use cri::oci::spec::{SeccompProfile, seccomp};
use oci_spec::runtime::{LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompOperator};
use serde_json::json;

use super::input::Input;

/// A few calls of x86_64 by number, for profiles that can be checked by running their programs.
const CALLS: [(&str, u32); 12] = [
    ("read", 0),
    ("write", 1),
    ("open", 2),
    ("mmap", 9),
    ("ioctl", 16),
    ("socket", 41),
    ("clone", 56),
    ("execve", 59),
    ("personality", 135),
    ("prctl", 157),
    ("mount", 165),
    ("openat2", 437),
];

/// Beyond this a profile is a test of patience, not of the compiler.
const TEXT_MAX: usize = 16 * 1024;

/// Text that begins like JSON is a profile; anything else builds one.
pub fn check(data: &[u8]) {
    match data.first() {
        None => {}
        Some(b'{') if data.len() <= TEXT_MAX => {
            if let Ok(text) = std::str::from_utf8(data) {
                drop(compile(text));
            }
        }
        Some(kind) if kind % 2 == 0 => {
            let mut document = example();
            Input(&data[1..]).change(&mut document);
            let text = document.to_string();
            if text.len() <= TEXT_MAX {
                drop(compile(&text));
            }
        }
        Some(_) => decides(Input(&data[1..])),
    }
}

fn example() -> serde_json::Value {
    json!({
        "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 1,
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "flags": ["SECCOMP_FILTER_FLAG_TSYNC"],
        "syscalls": [
            {"names": ["read", "write", "nosuchcall"], "action": "SCMP_ACT_ALLOW"},
            {"names": ["socket"], "action": "SCMP_ACT_ERRNO", "errnoRet": 22, "args": [
                {"index": 0, "value": 16, "op": "SCMP_CMP_EQ"},
                {"index": 2, "value": 9, "valueTwo": 1, "op": "SCMP_CMP_MASKED_EQ"}]},
            {"names": ["mount"], "action": "SCMP_ACT_TRACE", "errnoRet": 7},
            {"names": ["ptrace"], "action": "SCMP_ACT_KILL_PROCESS"}
        ],
    })
}

fn compile(text: &str) -> Option<Vec<Instruction>> {
    match seccomp(&SeccompProfile::Localhost(text.to_owned()), 0) {
        Ok(filter) => Some(parse(&filter.expect("a profile makes a program").program)),
        Err(error) => {
            let mut message = error.to_string();
            let mut cause = std::error::Error::source(&error);
            while let Some(error) = cause {
                message += &format!(": {error}");
                cause = error.source();
            }
            assert!(!message.chars().any(char::is_control), "{message:?}");
            None
        }
    }
}

/// Builds a profile in which no call has two rules, so that what it means is plain, and asks its
/// program about calls.
fn decides(mut input: Input<'_>) {
    const ACTIONS: [&str; 7] = [
        "SCMP_ACT_ALLOW",
        "SCMP_ACT_ERRNO",
        "SCMP_ACT_KILL_THREAD",
        "SCMP_ACT_KILL_PROCESS",
        "SCMP_ACT_TRAP",
        "SCMP_ACT_LOG",
        "SCMP_ACT_TRACE",
    ];
    const OPERATORS: [&str; 7] = [
        "SCMP_CMP_NE",
        "SCMP_CMP_LT",
        "SCMP_CMP_LE",
        "SCMP_CMP_EQ",
        "SCMP_CMP_GE",
        "SCMP_CMP_GT",
        "SCMP_CMP_MASKED_EQ",
    ];
    let action = |input: &mut Input<'_>| ACTIONS[input.below(ACTIONS.len())];
    let (default, mut rules) = (action(&mut input), Vec::new());
    for (name, _) in CALLS {
        if input.byte().is_multiple_of(3) {
            continue;
        }
        let first = input.below(6);
        let arguments: Vec<_> = (0..input.below(4))
            .map(|offset| {
                let operator = OPERATORS[input.below(OPERATORS.len())];
                json!({"index": (first + offset) % 6, "value": small(&mut input),
                    "valueTwo": small(&mut input), "op": operator})
            })
            .collect();
        rules.push(json!({"names": [name], "action": action(&mut input),
            "errnoRet": input.byte(), "args": arguments}));
    }
    let text = json!({"defaultAction": default, "defaultErrnoRet": input.byte(),
        "architectures": ["SCMP_ARCH_X86_64"], "syscalls": rules})
    .to_string();
    let Some(program) = compile(&text) else {
        panic!("a plain profile is refused: {text}");
    };
    let profile: LinuxSeccomp = serde_json::from_str(&text).expect("a profile");
    for (name, number) in CALLS {
        for _ in 0..4 {
            let arguments = [(); 6].map(|()| small(&mut input));
            let found = run(&program, number, arguments);
            let expected = meant(&profile, name, arguments);
            assert_eq!(found, expected, "{name}{arguments:?} under {text}");
        }
    }
}

/// Values whose halves meet: comparisons of 64 bits are made of two of 32.
fn small(input: &mut Input<'_>) -> u64 {
    let word = |byte: u8| match byte % 8 {
        7 => u64::from(u32::MAX),
        6 => 1 << 31,
        low => u64::from(low),
    };
    let byte = input.byte();
    word(byte >> 4) << 32 | word(byte)
}

fn meant(profile: &LinuxSeccomp, name: &str, arguments: [u64; 6]) -> u32 {
    let rule = profile.syscalls().iter().flatten().find(|rule| {
        let holds = |argument: &LinuxSeccompArg| holds(argument, arguments[argument.index()]);
        rule.names().iter().any(|call| call == name) && rule.args().iter().flatten().all(holds)
    });
    match rule {
        Some(rule) => value(rule.action(), rule.errno_ret()),
        None => value(profile.default_action(), profile.default_errno_ret()),
    }
}

fn holds(argument: &LinuxSeccompArg, actual: u64) -> bool {
    let wanted = argument.value();
    match argument.op() {
        LinuxSeccompOperator::ScmpCmpNe => actual != wanted,
        LinuxSeccompOperator::ScmpCmpLt => actual < wanted,
        LinuxSeccompOperator::ScmpCmpLe => actual <= wanted,
        LinuxSeccompOperator::ScmpCmpEq => actual == wanted,
        LinuxSeccompOperator::ScmpCmpGe => actual >= wanted,
        LinuxSeccompOperator::ScmpCmpGt => actual > wanted,
        LinuxSeccompOperator::ScmpCmpMaskedEq => {
            actual & wanted == argument.value_two().unwrap_or(0) & wanted
        }
    }
}

/// The filter's return value (linux/seccomp.h).
fn value(action: LinuxSeccompAction, errno: Option<u32>) -> u32 {
    let errno = errno.unwrap_or(libc::EPERM as u32);
    match action {
        LinuxSeccompAction::ScmpActKill | LinuxSeccompAction::ScmpActKillThread => 0,
        LinuxSeccompAction::ScmpActKillProcess => 0x8000_0000,
        LinuxSeccompAction::ScmpActTrap => 0x0003_0000,
        LinuxSeccompAction::ScmpActErrno => 0x0005_0000 | errno,
        LinuxSeccompAction::ScmpActNotify => 0x7fc0_0000,
        LinuxSeccompAction::ScmpActTrace => 0x7ff0_0000 | errno,
        LinuxSeccompAction::ScmpActLog => 0x7ffc_0000,
        LinuxSeccompAction::ScmpActAllow => 0x7fff_0000,
    }
}

/// One instruction of classic BPF (linux/filter.h).
#[derive(Debug, Clone, Copy)]
struct Instruction {
    code: u16,
    when_true: u8,
    when_false: u8,
    value: u32,
}

const LOAD: u16 = 0x20;
const AND: u16 = 0x54;
const JUMP: u16 = 0x05;
const JUMP_EQUAL: u16 = 0x15;
const JUMP_GREATER: u16 = 0x25;
const JUMP_GREATER_OR_EQUAL: u16 = 0x35;
const JUMP_SET: u16 = 0x45;
const RETURN: u16 = 0x06;
/// The size of struct seccomp_data.
const DATA_SIZE: u32 = 64;
/// BPF_MAXINSNS.
const INSTRUCTIONS_MAX: usize = 4096;

/// Checks what the kernel checks (bpf_check_classic, seccomp_check_filter).
fn parse(bytes: &[u8]) -> Vec<Instruction> {
    assert_eq!(bytes.len() % 8, 0, "a broken instruction");
    let program: Vec<Instruction> = bytes
        .chunks_exact(8)
        .map(|raw| Instruction {
            code: u16::from_ne_bytes([raw[0], raw[1]]),
            when_true: raw[2],
            when_false: raw[3],
            value: u32::from_ne_bytes([raw[4], raw[5], raw[6], raw[7]]),
        })
        .collect();
    assert!(!program.is_empty() && program.len() <= INSTRUCTIONS_MAX);
    for (at, instruction) in program.iter().enumerate() {
        let left = program.len() - at - 1;
        let inside = match instruction.code {
            JUMP => (instruction.value as usize) < left,
            JUMP_EQUAL | JUMP_GREATER | JUMP_GREATER_OR_EQUAL | JUMP_SET => {
                usize::from(instruction.when_true.max(instruction.when_false)) < left
            }
            LOAD => {
                instruction.value < DATA_SIZE && instruction.value.is_multiple_of(4) && left > 0
            }
            AND => left > 0,
            RETURN => true,
            _ => false,
        };
        assert!(
            inside,
            "instruction {at} of {}: {instruction:?}",
            program.len()
        );
    }
    program
}

/// What the program answers to a call of x86_64.
fn run(program: &[Instruction], call: u32, arguments: [u64; 6]) -> u32 {
    const ARCH_X86_64: u32 = 0xc000_003e;
    let load = |offset: u32| match offset {
        0 => call,
        4 => ARCH_X86_64,
        8 | 12 => 0,
        _ => (arguments[(offset as usize - 16) / 8] >> (offset % 8 * 8)) as u32,
    };
    let (mut at, mut register) = (0, 0);
    loop {
        let Instruction {
            code,
            when_true,
            when_false,
            value,
        } = program[at];
        let holds = match code {
            JUMP_EQUAL => register == value,
            JUMP_GREATER => register > value,
            JUMP_GREATER_OR_EQUAL => register >= value,
            JUMP_SET => register & value != 0,
            _ => true,
        };
        at += 1;
        match code {
            LOAD => register = load(value),
            AND => register &= value,
            RETURN => return value,
            JUMP => at += value as usize,
            _ => at += usize::from(if holds { when_true } else { when_false }),
        }
    }
}
