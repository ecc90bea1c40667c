// SPDX-License-Identifier: Apache-2.0
//! How a child tells its parent what failed: three numbers, which become words here.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::hooks::{self, HookPoint};
use crate::plan::{Hook, Hooks, LaunchPlan, MountKind, ProcessPlan};
use crate::sys::Errno;

/// What the child was doing. The index that goes with it counts within the plan's list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[repr(u32)]
pub enum Step {
    Ready,
    Channel,
    Prepare,
    Clone,
    /// Not a failure: the index is the pid of the process that takes this one's place.
    Replaced,
    JoinCgroup,
    JoinNamespace,
    UserNamespace,
    TimeNamespace,
    OomScore,
    Hostname,
    Domainname,
    Sysctl,
    Propagation,
    RootFs,
    MountTarget,
    OrdinaryDirectory,
    MountOverRoot,
    MountOverProc,
    MountInProc,
    Mount,
    Device,
    Symlink,
    Terminal,
    MaskedPath,
    ReadonlyPath,
    Pivot,
    Stdio,
    Session,
    Rlimit,
    Cwd,
    Groups,
    User,
    Capabilities,
    NoNewPrivileges,
    Seccomp,
    Lookup,
    Gate,
    Exec,
    Keyring,
    /// Everything is mounted: the parent runs its hooks, then lets the child go on.
    Hooks,
    CreateContainerHook,
    StartContainerHook,
    Affinity,
    Scheduler,
    IoPriority,
    Personality,
    MemoryPolicy,
    Label,
    /// Not a failure: the index is the number of the child's notify descriptor.
    Listener,
    MountNamespace,
    /// Not a failure: the parent id-maps the mount that comes with it, by the user namespace beside it,
    /// then lets the child go on. The number says whether mounts below are mapped too.
    Idmap,
}

const STEPS: &[Step] = &[
    Step::Ready,
    Step::Channel,
    Step::Prepare,
    Step::Clone,
    Step::Replaced,
    Step::JoinCgroup,
    Step::JoinNamespace,
    Step::UserNamespace,
    Step::TimeNamespace,
    Step::OomScore,
    Step::Hostname,
    Step::Domainname,
    Step::Sysctl,
    Step::Propagation,
    Step::RootFs,
    Step::MountTarget,
    Step::OrdinaryDirectory,
    Step::MountOverRoot,
    Step::MountOverProc,
    Step::MountInProc,
    Step::Mount,
    Step::Device,
    Step::Symlink,
    Step::Terminal,
    Step::MaskedPath,
    Step::ReadonlyPath,
    Step::Pivot,
    Step::Stdio,
    Step::Session,
    Step::Rlimit,
    Step::Cwd,
    Step::Groups,
    Step::User,
    Step::Capabilities,
    Step::NoNewPrivileges,
    Step::Seccomp,
    Step::Lookup,
    Step::Gate,
    Step::Exec,
    Step::Keyring,
    Step::Hooks,
    Step::CreateContainerHook,
    Step::StartContainerHook,
    Step::Affinity,
    Step::Scheduler,
    Step::IoPriority,
    Step::Personality,
    Step::MemoryPolicy,
    Step::Label,
    Step::Listener,
    Step::MountNamespace,
    Step::Idmap,
];

const REPORT_SIZE: usize = 12;
/// A report, and what a hook printed.
pub(crate) const REPORT_MAX: usize = REPORT_SIZE + hooks::OUTPUT_MAX;

/// What a child says when nothing failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heard {
    /// The parent has done its part (hooks, id-mapped mounts), and it goes on.
    Helped,
    /// It is set up, and waits at its gate.
    Ready,
    /// It has closed the channel: by exec, or by dying.
    Closed,
}

/// Encodes a report without allocation.
pub(crate) fn encode(step: Step, index: usize, errno: Errno) -> [u8; REPORT_SIZE] {
    let mut bytes = [0; REPORT_SIZE];
    let words = [step as u32, index as u32, errno as u32];
    for (slot, byte) in bytes
        .iter_mut()
        .zip(words.into_iter().flat_map(u32::to_ne_bytes))
    {
        *slot = byte;
    }
    bytes
}

