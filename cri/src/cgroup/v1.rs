// SPDX-License-Identifier: Apache-2.0
//! cgroup v1, and hybrid: controllers mounted one by one below one directory.
//!
//! Files are written directly rather than through the cgroups-rs crate: that one reads mountinfo
//! for every cgroup, and takes its hierarchy from the process, not from a given root.

use std::path::{Path, PathBuf};

use shim::plan::CgroupJoin;

use super::files::{self, failed};
use super::{CgroupError, CgroupPath, DeviceRule, Limits, Manager, Stats};

const CONTROLLERS: [&str; 9] = [
    "cpu", "cpuacct", "cpuset", "memory", "pids", "devices", "freezer", "blkio", "hugetlb",
];

#[derive(Debug)]
pub(super) struct Legacy {
    /// (controller, directory of its hierarchy); co-mounted controllers share a directory.
    mounts: Vec<(&'static str, PathBuf)>,
    /// The cgroup2 tree of a hybrid host, which can kill a whole cgroup at once.
    unified: Option<PathBuf>,
}

impl Legacy {
    /// `None` when none of the controllers that limits need is mounted below `root`.
    pub(super) fn new(root: &Path) -> Option<Legacy> {
        let mut mounts = Vec::new();
        for controller in CONTROLLERS {
            // `cpu` may be a link to `cpu,cpuacct`: the real name is what others see.
            let Ok(dir) = root.join(controller).canonicalize() else {
                continue;
            };
            if dir.join("cgroup.procs").exists() {
                mounts.push((controller, dir));
            }
        }
        let unified = root.join("unified");
        let unified = unified
            .join("cgroup.controllers")
            .exists()
            .then_some(unified);
        let limits = mounts
            .iter()
            .any(|(name, _)| matches!(*name, "memory" | "cpu"));
        limits.then_some(Legacy { mounts, unified })
    }

    /// Distinct directories of this cgroup in the v1 trees.
    fn directories(&self, path: &CgroupPath) -> Vec<PathBuf> {
        let mut dirs: Vec<PathBuf> = Vec::with_capacity(self.mounts.len());
        for (_, mount) in &self.mounts {
            let dir = mount.join(path.as_str());
            if !dirs.contains(&dir) {
                dirs.push(dir);
            }
        }
        dirs
    }

    fn unified(&self, path: &CgroupPath) -> Option<PathBuf> {
        self.unified.as_ref().map(|root| root.join(path.as_str()))
    }

    fn file(
        &self,
        controller: &str,
        path: &CgroupPath,
        name: &str,
    ) -> Result<PathBuf, CgroupError> {
        let mount = self.mounts.iter().find(|(known, _)| *known == controller);
        mount
            .map(|(_, root)| root.join(path.as_str()).join(name))
            .ok_or_else(|| CgroupError::Controller {
                controller: controller.to_owned(),
                path: path.as_str().to_owned(),
            })
    }

    fn set(
        &self,
        controller: &str,
        path: &CgroupPath,
        name: &str,
        value: &str,
    ) -> Result<(), CgroupError> {
        files::write(&self.file(controller, path, name)?, value)
    }

    /// A new cpuset is empty and takes no process: it inherits its parent's CPUs and nodes.
    fn fill_cpuset(&self, path: &CgroupPath) -> Result<(), CgroupError> {
        let Ok(file) = self.file("cpuset", path, "") else {
            return Ok(());
        };
        let root = self.mounts.iter().find(|(name, _)| *name == "cpuset");
        let Some((_, mut dir)) = root.cloned() else {
            return Ok(());
        };
        let below = file.strip_prefix(&dir).unwrap_or(&file).to_path_buf();
        for part in below.components() {
            let parent = dir.clone();
            dir.push(part);
            for name in ["cpuset.cpus", "cpuset.mems"] {
                if files::read(&dir.join(name))?.trim().is_empty() {
                    let inherited = files::read(&parent.join(name))?;
                    files::write(&dir.join(name), inherited.trim())?;
                }
            }
        }
        Ok(())
    }

