// SPDX-License-Identifier: Apache-2.0
//! Proof that a host left nothing behind on this kernel.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::TestHost;
use crate::host::stdout_of;

/// Everything that still mentions a host's directory or cgroup, in words for a failed assertion.
pub fn of(dir: &Path, cgroup_parent: &str) -> Vec<String> {
    let marker = dir.to_string_lossy();
    let mut found = processes(&marker);
    found.extend(mounts(&marker));
    found.extend(cgroups(cgroup_parent));
    found
}

fn processes(marker: &str) -> Vec<String> {
    let own = std::process::id().to_string();
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| {
            let pid = entry.file_name().into_string().ok()?;
            if pid == own || !pid.bytes().all(|b| b.is_ascii_digit()) {
                return None;
            }
            let command = fs::read(entry.path().join("cmdline")).ok()?;
            let command = String::from_utf8_lossy(&command).replace('\0', " ");
            let root = fs::read_link(entry.path().join("root")).unwrap_or_default();
            (command.contains(marker) || root.to_string_lossy().contains(marker))
                .then(|| format!("process {pid}: {command}"))
        })
        .collect()
}

fn mounts(marker: &str) -> Vec<String> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    table
        .lines()
        .filter(|line| line.contains(marker))
        .map(|line| format!("mount {line}"))
        .collect()
}

/// The runtimes remove only the containers' own cgroups, not those above, which they made too, some
/// of them in hierarchies that podwright leaves alone. podman writes `tasks` also where no hierarchy
/// is mounted: a file of the tmpfs, which is deleted; those of cgroups cannot be and need not.
pub fn remove_parent_cgroups(host: &TestHost) -> Result<()> {
    stdout_of(&mut host.podwright(&["purge"]))?;
    let name = host.cgroup_parent.trim_start_matches('/');
    let script =
        format!("find /sys/fs/cgroup -depth -path '*/{name}*' -delete 2>/dev/null || true");
    host.sh(&script).map(drop)
}

/// Directories of `parent` in every cgroup hierarchy mounted below /sys/fs/cgroup.
fn cgroups(parent: &str) -> Vec<String> {
    let parent = parent.trim_start_matches('/');
    let mut roots = vec![PathBuf::from("/sys/fs/cgroup")];
    roots.extend(
        fs::read_dir("/sys/fs/cgroup")
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path()),
    );
    roots
        .into_iter()
        .map(|root| root.join(parent))
        .filter(|path| path.is_dir())
        .map(|path| format!("cgroup {}", path.display()))
        .collect()
}
