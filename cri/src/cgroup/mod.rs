// SPDX-License-Identifier: Apache-2.0
//! Control groups: one trait, and one implementation for each layout of the host.
//!
//! ```text
//! let manager = cgroup::detect(Path::new("/sys/fs/cgroup"))?;
//! let path = CgroupPath::new("/podwright/kubepods/burstable/pod<uid>")?;
//! manager.create(&path)?; manager.apply(&path, &limits)?;
//! let join = manager.join(&path.child("container-id")?);      // goes into a LaunchPlan
//! ```
//!
//! All calls block for microseconds to milliseconds (`remove` and `kill` up to their deadline):
//! call them with `spawn_blocking` from async code.

mod convert;
mod files;
mod limits;
mod oom;
mod stats;
mod systemd;
mod v1;
mod v2;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use shim::plan::CgroupJoin;

pub use limits::{
    BlockIo, Cpu, DeviceRule, Limits, Memory, Network, Rdma, Throttle, ThrottleKind, WeightDevice,
};
pub use oom::{OomEvent, OomWatch};
#[cfg(test)]
pub(crate) use stats::{BlockIoEntry, HugepageStats};
pub use stats::{InterfaceStats, Pressure, PressureLine, Stats, Summary, interfaces};
pub use systemd::{
    ANNOTATIONS as SYSTEMD_ANNOTATIONS, Value, slice_path, systemd, systemd_path,
    systemd_properties,
};

/// A checked path relative to the hierarchy root: no `..`, no empty part, never the root itself.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct CgroupPath(String);

impl CgroupPath {
    /// Checks a path; a leading slash is accepted and dropped.
    ///
    /// # Errors
    /// When it is empty, or has a part that is empty, `.` or `..`.
    pub fn new(path: &str) -> Result<CgroupPath, CgroupError> {
        let path = path.trim_matches('/');
        if path.is_empty() || path.split('/').any(|part| matches!(part, "" | "." | "..")) {
            return Err(CgroupError::Path {
                path: path.to_owned(),
            });
        }
        Ok(CgroupPath(path.to_owned()))
    }

    /// The cgroup `name` below this one.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn child(&self, name: &str) -> Result<CgroupPath, CgroupError> {
        CgroupPath::new(&format!("{}/{name}", self.0))
    }

    /// The relative path, without a leading slash.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    #[error("cgroup path {path:?} is not a plain relative path")]
    Path { path: String },
    #[error("no cgroup hierarchy at {root}")]
    NoHierarchy { root: PathBuf },
    #[error("{action} {path}")]
    Io {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("writing {value:?} to {path}")]
    Write {
        path: PathBuf,
        value: String,
        #[source]
        source: std::io::Error,
    },
    #[error("controller {controller} is not available for {path}")]
    Controller { controller: String, path: String },
    #[error("cgroup {path} still has processes after {waited:?}")]
    Busy {
        path: String,
        waited: std::time::Duration,
    },
    #[error("loading the device program for {path}")]
    DeviceProgram {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{field} is not supported: {reason}")]
    Unsupported { field: String, reason: String },
    #[error("{field} is invalid: {reason}")]
    Invalid { field: String, reason: String },
    #[error("{field} cannot be set: the cgroup controller {controller} of this host has no {file}")]
    Absent {
        field: String,
        controller: &'static str,
        file: String,
    },
    #[error("unable to set memory limit to {limit} (current usage: {usage}, peak usage: {peak})")]
    MemoryInUse { limit: i64, usage: u64, peak: u64 },
    #[error("rejecting {what} limit {limit} <= usage {usage}")]
    BelowUsage {
        what: &'static str,
        limit: i64,
        usage: u64,
    },
    #[error("systemd: {action}: {reason}")]
    Systemd { action: String, reason: String },
    #[error("cgroup {path} did not freeze within {waited:?}")]
    NotFrozen {
        path: String,
        waited: std::time::Duration,
    },
}

