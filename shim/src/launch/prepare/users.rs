// SPDX-License-Identifier: Apache-2.0
//! User namespaces: made, opened, and asked for their ids.
//!
//! A new one is made with a process of its own that only holds it until its ids are written and its
//! file is open. So it exists before the container's process does: what needs it beforehand
//! (id-mapped mounts) can have it, and the container joins it like one that was there already.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::{Prepare, namespaces, open};
use crate::launch::report::LaunchError;
use crate::plan::{IdMapping, IdMappings, UserNamespace};
use crate::sys::{self, Clone, Errno, mounts};

/// A user namespace that a process will be in.
pub(in crate::launch) struct Users {
    pub file: OwnedFd,
    pub ids: IdMappings,
}

/// The user namespace of a plan; none when it is our own.
pub(super) fn users(plan: &UserNamespace) -> Prepare<Option<Users>> {
    match plan {
        UserNamespace::Host => Ok(None),
        UserNamespace::New(ids) => Ok(Some(Users {
            file: new_user_namespace(ids)?,
            ids: ids.clone(),
        })),
        UserNamespace::Join { path, ids: wanted } => {
            let file = namespaces::open("user", path, libc::CLONE_NEWUSER)?;
            if namespaces::is_own(&file, "user")? {
                return Ok(None);
            }
            let ids = ids_of(&file, path)?;
            compare("linux.uidMappings", &wanted.uid, &ids.uid)?;
            compare("linux.gidMappings", &wanted.gid, &ids.gid)?;
            Ok(Some(Users { file, ids }))
        }
    }
}

/// The ids of a user namespace. The kernel only tells those of processes: of the one that the path
/// names, or one that enters it for us.
fn ids_of(file: &OwnedFd, path: &str) -> Prepare<IdMappings> {
    let named = path
        .strip_prefix("/proc/")
        .and_then(|rest| rest.strip_suffix("/ns/user")?.parse().ok());
    if let Some(pid) = named {
        let ids = read_maps(pid)?;
        // The number was used twice: it must have been the same process, or as good as.
        let again = namespaces::open("user", path, libc::CLONE_NEWUSER)?;
        if same_file(file, &again) == Ok(true) {
            return Ok(ids);
        }
    }
    held_by_a_process(read_maps, Holder::Join(file.as_fd(), 0))
}

fn compare(field: &str, wanted: &[IdMapping], real: &[IdMapping]) -> Prepare<()> {
    let sorted = |list: &[IdMapping]| {
        let mut list = list.to_vec();
        list.sort();
        list
    };
    if wanted.is_empty() || sorted(wanted) == sorted(real) {
        return Ok(());
    }
    let what = format!("{field} is invalid: linux.namespaces[user].path has other ids");
    Err(LaunchError::prepare(what, libc::EINVAL))
}

/// The user namespace of a running process; none when it is our own.
pub(super) fn users_of(pid: u32) -> Prepare<Option<Users>> {
    let file = open(&format!("/proc/{pid}/ns/user"), libc::O_RDONLY)?;
    if namespaces::is_own(&file, "user")? {
        return Ok(None);
    }
    Ok(Some(Users {
        file,
        ids: read_maps(pid)?,
    }))
}

/// Makes a user namespace in which these ids exist. It lives as long as its descriptor, or a
/// process or mount that uses it.
///
/// # Errors
/// When the kernel refuses the namespace or the ids.
pub fn new_user_namespace(ids: &IdMappings) -> Prepare<OwnedFd> {
    held_by_a_process(
        |pid| {
            write_map(pid, "uid_map", &ids.uid)?;
            write_map(pid, "gid_map", &ids.gid)?;
            open(&format!("/proc/{pid}/ns/user"), libc::O_RDONLY)
        },
        Holder::New,
    )
}

/// Makes a network namespace that belongs to a user namespace.
///
/// # Errors
/// When the kernel refuses.
pub fn new_network_namespace(users: BorrowedFd<'_>) -> Prepare<OwnedFd> {
    held_by_a_process(
        |pid| open(&format!("/proc/{pid}/ns/net"), libc::O_RDONLY),
        Holder::Join(users, libc::CLONE_NEWNET),
    )
}

#[derive(Clone, Copy)]
enum Holder<'a> {
    New,
    /// An existing one, and new namespaces that belong to it.
    Join(BorrowedFd<'a>, i32),
}

