// SPDX-License-Identifier: Apache-2.0
//! Stops a command after the n-th thing it does: a debugger that kills (ptrace(2)).
#![expect(unsafe_code, reason = "ptrace has no safe interface here")]

use std::os::unix::process::CommandExt;
use std::process::Command;

use libc::{c_int, c_long, pid_t};

/// Calls that change something outside the process. What only reads is no step.
const STEPS: &[c_long] = &[
    libc::SYS_mkdir,
    libc::SYS_mkdirat,
    libc::SYS_mknod,
    libc::SYS_mknodat,
    libc::SYS_rename,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_unlink,
    libc::SYS_unlinkat,
    libc::SYS_rmdir,
    libc::SYS_symlinkat,
    libc::SYS_write,
    libc::SYS_sendmsg,
    libc::SYS_kill,
    libc::SYS_pidfd_send_signal,
    libc::SYS_clone3,
    libc::SYS_setns,
    libc::SYS_unshare,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_open_tree,
    libc::SYS_move_mount,
    libc::SYS_fsmount,
    libc::SYS_mount_setattr,
    libc::SYS_pivot_root,
    libc::SYS_bpf,
    libc::SYS_keyctl,
    libc::SYS_setresuid,
    libc::SYS_setgroups,
    libc::SYS_capset,
    libc::SYS_seccomp,
    libc::SYS_execve,
    libc::SYS_execveat,
];

/// Which process is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Victim {
    /// The command itself.
    Command,
    /// The launcher that it starts.
    Launcher,
    /// The process that the launcher makes, which becomes the container's.
    Child,
}

/// Runs a command and kills the victim after its `nth` step, counted from 1. Returns whether there
/// were that many, after the command has ended.
pub(crate) fn kill_after(command: &mut Command, victim: Victim, nth: usize) -> bool {
    let trace_me = || {
        // SAFETY: no pointer is passed.
        match unsafe { libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0) } {
            -1 => Err(std::io::Error::last_os_error()),
            _ => Ok(()),
        }
    };
    // SAFETY: between fork and exec, the closure makes one system call and allocates nothing.
    let traced = unsafe { command.pre_exec(trace_me) };
    let mut child = traced.spawn().expect("spawns");
    let pid = pid_t::try_from(child.id()).expect("a pid");
    assert!(libc::WIFSTOPPED(wait(pid)), "it stops at its exec");
    let there = match victim {
        Victim::Command => kill_at(pid, nth, false),
        Victim::Launcher => until_made(pid).is_some_and(|made| kill_at(made, nth, true)),
        Victim::Child => until_made(pid)
            .and_then(until_made)
            .is_some_and(|made| kill_at(made, nth, true)),
    };
    // Has been collected already when it was what was traced.
    let _ = child.wait();
    there
}

/// Runs what is traced until it has made a process, and lets go of it.
fn until_made(pid: pid_t) -> Option<pid_t> {
    let made = libc::PTRACE_O_TRACEFORK | libc::PTRACE_O_TRACEVFORK | libc::PTRACE_O_TRACECLONE;
    let options = libc::PTRACE_O_EXITKILL | made;
    ptrace(libc::PTRACE_SETOPTIONS, pid, options as usize);
    let mut signal = 0;
    loop {
        ptrace(libc::PTRACE_CONT, pid, signal as usize);
        let status = wait(pid);
        if !libc::WIFSTOPPED(status) {
            return None;
        }
        signal = match status >> 16 {
            libc::PTRACE_EVENT_FORK | libc::PTRACE_EVENT_VFORK | libc::PTRACE_EVENT_CLONE => break,
            // An exec's own trap is nobody's signal.
            0 if libc::WSTOPSIG(status) != libc::SIGTRAP => libc::WSTOPSIG(status),
            _ => 0,
        };
    }
    let mut made: libc::c_ulong = 0;
    ptrace(libc::PTRACE_GETEVENTMSG, pid, (&raw mut made) as usize);
    let made = pid_t::try_from(made).expect("a pid");
    assert!(libc::WIFSTOPPED(wait(made)), "it begins stopped");
    ptrace(libc::PTRACE_DETACH, pid, 0);
    Some(made)
}

/// Lets a traced process run to the end of its `nth` step, and kills it there. `entering` is whether
/// it stands before a call, and not within one.
fn kill_at(pid: pid_t, nth: usize, mut entering: bool) -> bool {
    const AT_CALL: c_int = libc::SIGTRAP | 0x80;
    let options = libc::PTRACE_O_TRACESYSGOOD | libc::PTRACE_O_EXITKILL;
    ptrace(libc::PTRACE_SETOPTIONS, pid, options as usize);
    let (mut steps, mut signal) = (0, 0);
    loop {
        ptrace(libc::PTRACE_SYSCALL, pid, signal as usize);
        let status = wait(pid);
        if !libc::WIFSTOPPED(status) {
            return false;
        }
        signal = 0;
        match libc::WSTOPSIG(status) {
            AT_CALL if entering => entering = false,
            AT_CALL => {
                entering = true;
                steps += usize::from(STEPS.contains(&call(pid)));
            }
            // The exec's own trap, and the start of a process.
            libc::SIGTRAP | libc::SIGSTOP => {}
            other => signal = other,
        }
        if steps == nth {
            // SAFETY: kill takes numbers.
            unsafe { libc::kill(pid, libc::SIGKILL) };
            while libc::WIFSTOPPED(wait(pid)) {}
            return true;
        }
    }
}

/// The number of the call that a stopped process has made.
fn call(pid: pid_t) -> c_long {
    // SAFETY: a struct of integers may be zero.
    let mut registers: libc::user_regs_struct = unsafe { std::mem::zeroed() };
    ptrace(libc::PTRACE_GETREGS, pid, (&raw mut registers) as usize);
    registers.orig_rax as c_long
}

/// Fails only on a process that was killed by another, whose end the next wait reports.
fn ptrace(request: libc::c_uint, pid: pid_t, data: usize) {
    // SAFETY: every caller passes a number, or the address of a live value of the request's type.
    unsafe { libc::ptrace(request, pid, 0usize, data) };
}

fn wait(pid: pid_t) -> c_int {
    let mut status = 0;
    // SAFETY: the status is written to a live variable.
    let waited = unsafe { libc::waitpid(pid, &raw mut status, libc::__WALL) };
    assert_eq!(waited, pid, "{}", std::io::Error::last_os_error());
    status
}
