// SPDX-License-Identifier: Apache-2.0
//! Starting a process in namespaces of its own, or in those of another process.
#![expect(
    unsafe_code,
    reason = "work between fork and exec has no safe interface"
)]

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};

/// Makes `command` start in a new network and mount namespace, whose mounts don't propagate back.
pub fn in_new_namespaces(command: &mut Command) -> &mut Command {
    // SAFETY: the closure runs between fork and exec in the child. It makes three system calls on
    // constants, allocates nothing and takes no lock.
    unsafe {
        command.pre_exec(|| {
            unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS)?;
            mount(
                None::<&str>,
                "/",
                None::<&str>,
                MsFlags::MS_REC | MsFlags::MS_PRIVATE,
                None::<&str>,
            )?;
            dies_with_its_parent()
        })
    }
}

/// Makes `command` start in the namespaces of this process, and end with the thread that starts it.
pub fn in_these_namespaces(command: &mut Command) -> &mut Command {
    // SAFETY: the closure runs between fork and exec in the child. It makes one system call on
    // constants, allocates nothing and takes no lock.
    unsafe { command.pre_exec(dies_with_its_parent) }
}

/// Makes `command` start in the network and mount namespaces of the process behind `pidfd`
/// (setns(2) takes a pidfd and several flags at once since Linux 5.8).
pub fn in_namespaces_of(command: &mut Command, pidfd: OwnedFd) -> &mut Command {
    // SAFETY: the closure runs between fork and exec in the child. It makes one system call on a
    // descriptor that it owns, allocates nothing and takes no lock.
    unsafe {
        command.pre_exec(move || {
            setns(
                pidfd.as_fd(),
                CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS,
            )?;
            Ok(())
        })
    }
}

/// The kernel kills the holder of a host's namespaces when the thread that started it ends, so a
/// test that is killed leaves no holder behind (PR_SET_PDEATHSIG(2const)).
fn dies_with_its_parent() -> std::io::Result<()> {
    nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)?;
    Ok(())
}

/// A descriptor for process `pid` (pidfd_open(2), Linux 5.3).
pub fn pidfd_open(pid: u32) -> std::io::Result<OwnedFd> {
    use std::os::fd::FromRawFd;
    // SAFETY: pidfd_open takes two integers and touches no memory of ours.
    let raw = unsafe { libc::syscall(libc::SYS_pidfd_open, libc::c_long::from(pid), 0) };
    if raw < 0 {
        return Err(std::io::Error::last_os_error());
    }
    let raw = i32::try_from(raw).expect("a descriptor number fits a C int");
    // SAFETY: the kernel made this descriptor for the call above, which succeeded, so nothing else
    // owns it or will close it.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}
