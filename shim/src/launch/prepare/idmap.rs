// SPDX-License-Identifier: Apache-2.0
//! Id-mapped mounts: mount_setattr(2) takes the maps from a user namespace, so one is made.

use std::os::fd::{AsFd, OwnedFd};

use super::{Prepare, open};
use crate::launch::report::LaunchError;
use crate::plan::{IdMapping, IdMappings};
use crate::sys::{self, Clone, mounts, socket};

/// User namespaces that only carry maps, one for each pair of maps that a plan has.
#[derive(Default)]
pub(super) struct Idmaps {
    made: Vec<(IdMappings, OwnedFd)>,
}

impl Idmaps {
    /// Id-maps a detached mount; `path` is for the error.
    pub(super) fn apply(
        &mut self,
        tree: &OwnedFd,
        path: &str,
        mappings: &IdMappings,
        recursive: bool,
    ) -> Prepare<()> {
        let known = self.made.iter().position(|(made, _)| made == mappings);
        let index = match known {
            Some(index) => index,
            None => {
                self.made
                    .push((mappings.clone(), user_namespace(mappings)?));
                self.made.len() - 1
            }
        };
        let (_, userns) = &self.made[index];
        mounts::set_idmap(tree.as_fd(), userns.as_fd(), recursive).map_err(|errno| {
            let hint = match errno {
                libc::EINVAL => " (this kernel cannot id-map this type of filesystem)",
                _ => "",
            };
            LaunchError::prepare(format!("id-mapping {path:?}{hint}"), errno)
        })
    }
}

/// A user namespace with these maps. It lives as long as the descriptor: the process that it was
/// made with only waits until the maps are written, and is reaped before this returns.
fn user_namespace(mappings: &IdMappings) -> Prepare<OwnedFd> {
    let attempt = |errno| LaunchError::prepare("making a user namespace for id maps", errno);
    let (ours, theirs) = socket::pair().map_err(attempt)?;
    match sys::clone3(libc::CLONE_NEWUSER as u64, None).map_err(attempt)? {
        Clone::Child => {
            drop(ours);
            // Returns when the parent closes its end, or dies.
            let _ = sys::read(theirs.as_fd(), &mut [0]);
            sys::exit(0)
        }
        Clone::Parent { pid, pidfd: _ } => {
            drop(theirs);
            let made = with_maps(pid, mappings);
            drop(ours);
            sys::reap(Some(pid), true).map_err(attempt)?;
            made
        }
    }
}

fn with_maps(pid: u32, mappings: &IdMappings) -> Prepare<OwnedFd> {
    write_map(&format!("/proc/{pid}/uid_map"), &mappings.uid)?;
    write_map(&format!("/proc/{pid}/gid_map"), &mappings.gid)?;
    open(&format!("/proc/{pid}/ns/user"), libc::O_RDONLY)
}

/// A map is written by one call, or not at all.
fn write_map(path: &str, map: &[IdMapping]) -> Prepare<()> {
    let file = open(path, libc::O_WRONLY)?;
    let lines: String = map
        .iter()
        .map(|line| format!("{} {} {}\n", line.container, line.host, line.size))
        .collect();
    sys::write(file.as_fd(), lines.as_bytes())
        .map(drop)
        .map_err(|errno| LaunchError::prepare(format!("writing {map:?} to {path}"), errno))
}
