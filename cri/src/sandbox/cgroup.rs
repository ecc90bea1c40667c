// SPDX-License-Identifier: Apache-2.0
//! Where a pod lives in the cgroup tree. Only names are decided here; `crate::cgroup` makes them.
//!
//! With systemd a pod is a slice, and each member of it a scope `podwright-<id>.scope` in that. A
//! path says which it is by its last part, so what an earlier daemon made is found under the other
//! driver as well.

use crate::cgroup::slice_path;
use crate::fault::{Fault, Result};
use crate::settings::CgroupDriver;

const SLICE: &str = ".slice";
const SCOPE: &str = ".scope";
const PREFIX: &str = "podwright-";

/// The pod's own cgroup: the one the kubelet asks for, else one of ours per sandbox.
///
/// # Errors
/// When the path could leave the cgroup tree, or is none that a slice can have.
pub(crate) fn pod(
    driver: CgroupDriver,
    wanted: &str,
    default_parent: &str,
    sandbox_id: &str,
) -> Result<String> {
    let path = if wanted.trim_matches('/').is_empty() {
        format!("{}/{sandbox_id}", default_parent.trim_end_matches('/'))
    } else {
        wanted.to_owned()
    };
    let parts: Vec<&str> = path.split('/').filter(|p| !p.is_empty()).collect();
    if parts
        .iter()
        .any(|p| *p == ".." || *p == "." || p.contains(['\0', '\n', ':']))
    {
        return Err(Fault::invalid(format!(
            "cgroup_parent {wanted:?} is not a plain path"
        )));
    }
    let path = format!("/{}", parts.join("/"));
    match driver {
        CgroupDriver::Cgroupfs => Ok(path),
        CgroupDriver::Systemd => slice_path(&path)
            .map(|slice| format!("/{}", slice.as_str()))
            .map_err(|e| Fault::invalid(format!("cgroup_parent {wanted:?}: {e}"))),
    }
}

/// The cgroup of one member of the pod: pause by the sandbox's id, a container by its own.
pub(crate) fn member(pod: &str, id: &str) -> String {
    match is_systemds(pod) {
        true => format!("{pod}/{PREFIX}{id}{SCOPE}"),
        false => format!("{pod}/{id}"),
    }
}

/// Whether a pod is a slice, and its members scopes.
pub(crate) fn is_systemds(pod: &str) -> bool {
    pod.ends_with(SLICE)
}

/// `linux.cgroupsPath` of a member: a scope as `slice:prefix:name`, for runtimes that are told of
/// systemd.
pub(crate) fn in_oci(member: &str) -> String {
    let mut parts = member.rsplit('/');
    let scope = parts.next().and_then(|name| name.strip_suffix(SCOPE));
    let id = scope.and_then(|name| name.strip_prefix(PREFIX));
    match (id, parts.next()) {
        (Some(id), Some(slice)) => format!("{slice}:podwright:{id}"),
        _ => format!("/{}", member.trim_start_matches('/')),
    }
}

/// The identifier in the last part of a pod's or a member's path.
pub(crate) fn id_of(path: &str) -> &str {
    let name = path.rsplit('/').next().unwrap_or_default();
    let unit = name.strip_suffix(SCOPE).or(name.strip_suffix(SLICE));
    match unit {
        Some(unit) => unit.rsplit('-').next().unwrap_or_default(),
        None => name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILES: CgroupDriver = CgroupDriver::Cgroupfs;

    #[test]
    fn the_kubelets_parent_is_used_as_it_is() {
        assert_eq!(
            pod(FILES, "/kubepods/burstable/pod1/", "/podwright", "s").unwrap(),
            "/kubepods/burstable/pod1"
        );
        assert_eq!(pod(FILES, "", "/podwright/", "s").unwrap(), "/podwright/s");
        assert_eq!(pod(FILES, "/", "/podwright", "s").unwrap(), "/podwright/s");
        assert!(pod(FILES, "/a/../../b", "/podwright", "s").is_err());
        assert_eq!(member("/a", "c"), "/a/c");
        assert_eq!(id_of("/a/c"), "c");
    }

    #[test]
    fn with_systemd_pods_are_slices_and_members_scopes() {
        let path = |wanted| pod(CgroupDriver::Systemd, wanted, "/podwright", "5e");
        let kubelets = "/kubepods.slice/kubepods-pod1_2.slice";
        assert_eq!(path(kubelets).unwrap(), kubelets);
        let ours = path("").unwrap();
        assert_eq!(ours, "/podwright.slice/podwright-5e.slice");
        assert_eq!(id_of(&ours), "5e");
        let scope = member(&ours, "c1");
        assert_eq!(scope, format!("{ours}/podwright-c1.scope"));
        assert_eq!(id_of(&scope), "c1");
        assert_eq!(in_oci(&scope), "podwright-5e.slice:podwright:c1");
        assert_eq!(in_oci("/kubepods/pod1/c1"), "/kubepods/pod1/c1");
        let burstable = "/podwright.slice/podwright-burstable.slice";
        assert_eq!(
            path("/podwright/burstable/pod1-2").unwrap(),
            format!("{burstable}/podwright-burstable-pod1_2.slice")
        );
        assert!(path("/a b").is_err());
    }
}
