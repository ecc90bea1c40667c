// SPDX-License-Identifier: Apache-2.0
//! cgroup v2 (kernel Documentation/admin-guide/cgroup-v2.rst).

use std::path::{Path, PathBuf};

use shim::plan::CgroupJoin;

use super::files::{self, failed};
use super::{CgroupError, CgroupPath, Limits, Manager, Stats, device_program};

/// What limits and statistics need; enabled all the way down.
const CONTROLLERS: [&str; 4] = ["cpu", "cpuset", "memory", "pids"];
/// Those without which a limit would silently do nothing.
const NEEDED: [&str; 3] = ["cpu", "memory", "pids"];

#[derive(Debug)]
pub(super) struct Unified {
    root: PathBuf,
}

impl Unified {
    pub(super) fn new(root: &Path) -> Unified {
        Unified {
            root: root.to_path_buf(),
        }
    }

    fn dir(&self, path: &CgroupPath) -> PathBuf {
        self.root.join(path.as_str())
    }

    fn set(&self, path: &CgroupPath, name: &str, value: &str) -> Result<(), CgroupError> {
        files::write(&self.dir(path).join(name), value)
    }

    /// Lets the children of `dir` use the controllers. One at a time: a write of several is all or
    /// nothing, and says not which one failed.
    fn enable(&self, dir: &Path, path: &CgroupPath) -> Result<(), CgroupError> {
        let file = dir.join("cgroup.subtree_control");
        let enabled = files::read(&file)?;
        let available = files::read(&dir.join("cgroup.controllers"))?;
        let has = |list: &str, name| list.split_whitespace().any(|word| word == name);
        for controller in CONTROLLERS {
            if has(&enabled, controller) {
                continue;
            }
            if has(&available, controller) {
                files::write(&file, &format!("+{controller}"))?;
            } else if NEEDED.contains(&controller) {
                return Err(CgroupError::Controller {
                    controller: controller.to_owned(),
                    path: path.as_str().to_owned(),
                });
            }
        }
        Ok(())
    }

    fn apply_memory(&self, path: &CgroupPath, limits: &Limits) -> Result<(), CgroupError> {
        let Some(limit) = limits.memory_bytes else {
            return Ok(());
        };
        if let Some(swap) = swap_alone(limit, limits.memory_swap_bytes) {
            let file = self.dir(path).join("memory.swap.max");
            // The file is missing when the kernel has no swap at all.
            if file.exists() {
                files::write(&file, &swap)?;
            }
        }
        self.set(path, "memory.max", &or_max(limit))
    }

    fn apply_cpu(&self, path: &CgroupPath, limits: &Limits) -> Result<(), CgroupError> {
        if let Some(shares) = limits.cpu_shares {
            self.set(path, "cpu.weight", &weight(shares).to_string())?;
        }
        if limits.cpu_quota.is_none() && limits.cpu_period.is_none() {
            return Ok(());
        }
        let quota = limits.cpu_quota.map(or_max);
        let quota = match quota {
            Some(quota) => quota,
            None => {
                let now = files::read(&self.dir(path).join("cpu.max"))?;
                now.split(' ').next().unwrap_or("max").trim().to_owned()
            }
        };
        let value = match limits.cpu_period {
            Some(period) => format!("{quota} {period}"),
            None => quota,
        };
        self.set(path, "cpu.max", &value)
    }
}

fn or_max(value: i64) -> String {
    match value {
        ..0 => "max".to_owned(),
        value => value.to_string(),
    }
}

/// v2 limits swap by itself; the OCI spec gives the sum, as v1 does.
fn swap_alone(limit: i64, sum: Option<i64>) -> Option<String> {
    match sum {
        Some(-1) => Some("max".to_owned()),
        Some(sum) if limit >= 0 && sum >= limit => Some((sum - limit).to_string()),
        _ => None,
    }
}

/// v1 shares (2 to 262144, 1024 is the default) to v2 weight (1 to 10000), as the kubelet and runc
/// convert: linear from end to end.
fn weight(shares: u64) -> u64 {
    let shares = shares.clamp(2, 262_144);
    1 + ((shares - 2) * 9_999) / 262_142
}

