// SPDX-License-Identifier: Apache-2.0
//! The `process` part of a spec.

use oci_spec::runtime::{Capabilities, PosixRlimit, PosixRlimitType, Process, Spec};
use shim::plan::{self, Executable, ProcessPlan, Rlimit, Seccomp, User};

use super::compile::{CompileError, invalid, refuse};
use super::{capability, hooks, namespaces, scheduling, users};

/// Compiles a process to be executed in a container: what the container's spec says of all its
/// processes holds for it too. `id` and `bundle` are what a seccomp agent is told.
///
/// # Errors
/// Names the first field that is unsupported or invalid.
pub fn compile_exec(
    spec: &Spec,
    process: &Process,
    seccomp: Option<Seccomp>,
    id: &str,
    bundle: &str,
) -> Result<ProcessPlan, CompileError> {
    let mut plan = compile_process(process, seccomp)?;
    of_all_processes(spec, &mut plan, id, bundle)?;
    if let Some(linux) = spec.linux() {
        users::check_user(&namespaces::namespaces(linux, true)?.user, &plan.user)?;
    }
    if let Some(affinity) = process.exec_cpu_affinity() {
        plan.exec_affinity = scheduling::exec_affinity(affinity)?;
    }
    Ok(plan)
}

/// The name of a container's session keyring: one of its own, which its execs find by this name.
pub fn session_keyring(id: &str) -> String {
    format!("_ses.{id}")
}

/// What a spec says of a container's processes outside of `process`.
pub(super) fn of_all_processes(
    spec: &Spec,
    plan: &mut ProcessPlan,
    id: &str,
    bundle: &str,
) -> Result<(), CompileError> {
    if let Some(linux) = spec.linux() {
        let personality = linux.personality().as_ref();
        plan.personality = personality.map(scheduling::personality).transpose()?;
        let memory = linux.memory_policy().as_ref();
        plan.memory_policy = memory.map(scheduling::memory_policy).transpose()?;
    }
    introduce(spec, plan, id, bundle);
    Ok(())
}

/// Says what a seccomp agent is told of the container.
pub fn introduce(spec: &Spec, plan: &mut ProcessPlan, id: &str, bundle: &str) {
    let filter = plan.seccomp.as_mut();
    if let Some(listener) = filter.and_then(|filter| filter.listener.as_mut()) {
        listener.state = hooks::state(spec, id, bundle);
    }
}

/// Compiles one process, of a container or for exec.
///
/// # Errors
/// Names the first field that is unsupported or invalid.
pub fn compile_process(
    process: &Process,
    seccomp: Option<Seccomp>,
) -> Result<ProcessPlan, CompileError> {
    refuse_parts(process)?;
    let args = process.args().clone().unwrap_or_default();
    if args.first().is_none_or(String::is_empty) {
        return Err(invalid("process.args", "it is empty"));
    }
    let cwd = process.cwd().to_string_lossy().into_owned();
    if !cwd.starts_with('/') {
        return Err(invalid("process.cwd", format!("{cwd:?} is not absolute")));
    }
    let user = process.user();
    Ok(ProcessPlan {
        executable: Executable::Args,
        args,
        env: environment(process),
        cwd,
        user: User {
            uid: user.uid(),
            gid: user.gid(),
            additional_gids: user.additional_gids().clone().unwrap_or_default(),
            umask: user.umask(),
        },
        capabilities: capabilities(process)?,
        rlimits: rlimits(process.rlimits().as_deref().unwrap_or_default())?,
        no_new_privileges: process.no_new_privileges().unwrap_or(false),
        seccomp,
        apparmor_profile: label(process.apparmor_profile())
            .filter(|profile| profile != "unconfined"),
        selinux_label: label(process.selinux_label()),
        scheduler: process
            .scheduler()
            .as_ref()
            .map(scheduling::scheduler)
            .transpose()?,
        io_priority: process
            .io_priority()
            .as_ref()
            .map(scheduling::io_priority)
            .transpose()?,
        // The container's own process gets neither of them, nor what the rest of its spec says.
        exec_affinity: plan::ExecAffinity::default(),
        personality: None,
        memory_policy: None,
        oom_score_adj: oom_score(process)?,
        terminal: process.terminal().unwrap_or(false),
        console_size: console_size(process)?,
        session_keyring: None,
        preserved_fds: 0,
        external: None,
    })
}

fn oom_score(process: &Process) -> Result<Option<i32>, CompileError> {
    /// The kernel's (proc_pid_oom_score_adj(5)).
    const RANGE: std::ops::RangeInclusive<i32> = -1000..=1000;
    match process.oom_score_adj() {
        Some(score) if !RANGE.contains(&score) => {
            let reason = format!("{score} is not between -1000 and 1000");
            Err(invalid("process.oomScoreAdj", reason))
        }
        score => Ok(score),
    }
}

