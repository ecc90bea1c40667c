// SPDX-License-Identifier: Apache-2.0
//! One process: its program, arguments, identity, and what we may grant of it.

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use super::labels::{self, Labels};
use super::{Prepare, text, texts};
use crate::launch::report::LaunchError;
use crate::plan::{
    Capabilities, ExecAffinity, Executable, MemoryPolicy, ProcessPlan, Scheduler, Seccomp,
};
use crate::sys::{self, PointerArray, Sys, mounts};

const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

pub(in crate::launch) struct Process {
    pub executable: Option<OwnedFd>,
    pub candidates: Vec<CString>,
    _args: Vec<CString>,
    _env: Vec<CString>,
    pub args: PointerArray,
    pub env: PointerArray,
    pub needs_home: bool,
    pub cwd: CString,
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
    pub umask: u32,
    pub capabilities: Capabilities,
    pub last_capability: u32,
    pub rlimits: Vec<(u32, u64, u64)>,
    pub no_new_privileges: bool,
    pub seccomp: Option<Seccomp>,
    pub labels: Labels,
    pub scheduler: Option<Scheduler>,
    pub io_priority: Option<u16>,
    pub affinity: ExecAffinity,
    pub personality: Option<u32>,
    pub memory_policy: Option<MemoryPolicy>,
    pub oom_score_adj: Option<CString>,
    pub console_size: Option<(u16, u16)>,
    pub session_keyring: Option<CString>,
    pub preserved_fds: u32,
}

impl Process {
    /// Whether somebody gets the notify descriptor of its filter.
    pub(in crate::launch) fn is_listened(&self) -> bool {
        let filter = self.seccomp.as_ref();
        filter.is_some_and(|filter| filter.listener.is_some())
    }
}

/// `own_users`: in a user namespace of its own a process has every capability to begin with.
pub(super) fn process(plan: &ProcessPlan, own_users: bool) -> Prepare<(Process, Vec<String>)> {
    let mut notes = Vec::new();
    let (args, env) = (texts(&plan.args)?, texts(&plan.env)?);
    let executable = match &plan.executable {
        Executable::Args => None,
        Executable::HostFile(path) => Some(readonly_file(path)?),
    };
    let own = sys::permitted_capabilities()
        .map_err(|errno| LaunchError::prepare("reading own capabilities", errno))?;
    let grantable = if own_users { u64::MAX } else { own };
    let process = Process {
        executable,
        candidates: candidates(plan)?,
        args: PointerArray::new(&args, 0),
        env: PointerArray::new(&env, 1),
        _args: args,
        _env: env,
        needs_home: !plan.env.iter().any(|entry| entry.starts_with("HOME=")),
        cwd: text(&plan.cwd)?,
        uid: plan.user.uid,
        gid: plan.user.gid,
        groups: plan.user.additional_gids.clone(),
        umask: plan.user.umask.unwrap_or(0o022),
        capabilities: clamp_capabilities(plan.capabilities, grantable, &mut notes),
        last_capability: last_capability(),
        rlimits: clamp_rlimits(plan, own, &mut notes)?,
        no_new_privileges: plan.no_new_privileges,
        seccomp: plan.seccomp.clone(),
        labels: labels::labels(plan)?,
        scheduler: plan.scheduler,
        io_priority: plan.io_priority,
        affinity: ExecAffinity::default(),
        personality: plan.personality,
        memory_policy: plan.memory_policy.clone(),
        oom_score_adj: clamp_oom_score(plan.oom_score_adj, own, &mut notes)?,
        console_size: plan.console_size,
        session_keyring: plan.session_keyring.as_deref().map(text).transpose()?,
        preserved_fds: plan.preserved_fds,
    };
    Ok((process, notes))
}

/// Where `args[0]` may be, in the order of PATH.
fn candidates(plan: &ProcessPlan) -> Prepare<Vec<CString>> {
    let name = plan
        .args
        .first()
        .filter(|name| !name.is_empty())
        .ok_or_else(|| LaunchError::prepare("process has no arguments", libc::EINVAL))?;
    if name.contains('/') {
        return Ok(vec![text(name)?]);
    }
    let path = plan.env.iter().rev().find_map(|e| e.strip_prefix("PATH="));
    path.unwrap_or(DEFAULT_PATH)
        .split(':')
        .filter(|dir| dir.starts_with('/'))
        .map(|dir| text(&format!("{}/{name}", dir.trim_end_matches('/'))))
        .collect()
}

const CAP_SYS_RESOURCE: u64 = 1 << 24;

fn last_capability() -> u32 {
    std::fs::read_to_string("/proc/sys/kernel/cap_last_cap")
        .ok()
        .and_then(|number| number.trim().parse().ok())
        .unwrap_or(40)
}

