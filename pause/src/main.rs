// SPDX-License-Identifier: Apache-2.0
//! The first process of a pod: it holds the pod's namespaces, and nothing else.
//!
//! As PID 1 of a shared pid namespace it also reaps orphans. SIGTERM and SIGINT end it. There is
//! no libc and no std: the program is one page of code and touches one page of stack.
//!
//! With `panic = "unwind"` (cargo's dev profile) core alone cannot link, so std is linked then but
//! never used; the pause that ships is built with `panic = "abort"` and has no std.
#![cfg_attr(panic = "abort", no_std)]
#![no_main]
#![expect(
    unsafe_code,
    reason = "without libc, system calls and the entry point are assembly"
)]

#[cfg(not(target_arch = "x86_64"))]
compile_error!("pause knows the system calls of x86_64 only");

use core::arch::{asm, global_asm};

const SYS_WRITE: usize = 1;
const SYS_RT_SIGPROCMASK: usize = 14;
const SYS_EXIT: usize = 60;
const SYS_WAIT4: usize = 61;
const SYS_RT_SIGTIMEDWAIT: usize = 128;

const SIGINT: usize = 2;
const SIGTERM: usize = 15;
const SIGCHLD: usize = 17;
const WNOHANG: usize = 1;

const VERSION: &str = concat!("podwright pause ", env!("CARGO_PKG_VERSION"), "\n");

// The kernel enters here with argc, then the argv pointers, on the stack (System V ABI for x86_64).
global_asm!(
    ".globl _start",
    "_start:",
    "xor ebp, ebp",
    "mov rdi, [rsp]",
    "lea rsi, [rsp + 8]",
    "and rsp, -16",
    "call {main}",
    "ud2",
    main = sym main,
);

fn syscall(number: usize, a: usize, b: usize, c: usize, d: usize) -> isize {
    let result: isize;
    // SAFETY: the calls below pass numbers, null, or pointers to values that live across the call
    // with their right sizes; the kernel clobbers rcx and r11 only.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") number => result,
            in("rdi") a,
            in("rsi") b,
            in("rdx") c,
            in("r10") d,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    result
}

fn exit(code: usize) -> ! {
    loop {
        syscall(SYS_EXIT, code, 0, 0, 0);
    }
}

/// Whether the first argument is `-v`.
fn asks_for_version(argc: usize, argv: *const *const u8) -> bool {
    if argc < 2 {
        return false;
    }
    // SAFETY: argc is at least 2, so argv[1] exists.
    let argument = unsafe { *argv.wrapping_add(1) };
    for (index, expected) in [b'-', b'v', 0].into_iter().enumerate() {
        // SAFETY: the bytes before this one matched and were not the terminator, so it exists.
        if unsafe { *argument.wrapping_add(index) } != expected {
            return false;
        }
    }
    true
}

extern "C" fn main(argc: usize, argv: *const *const u8) -> ! {
    if asks_for_version(argc, argv) {
        syscall(SYS_WRITE, 1, VERSION.as_ptr() as usize, VERSION.len(), 0);
        exit(0);
    }
    // Blocked signals are kept for sigtimedwait even by a first process, which has no default
    // actions, and even if they would be ignored (signal(7)).
    let signals: u64 = 1 << (SIGINT - 1) | 1 << (SIGTERM - 1) | 1 << (SIGCHLD - 1);
    let mask = &raw const signals as usize;
    syscall(SYS_RT_SIGPROCMASK, 0, mask, 0, 8);
    loop {
        // Children that ended before the signals were blocked are collected here as well.
        while syscall(SYS_WAIT4, usize::MAX, 0, WNOHANG, 0) > 0 {}
        match syscall(SYS_RT_SIGTIMEDWAIT, mask, 0, 0, 8) as usize {
            SIGINT | SIGTERM => exit(0),
            _ => {}
        }
    }
}

#[cfg(panic = "abort")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    exit(255)
}
