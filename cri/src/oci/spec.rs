// SPDX-License-Identifier: Apache-2.0
//! Default spec parts of a CRI container, and the seccomp profiles.

use oci_spec::runtime::{LinuxSeccomp, Spec};
use serde_json::json;
use shim::launch::plain;
use shim::plan::Seccomp;

use super::{capability, default_profile, seccomp as compiler};

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
    /// In plain characters: the parser quotes the profile.
    #[error("reading the seccomp profile: {0}")]
    Parse(String),
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
/// When a Localhost profile is malformed or names an unsupported action or flag.
pub fn seccomp(
    profile: &SeccompProfile,
    capabilities: u64,
) -> Result<Option<Seccomp>, SeccompError> {
    match profile {
        SeccompProfile::Unconfined => Ok(None),
        SeccompProfile::RuntimeDefault => {
            let program = compiler::compile(&default_profile::profile(capabilities))?;
            Ok(Some(compiler::loaded(program)))
        }
        SeccompProfile::Localhost(text) => {
            let quoted = |error: serde_json::Error| SeccompError::Parse(plain(&error.to_string()));
            let profile = serde_json::from_str(text).map_err(quoted)?;
            oci_seccomp(&profile).map(Some)
        }
    }
}

/// A profile as the `linux.seccomp` of a spec, for another runtime. `None` for Unconfined.
///
/// # Errors
/// When a Localhost profile is malformed.
pub fn seccomp_in_oci(
    profile: &SeccompProfile,
    capabilities: u64,
) -> Result<Option<LinuxSeccomp>, SeccompError> {
    let quoted = |error: serde_json::Error| SeccompError::Parse(plain(&error.to_string()));
    let value = match profile {
        SeccompProfile::Unconfined => return Ok(None),
        SeccompProfile::RuntimeDefault => default_profile::profile(capabilities).in_oci(),
        SeccompProfile::Localhost(text) => serde_json::from_str(text).map_err(quoted)?,
    };
    serde_json::from_value(value).map(Some).map_err(quoted)
}

/// Compiles the `linux.seccomp` of a spec.
///
/// # Errors
/// As [`seccomp`].
pub fn oci_seccomp(profile: &LinuxSeccomp) -> Result<Seccomp, SeccompError> {
    compiler::compile_oci(profile)
}

/// A set of capabilities as a mask; `ALL` is all that this runtime knows. Unknown names are
/// returned as the error.
///
/// # Errors
/// The first name that is no capability.
pub fn capability_mask<S: AsRef<str>>(names: &[S]) -> Result<u64, String> {
    let mut mask = 0;
    for name in names {
        let name = name.as_ref();
        mask |= match name.eq_ignore_ascii_case("all") {
            true => capability::ALL,
            false => capability::bit(name).ok_or_else(|| name.to_owned())?,
        };
    }
    Ok(mask)
}

/// A spec with the defaults of an unprivileged CRI container: default capabilities, /proc, /dev,
/// /dev/pts, /dev/shm, /dev/mqueue, /sys (read-only), /sys/fs/cgroup (read-only), default masked
/// and read-only paths, new pid, ipc, uts, mount, network and cgroup namespaces, default device
/// rules. The caller sets process args, env, cwd, user, namespaces to join, mounts and resources.
pub fn container_spec() -> Spec {
    let capabilities: Vec<String> = DEFAULT_CAPABILITIES
        .iter()
        .map(|name| format!("CAP_{name}"))
        .collect();
    let spec = json!({
        "ociVersion": "1.2.0",
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": ["sh"],
            "cwd": "/",
            // Never inheritable: see CVE-2022-29162.
            "capabilities": {
                "bounding": capabilities, "effective": capabilities, "permitted": capabilities
            },
        },
        "root": {"path": "rootfs"},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc",
             "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
             "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
             "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
            {"destination": "/dev/shm", "type": "tmpfs", "source": "shm",
             "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]},
            {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue",
             "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs",
             "options": ["nosuid", "noexec", "nodev", "ro"]},
            {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
             "options": ["nosuid", "noexec", "nodev", "relatime", "ro"]},
        ],
        "linux": {
            "namespaces": [
                {"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"},
                {"type": "network"}, {"type": "cgroup"},
            ],
            "maskedPaths": DEFAULT_MASKED_PATHS,
            "readonlyPaths": DEFAULT_READONLY_PATHS,
            "resources": {"devices": [{"allow": false, "access": "rwm"}]},
        },
    });
    serde_json::from_value(spec).expect("written above in the form of the specification")
}

/// Makes a spec privileged: all capabilities that we know (the shim leaves out those that we lack),
/// nothing masked or read-only, all devices allowed, /sys and /sys/fs/cgroup writable. The caller
/// adds the nodes of [`host_devices`], and passes no seccomp program.
pub fn privileged(spec: &mut Spec) {
    let all: Vec<String> = capability::names(capability::ALL);
    let sets = json!({"bounding": all, "effective": all, "permitted": all});
    if let Some(process) = spec.process_mut() {
        process.set_capabilities(serde_json::from_value(sets).ok());
    }
    if let Some(linux) = spec.linux_mut() {
        linux.set_masked_paths(None);
        linux.set_readonly_paths(None);
        let rules = json!([{"allow": true, "access": "rwm"}]);
        let mut resources = linux.resources().clone().unwrap_or_default();
        resources.set_devices(serde_json::from_value(rules).ok());
        linux.set_resources(Some(resources));
    }
    for mount in spec.mounts_mut().iter_mut().flatten() {
        if matches!(mount.typ().as_deref(), Some("sysfs" | "cgroup"))
            && let Some(options) = mount.options_mut()
        {
            options.retain(|option| option != "ro");
        }
    }
}

/// The device nodes of the host, for a privileged container, without those that every container
/// gets anew (terminals, shm, mqueue, fd).
///
/// # Errors
/// When /dev cannot be read.
pub fn host_devices() -> std::io::Result<Vec<oci_spec::runtime::LinuxDevice>> {
    let mut found = Vec::new();
    collect_devices(std::path::Path::new("/dev"), &mut found)?;
    Ok(found)
}

fn collect_devices(
    dir: &std::path::Path,
    found: &mut Vec<oci_spec::runtime::LinuxDevice>,
) -> std::io::Result<()> {
    use std::os::unix::fs::{FileTypeExt, MetadataExt};
    const LEFT_OUT: [&str; 8] = [
        "pts", "shm", "fd", "mqueue", "console", "ptmx", ".lxc", ".udev",
    ];
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        if LEFT_OUT.iter().any(|left_out| name == *left_out) {
            continue;
        }
        let metadata = entry.path().symlink_metadata()?;
        let kind = metadata.file_type();
        if kind.is_dir() {
            collect_devices(&entry.path(), found)?;
        } else if kind.is_char_device() || kind.is_block_device() {
            let device = json!({
                "path": entry.path(),
                "type": if kind.is_char_device() { "c" } else { "b" },
                "major": libc::major(metadata.rdev()),
                "minor": libc::minor(metadata.rdev()),
                "fileMode": metadata.mode() & 0o7777,
                "uid": metadata.uid(),
                "gid": metadata.gid(),
            });
            found.extend(serde_json::from_value::<oci_spec::runtime::LinuxDevice>(device).ok());
        }
    }
    Ok(())
}
