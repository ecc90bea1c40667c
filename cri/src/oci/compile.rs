// SPDX-License-Identifier: Apache-2.0
//! `oci_spec::runtime::Spec` to [`LaunchPlan`]: pure, no I/O.
//!
//! Everything that the OCI specification lets a spec say is either done or refused by name.

use oci_spec::runtime::{Linux, LinuxDevice, LinuxDeviceType, LinuxNamespaceType, Spec};
use shim::plan::{
    CgroupJoin, Device, DeviceKind, LaunchPlan, Namespace, Namespaces, Propagation, RootFs,
};

use super::{mounts, process};

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

pub(super) fn unsupported(field: impl Into<String>, reason: impl Into<String>) -> CompileError {
    CompileError::Unsupported {
        field: field.into(),
        reason: reason.into(),
    }
}

pub(super) fn invalid(field: impl Into<String>, reason: impl Into<String>) -> CompileError {
    CompileError::Invalid {
        field: field.into(),
        reason: reason.into(),
    }
}

pub(super) const NOT_DONE: &str = "this runtime does not do it";

/// Refuses a field that is there.
pub(super) fn refuse(field: &str, present: bool) -> Result<(), CompileError> {
    match present {
        true => Err(unsupported(field, NOT_DONE)),
        false => Ok(()),
    }
}

/// Compiles a spec.
///
/// # Errors
/// Names the first field that is unsupported or invalid.
pub fn compile(spec: &Spec, context: &CompileContext) -> Result<LaunchPlan, CompileError> {
    refuse("windows", spec.windows().is_some())?;
    refuse("solaris", spec.solaris().is_some())?;
    refuse("vm", spec.vm().is_some())?;
    refuse("zos", spec.zos().is_some())?;
    refuse_hooks(spec)?;
    let linux = spec
        .linux()
        .as_ref()
        .ok_or_else(|| invalid("linux", "it is missing"))?;
    refuse_linux(linux, context)?;
    let process = spec
        .process()
        .as_ref()
        .ok_or_else(|| invalid("process", "it is missing"))?;
    let namespaces = namespaces(linux)?;
    let mounts = mounts::compile(spec, context)?;
    let own_dev = !mounts::is_bound(&mounts, "/dev");
    let plan = LaunchPlan {
        cgroup: context.cgroup.clone(),
        rootfs: context.rootfs.clone(),
        rootfs_readonly: spec
            .root()
            .as_ref()
            .and_then(|root| root.readonly())
            .unwrap_or(false),
        rootfs_propagation: root_propagation(linux)?,
        mounts,
        devices: devices(linux, own_dev)?,
        symlinks: if own_dev { symlinks() } else { Vec::new() },
        masked_paths: linux.masked_paths().clone().unwrap_or_default(),
        readonly_paths: linux.readonly_paths().clone().unwrap_or_default(),
        hostname: spec.hostname().clone(),
        domainname: spec.domainname().clone(),
        sysctls: sysctls(linux, &namespaces)?,
        namespaces,
        process: process::compile_process(process, context.seccomp.clone())?,
    };
    let names = plan.hostname.is_some() || plan.domainname.is_some();
    if names && plan.namespaces.uts != Namespace::New {
        return Err(invalid("hostname", "it needs a new UTS namespace"));
    }
    Ok(plan)
}

fn refuse_hooks(spec: &Spec) -> Result<(), CompileError> {
    let Some(hooks) = spec.hooks() else {
        return Ok(());
    };
    let text = serde_json::to_value(hooks).unwrap_or_default();
    let named = text.as_object().and_then(|hooks| {
        let filled = |value: &serde_json::Value| value.as_array().is_some_and(|a| !a.is_empty());
        hooks.iter().find(|(_, value)| filled(value))
    });
    match named {
        Some((name, _)) => Err(unsupported(format!("hooks.{name}"), NOT_DONE)),
        None => Ok(()),
    }
}

fn refuse_linux(linux: &Linux, context: &CompileContext) -> Result<(), CompileError> {
    fn filled<T>(list: &Option<Vec<T>>) -> bool {
        list.as_ref().is_some_and(|list| !list.is_empty())
    }
    refuse("linux.uidMappings", filled(linux.uid_mappings()))?;
    refuse("linux.gidMappings", filled(linux.gid_mappings()))?;
    let devices = linux.net_devices().as_ref();
    refuse(
        "linux.netDevices",
        devices.is_some_and(|map| !map.is_empty()),
    )?;
    let label = linux.mount_label().as_deref();
    refuse(
        "linux.mountLabel",
        label.is_some_and(|label| !label.is_empty()),
    )?;
    refuse("linux.intelRdt", linux.intel_rdt().is_some())?;
    refuse("linux.memoryPolicy", linux.memory_policy().is_some())?;
    refuse("linux.personality", linux.personality().is_some())?;
    let offsets = linux.time_offsets().as_ref();
    refuse(
        "linux.timeOffsets",
        offsets.is_some_and(|map| !map.is_empty()),
    )?;
    if linux.seccomp().is_some() && context.seccomp.is_none() {
        return Err(invalid("linux.seccomp", "it was not compiled beforehand"));
    }
    Ok(())
}