/// Grants no more than we hold ourselves; the kernel would refuse the whole set.
fn clamp_capabilities(mut wanted: Capabilities, own: u64, notes: &mut Vec<String>) -> Capabilities {
    let beyond = (wanted.bounding | wanted.permitted) & !own;
    if beyond != 0 {
        notes.push(format!(
            "capabilities {beyond:#x} are not ours to grant and were left out"
        ));
    }
    for set in [
        &mut wanted.bounding,
        &mut wanted.effective,
        &mut wanted.permitted,
        &mut wanted.inheritable,
        &mut wanted.ambient,
    ] {
        *set &= own;
    }
    // The kernel's own condition; as with runc, what does not meet it is left out.
    let ambient = wanted.ambient & wanted.permitted & wanted.inheritable;
    if ambient != wanted.ambient {
        let beyond = wanted.ambient & !ambient;
        notes.push(format!(
            "ambient capabilities {beyond:#x} are not permitted and inheritable and were left out"
        ));
        wanted.ambient = ambient;
    }
    wanted
}

fn clamp_rlimits(
    plan: &ProcessPlan,
    own: u64,
    notes: &mut Vec<String>,
) -> Prepare<Vec<(u32, u64, u64)>> {
    let mut limits = Vec::with_capacity(plan.rlimits.len());
    for limit in &plan.rlimits {
        let (mut soft, mut hard) = (limit.soft, limit.hard);
        let (_, ours) = sys::rlimit(limit.resource)
            .map_err(|errno| LaunchError::prepare("reading own resource limits", errno))?;
        if hard > ours && own & CAP_SYS_RESOURCE == 0 {
            notes.push(format!(
                "resource limit {} was lowered from {hard} to {ours}: CAP_SYS_RESOURCE is missing",
                limit.resource
            ));
            hard = ours;
            soft = soft.min(ours);
        }
        limits.push((limit.resource, soft, hard));
    }
    Ok(limits)
}

/// Without CAP_SYS_RESOURCE the score can only be raised.
fn clamp_oom_score(
    wanted: Option<i32>,
    own: u64,
    notes: &mut Vec<String>,
) -> Prepare<Option<CString>> {
    let Some(mut score) = wanted else {
        return Ok(None);
    };
    if own & CAP_SYS_RESOURCE == 0 {
        let floor = std::fs::read_to_string("/proc/self/oom_score_adj")
            .ok()
            .and_then(|number| number.trim().parse().ok())
            .unwrap_or(0);
        if score < floor {
            notes.push(format!(
                "oom_score_adj was raised from {score} to {floor}: CAP_SYS_RESOURCE is missing"
            ));
            score = floor;
        }
    }
    text(&score.to_string()).map(Some)
}

/// Opens an executable of the host through a detached read-only mount. `path` may be no link.
///
/// # Errors
/// When the file cannot be opened.
pub fn readonly_file(path: &str) -> Result<OwnedFd, LaunchError> {
    let attempt = |errno| LaunchError::prepare(format!("opening {path:?} read-only"), errno);
    let flags = libc::O_PATH | libc::O_NOFOLLOW;
    let file = mounts::openat(mounts::cwd(), &text(path)?, flags, 0).map_err(attempt)?;
    through_readonly_mount(file.as_fd()).map_err(attempt)
}

/// Opens a file once more, on a mount of the file alone that is read-only and nowhere attached.
///
/// Whoever finds it under /proc/<pid>/exe gets it on that mount, so it cannot be opened for writing
/// again, and the mount is in nobody's namespace, so it cannot be remounted. It may be executed there
/// where the file's own mount forbids it, as Debian's /run does.
///
/// # Errors
/// The kernel's: among others, a mount that has been detached since cannot be copied.
pub fn through_readonly_mount(file: BorrowedFd<'_>) -> Sys<OwnedFd> {
    let tree = mounts::open_tree(file, c"", false)?;
    let change =
        |set, clear| mounts::set_attributes(tree.as_fd(), set, clear, libc::MS_PRIVATE, false);
    match change(mounts::ATTR_RDONLY, mounts::ATTR_NOEXEC) {
        // A user namespace takes mounts over as they are.
        Err(libc::EPERM) => change(mounts::ATTR_RDONLY, 0)?,
        changed => changed?,
    }
    let same = CString::new(format!("/proc/self/fd/{}", tree.as_raw_fd()));
    let same = same.map_err(|_| libc::EINVAL)?;
    mounts::openat(mounts::cwd(), &same, libc::O_RDONLY, 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn candidates_follow_path_and_skip_relative_directories() {
        let plan = ProcessPlan {
            args: vec!["sh".into()],
            env: vec!["PATH=/bin:.:/usr/bin/".into()],
            ..ProcessPlan::default()
        };
        let found = candidates(&plan).expect("has arguments");
        assert_eq!(found, [c"/bin/sh".to_owned(), c"/usr/bin/sh".to_owned()]);
    }

    #[test]
    fn capabilities_that_we_lack_are_left_out_and_noted() {
        let mut notes = Vec::new();
        let wanted = Capabilities {
            bounding: 0b111,
            ..Capabilities::default()
        };
        assert_eq!(
            clamp_capabilities(wanted, 0b101, &mut notes).bounding,
            0b101
        );
        assert_eq!(notes.len(), 1);
    }
}
