// SPDX-License-Identifier: Apache-2.0
//! Where a process beside a container's first one goes in the tree of cgroup v2.

use crate::plan::CgroupJoin;

/// The cgroups to join beside the first process of a container, which has the process id `first`.
///
/// A cgroup of v2 that gives controllers to the ones below it has no processes of its own (cgroups(7),
/// "no internal processes"). A container that divides its cgroup so, as systemd does, is joined where
/// its first process is.
pub fn beside(mut join: CgroupJoin, first: u32) -> CgroupJoin {
    let read = |path: String| std::fs::read_to_string(path).unwrap_or_default();
    if let Some(dir) = &join.unified
        && !read(format!("{dir}/cgroup.subtree_control"))
            .trim()
            .is_empty()
        && let Some(place) = place(dir, &read(format!("/proc/{first}/cgroup")))
    {
        join.unified = Some(place);
    }
    join
}

/// The directory of a process that is in the cgroup `dir` or below; `memberships` is what
/// /proc/<pid>/cgroup says of it, from the root of the tree, which is mounted somewhere.
fn place(dir: &str, memberships: &str) -> Option<String> {
    let path = memberships
        .lines()
        .find_map(|line| line.strip_prefix("0::"))?;
    let mut shared = path;
    while !dir.ends_with(shared) {
        shared = shared.rsplit_once('/')?.0;
    }
    (!shared.is_empty()).then(|| format!("{dir}{}", &path[shared.len()..]))
}

#[cfg(test)]
mod tests {
    use super::place;

    #[test]
    fn a_process_is_found_below_its_containers_cgroup_only() {
        let dir = "/sys/fs/cgroup/kubepods/pod1/main";
        let at = |path: &str| place(dir, &format!("4:pids:/x\n0::{path}\n"));
        let below = at("/kubepods/pod1/main/init.scope/a");
        assert_eq!(below.as_deref(), Some(&*format!("{dir}/init.scope/a")));
        assert_eq!(at("/kubepods/pod1/main").as_deref(), Some(dir));
        assert_eq!(at("/kubepods/pod2/main2"), None);
        assert_eq!(at("/"), None);
        assert_eq!(place(dir, "4:pids:/kubepods/pod1/main\n"), None);
    }
}