    /// The kernel wants memory <= memory + swap at every moment, so a raised limit starts with the
    /// sum, a lowered one ends with it.
    fn apply_memory(&self, path: &CgroupPath, limits: &Limits) -> Result<(), CgroupError> {
        const LIMIT: &str = "memory.limit_in_bytes";
        const WITH_SWAP: &str = "memory.memsw.limit_in_bytes";
        let Some(limit) = limits.memory_bytes else {
            return Ok(());
        };
        let set = |name, value: i64| self.set("memory", path, name, &value.to_string());
        let swap_file = self.file("memory", path, WITH_SWAP)?;
        let swap = limits.memory_swap_bytes.filter(|_| swap_file.exists());
        let Some(swap) = swap else {
            if swap_file.exists() && limit == -1 {
                set(WITH_SWAP, -1)?;
            }
            return set(LIMIT, limit);
        };
        match set(LIMIT, limit) {
            Ok(()) => set(WITH_SWAP, swap),
            Err(_) => {
                set(WITH_SWAP, swap)?;
                set(LIMIT, limit)
            }
        }
    }

    fn apply_cpu(&self, path: &CgroupPath, limits: &Limits) -> Result<(), CgroupError> {
        if let Some(shares) = limits.cpu_shares {
            self.set("cpu", path, "cpu.shares", &shares.to_string())?;
        }
        let period = limits.cpu_period.map(|period| period.to_string());
        let quota = limits.cpu_quota.map(|quota| quota.to_string());
        let set = |name, value: &Option<String>| match value {
            Some(value) => self.set("cpu", path, name, value),
            None => Ok(()),
        };
        // A period that is too long for the present quota's parent is taken after the new quota.
        let period_first = set("cpu.cfs_period_us", &period);
        set("cpu.cfs_quota_us", &quota)?;
        if period_first.is_err() {
            set("cpu.cfs_period_us", &period)?;
        }
        Ok(())
    }

    fn apply_devices(&self, path: &CgroupPath, rules: &[DeviceRule]) -> Result<(), CgroupError> {
        self.set("devices", path, "devices.deny", "a")?;
        for rule in rules {
            let name = if rule.allow {
                "devices.allow"
            } else {
                "devices.deny"
            };
            self.set("devices", path, name, &device_line(rule))?;
        }
        Ok(())
    }
}

/// `c 1:3 rwm`; `a` alone stands for everything.
fn device_line(rule: &DeviceRule) -> String {
    let number = |number: Option<u32>| number.map_or("*".to_owned(), |n| n.to_string());
    let mut access = String::new();
    for (wanted, letter) in [(rule.read, 'r'), (rule.write, 'w'), (rule.mknod, 'm')] {
        if wanted {
            access.push(letter);
        }
    }
    if rule.kind == 'a' {
        return "a".to_owned();
    }
    format!(
        "{} {}:{} {access}",
        rule.kind,
        number(rule.major),
        number(rule.minor)
    )
}

impl Manager for Legacy {
    fn is_v2(&self) -> bool {
        false
    }

    fn create(&self, path: &CgroupPath) -> Result<(), CgroupError> {
        for dir in self.directories(path).into_iter().chain(self.unified(path)) {
            std::fs::create_dir_all(&dir).map_err(failed("creating", &dir))?;
        }
        self.fill_cpuset(path)
    }

