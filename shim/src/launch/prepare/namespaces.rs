// SPDX-License-Identifier: Apache-2.0
//! Namespace files, and which namespaces a process makes, joins and shares.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use super::users::{self, Users, same_file};
use super::{Prepare, text};
use crate::launch::report::{self, LaunchError};
use crate::plan::{Clock, Namespace, Namespaces, TimeOffset};
use crate::sys::namespaces::CLONE_NEWTIME;
use crate::sys::{self, mounts};

/// What the child does about its namespaces.
pub(in crate::launch) struct Spaces {
    /// CLONE_NEW* of the ones that are made.
    pub new: u64,
    /// Joined in this order, with their kinds (one descriptor may stand for several).
    pub join: Vec<(OwnedFd, i32)>,
    /// Joined by the process that makes the container's, for its children.
    pub pid: Option<OwnedFd>,
    /// Joined when the root is set up, in place of a new one: until then, paths are the host's.
    pub mount: Option<OwnedFd>,
    /// Joined after all others, because the privileges over those end there.
    pub user: Option<Users>,
    /// The new time namespace's offsets, in the kernel's form; none when there is no new one.
    pub time: Option<Vec<u8>>,
    /// After the cgroups are joined, so that its root is the container's own cgroup.
    pub new_cgroup: bool,
}

impl Spaces {
    /// Whether the container's process is made by one that enters these namespaces first: what is
    /// to belong to a user namespace is made in it, and only children get a new time namespace.
    pub(in crate::launch) fn in_two_steps(&self) -> bool {
        self.time.is_some() || (self.user.is_some() && self.new != 0)
    }
}

pub(super) fn of_container(plan: &Namespaces) -> Prepare<Spaces> {
    let mount = plan.mount.as_deref().map(mounts_of_others).transpose()?;
    let mut spaces = Spaces {
        new: match mount {
            Some(_) => 0,
            None => libc::CLONE_NEWNS as u64,
        },
        join: Vec::new(),
        pid: None,
        mount,
        user: users::users(&plan.user)?,
        time: None,
        new_cgroup: plan.cgroup == Namespace::New,
    };
    for (name, space, kind) in [
        ("network", &plan.net, libc::CLONE_NEWNET),
        ("ipc", &plan.ipc, libc::CLONE_NEWIPC),
        ("uts", &plan.uts, libc::CLONE_NEWUTS),
    ] {
        match space {
            Namespace::Host => {}
            Namespace::New => spaces.new |= kind as u64,
            Namespace::Join(path) => spaces.join.push((open(name, path, kind)?, kind)),
        }
    }
    match &plan.pid {
        Namespace::Host => {}
        Namespace::New => spaces.new |= libc::CLONE_NEWPID as u64,
        Namespace::Join(path) => spaces.pid = Some(open("pid", path, libc::CLONE_NEWPID)?),
    }
    if let Namespace::Join(path) = &plan.cgroup {
        let kind = libc::CLONE_NEWCGROUP;
        spaces.join.push((open("cgroup", path, kind)?, kind));
    }
    match &plan.time {
        Namespace::Host => {}
        Namespace::New => spaces.time = Some(offsets(&plan.time_offsets)),
        Namespace::Join(path) => {
            let file = open("time", path, CLONE_NEWTIME)?;
            spaces.join.push((file, CLONE_NEWTIME));
        }
    }
    Ok(spaces)
}

/// Those of a running process. Its user and time namespaces are entered only when they are not our
/// own: the kernel refuses the first, and may not know the second.
pub(super) fn of_process(target: BorrowedFd<'_>) -> Prepare<Spaces> {
    let copy = || {
        sys::dup_above_stdio(target)
            .map_err(|errno| LaunchError::prepare("copying the container's descriptor", errno))
    };
    let pid = pid_of(target)?;
    let user = users::users_of(pid)?;
    let mut kinds = libc::CLONE_NEWNS
        | libc::CLONE_NEWNET
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWUTS
        | libc::CLONE_NEWCGROUP;
    if let Ok(time) = super::open(&format!("/proc/{pid}/ns/time"), libc::O_RDONLY)
        && !is_own(&time, "time")?
    {
        kinds |= CLONE_NEWTIME;
    }
    // Until now its number was used: it must still have been the same process.
    sys::pidfd_send_signal(target, 0)
        .map_err(|errno| LaunchError::prepare("looking at the container's process", errno))?;
    Ok(Spaces {
        new: 0,
        join: vec![(copy()?, kinds)],
        pid: Some(copy()?),
        mount: None,
        user,
        time: None,
        new_cgroup: false,
    })
}

/// A mount namespace to be a container's. Its processes get the container's root in place of theirs,
/// so it must not be one that this machine runs in.
fn mounts_of_others(path: &str) -> Prepare<OwnedFd> {
    let file = open("mount", path, libc::CLONE_NEWNS)?;
    let first = super::open("/proc/1/ns/mnt", libc::O_RDONLY);
    // Of a first process that we may not look at we do not share the namespace.
    let firsts = first.is_ok_and(|first| same_file(&file, &first) == Ok(true));
    if firsts || is_own(&file, "mnt")? {
        let why = format!("{path:?} is the host's: all processes there would get another root");
        return Err(LaunchError {
            message: format!("linux.namespaces[mount].path is invalid: {why}"),
            ..LaunchError::prepare("", libc::EINVAL)
        });
    }
    Ok(file)
}

/// Opens a namespace file and makes sure of its kind.
pub(super) fn open(name: &str, path: &str, kind: i32) -> Prepare<OwnedFd> {
    let failed = |errno: i32, why: String| LaunchError {
        message: format!("linux.namespaces[{name}].path is invalid: {why}"),
        ..LaunchError::prepare("", errno)
    };
    let file = mounts::openat(
        mounts::cwd(),
        &text(path)?,
        libc::O_RDONLY | libc::O_NONBLOCK,
        0,
    )
    .map_err(|errno| {
        failed(
            errno,
            format!("opening {path:?}: {}", report::reason(errno)),
        )
    })?;
    match sys::namespaces::kind(file.as_fd()) {
        Ok(found) if found == kind => Ok(file),
        Ok(_) => {
            let why = format!("{path:?} is a namespace of another kind");
            Err(failed(libc::EINVAL, why))
        }
        Err(errno) => {
            let why = format!("{path:?} is no namespace: {}", report::reason(errno));
            Err(failed(errno, why))
        }
    }
}

pub(super) fn is_own(file: &OwnedFd, name: &str) -> Prepare<bool> {
    let own = super::open(&format!("/proc/self/ns/{name}"), libc::O_RDONLY)?;
    same_file(file, &own)
        .map_err(|errno| LaunchError::prepare(format!("looking at a {name} namespace"), errno))
}

/// The pid behind a descriptor, as this process's /proc counts.
pub(in crate::launch) fn pid_of(pidfd: BorrowedFd<'_>) -> Prepare<u32> {
    let path = format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd());
    let text = std::fs::read_to_string(&path).unwrap_or_default();
    text.lines()
        .find_map(|line| line.strip_prefix("Pid:")?.trim().parse().ok())
        .ok_or_else(|| LaunchError::prepare("looking for the container's process", libc::ESRCH))
}

fn offsets(list: &[TimeOffset]) -> Vec<u8> {
    let line = |offset: &TimeOffset| {
        let clock = match offset.clock {
            Clock::Monotonic => "monotonic",
            Clock::Boottime => "boottime",
        };
        format!("{clock} {} {}\n", offset.seconds, offset.nanoseconds)
    };
    list.iter().map(line).collect::<String>().into_bytes()
}