/// What the runtime needs of cgroups.
pub trait Manager: Send + Sync + std::fmt::Debug {
    /// Whether limits live in the unified (v2) tree.
    fn is_v2(&self) -> bool;
    /// Makes the cgroup and its parents, with the controllers enabled down to it. Idempotent.
    ///
    /// # Errors
    /// Names the directory or the controller that failed.
    fn create(&self, path: &CgroupPath) -> Result<(), CgroupError>;
    /// Sets limits. Idempotent.
    ///
    /// # Errors
    /// Names the file and the value.
    fn apply(&self, path: &CgroupPath, limits: &Limits) -> Result<(), CgroupError>;
    /// The directories for a launch plan. Pure.
    fn join(&self, path: &CgroupPath) -> CgroupJoin;
    /// To be called once a process is in the cgroup, after [`create`](Self::create): lets go of what
    /// kept it until then (the systemd driver's placeholder). It goes with the manager, at the latest.
    fn settle(&self, _path: &CgroupPath) {}
    fn exists(&self, path: &CgroupPath) -> bool;
    /// The few figures that the kubelet asks for again and again.
    ///
    /// # Errors
    /// When the cgroup does not exist.
    fn summary(&self, path: &CgroupPath) -> Result<Summary, CgroupError>;
    /// All that the kernel counts, as `events --stats` shows it. Network interfaces are not a
    /// cgroup's: see [`interfaces`].
    ///
    /// # Errors
    /// When the cgroup does not exist.
    fn stats(&self, path: &CgroupPath) -> Result<Stats, CgroupError>;
    /// Stops every process in this cgroup and below it where it is, and waits until all are.
    /// Idempotent.
    ///
    /// # Errors
    /// `NotFrozen` when one does not stop in time: then all run on.
    fn freeze(&self, path: &CgroupPath) -> Result<(), CgroupError>;
    /// Lets them run on. Idempotent.
    ///
    /// # Errors
    /// Names the file.
    fn thaw(&self, path: &CgroupPath) -> Result<(), CgroupError>;
    /// Whether [`freeze`](Self::freeze) holds for this cgroup itself.
    ///
    /// # Errors
    /// When the file cannot be read; a cgroup that is gone is not frozen.
    fn frozen(&self, path: &CgroupPath) -> Result<bool, CgroupError>;
    /// Watches for kills by the kernel for want of memory, from now on.
    ///
    /// # Errors
    /// When the cgroup does not exist, or the kernel has no such notification.
    fn watch_oom(&self, path: &CgroupPath) -> Result<OomWatch, CgroupError>;
    /// Pids in this cgroup and below it.
    ///
    /// # Errors
    /// When a file cannot be read; a cgroup that is gone has none.
    fn pids(&self, path: &CgroupPath) -> Result<Vec<u32>, CgroupError>;
    /// Kills every process in this cgroup and below, and waits until they are gone. Idempotent.
    ///
    /// # Errors
    /// `Busy` when processes remain after some seconds.
    fn kill(&self, path: &CgroupPath) -> Result<(), CgroupError>;
    /// Removes the cgroup and everything below it, retrying while the kernel lets go of dead
    /// processes. Succeeds when it is gone already.
    ///
    /// # Errors
    /// `Busy` or `Io`.
    fn remove(&self, path: &CgroupPath) -> Result<(), CgroupError>;
    /// [`kill`](Self::kill) and [`remove`](Self::remove). Where nobody is left, which is usual, it
    /// takes one call for each directory.
    ///
    /// # Errors
    /// As those two.
    fn destroy(&self, path: &CgroupPath) -> Result<(), CgroupError> {
        let join = self.join(path);
        let mut dirs = join.v1.iter().chain(&join.unified);
        if dirs.all(|dir| files::remove_unused(Path::new(dir))) {
            return Ok(());
        }
        self.kill(path)?;
        self.remove(path)
    }
    /// Cgroups directly below, by name.
    ///
    /// # Errors
    /// When the directory cannot be read; a cgroup that is gone has none.
    fn children(&self, path: &CgroupPath) -> Result<Vec<String>, CgroupError>;
}

/// Looks at what is mounted at `root` (usually /sys/fs/cgroup) and returns the manager for it:
/// unified when the root itself is cgroup2, else one for the v1 controllers mounted below it.
///
/// # Errors
/// `NoHierarchy` when nothing usable is mounted.
pub fn detect(root: &Path) -> Result<Arc<dyn Manager>, CgroupError> {
    if root.join("cgroup.controllers").exists() {
        return Ok(Arc::new(v2::Unified::new(root)));
    }
    match v1::Legacy::new(root) {
        Some(legacy) => Ok(Arc::new(legacy)),
        None => Err(CgroupError::NoHierarchy {
            root: root.to_path_buf(),
        }),
    }
}
