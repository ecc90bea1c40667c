// SPDX-License-Identifier: Apache-2.0
//! Cgroups that systemd makes: a scope unit for each container, in a slice. The files below it are
//! written as without systemd; the units exist so that systemd knows and keeps them.
//!
//! systemd makes no scope without a process. A placeholder goes first, so that the container can be
//! cloned into its cgroup like any other, and ends when [`Manager::settle`] says that it has been.

mod bus;
mod name;
mod placeholder;
mod properties;
mod wire;

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use shim::plan::CgroupJoin;

use self::bus::Bus;
use self::placeholder::Placeholder;
use self::wire::Writer;
use super::oom::OomWatch;
use super::v1::Legacy;
use super::v2::Unified;
use super::{CgroupError, CgroupPath, Limits, Manager, Stats, Summary, files};

pub use name::{slice_path, systemd_path};
pub use properties::{ANNOTATIONS, systemd_properties};
pub use wire::Value;

#[derive(Debug)]
struct Systemd {
    files: Box<dyn Manager>,
    /// More properties for new units.
    properties: Vec<(String, Value)>,
    /// By the path of their cgroup, until the container is in it.
    placeholders: Mutex<Vec<(CgroupPath, Placeholder)>>,
}

/// The manager for a host where systemd runs, with its cgroups at `root` (usually /sys/fs/cgroup).
/// Paths are those of [`systemd_path`], or lie below one.
///
/// # Errors
/// When systemd does not run here, or nothing usable is mounted.
pub fn systemd(
    root: &Path,
    properties: Vec<(String, Value)>,
) -> Result<Arc<dyn Manager>, CgroupError> {
    /// As sd_booted(3) tells.
    const BOOTED: &str = "/run/systemd/system";
    if !Path::new(BOOTED).is_dir() {
        return Err(CgroupError::Unsupported {
            field: "the systemd cgroup driver".to_owned(),
            reason: format!("systemd does not run on this host ({BOOTED} is missing)"),
        });
    }
    let no_hierarchy = || CgroupError::NoHierarchy {
        root: root.to_path_buf(),
    };
    let files: Box<dyn Manager> = match root.join("cgroup.controllers").exists() {
        true => Box::new(Unified::new(root)),
        false => Box::new(Legacy::new(root).ok_or_else(no_hierarchy)?),
    };
    Ok(Arc::new(Systemd {
        files,
        properties,
        placeholders: Mutex::default(),
    }))
}

/// The last part of a path when it is a unit: anything else lies below one, and is ours alone.
fn unit(path: &CgroupPath) -> Option<&str> {
    let name = path.as_str().rsplit('/').next()?;
    (name.ends_with(".scope") || name.ends_with(".slice")).then_some(name)
}

/// The slice that a unit is in.
fn slice(path: &CgroupPath) -> &str {
    let mut parts = path.as_str().rsplit('/').skip(1);
    parts.next().unwrap_or("-.slice")
}

impl Systemd {
    fn start(&self, path: &CgroupPath, unit: &str) -> Result<(), CgroupError> {
        let placeholder = match unit.ends_with(".scope") {
            true => Some(Placeholder::start()?),
            false => None,
        };
        let pid = placeholder.as_ref().map(Placeholder::pid);
        let mut properties = properties::of_new_unit(unit, slice(path), pid);
        properties.extend(self.properties.iter().cloned());
        let mut body = Writer::default();
        body.text(unit).text("replace").properties(&properties);
        body.no_units();
        let mut bus = Bus::connect()?;
        let starting = format!("starting unit {unit}");
        let start = |bus: &mut Bus| bus.job("StartTransientUnit", "ssa(sv)a(sa(sv))", &body);
        let mut outcome = start(&mut bus)?;
        if outcome
            .as_ref()
            .is_err_and(|refused| refused.name.ends_with(".UnitExists"))
        {
            if placeholder.is_none() {
                // A slice that is there is what was wanted.
                return Ok(());
            }
            // One that failed stays until it is reset.
            bus.reset_failed(unit)?;
            outcome = start(&mut bus)?;
        }
        let result = outcome.map_err(|refused| refused.error(&starting))?;
        if result != "done" {
            bus.reset_failed(unit)?;
            let reason = format!("the job ended with {result:?}");
            let action = starting;
            return Err(CgroupError::Systemd { action, reason });
        }
        if let Some(placeholder) = placeholder {
            self.placeholders().push((path.clone(), placeholder));
        }
        Ok(())
    }