fn namespaces(linux: &Linux) -> Result<Namespaces, CompileError> {
    let mut spaces = Namespaces::default();
    let mut own_mounts = false;
    for namespace in linux.namespaces().iter().flatten() {
        let from = match namespace.path() {
            Some(path) => Namespace::Join(path.to_string_lossy().into_owned()),
            None => Namespace::New,
        };
        match namespace.typ() {
            LinuxNamespaceType::Pid => spaces.pid = from,
            LinuxNamespaceType::Network => spaces.net = from,
            LinuxNamespaceType::Ipc => spaces.ipc = from,
            LinuxNamespaceType::Uts => spaces.uts = from,
            LinuxNamespaceType::Cgroup => spaces.cgroup = from,
            LinuxNamespaceType::Mount if from == Namespace::New => own_mounts = true,
            LinuxNamespaceType::Mount => {
                return Err(unsupported(
                    "linux.namespaces[mount].path",
                    "a container always gets a mount namespace of its own",
                ));
            }
            other => return Err(unsupported(format!("linux.namespaces[{other}]"), NOT_DONE)),
        }
    }
    match own_mounts {
        true => Ok(spaces),
        false => Err(unsupported(
            "linux.namespaces",
            "without a mount namespace the container would change the host's mounts",
        )),
    }
}

fn root_propagation(linux: &Linux) -> Result<Option<Propagation>, CompileError> {
    match linux.rootfs_propagation().as_deref() {
        None | Some("") => Ok(None),
        Some("private" | "rprivate") => Ok(Some(Propagation::Private)),
        Some("slave" | "rslave") => Ok(Some(Propagation::Slave)),
        Some("shared" | "rshared") => Ok(Some(Propagation::Shared)),
        Some("unbindable" | "runbindable") => Ok(Some(Propagation::Unbindable)),
        Some(other) => Err(invalid("linux.rootfsPropagation", format!("{other:?}"))),
    }
}

/// The devices that the OCI specification wants in every container, as (name, major, minor).
const DEFAULT_DEVICES: [(&str, u32, u32); 6] = [
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
];

fn devices(linux: &Linux, own_dev: bool) -> Result<Vec<Device>, CompileError> {
    let given = linux.devices().iter().flatten();
    let mut devices = given.map(device).collect::<Result<Vec<_>, _>>()?;
    for (name, major, minor) in DEFAULT_DEVICES {
        let path = format!("/dev/{name}");
        if own_dev && !devices.iter().any(|device| device.path == path) {
            devices.push(Device {
                path,
                kind: DeviceKind::Char,
                major,
                minor,
                mode: 0o666,
                uid: 0,
                gid: 0,
            });
        }
    }
    Ok(devices)
}

fn device(device: &LinuxDevice) -> Result<Device, CompileError> {
    let path = device.path().to_string_lossy().into_owned();
    let field = format!("linux.devices[{path}]");
    if !path.starts_with('/') {
        return Err(invalid(field, "its path is not absolute"));
    }
    let kind = match device.typ() {
        LinuxDeviceType::C | LinuxDeviceType::U => DeviceKind::Char,
        LinuxDeviceType::B => DeviceKind::Block,
        LinuxDeviceType::P => DeviceKind::Fifo,
        LinuxDeviceType::A => return Err(invalid(field, "its type is no device type")),
    };
    let number = |value: i64| u32::try_from(value).map_err(|_| invalid(&field, "number"));
    Ok(Device {
        kind,
        major: number(device.major())?,
        minor: number(device.minor())?,
        mode: device.file_mode().unwrap_or(0o666),
        uid: device.uid().unwrap_or(0),
        gid: device.gid().unwrap_or(0),
        path,
    })
}

fn symlinks() -> Vec<(String, String)> {
    [
        ("/dev/fd", "/proc/self/fd"),
        ("/dev/stdin", "/proc/self/fd/0"),
        ("/dev/stdout", "/proc/self/fd/1"),
        ("/dev/stderr", "/proc/self/fd/2"),
        ("/dev/core", "/proc/kcore"),
        ("/dev/ptmx", "pts/ptmx"),
    ]
    .map(|(link, to)| (link.to_owned(), to.to_owned()))
    .into()
}

fn sysctls(linux: &Linux, namespaces: &Namespaces) -> Result<Vec<(String, String)>, CompileError> {
    let mut all: Vec<_> = linux.sysctl().iter().flatten().collect();
    all.sort();
    all.into_iter()
        .map(|(name, value)| Ok((sysctl_path(name, namespaces)?, value.clone())))
        .collect()
}

