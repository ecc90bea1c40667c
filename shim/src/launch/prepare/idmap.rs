// SPDX-License-Identifier: Apache-2.0
//! Id-mapped mounts: mount_setattr(2) takes the maps from a user namespace, so one is made.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::users::Users;
use super::{Prepare, new_user_namespace};
use crate::launch::report::LaunchError;
use crate::plan::IdMappings;
use crate::sys::{self, mounts};

/// User namespaces that only carry maps, one for each pair of maps that a plan has.
#[derive(Default)]
pub(super) struct Idmaps {
    made: Vec<(IdMappings, OwnedFd)>,
}

impl Idmaps {
    /// No maps stand for those of the user namespace that the container is in, which need not be known.
    pub(super) fn new(users: Option<&Users>) -> Prepare<Idmaps> {
        let mut made = Vec::new();
        if let Some(users) = users {
            made.push((IdMappings::default(), copy(users.file.as_fd())?));
        }
        Ok(Idmaps { made })
    }

    /// Id-maps a detached mount; `path` is for the error.
    pub(super) fn apply(
        &mut self,
        tree: &OwnedFd,
        path: &str,
        mappings: &IdMappings,
        recursive: bool,
    ) -> Prepare<()> {
        let userns = self.get(mappings)?;
        mounts::set_idmap(tree.as_fd(), userns, recursive).map_err(|errno| {
            let hint = match errno {
                libc::EINVAL => " (this kernel cannot id-map this type of filesystem)",
                _ => "",
            };
            LaunchError::prepare(format!("id-mapping {path:?}{hint}"), errno)
        })
    }

    /// A user namespace with these maps, for use by the child.
    pub(super) fn copy(&mut self, mappings: &IdMappings) -> Prepare<OwnedFd> {
        copy(self.get(mappings)?)
    }

    fn get(&mut self, mappings: &IdMappings) -> Prepare<BorrowedFd<'_>> {
        let known = self.made.iter().position(|(made, _)| made == mappings);
        let index = match known {
            Some(index) => index,
            None => {
                let made = new_user_namespace(mappings)?;
                self.made.push((mappings.clone(), made));
                self.made.len() - 1
            }
        };
        let (_, userns) = &self.made[index];
        Ok(userns.as_fd())
    }
}

fn copy(userns: BorrowedFd<'_>) -> Prepare<OwnedFd> {
    sys::dup_above_stdio(userns)
        .map_err(|errno| LaunchError::prepare("copying a user namespace's descriptor", errno))
}
