// SPDX-License-Identifier: Apache-2.0
//! A pod's user namespace: what a client asks for, checked, and the namespaces that belong to it.
//!
//! The texts of refusals are containerd's.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxIdMapping, LinuxIdMappingBuilder};
use shim::plan::{IdMapping, IdMappings, UserNamespace};

use crate::fault::{Fault, Result};
use crate::v1;

/// The oldest kernel that maps the ids of an overlay's layers.
const KERNEL_MIN: (u32, u32) = (5, 19);

/// The ids of a pod: one range of users, one of groups.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ids {
    uids: v1::IdMapping,
    gids: v1::IdMapping,
}

impl Ids {
    /// What the options ask for; none means the node's ids.
    ///
    /// # Errors
    /// Modes and mappings that do not go together.
    pub(crate) fn of(options: &v1::NamespaceOption) -> Result<Option<Self>> {
        let Some(wish) = &options.userns_options else {
            return Ok(None);
        };
        let bad = |why: String| Fault::invalid(format!("user namespace configuration: {why}"));
        let uids = one(&wish.uids).map_err(|why| bad(format!("UID mapping: {why}")))?;
        let gids = one(&wish.gids).map_err(|why| bad(format!("GID mapping: {why}")))?;
        let mode = v1::NamespaceMode::try_from(wish.mode);
        match (mode, uids, gids) {
            (Ok(v1::NamespaceMode::Node), None, None) => Ok(None),
            (Ok(v1::NamespaceMode::Node), uids, gids) => Err(bad(format!(
                "can't use user namespace mode \"NODE\" with mappings. Got {} UID mappings and {} GID mappings",
                usize::from(uids.is_some()),
                usize::from(gids.is_some())
            ))),
            (Ok(v1::NamespaceMode::Pod), Some(uids), Some(gids)) => Ok(Some(Self { uids, gids })),
            (Ok(v1::NamespaceMode::Pod), ..) => Err(bad(
                "can't use user namespace mode \"POD\" without UID and GID mappings".to_owned(),
            )),
            (Ok(other), ..) => Err(bad(format!(
                "unsupported user namespace mode: {:?}",
                other.as_str_name()
            ))),
            (Err(_), ..) => Err(bad(format!(
                "unsupported user namespace mode: {}",
                wish.mode
            ))),
        }
    }

    /// Checks what a sandbox asks for beside its own ids: in a user namespace the host's other
    /// namespaces are of no use, since nothing there belongs to it.
    ///
    /// # Errors
    /// Names the namespace.
    pub(crate) fn check_sandbox(&self, options: &v1::NamespaceOption) -> Result<()> {
        let modes = [
            ("network", options.network()),
            ("pid", options.pid()),
            ("ipc", options.ipc()),
        ];
        match modes
            .iter()
            .find(|(_, mode)| *mode == v1::NamespaceMode::Node)
        {
            Some((name, _)) => Err(Fault::invalid(format!(
                "namespace_options.{name} NODE is not supported in a user namespace"
            ))),
            // Pause runs as this user.
            None if self.uids.container_id != 0
                || self.gids.container_id != 0
                || self.uids.length.min(self.gids.length) <= crate::oci::PAUSE_USER =>
            {
                Err(Fault::invalid(format!(
                    "user namespace configuration: the ids 0 to {} must be mapped",
                    crate::oci::PAUSE_USER
                )))
            }
            None => Ok(()),
        }
    }

    /// The sandbox's ids and a container's have to be the same.
    ///
    /// # Errors
    /// Shows both.
    pub(crate) fn check_same(sandbox: Option<&Self>, container: Option<&Self>) -> Result<()> {
        if sandbox == container {
            return Ok(());
        }
        Err(Fault::invalid(format!(
            "user namespace config for sandbox is different from container. Sandbox userns config: {} - Container userns config: {}",
            show(sandbox),
            show(container)
        )))
    }

    /// As CRI's mounts have them.
    pub(crate) fn mappings(&self) -> (Vec<v1::IdMapping>, Vec<v1::IdMapping>) {
        (vec![self.uids], vec![self.gids])
    }

    /// As the OCI specification has them.
    pub(crate) fn oci(&self) -> (Vec<LinuxIdMapping>, Vec<LinuxIdMapping>) {
        (oci(&[self.uids]), oci(&[self.gids]))
    }

    /// As launch plans have them.
    pub(crate) fn plan(&self) -> IdMappings {
        let plan = |range: &v1::IdMapping| IdMapping {
            container: range.container_id,
            host: range.host_id,
            size: range.length,
        };
        IdMappings {
            uid: vec![plan(&self.uids)],
            gid: vec![plan(&self.gids)],
        }
    }
}

/// CRI's mappings in the OCI specification's form.
pub(crate) fn oci(list: &[v1::IdMapping]) -> Vec<LinuxIdMapping> {
    let map = |range: &v1::IdMapping| {
        LinuxIdMappingBuilder::default()
            .container_id(range.container_id)
            .host_id(range.host_id)
            .size(range.length)
            .build()
    };
    // Every field is given, which is all that the builder asks for.
    list.iter().flat_map(map).collect()
}

fn one(list: &[v1::IdMapping]) -> std::result::Result<Option<v1::IdMapping>, String> {
    match list {
        [] => Ok(None),
        [one] if one.length == 0 => Err("invalid mapping length: 0".to_owned()),
        [one] => {
            let last = |first: u32| u64::from(first) + u64::from(one.length) - 1;
            // The last id of all means "none" to the kernel.
            match last(one.host_id).max(last(one.container_id)) < u64::from(u32::MAX) {
                true => Ok(Some(*one)),
                false => Err(format!(
                    "{} ids from {} on reach beyond the last id",
                    one.length,
                    one.host_id.max(one.container_id)
                )),
            }
        }
        several => Err(format!(
            "only one mapping supported, got {} mappings",
            several.len()
        )),
    }
}