/// The path below /proc/sys, if the parameter belongs to a namespace of the container's own.
/// Dots separate; a slash stands for a dot in a name (sysctl.d(5)).
pub(super) fn sysctl_path(name: &str, namespaces: &Namespaces) -> Result<String, CompileError> {
    const IPC: [&str; 8] = [
        "kernel.msgmax",
        "kernel.msgmnb",
        "kernel.msgmni",
        "kernel.sem",
        "kernel.shmall",
        "kernel.shmmax",
        "kernel.shmmni",
        "kernel.shm_rmid_forced",
    ];
    let field = || format!("linux.sysctl[{name}]");
    let slashes_first = name.find('/') < name.find('.') && name.contains('/');
    let dotted = match slashes_first {
        true => name.replace('/', "."),
        false => name.to_owned(),
    };
    let owner = if dotted.starts_with("net.") {
        Some(("network", &namespaces.net))
    } else if IPC.contains(&dotted.as_str()) || dotted.starts_with("fs.mqueue.") {
        Some(("ipc", &namespaces.ipc))
    } else if dotted == "kernel.domainname" {
        Some(("uts", &namespaces.uts))
    } else {
        None
    };
    match owner {
        None => Err(unsupported(field(), "it is not a namespaced parameter")),
        Some((kind, Namespace::Host)) => Err(invalid(
            field(),
            format!("it would change the host's {kind} namespace"),
        )),
        Some(_) => {
            let path = match slashes_first {
                true => name.to_owned(),
                false => name
                    .chars()
                    .map(|c| match c {
                        '.' => '/',
                        '/' => '.',
                        other => other,
                    })
                    .collect(),
            };
            match path.split('/').any(|part| part.is_empty() || part == "..") {
                true => Err(invalid(field(), "it is no parameter name")),
                false => Ok(path),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::spec::container_spec;
    use serde_json::{Value, json};

    /// The default spec with parts replaced: (JSON pointer, value).
    fn changed(changes: &[(&str, Value)]) -> Result<LaunchPlan, CompileError> {
        let mut spec = serde_json::to_value(container_spec()).expect("serialises");
        for (pointer, value) in changes {
            let (parent, key) = pointer.rsplit_once('/').expect("a pointer");
            let parent = spec.pointer_mut(parent).expect("there");
            parent[key] = value.clone();
        }
        let spec = serde_json::from_value(spec).expect("still a spec");
        compile(&spec, &CompileContext::default())
    }

    fn refusal(changes: &[(&str, Value)]) -> String {
        changed(changes).expect_err("refused").to_string()
    }

    #[test]
    fn the_default_spec_compiles() {
        let plan = changed(&[]).expect("compiles");
        assert_eq!(plan.namespaces.pid, Namespace::New);
        assert_eq!(plan.process.capabilities.bounding, 0xa804_25fb);
        assert_eq!(plan.process.capabilities.inheritable, 0);
        assert_eq!(plan.devices.len(), DEFAULT_DEVICES.len());
        assert!(plan.masked_paths.contains(&"/proc/kcore".to_owned()));
    }

    #[test]
    fn what_is_not_done_is_refused_by_name() {
        for (pointer, value, name) in [
            (
                "/linux/personality",
                json!({"domain": "LINUX"}),
                "linux.personality",
            ),
            ("/linux/mountLabel", json!("x"), "linux.mountLabel"),
            (
                "/linux/namespaces",
                json!([{"type": "user"}]),
                "linux.namespaces[user]",
            ),
            (
                "/process/apparmorProfile",
                json!("docker-default"),
                "process.apparmorProfile",
            ),
            (
                "/process/selinuxLabel",
                json!("a:b"),
                "process.selinuxLabel",
            ),
            (
                "/hooks",
                json!({"prestart": [{"path": "/bin/x"}]}),
                "hooks.prestart",
            ),
        ] {
            let refused = refusal(&[(pointer, value)]);
            assert!(refused.starts_with(name), "{refused}");
        }
    }

    #[test]
    fn sysctls_must_belong_to_the_container() {
        let own = Namespaces {
            net: Namespace::New,
            ipc: Namespace::New,
            ..Namespaces::default()
        };
        let path = |name| sysctl_path(name, &own);
        assert_eq!(
            path("net.ipv4.ip_forward"),
            Ok("net/ipv4/ip_forward".into())
        );
        assert_eq!(
            path("net.ipv4.conf.eth0/100.forwarding"),
            Ok("net/ipv4/conf/eth0.100/forwarding".into())
        );
        assert!(path("kernel.core_pattern").is_err());
        assert!(path("net.../x").is_err());
        assert!(sysctl_path("net.core.somaxconn", &Namespaces::default()).is_err());
    }
}
