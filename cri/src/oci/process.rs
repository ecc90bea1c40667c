// SPDX-License-Identifier: Apache-2.0
//! The `process` part of a spec.

use oci_spec::runtime::{Capabilities, PosixRlimit, PosixRlimitType, Process};
use shim::plan::{self, Executable, ProcessPlan, Rlimit, User};

use super::capability;
use super::compile::{CompileError, invalid, refuse, unsupported};

/// Compiles one process, of a container or for exec.
///
/// # Errors
/// Names the first field that is unsupported or invalid.
pub fn compile_process(
    process: &Process,
    seccomp: Option<Vec<u8>>,
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
        env: process.env().clone().unwrap_or_default(),
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
        oom_score_adj: process.oom_score_adj(),
        terminal: process.terminal().unwrap_or(false),
        console_size: console_size(process)?,
        session_keyring: None,
        preserved_fds: 0,
    })
}

fn refuse_parts(process: &Process) -> Result<(), CompileError> {
    if let Some(profile) = process.apparmor_profile()
        && !matches!(profile.as_str(), "" | "unconfined")
    {
        let reason = format!("this runtime cannot apply AppArmor profile {profile:?}");
        return Err(unsupported("process.apparmorProfile", reason));
    }
    let label = process.selinux_label().as_deref();
    refuse(
        "process.selinuxLabel",
        label.is_some_and(|label| !label.is_empty()),
    )?;
    refuse("process.commandLine", process.command_line().is_some())?;
    refuse("process.ioPriority", process.io_priority().is_some())?;
    refuse("process.scheduler", process.scheduler().is_some())?;
    let affinity = process.exec_cpu_affinity().is_some();
    refuse("process.execCPUAffinity", affinity)?;
    refuse("process.user.username", process.user().username().is_some())
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
    if sets.ambient & !(sets.permitted & sets.inheritable) != 0 {
        let reason = "it grants more than permitted and inheritable";
        return Err(invalid("process.capabilities.ambient", reason));
    }
    Ok(sets)
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