impl Manager for Unified {
    fn is_v2(&self) -> bool {
        true
    }

    fn create(&self, path: &CgroupPath) -> Result<(), CgroupError> {
        let mut dir = self.root.clone();
        for part in path.as_str().split('/') {
            self.enable(&dir, path)?;
            dir.push(part);
            match std::fs::create_dir(&dir) {
                Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
                    return Err(failed("creating", &dir)(error));
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn apply(&self, path: &CgroupPath, limits: &Limits) -> Result<(), CgroupError> {
        self.apply_memory(path, limits)?;
        self.apply_cpu(path, limits)?;
        if let Some(pids) = limits.pids {
            let value = if pids > 0 {
                pids.to_string()
            } else {
                "max".to_owned()
            };
            self.set(path, "pids.max", &value)?;
        }
        if let Some(cpus) = &limits.cpuset_cpus {
            self.set(path, "cpuset.cpus", cpus)?;
        }
        if let Some(mems) = &limits.cpuset_mems {
            self.set(path, "cpuset.mems", mems)?;
        }
        if let Some(rules) = &limits.devices {
            device_program::attach(&self.dir(path), rules)?;
        }
        for (name, value) in &limits.unified {
            if name.contains('/') || name.starts_with("cgroup.") {
                let what = format!("unified.{name}");
                return Err(CgroupError::Unsupported { what });
            }
            self.set(path, name, value)?;
        }
        Ok(())
    }

    fn join(&self, path: &CgroupPath) -> CgroupJoin {
        let dir = self.dir(path);
        CgroupJoin {
            oom_file: Some(files::utf8(dir.join("memory.events"))),
            unified: Some(files::utf8(dir)),
            v1: Vec::new(),
        }
    }

    fn stats(&self, path: &CgroupPath) -> Result<Stats, CgroupError> {
        let dir = self.dir(path);
        let read = |name: &str| files::read(&dir.join(name));
        let (cpu, memory, events) = (
            read("cpu.stat")?,
            read("memory.stat")?,
            read("memory.events")?,
        );
        let usage = files::number(&dir.join("memory.current"))?.unwrap_or(0);
        Ok(Stats {
            cpu_usage_nanos: files::keyed(&cpu, "usage_usec") * 1000,
            memory_usage_bytes: usage,
            memory_working_set_bytes: usage.saturating_sub(files::keyed(&memory, "inactive_file")),
            memory_rss_bytes: files::keyed(&memory, "anon"),
            memory_page_faults: files::keyed(&memory, "pgfault"),
            memory_major_page_faults: files::keyed(&memory, "pgmajfault"),
            memory_limit_bytes: files::number(&dir.join("memory.max"))?,
            pids: files::number(&dir.join("pids.current"))?.unwrap_or(0),
            oom_kills: files::keyed(&events, "oom_kill"),
        })
    }

    fn pids(&self, path: &CgroupPath) -> Result<Vec<u32>, CgroupError> {
        files::pids(&self.dir(path))
    }

    fn kill(&self, path: &CgroupPath) -> Result<(), CgroupError> {
        let dir = self.dir(path);
        // cgroup.kill is there from kernel 5.14.
        files::kill(&dir, || files::write(&dir.join("cgroup.kill"), "1").is_ok())
    }

    fn remove(&self, path: &CgroupPath) -> Result<(), CgroupError> {
        files::remove(&self.dir(path))
    }

    fn children(&self, path: &CgroupPath) -> Result<Vec<String>, CgroupError> {
        files::children(&self.dir(path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_become_weights_from_end_to_end() {
        assert_eq!(weight(2), 1);
        assert_eq!(weight(1024), 39);
        assert_eq!(weight(262_144), 10_000);
        assert_eq!(weight(0), 1);
    }

    #[test]
    fn swap_is_what_the_sum_leaves() {
        assert_eq!(swap_alone(100, Some(150)), Some("50".into()));
        assert_eq!(swap_alone(100, Some(100)), Some("0".into()));
        assert_eq!(swap_alone(100, Some(-1)), Some("max".into()));
        assert_eq!(swap_alone(100, None), None);
    }
}
