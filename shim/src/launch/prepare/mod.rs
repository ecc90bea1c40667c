// SPDX-License-Identifier: Apache-2.0
//! The parent's half: a plan becomes C strings and descriptors, so that the child need not allocate.

mod elsewhere;
mod idmap;
mod labels;
mod mounts;
mod namespaces;
mod overlay;
mod process;
mod rootfs;
mod users;

use std::ffi::CString;
use std::os::fd::{BorrowedFd, OwnedFd};

use super::hooks::{HookPoint, Ready};
use super::report::LaunchError;
use crate::plan::{CgroupJoin, External, Hooks, IdMapping, IdMappings, LaunchPlan, ProcessPlan};
use crate::sys;

pub(super) use mounts::{MountSource, NewFilesystem, OwnBind, PreparedMount};
pub(super) use namespaces::Spaces;
pub(super) use namespaces::pid_of;
pub(super) use process::Process;
pub use process::{readonly_file, through_readonly_mount};
pub(super) use rootfs::{PreparedDevice, Root};
pub use users::{new_network_namespace, new_user_namespace};

/// Everything that the child needs, in the kernel's own terms.
pub(super) struct Prepared {
    pub unified: Option<OwnedFd>,
    pub v1: Vec<OwnedFd>,
    pub spaces: Spaces,
    /// The host's id of the process's user, to whom its streams are given.
    pub stream_owner: u32,
    pub hostname: Option<CString>,
    pub domainname: Option<CString>,
    pub sysctls: Vec<Sysctl>,
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
    fn new(hooks: &Hooks) -> Prepare<ChildHooks> {
        Ok(ChildHooks {
            parent: !(hooks.prestart.is_empty() && hooks.create_runtime.is_empty()),
            create_container: Ready::new(HookPoint::CreateContainer, hooks)?,
            start_container: Ready::new(HookPoint::StartContainer, hooks)?,
        })
    }
}

/// A kernel parameter.
pub(super) struct Sysctl {
    pub path: CString,
    pub value: CString,
    pub written: bool,
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
    let spaces = namespaces::of_container(&plan.namespaces)?;
    let (process, notes) = process::process(&plan.process, spaces.user.is_some())?;
    let (unified, v1) = cgroups(&plan.cgroup)?;
    let prepared = Prepared {
        unified,
        v1,
        hostname: plan.hostname.as_deref().map(text).transpose()?,
        domainname: plan.domainname.as_deref().map(text).transpose()?,
        sysctls: sysctls(&plan.sysctls)?,
        root: Some(rootfs::root(plan, &spaces, sandbox)?),
        stream_owner: host_user(&spaces, &plan.process)?,
        spaces,
        process,
        hooks: ChildHooks::new(&plan.hooks)?,
    };
    Ok((prepared, notes))
}

/// What another runtime finds mounted in its place: (detached mount, path of the host).
pub(super) fn external(
    plan: &LaunchPlan,
    runtime: &External,
    sandbox: Option<BorrowedFd<'_>>,
) -> Prepare<Vec<(OwnedFd, CString)>> {
    let place = runtime.place.as_deref().unwrap_or(&runtime.bundle);
    let at = |name: &str| text(&format!("{place}{}", crate::plan::path_in_root(name)));
    let mut idmaps = idmap::Idmaps::default();
    let mut all = Vec::new();
    if let Some(root) = rootfs::external_root(plan, &mut idmaps)? {
        all.push((root, at("rootfs")?));
    }
    for mount in &plan.mounts {
        let tree = mounts::detached(mount, plan, sandbox, &mut idmaps)?;
        all.push((tree, at(&mount.destination)?));
    }
    Ok(all)
}

/// The host's user and group of the root of a container with ids of its own, whose runtime is another.
pub(super) fn external_owner(plan: &LaunchPlan) -> Option<(u32, u32)> {
    plan.rootfs_idmap.as_ref().and_then(root_of)
}

/// As [`external_owner`], of a container that runs.
pub(super) fn owner_of(pid: u32) -> Prepare<Option<(u32, u32)>> {
    let users = users::users_of(pid)?;
    Ok(users.and_then(|users| root_of(&users.ids)))
}

fn root_of(ids: &IdMappings) -> Option<(u32, u32)> {
    let host = |map| IdMapping::host_id(map, 0);
    Some((host(&ids.uid)?, host(&ids.gid)?))
}

pub(super) fn exec(
    target: BorrowedFd<'_>,
    cgroup: &CgroupJoin,
    plan: &ProcessPlan,
) -> Prepare<(Prepared, Vec<String>)> {
    let spaces = namespaces::of_process(target)?;
    let (mut process, notes) = process::process(plan, spaces.user.is_some())?;
    process.affinity = plan.exec_affinity.clone();
    let (unified, v1) = cgroups(cgroup)?;
    let prepared = Prepared {
        unified,
        v1,
        hostname: None,
        domainname: None,
        sysctls: Vec::new(),
        root: None,
        stream_owner: host_user(&spaces, plan)?,
        spaces,
        process,
        hooks: ChildHooks::new(&Hooks::default())?,
    };
    Ok((prepared, notes))
}

fn host_user(spaces: &Spaces, process: &ProcessPlan) -> Prepare<u32> {
    let uid = process.user.uid;
    let Some(users) = &spaces.user else {
        return Ok(uid);
    };
    IdMapping::host_id(&users.ids.uid, uid).ok_or_else(|| {
        let what = format!("user id {uid} does not exist in the container's user namespace");
        LaunchError::prepare(what, libc::EINVAL)
    })
}

/// A v1 cgroup is joined through `tasks`: the child has one thread, and moving one thread that is the
/// writer itself takes no lock of the whole system. `cgroup.procs` takes one, and waits for an RCU
/// grace period, 7 to 20 ms, whenever nobody has for a moment.
fn cgroups(join: &CgroupJoin) -> Prepare<(Option<OwnedFd>, Vec<OwnedFd>)> {
    let unified = join
        .unified
        .as_deref()
        .map(|dir| open(dir, libc::O_DIRECTORY | libc::O_RDONLY))
        .transpose()?;
    let member_file = |dir: &String| match open(&format!("{dir}/tasks"), libc::O_WRONLY) {
        Err(error) if error.errno == libc::ENOENT => {
            open(&format!("{dir}/cgroup.procs"), libc::O_WRONLY)
        }
        other => other,
    };
    let v1 = join.v1.iter().map(member_file).collect::<Prepare<_>>()?;
    Ok((unified, v1))
}

fn sysctls(list: &[(String, String)]) -> Prepare<Vec<Sysctl>> {
    list.iter()
        .map(|(path, value)| {
            Ok(Sysctl {
                path: text(&format!("/proc/sys/{path}"))?,
                value: text(value)?,
                written: false,
            })
        })
        .collect()
}
