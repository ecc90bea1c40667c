// SPDX-License-Identifier: Apache-2.0
//! Signals to more than one process: a container's cgroup, or an exec with all that it started.

use std::collections::BTreeSet;

use crate::plan::CgroupJoin;
use crate::sys;

/// Rounds of reading pids and killing them: a fork bomb can outrun one.
const ROUNDS: usize = 16;

/// Signals every process of a cgroup, best effort: what cannot be read has no processes.
pub(super) fn signal_cgroup(join: &CgroupJoin, signal: i32) {
    if let (libc::SIGKILL, Some(dir)) = (signal, &join.unified)
        && std::fs::write(format!("{dir}/cgroup.kill"), "1").is_ok()
    {
        return;
    }
    rounds(signal, || members(join).unwrap_or_default());
}

/// Signals a process and what descends from it: children and theirs, and whoever is still in the
/// session that it leads (a parent that has ended leaves no other trace). Who left both is not found.
pub(super) fn signal_tree(root: u32, join: &CgroupJoin, signal: i32) {
    rounds(signal, || {
        let candidates = members(join).unwrap_or_else(every_process);
        let all: Vec<Relatives> = candidates.into_iter().filter_map(Relatives::of).collect();
        descendants(root, &all)
    });
}

fn rounds(signal: i32, pids: impl Fn() -> Vec<u32>) {
    let rounds = if signal == libc::SIGKILL { ROUNDS } else { 1 };
    for _ in 0..rounds {
        let mut any = false;
        for pid in pids() {
            any |= sys::kill(pid, signal).is_ok();
        }
        if !any {
            return;
        }
    }
}

fn members(join: &CgroupJoin) -> Option<Vec<u32>> {
    let dir = join.unified.as_ref().or(join.v1.first())?;
    let pids = std::fs::read_to_string(format!("{dir}/cgroup.procs")).unwrap_or_default();
    Some(pids.lines().filter_map(|line| line.parse().ok()).collect())
}

fn every_process() -> Vec<u32> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect()
}

#[derive(Debug, Clone, Copy)]
struct Relatives {
    pid: u32,
    parent: u32,
    session: u32,
}

impl Relatives {
    /// From `/proc/<pid>/stat`; nothing for a process that has ended. The name in parentheses may
    /// hold anything.
    fn of(pid: u32) -> Option<Relatives> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
        if matches!(fields.next()?, "Z" | "X") {
            return None;
        }
        let parent = fields.next()?.parse().ok()?;
        let session = fields.nth(1)?.parse().ok()?;
        Some(Relatives {
            pid,
            parent,
            session,
        })
    }
}

fn descendants(root: u32, all: &[Relatives]) -> Vec<u32> {
    let mut found = BTreeSet::from([root]);
    loop {
        let related = |process: &&Relatives| {
            !found.contains(&process.pid)
                && (found.contains(&process.parent) || found.contains(&process.session))
        };
        let more: Vec<u32> = all.iter().filter(related).map(|p| p.pid).collect();
        if more.is_empty() {
            return all
                .iter()
                .map(|p| p.pid)
                .filter(|p| found.contains(p))
                .collect();
        }
        found.extend(more);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_is_its_children_and_its_sessions() {
        let all = [
            (10, 1, 10),
            (11, 10, 10),
            // Its parent has ended; the session is left.
            (12, 1, 10),
            // A session of its own, but a child; and its orphan.
            (13, 11, 13),
            (14, 1, 13),
            // Somebody else's.
            (20, 1, 20),
            (21, 20, 20),
        ];
        let all = all.map(|(pid, parent, session)| Relatives {
            pid,
            parent,
            session,
        });
        assert_eq!(descendants(10, &all), [10, 11, 12, 13, 14]);
        assert_eq!(descendants(20, &all), [20, 21]);
        assert_eq!(descendants(30, &all), Vec::<u32>::new());
    }

    #[test]
    fn relatives_are_read_from_proc() {
        let own = Relatives::of(std::process::id()).expect("this process runs");
        assert_eq!(own.parent, std::os::unix::process::parent_id());
    }
}