    fn placeholders(&self) -> std::sync::MutexGuard<'_, Vec<(CgroupPath, Placeholder)>> {
        self.placeholders
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// A unit that is gone already is as good as stopped.
    fn stop(&self, unit: &str) -> Result<(), CgroupError> {
        let mut body = Writer::default();
        body.text(unit).text("replace");
        let mut bus = Bus::connect()?;
        match bus.job("StopUnit", "ss", &body)? {
            Ok(_) => {}
            Err(refused) if refused.name.ends_with(".NoSuchUnit") => {}
            Err(refused) => return Err(refused.error(&format!("stopping unit {unit}"))),
        }
        bus.reset_failed(unit)
    }
}

impl Manager for Systemd {
    fn is_v2(&self) -> bool {
        self.files.is_v2()
    }

    /// Not idempotent for a scope: whoever makes one owns it.
    fn create(&self, path: &CgroupPath) -> Result<(), CgroupError> {
        if let Some(unit) = unit(path) {
            self.start(path, unit)?;
        }
        // systemd makes the cgroup where it needs it; limits may need it elsewhere.
        self.files.create(path)
    }

    fn apply(&self, path: &CgroupPath, limits: &Limits) -> Result<(), CgroupError> {
        let Some(unit) = unit(path) else {
            return self.files.apply(path, limits);
        };
        if limits.memory.check_before_update {
            // Before systemd gets to it, which does not ask.
            let usage = self.files.summary(path).map(|now| now.memory_usage_bytes);
            files::check_usage(usage.ok(), &limits.memory)?;
        }
        let mut limits = limits.clone();
        properties::round_quota(&mut limits.cpu);
        let mut bus = Bus::connect()?;
        let version = bus.version()?;
        let properties = properties::of_limits(&limits, self.is_v2(), version)?;
        if !properties.is_empty() {
            bus.set_properties(unit, &properties)?;
        }
        self.files.apply(path, &limits)
    }

    /// On v1, systemd takes processes without device rules out of that controller, and removes what
    /// is empty then: such a unit has all that its parent has, and need not be there.
    fn join(&self, path: &CgroupPath) -> CgroupJoin {
        const NO_RULES: &str = "a *:* rwm";
        let mut join = self.files.join(path);
        join.v1.retain(|dir| {
            let rules = std::fs::read_to_string(Path::new(dir).join("devices.list"));
            let missing = || !dir.contains("/devices/");
            rules.map_or_else(|_| missing(), |rules| rules.trim() != NO_RULES)
        });
        join
    }

    fn settle(&self, path: &CgroupPath) {
        self.placeholders().retain(|(of, _)| of != path);
    }

    fn exists(&self, path: &CgroupPath) -> bool {
        self.files.exists(path)
    }

    fn summary(&self, path: &CgroupPath) -> Result<Summary, CgroupError> {
        self.files.summary(path)
    }

    fn stats(&self, path: &CgroupPath) -> Result<Stats, CgroupError> {
        self.files.stats(path)
    }

    fn freeze(&self, path: &CgroupPath) -> Result<(), CgroupError> {
        self.files.freeze(path)
    }

    fn thaw(&self, path: &CgroupPath) -> Result<(), CgroupError> {
        self.files.thaw(path)
    }

    fn frozen(&self, path: &CgroupPath) -> Result<bool, CgroupError> {
        self.files.frozen(path)
    }

    fn watch_oom(&self, path: &CgroupPath) -> Result<OomWatch, CgroupError> {
        self.files.watch_oom(path)
    }

    fn pids(&self, path: &CgroupPath) -> Result<Vec<u32>, CgroupError> {
        self.files.pids(path)
    }

    fn kill(&self, path: &CgroupPath) -> Result<(), CgroupError> {
        self.settle(path);
        self.files.kill(path)
    }

    fn remove(&self, path: &CgroupPath) -> Result<(), CgroupError> {
        self.settle(path);
        if let Some(unit) = unit(path) {
            self.stop(unit)?;
        }
        self.files.remove(path)
    }

    /// The unit has to end too, which it does not everywhere by its cgroup being removed.
    fn destroy(&self, path: &CgroupPath) -> Result<(), CgroupError> {
        match unit(path) {
            Some(_) => {
                self.kill(path)?;
                self.remove(path)
            }
            None => self.files.destroy(path),
        }
    }

    fn children(&self, path: &CgroupPath) -> Result<Vec<String>, CgroupError> {
        self.files.children(path)
    }
}
