// SPDX-License-Identifier: Apache-2.0
//! The child's identity: limits, user, capabilities, seccomp, and which program it becomes.

use std::ffi::CStr;
use std::os::fd::{AsFd, OwnedFd};

use super::child::{Failed, at};
use super::prepare::{Prepared, Process};
use super::report::Step;
use crate::plan::{ExecAffinity, Seccomp};
use crate::sys::{self, Errno, Sys, mounts, scheduling};

pub(super) fn limits(process: &Process) -> Result<(), Failed> {
    for (index, (resource, soft, hard)) in process.rlimits.iter().enumerate() {
        sys::set_rlimit(*resource, *soft, *hard).map_err(|errno| (Step::Rlimit, index, errno))?;
    }
    Ok(())
}

/// A session keyring of the container's own: what the caller's holds is not for it. Processes that
/// are executed later join it by its name.
pub(super) fn session_keyring(process: &Process) -> Result<(), Failed> {
    let Some(name) = &process.session_keyring else {
        return Ok(());
    };
    keyring_label(process)?;
    match sys::join_session_keyring(name) {
        // A kernel without keyrings has none to share.
        Ok(()) | Err(libc::ENOSYS) => Ok(()),
        Err(errno) => Err((Step::Keyring, 0, errno)),
    }
}

/// New keys get this label; exec takes it back.
fn keyring_label(process: &Process) -> Result<(), Failed> {
    let Some(label) = &process.labels.keyring else {
        return Ok(());
    };
    own_attribute(c"/proc/self/attr/keycreate")
        .and_then(|file| sys::write(file.as_fd(), label.to_bytes()))
        .map(drop)
        .map_err(at(Step::Label))
}

/// Raises hard limits to what [`limits`] will set: the privilege for that ends in a user namespace.
/// The lower ones wait, because they would hinder the set-up.
pub(super) fn raise_limits(process: &Process) -> Result<(), Failed> {
    for (index, (resource, _, hard)) in process.rlimits.iter().enumerate() {
        let failed = |errno| (Step::Rlimit, index, errno);
        let (soft_now, hard_now) = sys::rlimit(*resource).map_err(failed)?;
        if *hard > hard_now {
            sys::set_rlimit(*resource, soft_now, *hard).map_err(failed)?;
        }
    }
    Ok(())
}

/// Becomes root of the user namespace that was just entered: until then, ids are the host's. What
/// is made from here on belongs to the container's root.
pub(super) fn become_root() -> Result<(), Failed> {
    sys::setgroups(&[]).map_err(at(Step::Groups))?;
    sys::setresgid(0).map_err(at(Step::Groups))?;
    sys::setresuid(0).map_err(at(Step::User))?;
    // Changing ids makes a process dumpable again in some kernels; see run().
    sys::prctl(libc::PR_SET_DUMPABLE, 0, 0).map_err(at(Step::User))
}

/// Changes to the working directory and makes sure that it lies within the root: a path such as
/// /proc/self/fd/7 must not lead out through a descriptor that somebody forgot to close.
pub(super) fn enter_directory(prepared: &Prepared) -> Result<(), Failed> {
    let failed = at(Step::Cwd);
    mounts::chdir(&prepared.process.cwd).map_err(&failed)?;
    match mounts::cwd_is_reachable() {
        Ok(true) => Ok(()),
        Ok(false) => Err(failed(libc::EXDEV)),
        Err(errno) => Err(failed(errno)),
    }
}

/// Bounding set, groups and ids. The permitted capabilities are kept until [`confine`], because a
/// seccomp filter without no_new_privs needs CAP_SYS_ADMIN.
pub(super) fn become_user(process: &Process) -> Result<(), Failed> {
    let failed = at(Step::Capabilities);
    for capability in 0..=process.last_capability {
        if process.capabilities.bounding & (1 << capability) == 0 {
            match sys::prctl(libc::PR_CAPBSET_DROP, capability as usize, 0) {
                Ok(()) | Err(libc::EINVAL) => {}
                Err(errno) => return Err(failed(errno)),
            }
        }
    }
    sys::prctl(libc::PR_SET_KEEPCAPS, 1, 0).map_err(&failed)?;
    sys::setgroups(&process.groups).map_err(at(Step::Groups))?;
    sys::setresgid(process.gid).map_err(at(Step::Groups))?;
    sys::setresuid(process.uid).map_err(at(Step::User))?;
    // Changing ids makes a process dumpable again in some kernels; see run().
    sys::prctl(libc::PR_SET_DUMPABLE, 0, 0).map_err(at(Step::User))?;
    sys::umask(process.umask);
    // Another user's effective set is empty now. Whether it may execute its program is decided with
    // the set that it will have.
    let all = sys::permitted_capabilities().map_err(&failed)?;
    sys::capset(process.capabilities.effective & all, all, 0).map_err(&failed)
}