/// Step, index, errno, and what a hook printed.
pub(crate) type Report<'a> = (Step, usize, Errno, &'a [u8]);

pub(crate) fn decode(bytes: &[u8]) -> Option<Report<'_>> {
    let word = |at: usize| {
        let bytes = bytes.get(at..at + 4)?;
        Some(u32::from_ne_bytes(bytes.try_into().ok()?))
    };
    let step = *STEPS.get(word(0)? as usize)?;
    let output = bytes.get(REPORT_SIZE..)?;
    Some((step, word(4)? as usize, word(8)? as Errno, output))
}

/// Who can mend it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Blame {
    /// The executable does not exist in the container (exit code 127 in runc's terms).
    NotFound,
    /// The executable may not be executed (126).
    NotExecutable,
    /// Anything else.
    System,
}

/// Why a process could not be started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaunchError {
    pub step: Step,
    pub errno: Errno,
    pub blame: Blame,
    /// What was attempted, on what, and the system's reason. Wording follows runc's where tools
    /// look for it (`executable file not found in $PATH`).
    pub message: String,
}

impl fmt::Display for LaunchError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.message)
    }
}

impl std::error::Error for LaunchError {}

impl LaunchError {
    /// A failure of the parent's own preparation.
    pub(crate) fn prepare(what: impl fmt::Display, errno: Errno) -> LaunchError {
        LaunchError {
            step: Step::Prepare,
            errno,
            blame: Blame::System,
            message: plain(&format!("{what}: {}", reason(errno))),
        }
    }
}

/// Text for a log or a terminal: control characters, which could forge lines or drive the terminal
/// of whoever reads them, are spelled out. Names in a spec or an image may hold any.
pub fn plain(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        match character.is_control() {
            true => out.extend(character.escape_default()),
            false => out.push(character),
        }
    }
    out
}

/// The system's words for an errno, without Rust's suffix.
pub fn reason(errno: Errno) -> String {
    let text = std::io::Error::from_raw_os_error(errno).to_string();
    let text = text.split(" (os error").next().unwrap_or(&text);
    text.to_lowercase()
}

/// The parts of a plan that error messages quote.
#[derive(Debug)]
pub(crate) struct Words {
    program: String,
    cwd: String,
    label: Option<String>,
    mounts: Vec<String>,
    devices: Vec<String>,
    masked: Vec<String>,
    readonly: Vec<String>,
    sysctls: Vec<String>,
    create_container: Vec<String>,
    start_container: Vec<String>,
}

fn hook_paths(hooks: &[Hook]) -> Vec<String> {
    hooks.iter().map(|hook| hook.path.clone()).collect()
}

impl Words {
    pub(crate) fn of_process(process: &ProcessPlan) -> Words {
        Words {
            program: process.args.first().cloned().unwrap_or_default(),
            cwd: process.cwd.clone(),
            label: process
                .apparmor_profile
                .clone()
                .or_else(|| process.selinux_label.clone()),
            mounts: Vec::new(),
            devices: Vec::new(),
            masked: Vec::new(),
            readonly: Vec::new(),
            sysctls: Vec::new(),
            create_container: Vec::new(),
            start_container: Vec::new(),
        }
    }

    /// For what can still fail once a container is started.
    pub(crate) fn of_start(program: String, hooks: &Hooks) -> Words {
        let process = ProcessPlan {
            args: vec![program],
            ..ProcessPlan::default()
        };
        Words {
            start_container: hook_paths(&hooks.start_container),
            ..Words::of_process(&process)
        }
    }

