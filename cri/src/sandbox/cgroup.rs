// SPDX-License-Identifier: Apache-2.0
//! Where a pod lives in the cgroup tree. Only names are decided here; `crate::cgroup` makes them.

use crate::fault::{Fault, Result};

/// The pod's own cgroup: the one the kubelet asks for, else one of ours per sandbox.
///
/// # Errors
/// When the path could leave the cgroup tree.
pub(crate) fn pod(wanted: &str, default_parent: &str, sandbox_id: &str) -> Result<String> {
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
    Ok(format!("/{}", parts.join("/")))
}

/// The cgroup of one member of the pod: pause by the sandbox's id, a container by its own.
pub(crate) fn member(pod: &str, id: &str) -> String {
    format!("{pod}/{id}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kubelets_parent_is_used_as_it_is() {
        assert_eq!(
            pod("/kubepods/burstable/pod1/", "/podwright", "s").unwrap(),
            "/kubepods/burstable/pod1"
        );
        assert_eq!(pod("", "/podwright/", "s").unwrap(), "/podwright/s");
        assert_eq!(pod("/", "/podwright", "s").unwrap(), "/podwright/s");
        assert!(pod("/a/../../b", "/podwright", "s").is_err());
        assert_eq!(member("/a", "c"), "/a/c");
    }
}