    fn apply(&self, path: &CgroupPath, limits: &Limits) -> Result<(), CgroupError> {
        if let Some((name, _)) = limits.unified.first() {
            return Err(CgroupError::Unsupported {
                what: format!("unified.{name} (cgroup v2 only)"),
            });
        }
        self.apply_memory(path, limits)?;
        self.apply_cpu(path, limits)?;
        if let Some(pids) = limits.pids {
            let value = if pids > 0 {
                pids.to_string()
            } else {
                "max".to_owned()
            };
            self.set("pids", path, "pids.max", &value)?;
        }
        if let Some(cpus) = &limits.cpuset_cpus {
            self.set("cpuset", path, "cpuset.cpus", cpus)?;
        }
        if let Some(mems) = &limits.cpuset_mems {
            self.set("cpuset", path, "cpuset.mems", mems)?;
        }
        match &limits.devices {
            Some(rules) => self.apply_devices(path, rules),
            None => Ok(()),
        }
    }

    fn join(&self, path: &CgroupPath) -> CgroupJoin {
        let oom_file = self.file("memory", path, "memory.oom_control").ok();
        CgroupJoin {
            unified: self.unified(path).map(files::utf8),
            v1: self
                .directories(path)
                .into_iter()
                .map(files::utf8)
                .collect(),
            oom_file: oom_file.map(files::utf8),
        }
    }

    fn stats(&self, path: &CgroupPath) -> Result<Stats, CgroupError> {
        /// Limits above this are none: the kernel rounds "unlimited" down to a page.
        const UNLIMITED: u64 = 1 << 60;
        let number = |controller, name| {
            let file = self.file(controller, path, name)?;
            files::number(&file).map(|number| number.unwrap_or(0))
        };
        let memory = files::read(&self.file("memory", path, "memory.stat")?)?;
        let oom = files::read(&self.file("memory", path, "memory.oom_control")?)?;
        let usage = number("memory", "memory.usage_in_bytes")?;
        let limit = number("memory", "memory.limit_in_bytes")?;
        let inactive = files::keyed(&memory, "total_inactive_file");
        Ok(Stats {
            cpu_usage_nanos: number("cpuacct", "cpuacct.usage")?,
            memory_usage_bytes: usage,
            memory_working_set_bytes: usage.saturating_sub(inactive),
            memory_rss_bytes: files::keyed(&memory, "total_rss"),
            memory_page_faults: files::keyed(&memory, "total_pgfault"),
            memory_major_page_faults: files::keyed(&memory, "total_pgmajfault"),
            memory_limit_bytes: Some(limit).filter(|limit| *limit < UNLIMITED),
            pids: number("pids", "pids.current")?,
            oom_kills: files::keyed(&oom, "oom_kill"),
        })
    }

    fn pids(&self, path: &CgroupPath) -> Result<Vec<u32>, CgroupError> {
        match self.directories(path).first() {
            Some(dir) => files::pids(dir),
            None => Ok(Vec::new()),
        }
    }

    fn kill(&self, path: &CgroupPath) -> Result<(), CgroupError> {
        let mut result = Ok(());
        let at_once = || {
            let dir = self.unified(path);
            dir.is_some_and(|dir| files::write(&dir.join("cgroup.kill"), "1").is_ok())
        };
        at_once();
        for dir in self.directories(path) {
            // Whoever moved within one tree only is still found in the others.
            result = result.and(files::kill(&dir, || false));
        }
        result
    }

    fn remove(&self, path: &CgroupPath) -> Result<(), CgroupError> {
        let mut result = Ok(());
        for dir in self.directories(path).into_iter().chain(self.unified(path)) {
            result = result.and(files::remove(&dir));
        }
        result
    }

    fn children(&self, path: &CgroupPath) -> Result<Vec<String>, CgroupError> {
        let mut names = Vec::new();
        for dir in self.directories(path).into_iter().chain(self.unified(path)) {
            names.extend(files::children(&dir)?);
        }
        names.sort();
        names.dedup();
        Ok(names)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_rules_become_the_kernels_lines() {
        let mut rule = DeviceRule {
            allow: true,
            kind: 'c',
            major: Some(136),
            minor: None,
            read: true,
            write: true,
            mknod: false,
        };
        assert_eq!(device_line(&rule), "c 136:* rw");
        rule.kind = 'a';
        assert_eq!(device_line(&rule), "a");
    }
}