/// The index of the first candidate that is an executable file; as runc, the first reason to say no
/// that isn't "there is none" is what gets reported.
pub(super) fn find_program(process: &Process) -> Result<usize, Failed> {
    if process.executable.is_some() {
        return Ok(0);
    }
    let mut reason: Errno = libc::ENOENT;
    for (index, path) in process.candidates.iter().enumerate() {
        match executable(path) {
            Ok(()) => return Ok(index),
            Err(libc::ENOENT | libc::ENOTDIR) => {}
            Err(errno) => reason = errno,
        }
    }
    Err((Step::Lookup, 0, reason))
}

fn executable(path: &CStr) -> Sys<()> {
    let file = mounts::openat(mounts::cwd(), path, libc::O_PATH, 0)?;
    let stat = mounts::fstat(file.as_fd())?;
    if stat.st_mode & libc::S_IFMT == libc::S_IFDIR {
        return Err(libc::EACCES);
    }
    mounts::may_execute(path)
}

/// The processors for the time before the container's cgroup, then those for after.
pub(super) fn affinity(mask: &[u64]) -> Result<(), Failed> {
    match mask.is_empty() {
        true => Ok(()),
        false => scheduling::set_affinity(mask).map_err(at(Step::Affinity)),
    }
}

/// Where nothing is asked for, all processors of the cgroup: the runtime's own mask is nobody's wish.
/// As with runc, a kernel that refuses is no reason to fail.
pub(super) fn any_processor(affinity: &ExecAffinity) {
    /// More than a kernel can be built for.
    static ALL: [u64; 128] = [u64::MAX; 128];
    if affinity.before.is_empty() && affinity.after.is_empty() {
        let _ = scheduling::set_affinity(&ALL);
    }
}

/// How the kernel schedules the process and its I/O. What takes the host's privileges is refused
/// in a user namespace, so there it comes before; a deadline task could not be cloned.
pub(super) fn schedule(process: &Process) -> Result<(), Failed> {
    if let Some(scheduler) = &process.scheduler {
        scheduling::set_scheduler(scheduler).map_err(at(Step::Scheduler))?;
    }
    match process.io_priority {
        Some(priority) => scheduling::set_io_priority(priority).map_err(at(Step::IoPriority)),
        None => Ok(()),
    }
}

/// Where the program's memory comes from, and which kernel it sees.
pub(super) fn environment(process: &Process) -> Result<(), Failed> {
    if let Some(policy) = &process.memory_policy {
        scheduling::set_memory_policy(policy.mode, &policy.nodes)
            .map_err(at(Step::MemoryPolicy))?;
    }
    match process.personality {
        Some(domain) => scheduling::set_personality(domain).map_err(at(Step::Personality)),
        None => Ok(()),
    }
}

/// Opens the file that takes the program's label while /proc is still the host's: what a container
/// shows under that name is not to be trusted. It is written before exec.
pub(super) fn label_file(process: &Process) -> Result<Option<OwnedFd>, Failed> {
    if process.labels.exec.is_none() {
        return Ok(None);
    }
    own_attribute(process.labels.exec_file)
        .map(Some)
        .map_err(at(Step::Label))
}

/// A file below /proc/self, on a real proc file system.
fn own_attribute(path: &CStr) -> Sys<OwnedFd> {
    const PROC_SUPER_MAGIC: i64 = 0x9fa0;
    let file = mounts::openat(mounts::cwd(), path, libc::O_WRONLY, 0)?;
    match mounts::filesystem_type(file.as_fd())? {
        PROC_SUPER_MAGIC => Ok(file),
        _ => Err(libc::EXDEV),
    }
}

/// Before exec, and before no_new_privs, which would forbid it.
pub(super) fn label(process: &Process, file: Option<&OwnedFd>) -> Result<(), Failed> {
    if let (Some(label), Some(file)) = (&process.labels.exec, file) {
        sys::write(file.as_fd(), label.to_bytes()).map_err(at(Step::Label))?;
    }
    Ok(())
}

/// The last steps before exec: capabilities, no_new_privs, seccomp; and HOME.
///
/// With no_new_privs the filter comes last, so it need not allow what else is done here. Without,
/// it must come while CAP_SYS_ADMIN is still held; the filter must then allow capset and prctl.
/// A filter with a listener is loaded already, by [`load_filter`].
pub(super) fn confine(process: &mut Process) -> Result<(), Failed> {
    if process.needs_home {
        home(process);
    }
    let filter = process
        .seccomp
        .as_ref()
        .filter(|filter| filter.listener.is_none());
    if process.no_new_privileges {
        no_new_privileges()?;
        drop_capabilities(process)?;
        if let Some(filter) = filter {
            load(filter)?;
        }
        return Ok(());
    }
    if let Some(filter) = filter {
        raise_capabilities()?;
        load(filter)?;
    }
    drop_capabilities(process)
}