    pub(crate) fn of_plan(plan: &LaunchPlan) -> Words {
        let describe = |mount: &crate::plan::Mount| match &mount.kind {
            MountKind::Bind { source, .. }
            | MountKind::OwnBind { source, .. }
            | MountKind::SandboxBind { source } => {
                format!("{source:?} to rootfs at {:?}", mount.destination)
            }
            MountKind::Remount => format!("again what is at {:?}", mount.destination),
            MountKind::Filesystem { fstype, .. } => {
                format!("{fstype:?} to rootfs at {:?}", mount.destination)
            }
            MountKind::Layers { .. } => format!("layers to rootfs at {:?}", mount.destination),
        };
        Words {
            mounts: plan.mounts.iter().map(describe).collect(),
            devices: plan.devices.iter().map(|d| d.path.clone()).collect(),
            masked: plan.masked_paths.clone(),
            readonly: plan.readonly_paths.clone(),
            sysctls: plan.sysctls.iter().map(|(key, _)| key.clone()).collect(),
            create_container: hook_paths(&plan.hooks.create_container),
            start_container: hook_paths(&plan.hooks.start_container),
            ..Words::of_process(&plan.process)
        }
    }

    /// What a child's report says; `output` is what a hook printed.
    pub(crate) fn reported(
        &self,
        step: Step,
        index: usize,
        number: i32,
        output: &[u8],
    ) -> LaunchError {
        let (point, paths) = match step {
            Step::CreateContainerHook => (HookPoint::CreateContainer, &self.create_container),
            Step::StartContainerHook => (HookPoint::StartContainer, &self.start_container),
            _ => return self.error(step, index, number),
        };
        let path = paths.get(index).map(String::as_str);
        hooks::error(point, index, path, hooks::Cause::decode(number), output)
    }

    pub(crate) fn error(&self, step: Step, index: usize, errno: Errno) -> LaunchError {
        let (blame, message) = match step {
            Step::Lookup => self.executable(errno),
            // A script's interpreter may be what is missing, so the words are runc's other ones.
            Step::Exec => {
                let (blame, _) = self.executable(errno);
                (blame, format!("exec {}: {}", self.program, reason(errno)))
            }
            _ => (
                Blame::System,
                format!("{}: {}", self.attempt(step, index), reason(errno)),
            ),
        };
        LaunchError {
            step,
            errno,
            blame,
            message: plain(&message),
        }
    }

    fn executable(&self, errno: Errno) -> (Blame, String) {
        let program = &self.program;
        match errno {
            libc::ENOENT if !program.contains('/') => (
                Blame::NotFound,
                format!("exec: {program:?}: executable file not found in $PATH"),
            ),
            libc::ENOENT | libc::ENOTDIR => (
                Blame::NotFound,
                format!("exec: {program:?}: stat {program}: {}", reason(errno)),
            ),
            libc::EACCES | libc::ENOEXEC | libc::EPERM => (
                Blame::NotExecutable,
                format!("exec: {program:?}: {}", reason(errno)),
            ),
            _ => (
                Blame::System,
                format!("exec: {program:?}: {}", reason(errno)),
            ),
        }
    }