/// As with runc, the last of several entries for a variable counts, and an empty HOME is none.
fn environment(process: &Process) -> Vec<String> {
    let mut seen = std::collections::BTreeSet::new();
    let name = |entry: &str| entry.split('=').next().unwrap_or_default().to_owned();
    let mut env: Vec<String> = process.env().iter().flatten().cloned().collect();
    env.reverse();
    env.retain(|entry| seen.insert(name(entry)) && entry != "HOME=");
    env.reverse();
    env
}

fn refuse_parts(process: &Process) -> Result<(), CompileError> {
    refuse("process.commandLine", process.command_line().is_some())?;
    refuse("process.user.username", process.user().username().is_some())
}

fn label(label: &Option<String>) -> Option<String> {
    label.clone().filter(|label| !label.is_empty())
}

fn console_size(process: &Process) -> Result<Option<(u16, u16)>, CompileError> {
    let Some(size) = process.console_size() else {
        return Ok(None);
    };
    let number = |value: u64| {
        u16::try_from(value).map_err(|_| invalid("process.consoleSize", "it is above 65535"))
    };
    Ok(Some((number(size.width())?, number(size.height())?)))
}

fn capabilities(process: &Process) -> Result<plan::Capabilities, CompileError> {
    let Some(sets) = process.capabilities() else {
        return Ok(plan::Capabilities::default());
    };
    let mask = |set: &Option<Capabilities>| {
        set.iter().flatten().try_fold(0, |mask, name| {
            let name = name.to_string();
            let unknown = || invalid("process.capabilities", format!("{name} is unknown"));
            Ok(mask | capability::bit(&name).ok_or_else(unknown)?)
        })
    };
    let sets = plan::Capabilities {
        bounding: mask(sets.bounding())?,
        effective: mask(sets.effective())?,
        permitted: mask(sets.permitted())?,
        inheritable: mask(sets.inheritable())?,
        ambient: mask(sets.ambient())?,
    };
    if sets.effective & !sets.permitted != 0 {
        let reason = "it grants more than process.capabilities.permitted";
        return Err(invalid("process.capabilities.effective", reason));
    }
    Ok(sets)
}

/// Leaves out the ambient capabilities that the kernel would refuse, as runc does and in its words.
pub(crate) fn keep_possible_ambient(plan: &mut ProcessPlan, notes: &mut Vec<String>) {
    let sets = &mut plan.capabilities;
    let possible = sets.permitted & sets.inheritable;
    for name in capability::names(sets.ambient & !possible) {
        let reason = "it is not both permitted and inheritable";
        notes.push(format!("can't raise ambient capability {name}: {reason}"));
    }
    sets.ambient &= possible;
}

fn rlimits(list: &[PosixRlimit]) -> Result<Vec<Rlimit>, CompileError> {
    let mut limits: Vec<Rlimit> = Vec::with_capacity(list.len());
    for limit in list {
        let resource = rlimit_number(limit.typ());
        let field = || format!("process.rlimits[{}]", limit.typ());
        if limits.iter().any(|other| other.resource == resource) {
            return Err(invalid(field(), "it is there twice"));
        }
        if limit.soft() > limit.hard() {
            return Err(invalid(field(), "soft is above hard"));
        }
        limits.push(Rlimit {
            resource,
            soft: limit.soft(),
            hard: limit.hard(),
        });
    }
    Ok(limits)
}

fn rlimit_number(kind: PosixRlimitType) -> u32 {
    match kind {
        PosixRlimitType::RlimitCpu => libc::RLIMIT_CPU,
        PosixRlimitType::RlimitFsize => libc::RLIMIT_FSIZE,
        PosixRlimitType::RlimitData => libc::RLIMIT_DATA,
        PosixRlimitType::RlimitStack => libc::RLIMIT_STACK,
        PosixRlimitType::RlimitCore => libc::RLIMIT_CORE,
        PosixRlimitType::RlimitRss => libc::RLIMIT_RSS,
        PosixRlimitType::RlimitNproc => libc::RLIMIT_NPROC,
        PosixRlimitType::RlimitNofile => libc::RLIMIT_NOFILE,
        PosixRlimitType::RlimitMemlock => libc::RLIMIT_MEMLOCK,
        PosixRlimitType::RlimitAs => libc::RLIMIT_AS,
        PosixRlimitType::RlimitLocks => libc::RLIMIT_LOCKS,
        PosixRlimitType::RlimitSigpending => libc::RLIMIT_SIGPENDING,
        PosixRlimitType::RlimitMsgqueue => libc::RLIMIT_MSGQUEUE,
        PosixRlimitType::RlimitNice => libc::RLIMIT_NICE,
        PosixRlimitType::RlimitRtprio => libc::RLIMIT_RTPRIO,
        PosixRlimitType::RlimitRttime => libc::RLIMIT_RTTIME,
    }
}
