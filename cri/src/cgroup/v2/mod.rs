// SPDX-License-Identifier: Apache-2.0
//! cgroup v2 (kernel Documentation/admin-guide/cgroup-v2.rst).

mod device_program;
mod freezer;
mod limits;
mod stats;

use std::path::{Path, PathBuf};

use shim::plan::CgroupJoin;

use super::files::{self, failed};
use super::oom::OomWatch;
use super::{CgroupError, CgroupPath, Limits, Manager, Stats, Summary};

/// What usual limits and statistics need; enabled all the way down. Others are enabled when a limit
/// asks for them: each costs something in every cgroup.
const CONTROLLERS: [&str; 5] = ["cpu", "cpuset", "io", "memory", "pids"];
/// Those without which a limit would silently do nothing.
const NEEDED: [&str; 3] = ["cpu", "memory", "pids"];

#[derive(Debug)]
pub(super) struct Unified {
    root: PathBuf,
    /// What the root offers: it does not change while the system runs.
    available: Vec<String>,
}

impl Unified {
    pub(super) fn new(root: &Path) -> Unified {
        let available = std::fs::read_to_string(root.join("cgroup.controllers"));
        let available = available.unwrap_or_default();
        Unified {
            root: root.to_path_buf(),
            available: available.split_whitespace().map(str::to_owned).collect(),
        }
    }

    pub(super) fn dir(&self, path: &CgroupPath) -> PathBuf {
        self.root.join(path.as_str())
    }

    fn offers(&self, controller: &str) -> bool {
        self.available.iter().any(|known| known == controller)
    }

    /// Makes `dir`, and lets its children use the controllers. Looks no further up than it must:
    /// usually the directory is there and has them enabled.
    fn prepare(&self, dir: &Path, controllers: &[&str]) -> Result<(), CgroupError> {
        let file = dir.join("cgroup.subtree_control");
        let enabled = match std::fs::read_to_string(&file) {
            Err(error) if files::absent(&error) && dir != self.root => {
                self.make(dir, controllers)?;
                String::new()
            }
            other => other.map_err(failed("reading", &file))?,
        };
        let has = |list: &str, name: &str| list.split_whitespace().any(|word| word == name);
        let missing = controllers.iter().filter(|name| !has(&enabled, name));
        let missing: Vec<&str> = missing.copied().collect();
        if missing.is_empty() {
            return Ok(());
        }
        let available = files::read(&dir.join("cgroup.controllers"))?;
        if let (false, Some(parent)) = (dir == self.root, dir.parent())
            && missing.iter().any(|name| !has(&available, name))
        {
            self.prepare(parent, controllers)?;
        }
        let line: Vec<String> = missing.iter().map(|name| format!("+{name}")).collect();
        files::write(&file, &line.join(" "))
    }

    fn make(&self, dir: &Path, controllers: &[&str]) -> Result<(), CgroupError> {
        if let Some(parent) = dir.parent() {
            self.prepare(parent, controllers)?;
        }
        match std::fs::create_dir(dir) {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
                Err(failed("creating", dir)(error))
            }
            _ => Ok(()),
        }
    }

    /// Lets a cgroup that exists use one more controller.
    fn enable(
        &self,
        path: &CgroupPath,
        controller: &'static str,
        field: &str,
    ) -> Result<(), CgroupError> {
        if !self.offers(controller) {
            return Err(CgroupError::Unsupported {
                field: field.to_owned(),
                reason: format!("this host has no cgroup controller {controller}"),
            });
        }
        match self.dir(path).parent() {
            Some(parent) => self.prepare(parent, &[controller]),
            None => Ok(()),
        }
    }
}

impl Manager for Unified {
    fn is_v2(&self) -> bool {
        true
    }

    fn create(&self, path: &CgroupPath) -> Result<(), CgroupError> {
        if let Some(controller) = NEEDED.iter().find(|name| !self.offers(name)) {
            return Err(CgroupError::Controller {
                controller: (*controller).to_owned(),
                path: path.as_str().to_owned(),
            });
        }
        let mut controllers = CONTROLLERS.to_vec();
        controllers.retain(|name| self.offers(name));
        self.make(&self.dir(path), &controllers)
    }

    fn apply(&self, path: &CgroupPath, limits: &Limits) -> Result<(), CgroupError> {
        self.apply_limits(path, limits)
    }

    fn join(&self, path: &CgroupPath) -> CgroupJoin {
        let dir = self.dir(path);
        CgroupJoin {
            oom_file: Some(files::utf8(dir.join("memory.events"))),
            unified: Some(files::utf8(dir)),
            v1: Vec::new(),
        }
    }

    fn exists(&self, path: &CgroupPath) -> bool {
        self.dir(path).exists()
    }

    fn summary(&self, path: &CgroupPath) -> Result<Summary, CgroupError> {
        stats::summary(&self.dir(path))
    }

    fn stats(&self, path: &CgroupPath) -> Result<Stats, CgroupError> {
        stats::stats(&self.dir(path))
    }

    fn freeze(&self, path: &CgroupPath) -> Result<(), CgroupError> {
        freezer::freeze(&self.dir(path))
    }

    fn thaw(&self, path: &CgroupPath) -> Result<(), CgroupError> {
        freezer::thaw(&self.dir(path))
    }

    fn frozen(&self, path: &CgroupPath) -> Result<bool, CgroupError> {
        freezer::frozen(&self.dir(path))
    }

    fn watch_oom(&self, path: &CgroupPath) -> Result<OomWatch, CgroupError> {
        OomWatch::changed(&self.dir(path))
    }

    fn pids(&self, path: &CgroupPath) -> Result<Vec<u32>, CgroupError> {
        files::pids(&self.dir(path))
    }

    fn kill(&self, path: &CgroupPath) -> Result<(), CgroupError> {
        let dir = self.dir(path);
        // cgroup.kill is there from kernel 5.14. Without it, too, SIGKILL ends a frozen process.
        files::kill(&dir, || files::write(&dir.join("cgroup.kill"), "1").is_ok())
    }

    fn remove(&self, path: &CgroupPath) -> Result<(), CgroupError> {
        files::remove(&self.dir(path))
    }

    fn children(&self, path: &CgroupPath) -> Result<Vec<String>, CgroupError> {
        files::children(&self.dir(path))
    }
}