impl Holder<'_> {
    fn enter(self) -> sys::Sys<()> {
        let Holder::Join(file, new) = self else {
            return Ok(());
        };
        sys::setns(file, libc::CLONE_NEWUSER)?;
        match new {
            0 => Ok(()),
            new => sys::unshare(new),
        }
    }
}

/// Does something with the help of a process in a user namespace. The process lives for that long
/// only: until its end of a pipe is closed, by us or by our end.
fn held_by_a_process<T>(work: impl FnOnce(u32) -> Prepare<T>, holder: Holder<'_>) -> Prepare<T> {
    let failed = |errno| LaunchError::prepare("creating a user namespace", errno);
    let (ready, tell) = sys::pipe().map_err(failed)?;
    let (wait, hold) = sys::pipe().map_err(failed)?;
    let flags = match holder {
        Holder::New => libc::CLONE_NEWUSER as u64,
        Holder::Join(..) => 0,
    };
    match sys::clone3(flags, None).map_err(failed)? {
        Clone::Child => {
            drop((ready, hold));
            let errno = holder.enter().err().unwrap_or(0);
            // Either fails only when there is nobody left to hold anything for.
            let _ = sys::write(tell.as_fd(), &errno.to_ne_bytes());
            let _ = sys::read(wait.as_fd(), &mut [0]);
            sys::exit(0)
        }
        Clone::Parent { pid, .. } => {
            drop((tell, wait));
            let mut errno = [0; 4];
            let entered = match sys::read(ready.as_fd(), &mut errno) {
                Ok(4) if errno == [0; 4] => Ok(()),
                Ok(4) => Err(i32::from_ne_bytes(errno)),
                Ok(_) => Err(libc::ECONNRESET),
                Err(errno) => Err(errno),
            };
            let done = entered.map_err(failed).and_then(|()| work(pid));
            drop(hold);
            // It ends by itself now; that it is our child and ended is all there is to know.
            let _ = sys::reap(Some(pid), true);
            done
        }
    }
}

fn write_map(pid: u32, name: &str, mappings: &[IdMapping]) -> Prepare<()> {
    let lines = mappings
        .iter()
        .map(|range| format!("{} {} {}\n", range.container, range.host, range.size));
    let path = format!("/proc/{pid}/{name}");
    let file = open(&path, libc::O_WRONLY)?;
    // One write: the kernel takes a map only whole.
    sys::write(file.as_fd(), lines.collect::<String>().as_bytes())
        .map(drop)
        .map_err(|errno| LaunchError::prepare(format!("writing {name} of a user namespace"), errno))
}

fn read_maps(pid: u32) -> Prepare<IdMappings> {
    Ok(IdMappings {
        uid: read_map(&format!("/proc/{pid}/uid_map"))?,
        gid: read_map(&format!("/proc/{pid}/gid_map"))?,
    })
}

fn read_map(path: &str) -> Prepare<Vec<IdMapping>> {
    let attempt = |errno| LaunchError::prepare(format!("reading {path}"), errno);
    let text = std::fs::read_to_string(path)
        .map_err(|error| attempt(error.raw_os_error().unwrap_or(libc::EIO)))?;
    text.lines()
        .map(|line| parse_range(line).ok_or_else(|| attempt(libc::EBADMSG)))
        .collect()
}

fn parse_range(line: &str) -> Option<IdMapping> {
    let mut numbers = line.split_whitespace().map(|number| number.parse().ok());
    Some(IdMapping {
        container: numbers.next()??,
        host: numbers.next()??,
        size: numbers.next()??,
    })
}

/// Whether two open files are the same one.
pub(super) fn same_file(one: &OwnedFd, other: &OwnedFd) -> Result<bool, Errno> {
    let (one, other) = (mounts::fstat(one.as_fd())?, mounts::fstat(other.as_fd())?);
    Ok((one.st_dev, one.st_ino) == (other.st_dev, other.st_ino))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_and_translated() {
        let map = ["         0     100000      65536", "70000 5 1"]
            .map(|line| parse_range(line).expect("a range"));
        assert_eq!(IdMapping::host_id(&map, 1000), Some(101_000));
        assert_eq!(IdMapping::host_id(&map, 70000), Some(5));
        assert_eq!(IdMapping::host_id(&map, 65536), None);
        assert_eq!(parse_range("0 1"), None);
    }
}