fn show(ids: Option<&Ids>) -> String {
    let range = |range: &v1::IdMapping| {
        format!("{}:{}:{}", range.container_id, range.host_id, range.length)
    };
    match ids {
        None => "mode NODE".to_owned(),
        Some(ids) => format!(
            "mode POD, uids {}, gids {}",
            range(&ids.uids),
            range(&ids.gids)
        ),
    }
}

/// A user namespace that exists before its first process does.
#[derive(Debug)]
pub(crate) struct Made {
    file: OwnedFd,
    ids: Ids,
}

impl Made {
    /// Makes the pod's user namespace and a network namespace that belongs to it, held by a file at
    /// `netns`. Blocks for some milliseconds.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(crate) fn new(ids: Ids, netns: &Path) -> Result<Self> {
        let failed = |what: &str, error: shim::launch::LaunchError| {
            Fault::internal(format!("making the pod's {what} namespace"), error)
        };
        let file = shim::launch::new_user_namespace(&ids.plan()).map_err(|e| failed("user", e))?;
        let net =
            shim::launch::new_network_namespace(file.as_fd()).map_err(|e| failed("network", e))?;
        cni::netns::hold(&File::from(net), netns)
            .map_err(|e| Fault::internal("making the pod's network namespace", e))?;
        Ok(Self { file, ids })
    }

    /// How the pod's shim finds it, for as long as this value lives.
    pub(crate) fn join(&self) -> UserNamespace {
        let path = format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd());
        UserNamespace::Join {
            path,
            ids: self.ids.plan(),
        }
    }
}

/// Where a running sandbox's user namespace is.
pub(crate) fn path(pause: u32) -> PathBuf {
    PathBuf::from(format!("/proc/{pause}/ns/user"))
}

/// Whether this kernel can give pods user namespaces with id-mapped layers. Single filesystems may
/// still lack it (tmpfs before 6.3): a mount of those is refused by name.
pub(crate) fn supported() -> bool {
    let text = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let allowed = text("/proc/sys/user/max_user_namespaces")
        .trim()
        .parse::<u64>()
        .is_ok_and(|count| count > 0);
    allowed && kernel(&text("/proc/sys/kernel/osrelease")).is_some_and(|v| v >= KERNEL_MIN)
}

fn kernel(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(host_id: u32, length: u32) -> v1::IdMapping {
        v1::IdMapping {
            host_id,
            container_id: 0,
            length,
        }
    }

    fn options(
        mode: v1::NamespaceMode,
        uids: Vec<v1::IdMapping>,
        gids: Vec<v1::IdMapping>,
    ) -> v1::NamespaceOption {
        v1::NamespaceOption {
            userns_options: Some(v1::UserNamespace {
                mode: mode as i32,
                uids,
                gids,
            }),
            ..Default::default()
        }
    }

    #[test]
    fn options_that_do_not_go_together_are_refused_in_containerds_words() {
        use v1::NamespaceMode::{Container, Node, Pod};
        let range = range(65536, 65536);
        let refusal = |mode, uids: &[v1::IdMapping], gids: &[v1::IdMapping]| {
            Ids::of(&options(mode, uids.to_vec(), gids.to_vec()))
                .expect_err("refused")
                .to_string()
        };
        for (found, expected) in [
            (
                refusal(Node, &[range], &[]),
                "can't use user namespace mode \"NODE\" with mappings. Got 1 UID mappings and 0 GID mappings",
            ),
            (
                refusal(Pod, &[range], &[]),
                "can't use user namespace mode \"POD\" without UID and GID mappings",
            ),
            (
                refusal(Pod, &[range, range], &[range]),
                "UID mapping: only one mapping supported, got 2 mappings",
            ),
            (
                refusal(Container, &[range], &[range]),
                "unsupported user namespace mode: \"CONTAINER\"",
            ),
            (
                refusal(Pod, &[range], &[v1::IdMapping { length: 0, ..range }]),
                "GID mapping: invalid mapping length: 0",
            ),
        ] {
            assert_eq!(found, format!("user namespace configuration: {expected}"));
        }
        assert_eq!(Ids::of(&v1::NamespaceOption::default()).unwrap(), None);
        assert_eq!(Ids::of(&options(Node, vec![], vec![])).unwrap(), None);
    }

    #[test]
    fn a_sandbox_needs_namespaces_and_ids_of_its_own() {
        let ids = Ids {
            uids: range(65536, 65536),
            gids: range(65536, 65536),
        };
        let mut wish = v1::NamespaceOption::default();
        assert!(ids.check_sandbox(&wish).is_ok());
        wish.network = v1::NamespaceMode::Node as i32;
        let error = ids.check_sandbox(&wish).expect_err("refused").to_string();
        assert!(
            error.starts_with("namespace_options.network NODE"),
            "{error}"
        );
        let few = Ids {
            uids: range(65536, 1000),
            gids: range(65536, 65536),
        };
        assert!(few.check_sandbox(&v1::NamespaceOption::default()).is_err());
        let error = Ids::check_same(Some(&ids), None).expect_err("refused");
        assert!(
            error
                .to_string()
                .starts_with("user namespace config for sandbox is different from container."),
        );
        assert!(Ids::check_same(Some(&ids), Some(&ids)).is_ok());
    }

    #[test]
    fn kernels_are_told_apart() {
        assert_eq!(kernel("6.1.0-18-amd64"), Some((6, 1)));
        assert_eq!(kernel("5.19-rc1"), Some((5, 19)));
        assert_eq!(kernel("what"), None);
    }
}
