// SPDX-License-Identifier: Apache-2.0
//! cgroup v1, and hybrid: controllers mounted one by one below one directory.
//!
//! Files are written directly rather than through the cgroups-rs crate: that one reads mountinfo
//! for every cgroup, and takes its hierarchy from the process, not from a given root.

mod cpuset;
pub(super) mod devices;
mod freezer;
mod limits;
mod stats;

use std::path::{Path, PathBuf};

use shim::plan::CgroupJoin;

use super::files::{self, failed};
use super::oom::OomWatch;
use super::v2::Unified;
use super::{CgroupError, CgroupPath, Limits, Manager, Stats, Summary};

/// By controller. The last has none: by it systemd tells whose a process is, and ends those of a unit
/// that it stops. As with runc, a container is its own there, and no longer the caller's.
const TREES: [&str; 13] = [
    "cpu", "cpuacct", "cpuset", "memory", "pids", "devices", "freezer", "blkio", "hugetlb",
    "net_cls", "net_prio", "rdma", "systemd",
];

#[derive(Debug)]
pub(super) struct Legacy {
    /// (controller, directory of its hierarchy); co-mounted controllers share a directory.
    mounts: Vec<(&'static str, PathBuf)>,
    /// The cgroup2 tree of a hybrid host: it kills a whole cgroup at once, counts pressure, and has
    /// the controllers that are not mounted as v1.
    unified: Option<Unified>,
}

impl Legacy {
    /// `None` when none of the controllers that limits need is mounted below `root`.
    pub(super) fn new(root: &Path) -> Option<Legacy> {
        let mut mounts = Vec::new();
        for controller in TREES {
            // `cpu` may be a link to `cpu,cpuacct`: the real name is what others see.
            let dir = root.join(controller);
            let dir = match std::fs::read_link(&dir) {
                Ok(target) => root.join(target),
                // It is no link, or is not there.
                Err(_) => dir,
            };
            if dir.join("cgroup.procs").exists() {
                mounts.push((controller, dir));
            }
        }
        let unified = root.join("unified");
        let unified = unified
            .join("cgroup.controllers")
            .exists()
            .then(|| Unified::new(&unified));
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
        self.unified.as_ref().map(|unified| unified.dir(path))
    }

    /// In all trees.
    fn all(&self, path: &CgroupPath) -> impl Iterator<Item = PathBuf> {
        self.directories(path).into_iter().chain(self.unified(path))
    }

    /// The cgroup in the tree of a controller; `None` when that is not mounted.
    fn dir(&self, controller: &str, path: &CgroupPath) -> Option<PathBuf> {
        let mount = self.mounts.iter().find(|(known, _)| *known == controller);
        mount.map(|(_, root)| root.join(path.as_str()))
    }

    /// As [`dir`](Self::dir), for what cannot do without.
    fn need(&self, controller: &str, path: &CgroupPath) -> Result<PathBuf, CgroupError> {
        self.dir(controller, path)
            .ok_or_else(|| CgroupError::Controller {
                controller: controller.to_owned(),
                path: path.as_str().to_owned(),
            })
    }
}

impl Manager for Legacy {
    fn is_v2(&self) -> bool {
        false
    }

    fn create(&self, path: &CgroupPath) -> Result<(), CgroupError> {
        for dir in self.all(path) {
            std::fs::create_dir_all(&dir).map_err(failed("creating", &dir))?;
        }
        self.fill_cpuset(path)
    }

    fn apply(&self, path: &CgroupPath, limits: &Limits) -> Result<(), CgroupError> {
        self.apply_limits(path, limits)
    }

    fn join(&self, path: &CgroupPath) -> CgroupJoin {
        let oom_file = self.dir("memory", path);
        CgroupJoin {
            unified: self.unified(path).map(files::utf8),
            v1: self
                .directories(path)
                .into_iter()
                .map(files::utf8)
                .collect(),
            oom_file: oom_file.map(|dir| files::utf8(dir.join("memory.oom_control"))),
        }
    }

    fn exists(&self, path: &CgroupPath) -> bool {
        self.directories(path).iter().any(|dir| dir.exists())
    }

    fn summary(&self, path: &CgroupPath) -> Result<Summary, CgroupError> {
        self.read_summary(path)
    }

    fn stats(&self, path: &CgroupPath) -> Result<Stats, CgroupError> {
        self.read_stats(path)
    }

    fn freeze(&self, path: &CgroupPath) -> Result<(), CgroupError> {
        match (self.dir("freezer", path), &self.unified) {
            (Some(dir), _) => freezer::freeze(&dir),
            (None, Some(unified)) => unified.freeze(path),
            (None, None) => Err(freezer::absent()),
        }
    }

    fn thaw(&self, path: &CgroupPath) -> Result<(), CgroupError> {
        match (self.dir("freezer", path), &self.unified) {
            (Some(dir), _) => freezer::thaw(&dir),
            (None, Some(unified)) => unified.thaw(path),
            (None, None) => Err(freezer::absent()),
        }
    }

    fn frozen(&self, path: &CgroupPath) -> Result<bool, CgroupError> {
        match (self.dir("freezer", path), &self.unified) {
            (Some(dir), _) => freezer::frozen(&dir),
            (None, Some(unified)) => unified.frozen(path),
            (None, None) => Ok(false),
        }
    }

    fn watch_oom(&self, path: &CgroupPath) -> Result<OomWatch, CgroupError> {
        OomWatch::signalled(&self.need("memory", path)?)
    }

    fn pids(&self, path: &CgroupPath) -> Result<Vec<u32>, CgroupError> {
        match self.directories(path).first() {
            Some(dir) => files::pids(dir),
            None => Ok(Vec::new()),
        }
    }

    fn kill(&self, path: &CgroupPath) -> Result<(), CgroupError> {
        if let Some(dir) = self.unified(path) {
            // It fails where the kernel has no cgroup.kill (before 5.14): the loop below is enough.
            let _ = files::write(&dir.join("cgroup.kill"), "1");
        }
        let freezer = self.dir("freezer", path);
        let mut result = Ok(());
        for dir in self.directories(path) {
            // Whoever moved within one tree only is still found in the others.
            let killed = files::kill(&dir, || {
                // A frozen process dies when it is thawed.
                if let Some(freezer) = &freezer {
                    freezer::thaw_all(freezer);
                }
                false
            });
            result = result.and(killed);
        }
        result
    }

    fn remove(&self, path: &CgroupPath) -> Result<(), CgroupError> {
        let mut result = Ok(());
        for dir in self.all(path) {
            result = result.and(files::remove(&dir));
        }
        result
    }

    fn children(&self, path: &CgroupPath) -> Result<Vec<String>, CgroupError> {
        let mut names = Vec::new();
        for dir in self.all(path) {
            names.extend(files::children(&dir)?);
        }
        names.sort();
        names.dedup();
        Ok(names)
    }
}