fn no_new_privileges() -> Result<(), Failed> {
    sys::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0).map_err(at(Step::NoNewPrivileges))
}

fn load(filter: &Seccomp) -> Result<i64, Failed> {
    sys::seccomp_filter(&filter.program, filter.flags).map_err(at(Step::Seccomp))
}

/// All that are still permitted: a filter without no_new_privs needs CAP_SYS_ADMIN.
fn raise_capabilities() -> Result<(), Failed> {
    let failed = at(Step::Capabilities);
    let all = sys::permitted_capabilities().map_err(&failed)?;
    sys::capset(all, all, 0).map_err(&failed)
}

/// Loads a filter that leaves calls to a listener; returns the number of its descriptor. Whoever
/// gets that has to be there already, so it happens before the gate, as in runc: such a filter has
/// to allow, or its agent to answer, what is done after it (read and write on open descriptors,
/// prctl, capset, execve).
pub(super) fn load_filter(process: &Process) -> Result<Option<usize>, Failed> {
    let listened = |filter: &&Seccomp| filter.listener.is_some();
    let Some(filter) = process.seccomp.as_ref().filter(listened) else {
        return Ok(None);
    };
    match process.no_new_privileges {
        true => no_new_privileges()?,
        false => raise_capabilities()?,
    }
    load(filter).map(|number| Some(number as usize))
}

fn drop_capabilities(process: &Process) -> Result<(), Failed> {
    const AMBIENT_RAISE: usize = 2;
    let failed = at(Step::Capabilities);
    let sets = &process.capabilities;
    sys::capset(sets.effective, sets.permitted, sets.inheritable).map_err(&failed)?;
    for capability in 0..=process.last_capability {
        if sets.ambient & (1 << capability) != 0 {
            sys::prctl(libc::PR_CAP_AMBIENT, AMBIENT_RAISE, capability as usize)
                .map_err(&failed)?;
        }
    }
    Ok(())
}

/// Where the found HOME lives: between finding it and exec nothing can free it.
static HOME: std::sync::OnceLock<HomeEntry> = std::sync::OnceLock::new();

struct HomeEntry([u8; 256]);

/// Sets HOME from the container's /etc/passwd, or to `/`, as runc does.
fn home(process: &mut Process) {
    let mut entry = HomeEntry([0; 256]);
    let mut home = [0u8; 240];
    let length = home_of(process.uid, &mut home).unwrap_or(0);
    let found = home.get(..length).filter(|home| !home.is_empty());
    let bytes = b"HOME=".iter().chain(found.unwrap_or(b"/"));
    // One byte stays zero at the end: 5 + 240 < 256.
    for (slot, byte) in entry.0.iter_mut().zip(bytes) {
        *slot = *byte;
    }
    if let Ok(string) = CStr::from_bytes_until_nul(&HOME.get_or_init(|| entry).0) {
        process.env.push(string);
    }
}

/// Reads /etc/passwd in pieces of one buffer. Longer lines than the buffer are passed over.
fn home_of(uid: u32, home: &mut [u8]) -> Option<usize> {
    let flags = libc::O_RDONLY | libc::O_NONBLOCK;
    let file = mounts::openat(mounts::cwd(), c"/etc/passwd", flags, 0).ok()?;
    let mut buffer = [0u8; 2048];
    let mut filled = 0;
    loop {
        let count = sys::read(file.as_fd(), buffer.get_mut(filled..)?).ok()?;
        filled += count;
        let text = buffer.get(..filled)?;
        let complete = match text.iter().rposition(|byte| *byte == b'\n') {
            Some(newline) => newline + 1,
            None if count == 0 => filled,
            None => return None,
        };
        for line in text.get(..complete)?.split(|byte| *byte == b'\n') {
            if let Some(found) = home_in(line, uid) {
                let length = found.len().min(home.len());
                home.get_mut(..length)?
                    .copy_from_slice(found.get(..length)?);
                return Some(length);
            }
        }
        if count == 0 {
            return None;
        }
        buffer.copy_within(complete..filled, 0);
        filled -= complete;
    }
}

fn home_in(line: &[u8], uid: u32) -> Option<&[u8]> {
    let mut fields = line.split(|byte| *byte == b':');
    let number = std::str::from_utf8(fields.nth(2)?).ok()?;
    if number.parse() != Ok(uid) {
        return None;
    }
    fields.nth(2).filter(|home| home.starts_with(b"/"))
}

#[cfg(test)]
mod tests {
    use super::home_in;

    #[test]
    fn home_is_the_sixth_field_of_the_line_with_the_uid() {
        let line = b"app:x:1000:1000:An app:/srv/app:/bin/sh";
        assert_eq!(home_in(line, 1000), Some(&b"/srv/app"[..]));
        assert_eq!(home_in(line, 0), None);
        assert_eq!(home_in(b"broken", 0), None);
    }
}
