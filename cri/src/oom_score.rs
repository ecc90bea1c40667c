// SPDX-License-Identifier: Apache-2.0
//! How likely the kernel is to choose a container when memory is short: `oom_score_adj`, which
//! belongs to processes and not to a cgroup (proc_pid_oom_score_adj(5)).

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Write as _;

use crate::fault::{Fault, Result};

/// Rounds of looking for processes that were forked meanwhile, before their parent had the new score.
const ROUNDS: usize = 8;

/// Checks a score.
///
/// # Errors
/// When it is none.
pub(crate) fn checked(score: i64) -> Result<i32> {
    i32::try_from(score)
        .ok()
        .filter(|score| (-1000..=1000).contains(score))
        .ok_or_else(|| {
            Fault::invalid(format!(
                "resources.oom_score_adj {score} is outside -1000..=1000"
            ))
        })
}

/// The least score that this process may give: without CAP_SYS_RESOURCE no process may be protected
/// more than this one is.
pub(crate) fn least() -> i64 {
    let may = caps::has_cap(
        None,
        caps::CapSet::Effective,
        caps::Capability::CAP_SYS_RESOURCE,
    );
    if may.unwrap_or(false) {
        return -1000;
    }
    let own = std::fs::read_to_string("/proc/self/oom_score_adj").unwrap_or_default();
    own.trim().parse().unwrap_or(0)
}

/// Gives all of these processes a score, raised to what is allowed here. `pids` is asked again and
/// again, for those that come into being meanwhile. Blocks.
///
/// # Errors
/// When the pids cannot be found, or the kernel refuses one that still runs.
pub(crate) fn set(score: i32, pids: impl Fn() -> Result<Vec<u32>>) -> Result<()> {
    let score = i64::from(score).max(least()).to_string();
    let mut done = BTreeSet::new();
    for _ in 0..ROUNDS {
        // A file is of the process that had the pid when it was opened. One that is among the pids
        // afterwards still is that process, and no stranger that got its number.
        let files = pids()?.into_iter().filter(|pid| !done.contains(pid));
        let mut files: BTreeMap<u32, File> =
            files.filter_map(|pid| Some((pid, open(pid)?))).collect();
        let members = BTreeSet::from_iter(pids()?);
        files.retain(|pid, _| members.contains(pid));
        if files.is_empty() {
            break;
        }
        for (pid, mut file) in files {
            match file.write_all(score.as_bytes()) {
                // It has ended.
                Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
                Err(error) => {
                    let what = format!("setting oom_score_adj of process {pid} to {score}");
                    return Err(Fault::internal(what, error));
                }
                Ok(()) => {}
            }
            done.insert(pid);
        }
    }
    Ok(())
}

/// None when it has ended.
fn open(pid: u32) -> Option<File> {
    let path = format!("/proc/{pid}/oom_score_adj");
    File::options().write(true).open(path).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_score_has_bounds() {
        assert_eq!(checked(-1000).unwrap(), -1000);
        assert_eq!(checked(1000).unwrap(), 1000);
        let error = checked(1001).unwrap_err().to_string();
        assert!(error.contains("oom_score_adj 1001"), "{error}");
        assert!(checked(i64::MIN).is_err());
    }

    #[test]
    fn processes_get_it_and_those_that_have_ended_do_not_matter() {
        let mut child = std::process::Command::new("sleep")
            .arg("1000")
            .spawn()
            .unwrap();
        let pid = child.id();
        let known = || Ok(vec![pid, u32::MAX]);
        let read = || std::fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap();
        set(700, known).unwrap();
        assert_eq!(read().trim(), "700");
        // What may not be given is raised.
        set(-1000, known).unwrap();
        assert_eq!(read().trim(), least().to_string());
        child.kill().unwrap();
        child.wait().unwrap();
        set(700, known).unwrap();
    }
}
