// SPDX-License-Identifier: Apache-2.0
//! Commands of an OCI runtime that somebody else wrote: each is a process that does its part and ends.
//!
//! `create` runs in a mount namespace of its own, in which the container's root filesystem and what
//! it shares with its pod are mounted below the bundle. The runtime's container is born of that
//! namespace, so nothing of it is ever mounted on the host, and nothing is left there.

use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::child::give_to;
use super::prepare;
use super::report::LaunchError;
use crate::plan::{External, LaunchPlan};
use crate::sys::{self, Clone, PointerArray, Sys, mounts};

/// Detached mounts, each with the host's path that it goes to.
#[derive(Debug, Default)]
pub struct Mounted(Vec<(OwnedFd, CString)>);

/// The streams of a command.
#[derive(Debug)]
pub enum Streams {
    /// stdin, stdout, stderr.
    Three([OwnedFd; 3]),
    /// All three are this terminal, which becomes the controlling one.
    Terminal(OwnedFd),
}

/// Makes the mounts of a container whose runtime is another: its root, and what it has of its pod.
///
/// # Errors
/// The mount that cannot be made.
pub fn mounts(
    plan: &LaunchPlan,
    runtime: &External,
    sandbox: Option<BorrowedFd<'_>>,
) -> Result<Mounted, LaunchError> {
    prepare::external(plan, runtime, sandbox).map(Mounted)
}

/// The host's user and group of the root of a container with ids of its own.
#[must_use]
pub fn owner(plan: &LaunchPlan) -> Option<(u32, u32)> {
    prepare::external_owner(plan)
}

/// The same, of a container that runs.
///
/// # Errors
/// When its ids cannot be read.
pub fn owner_of(pid: u32) -> Result<Option<(u32, u32)>, LaunchError> {
    prepare::owner_of(pid)
}

/// Gives streams to the container's root, where it has ids of its own: the runtime gives them on to
/// the process's user, and is root there only.
///
/// # Errors
/// When the owner of one cannot be changed.
pub fn give(streams: &[OwnedFd; 3], owner: Option<(u32, u32)>) -> Result<(), LaunchError> {
    let Some((uid, gid)) = owner else {
        return Ok(());
    };
    let failed = |errno| LaunchError::prepare("giving the streams to the container's root", errno);
    let mut streams = streams.iter();
    streams.try_for_each(|stream| give_to(stream, uid, gid).map_err(failed))
}

/// A new terminal of the host: (master, slave).
///
/// # Errors
/// The errno.
pub fn terminal() -> Sys<(OwnedFd, OwnedFd)> {
    let flags = libc::O_RDWR | libc::O_NOCTTY;
    let master = mounts::openat(mounts::cwd(), c"/dev/ptmx", flags, 0)?;
    let slave = sys::terminal_peer(master.as_fd())?;
    Ok((master, slave))
}

/// Starts a command, the first word of which is the absolute path of its program. Returns its pid,
/// once it has executed.
///
/// # Errors
/// When it cannot be executed.
pub fn spawn(words: &[String], mounted: &Mounted, streams: Streams) -> Result<u32, LaunchError> {
    let program = words.first().map_or("", String::as_str);
    let failed = |errno| LaunchError::prepare(format!("running {program:?}"), errno);
    let text = |word: &String| CString::new(word.as_bytes()).map_err(|_| failed(libc::EINVAL));
    let args = words.iter().map(text).collect::<Result<Vec<_>, _>>()?;
    let path = args.first().ok_or_else(|| failed(libc::EINVAL))?;
    let environment = super::hooks::own_environment();
    let arguments = PointerArray::new(&args, 0);
    let variables = PointerArray::new(&environment, 0);
    let (failure, failing) = sys::pipe().map_err(failed)?;
    let pid = match sys::clone3(0, None).map_err(failed)? {
        Clone::Parent { pid, .. } => pid,
        Clone::Child => {
            let errno = become_ready(mounted, &streams).map_or_else(
                |errno| errno,
                |()| sys::execve(path, &arguments, &variables),
            );
            // Without a reader there is nobody to tell.
            let _ = sys::write(failing.as_fd(), &errno.to_ne_bytes());
            sys::exit(127)
        }
    };
    drop((failing, streams));
    let mut errno = [0; 4];
    // Ends when the command has executed: milliseconds, as it depends on no one else.
    match sys::read(failure.as_fd(), &mut errno) {
        Ok(4) => {
            let _ = sys::reap(Some(pid), true);
            Err(failed(i32::from_ne_bytes(errno)))
        }
        _ => Ok(pid),
    }
}

/// In the command's process: its mounts, its streams, a session of its own.
fn become_ready(mounted: &Mounted, streams: &Streams) -> Sys<()> {
    sys::setsid()?;
    sys::reset_signals()?;
    if !mounted.0.is_empty() {
        sys::unshare(libc::CLONE_NEWNS)?;
        // What the host mounts arrives; nothing goes back.
        mounts::set_all_propagation(libc::MS_SLAVE)?;
        for (tree, target) in &mounted.0 {
            let place = mounts::openat(mounts::cwd(), target, libc::O_PATH, 0)?;
            mounts::attach(tree.as_fd(), place.as_fd())?;
        }
    }
    match streams {
        Streams::Three(all) => {
            for (number, stream) in (0..).zip(all) {
                sys::dup_to(stream.as_fd(), number)?;
            }
        }
        Streams::Terminal(slave) => {
            for number in 0..3 {
                sys::dup_to(slave.as_fd(), number)?;
            }
            sys::set_controlling_terminal(slave.as_fd())?;
        }
    }
    sys::cloexec_from(3)
}
