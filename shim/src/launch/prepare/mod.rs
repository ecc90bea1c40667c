// SPDX-License-Identifier: Apache-2.0
//! The parent's half: a plan becomes C strings and descriptors, so that the child need not allocate.

mod elsewhere;
mod idmap;
mod mounts;
mod overlay;
mod process;
mod rootfs;

use std::ffi::CString;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Duration;

use super::hooks::{HookPoint, Ready};
use super::report::LaunchError;
use crate::plan::{CgroupJoin, Hooks, LaunchPlan, Namespace, ProcessPlan};
use crate::sys;

pub(super) use mounts::{MountSource, PreparedMount};
pub(super) use process::Process;
pub use process::readonly_file;
pub(super) use rootfs::{PreparedDevice, Root, Target};

/// Everything that the child needs, in the kernel's own terms.
pub(super) struct Prepared {
    pub clone_flags: u64,
    pub unified: Option<OwnedFd>,
    pub v1: Vec<OwnedFd>,
    /// Namespaces that the child joins, with their kinds (one descriptor may stand for several).
    pub namespaces: Vec<(OwnedFd, i32)>,
    /// Joined by the parent around the clone.
    pub pid_namespace: Option<OwnedFd>,
    /// After the cgroups are joined, so that its root is the container's own cgroup.
    pub new_cgroup_namespace: bool,
    pub hostname: Option<CString>,
    pub domainname: Option<CString>,
    pub sysctls: Vec<(CString, CString)>,
    pub root: Option<Root>,
    pub process: Process,
    pub hooks: ChildHooks,
}

/// The hooks that the child runs, or waits for.
pub(super) struct ChildHooks {
    /// The parent has hooks to run before the root is changed.
    pub parent: bool,
    pub create_container: Ready,
    pub start_container: Ready,
}

impl ChildHooks {
    /// How long they may take; `None` when one has no deadline.
    pub(in crate::launch) fn budget(&self) -> Option<Duration> {
        Some(self.create_container.budget()? + self.start_container.budget()?)
    }

    fn new(hooks: &Hooks) -> Prepare<ChildHooks> {
        Ok(ChildHooks {
            parent: !(hooks.prestart.is_empty() && hooks.create_runtime.is_empty()),
            create_container: Ready::new(HookPoint::CreateContainer, hooks)?,
            start_container: Ready::new(HookPoint::StartContainer, hooks)?,
        })
    }
}

type Prepare<T> = Result<T, LaunchError>;

fn text(value: &str) -> Prepare<CString> {
    CString::new(value)
        .map_err(|_| LaunchError::prepare(format!("{value:?} has a null byte"), libc::EINVAL))
}

fn texts(values: &[String]) -> Prepare<Vec<CString>> {
    values.iter().map(|value| text(value)).collect()
}

fn open(path: &str, flags: i32) -> Prepare<OwnedFd> {
    sys::mounts::openat(sys::mounts::cwd(), text(path)?.as_c_str(), flags, 0)
        .map_err(|errno| LaunchError::prepare(format!("opening {path:?}"), errno))
}

pub(super) fn container(
    plan: &LaunchPlan,
    sandbox: Option<BorrowedFd<'_>>,
) -> Prepare<(Prepared, Vec<String>)> {
    let (process, notes) = process::process(&plan.process)?;
    let (unified, v1) = cgroups(&plan.cgroup)?;
    let spaces = &plan.namespaces;
    let mut prepared = Prepared {
        clone_flags: libc::CLONE_NEWNS as u64,
        unified,
        v1,
        namespaces: Vec::new(),
        pid_namespace: None,
        new_cgroup_namespace: spaces.cgroup == Namespace::New,
        hostname: plan.hostname.as_deref().map(text).transpose()?,
        domainname: plan.domainname.as_deref().map(text).transpose()?,
        sysctls: sysctls(&plan.sysctls)?,
        root: Some(rootfs::root(plan, sandbox)?),
        process,
        hooks: ChildHooks::new(&plan.hooks)?,
    };
    for (space, kind) in [
        (&spaces.net, libc::CLONE_NEWNET),
        (&spaces.ipc, libc::CLONE_NEWIPC),
        (&spaces.uts, libc::CLONE_NEWUTS),
    ] {
        match space {
            Namespace::Host => {}
            Namespace::New => prepared.clone_flags |= kind as u64,
            Namespace::Join(path) => prepared
                .namespaces
                .push((open(path, libc::O_RDONLY)?, kind)),
        }
    }
    match &spaces.pid {
        Namespace::Host => {}
        Namespace::New => prepared.clone_flags |= libc::CLONE_NEWPID as u64,
        Namespace::Join(path) => prepared.pid_namespace = Some(open(path, libc::O_RDONLY)?),
    }
    if let Namespace::Join(path) = &spaces.cgroup {
        let file = open(path, libc::O_RDONLY)?;
        prepared.namespaces.push((file, libc::CLONE_NEWCGROUP));
    }
    Ok((prepared, notes))
}

pub(super) fn exec(
    target: BorrowedFd<'_>,
    cgroup: &CgroupJoin,
    plan: &ProcessPlan,
) -> Prepare<(Prepared, Vec<String>)> {
    let (process, notes) = process::process(plan)?;
    let (unified, v1) = cgroups(cgroup)?;
    let copy = || {
        sys::dup_above_stdio(target)
            .map_err(|errno| LaunchError::prepare("copying the container's descriptor", errno))
    };
    let all = libc::CLONE_NEWNS
        | libc::CLONE_NEWNET
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWUTS
        | libc::CLONE_NEWCGROUP;
    let prepared = Prepared {
        clone_flags: 0,
        unified,
        v1,
        namespaces: vec![(copy()?, all)],
        pid_namespace: Some(copy()?),
        new_cgroup_namespace: false,
        hostname: None,
        domainname: None,
        sysctls: Vec::new(),
        root: None,
        process,
        hooks: ChildHooks::new(&Hooks::default())?,
    };
    Ok((prepared, notes))
}

fn cgroups(join: &CgroupJoin) -> Prepare<(Option<OwnedFd>, Vec<OwnedFd>)> {
    let unified = join
        .unified
        .as_deref()
        .map(|dir| open(dir, libc::O_DIRECTORY | libc::O_RDONLY))
        .transpose()?;
    let v1 = join
        .v1
        .iter()
        .map(|dir| open(&format!("{dir}/cgroup.procs"), libc::O_WRONLY))
        .collect::<Prepare<_>>()?;
    Ok((unified, v1))
}

fn sysctls(list: &[(String, String)]) -> Prepare<Vec<(CString, CString)>> {
    list.iter()
        .map(|(path, value)| Ok((text(&format!("/proc/sys/{path}"))?, text(value)?)))
        .collect()
}