    fn attempt(&self, step: Step, index: usize) -> String {
        let named = |list: &[String]| list.get(index).cloned().unwrap_or_default();
        match step {
            Step::Channel | Step::Ready => "talking to the new process".into(),
            Step::Prepare => "preparing the launch".into(),
            Step::Clone | Step::Replaced => "creating the process".into(),
            Step::JoinCgroup => "joining the cgroup".into(),
            Step::JoinNamespace => "joining a namespace".into(),
            Step::UserNamespace => "entering the user namespace".into(),
            Step::MountNamespace => "joining the mount namespace".into(),
            Step::Idmap => "id-mapping a mount".into(),
            Step::TimeNamespace => "setting up the time namespace".into(),
            Step::OomScore => "setting oom_score_adj".into(),
            Step::Hostname => "setting the host name".into(),
            Step::Domainname => "setting the domain name".into(),
            Step::Sysctl => format!("writing sysctl {}", named(&self.sysctls)),
            Step::Propagation => "setting mount propagation".into(),
            Step::RootFs => "mounting the root filesystem".into(),
            Step::MountTarget => format!("creating the mount point: {}", named(&self.mounts)),
            Step::OrdinaryDirectory => format!(
                "error mounting {}: filesystem must be mounted on ordinary directory",
                named(&self.mounts)
            ),
            Step::MountOverRoot => format!(
                "error mounting {}: the mount point is on the top of rootfs",
                named(&self.mounts)
            ),
            Step::MountOverProc => format!(
                "error mounting {}: it cannot be mounted on /proc because it is not of type proc",
                named(&self.mounts)
            ),
            Step::MountInProc => format!(
                "error mounting {}: it cannot be mounted because it is inside /proc",
                named(&self.mounts)
            ),
            Step::Mount => format!("error mounting {}", named(&self.mounts)),
            Step::Device => format!("creating device node {}", named(&self.devices)),
            Step::Symlink => "creating symbolic links".into(),
            Step::Terminal => "opening a terminal".into(),
            Step::MaskedPath => format!("masking {}", named(&self.masked)),
            Step::ReadonlyPath => format!("making {} read-only", named(&self.readonly)),
            Step::Pivot => "changing the root".into(),
            Step::Stdio => "setting up standard streams".into(),
            Step::Session => "starting a session".into(),
            Step::Rlimit => "setting a resource limit".into(),
            Step::Cwd => format!("chdir to cwd ({:?})", self.cwd),
            Step::Groups => "setting groups".into(),
            Step::User => "setting the user".into(),
            Step::Capabilities => "setting capabilities".into(),
            Step::NoNewPrivileges => "setting no_new_privs".into(),
            Step::Affinity => "process.execCPUAffinity: setting the processors".into(),
            Step::Scheduler => "process.scheduler: setting the scheduling policy".into(),
            Step::IoPriority => "process.ioPriority: setting the priority".into(),
            Step::Personality => "linux.personality: setting the domain".into(),
            Step::MemoryPolicy => "linux.memoryPolicy: setting the policy".into(),
            Step::Label => match &self.label {
                Some(label) => format!("applying the security label {label:?}"),
                None => "applying the security label".into(),
            },
            Step::Listener => "linux.seccomp: handing the notify descriptor over".into(),
            Step::Seccomp => "loading the seccomp filter".into(),
            Step::Gate => "waiting for start".into(),
            Step::Keyring => "joining a session keyring".into(),
            Step::Hooks | Step::CreateContainerHook | Step::StartContainerHook => {
                "running hooks".into()
            }
            Step::Lookup | Step::Exec => format!("exec {:?}", self.program),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_step_survives_the_channel() {
        for (number, step) in STEPS.iter().copied().enumerate() {
            assert_eq!(step as usize, number, "STEPS is in declaration order");
            let report = encode(step, 7, libc::ENOENT);
            let heard = decode(&report);
            assert_eq!(heard, Some((step, 7, libc::ENOENT, &b""[..])));
        }
    }

    #[test]
    fn a_missing_program_is_reported_in_the_words_that_tools_look_for() {
        let words = Words::of_process(&ProcessPlan {
            args: vec!["nosuch".into()],
            ..ProcessPlan::default()
        });
        let error = words.error(Step::Lookup, 0, libc::ENOENT);
        assert_eq!(error.blame, Blame::NotFound);
        assert_eq!(
            error.message,
            "exec: \"nosuch\": executable file not found in $PATH"
        );
    }

    #[test]
    fn messages_hold_no_control_characters() {
        let words = Words::of_process(&ProcessPlan {
            args: vec!["/\u{1b}[2J\nforged".into()],
            ..ProcessPlan::default()
        });
        let error = words.error(Step::Lookup, 0, libc::ENOENT);
        assert_eq!(
            error.message,
            "exec: \"/\\u{1b}[2J\\nforged\": stat /\\u{1b}[2J\\nforged: no such file or directory"
        );
    }
}
