// SPDX-License-Identifier: Apache-2.0
//! `oci_spec::runtime::Spec` to [`LaunchPlan`]: pure, no I/O.

use oci_spec::runtime::{Process, Spec};
use shim::plan::{CgroupJoin, LaunchPlan, ProcessPlan, RootFs};

/// What the spec itself does not say.
#[derive(Debug, Clone, Default)]
pub struct CompileContext {
    /// The root filesystem; replaces `root.path` of the spec.
    pub rootfs: RootFs,
    /// Cgroups made for this container (`cgroup::Manager::join`).
    pub cgroup: CgroupJoin,
    /// Whether a mount of type `cgroup` becomes cgroup2 (else: binds of the v1 directories).
    pub cgroup_v2: bool,
    /// Compiled seccomp program (`spec::seccomp`); none means unconfined.
    pub seccomp: Option<Vec<u8>>,
    /// Directories of the sandbox's mount namespace to bind: (path there, destination). They
    /// replace spec mounts of the same destination. `("/dev/shm", "/dev/shm")` shares the pod's.
    pub sandbox_binds: Vec<(String, String)>,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum CompileError {
    /// The spec asks for something that this runtime does not do.
    #[error("{field} is not supported: {reason}")]
    Unsupported { field: String, reason: String },
    /// The spec contradicts itself or the OCI specification.
    #[error("{field} is invalid: {reason}")]
    Invalid { field: String, reason: String },
}

/// Compiles a spec.
///
/// # Errors
/// Names the first field that is unsupported or invalid.
pub fn compile(_spec: &Spec, _context: &CompileContext) -> Result<LaunchPlan, CompileError> {
    Err(CompileError::Unsupported {
        field: "process".into(),
        reason: "not implemented yet".into(),
    })
}

/// Compiles one process, for exec.
///
/// # Errors
/// As [`compile`].
pub fn compile_process(
    _process: &Process,
    _seccomp: Option<Vec<u8>>,
) -> Result<ProcessPlan, CompileError> {
    Err(CompileError::Unsupported {
        field: "process".into(),
        reason: "not implemented yet".into(),
    })
}
