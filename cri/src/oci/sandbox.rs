// SPDX-License-Identifier: Apache-2.0
//! The launch plan of a pod's sandbox process.

use std::path::PathBuf;

use shim::plan::{CgroupJoin, LaunchPlan};

/// What a sandbox needs.
#[derive(Debug, Clone, Default)]
pub struct SandboxInput {
    /// `Programs::pause`.
    pub pause: PathBuf,
    /// The pod's network namespace file; none means the host's network.
    pub netns: Option<PathBuf>,
    pub hostname: String,
    /// The pod uses the host's IPC namespace.
    pub host_ipc: bool,
    /// The pod's containers share one pid namespace, which pause is the first process of.
    /// Otherwise pause stays in the host's.
    pub share_pid: bool,
    /// `name=value` as in the pod's security context, for example ("net.ipv4.ip_forward", "1").
    pub sysctls: Vec<(String, String)>,
    /// Bytes of the pod's /dev/shm (64 MiB in the kubelet).
    pub shm_bytes: u64,
    pub cgroup: CgroupJoin,
    pub oom_score_adj: i32,
}

/// Builds the plan for pause: new IPC and UTS namespaces, the given network, an empty read-only
/// root, and the pod's /dev/shm, which containers join with `CompileContext::sandbox_binds`.
///
/// # Errors
/// Names a sysctl that is not namespaced, or that would change the host's namespaces.
pub fn sandbox_plan(_input: &SandboxInput) -> Result<LaunchPlan, super::CompileError> {
    Err(super::CompileError::Unsupported {
        field: "sandbox".into(),
        reason: "not implemented yet".into(),
    })
}
