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

mod device_program;
mod files;
mod v1;
mod v2;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use shim::plan::CgroupJoin;

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

/// Limits; what is `None` stays as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Limits {
    /// Bytes; -1 removes the limit.
    pub memory_bytes: Option<i64>,
    /// Memory plus swap, bytes, as in v1 and the OCI spec; -1 removes the limit.
    pub memory_swap_bytes: Option<i64>,
    /// v1 units (2 to 262144); converted to cpu.weight on v2.
    pub cpu_shares: Option<u64>,
    /// Microseconds per period; -1 removes the limit.
    pub cpu_quota: Option<i64>,
    pub cpu_period: Option<u64>,
    /// 0 or less: no limit.
    pub pids: Option<i64>,
    pub cpuset_cpus: Option<String>,
    pub cpuset_mems: Option<String>,
    /// The complete list of device rules, evaluated in order; the default is to deny.
    pub devices: Option<Vec<DeviceRule>>,
    /// v2 files to write as they are (CRI `unified`). An error on v1 unless empty.
    pub unified: Vec<(String, String)>,
}

/// One device rule, in the OCI spec's terms.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceRule {
    pub allow: bool,
    /// `a`, `b` or `c`.
    pub kind: char,
    pub major: Option<u32>,
    pub minor: Option<u32>,
    pub read: bool,
    pub write: bool,
    pub mknod: bool,
}

/// Usage, in the units that CRI and the kubelet's summary use.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stats {
    pub cpu_usage_nanos: u64,
    pub memory_usage_bytes: u64,
    /// Usage without inactive file pages: what eviction looks at.
    pub memory_working_set_bytes: u64,
    pub memory_rss_bytes: u64,
    pub memory_page_faults: u64,
    pub memory_major_page_faults: u64,
    /// None when unlimited.
    pub memory_limit_bytes: Option<u64>,
    pub pids: u64,
    pub oom_kills: u64,
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
    #[error("{what} is not supported on this host's cgroups")]
    Unsupported { what: String },
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
    /// # Errors
    /// When the cgroup does not exist.
    fn stats(&self, path: &CgroupPath) -> Result<Stats, CgroupError>;
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
