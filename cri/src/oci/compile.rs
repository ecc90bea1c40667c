// SPDX-License-Identifier: Apache-2.0
//! `oci_spec::runtime::Spec` to [`LaunchPlan`]: pure, no I/O.
//!
//! Everything that the OCI specification lets a spec say is either done or refused by name.

use oci_spec::runtime::{Linux, Spec};
use shim::launch::plain;
use shim::plan::{
    CgroupJoin, IdMappings, LaunchPlan, Namespace, PropagationChange, RootFs, Seccomp,
};

use super::devices::{devices, symlinks};
use super::{hooks, intel_rdt, mounts, namespaces, net_devices, process, sysctl, users};

/// What the spec itself does not say.
#[derive(Debug, Clone, Default)]
pub struct CompileContext {
    /// The container's id, which its hooks are told.
    pub id: String,
    /// The directory that its hooks are told, with config.json.
    pub bundle: String,
    /// The root filesystem; replaces `root.path` of the spec.
    pub rootfs: RootFs,
    /// Maps the ids of the root filesystem by the container's user namespace
    /// (`linux.uidMappings`), so that no layer needs other owners.
    pub idmapped_rootfs: bool,
    /// Cgroups made for this container (`cgroup::Manager::join`).
    pub cgroup: CgroupJoin,
    /// Whether a mount of type `cgroup` becomes cgroup2 (else: binds of the v1 directories).
    pub cgroup_v2: bool,
    /// Compiled seccomp program (`spec::seccomp`); none means unconfined.
    pub seccomp: Option<Seccomp>,
    /// Directories of the sandbox's mount namespace to bind: (path there, destination). They
    /// replace spec mounts of the same destination. `("/dev/shm", "/dev/shm")` shares the pod's.
    pub sandbox_binds: Vec<(String, String)>,
    /// The caller does `linux.netDevices` (`net_devices`) and `linux.intelRdt` (`intel_rdt`): both
    /// are done beside the process, from outside. Otherwise they are refused, as is a mount namespace
    /// by path, of which the caller has to be sure.
    pub does_the_rest: bool,
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
        field: plain(&field.into()),
        reason: plain(&reason.into()),
    }
}

pub(super) fn invalid(field: impl Into<String>, reason: impl Into<String>) -> CompileError {
    CompileError::Invalid {
        field: plain(&field.into()),
        reason: plain(&reason.into()),
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
    let linux = spec
        .linux()
        .as_ref()
        .ok_or_else(|| invalid("linux", "it is missing"))?;
    by_the_caller(linux, context)?;
    let process = spec
        .process()
        .as_ref()
        .ok_or_else(|| invalid("process", "it is missing"))?;
    let namespaces = namespaces::namespaces(linux, context.does_the_rest)?;
    let mounts::Mounts { mounts, mut links } = mounts::compile(spec, context)?;
    let own_dev = !mounts::is_bound(&mounts, "/dev");
    if own_dev {
        links.extend(symlinks());
    }
    let mut plan = LaunchPlan {
        cgroup: context.cgroup.clone(),
        rootfs: context.rootfs.clone(),
        rootfs_idmap: rootfs_idmap(linux, context)?,
        rootfs_readonly: spec
            .root()
            .as_ref()
            .and_then(|root| root.readonly())
            .unwrap_or(false),
        rootfs_propagation: root_propagation(linux)?,
        mount_label: linux.mount_label().clone().filter(|l| !l.is_empty()),
        no_pivot: false,
        mounts,
        devices: devices(linux, own_dev)?,
        symlinks: links,
        masked_paths: once(linux.masked_paths()),
        readonly_paths: once(linux.readonly_paths()),
        hostname: spec.hostname().clone(),
        domainname: spec.domainname().clone(),
        sysctls: sysctl::sysctls(linux, &namespaces)?,
        namespaces,
        process: process::compile_process(process, context.seccomp.clone())?,
        hooks: hooks::hooks(spec, &context.id, &context.bundle)?,
        external: None,
    };
    let names = plan.hostname.is_some() || plan.domainname.is_some();
    if names && plan.namespaces.uts == Namespace::Host {
        return Err(invalid("hostname", "it needs a UTS namespace"));
    }
    let domain = plan
        .sysctls
        .iter()
        .find(|(path, _)| path == "kernel/domainname");
    if domain.is_some_and(|(_, value)| plan.domainname.as_ref().is_some_and(|name| name != value)) {
        let reason = "it contradicts domainname";
        return Err(invalid("linux.sysctl[kernel.domainname]", reason));
    }
    process::of_all_processes(spec, &mut plan.process, &context.id, &context.bundle)?;
    users::check_user(&plan.namespaces.user, &plan.process.user)?;
    Ok(plan)
}

/// Each path once: a second time would be a second mount.
fn once(paths: &Option<Vec<String>>) -> Vec<String> {
    let mut all: Vec<String> = Vec::new();
    for path in paths.iter().flatten() {
        if !all.contains(path) {
            all.push(path.clone());
        }
    }
    all
}

/// What is no part of the plan has to be done by the caller.
fn by_the_caller(linux: &Linux, context: &CompileContext) -> Result<(), CompileError> {
    let moves = !net_devices::net_devices(linux)?.is_empty();
    let rdt = intel_rdt::intel_rdt(linux)?.is_some();
    if !context.does_the_rest {
        refuse("linux.netDevices", moves)?;
        refuse("linux.intelRdt", rdt)?;
    }
    if linux.seccomp().is_some() && context.seccomp.is_none() {
        return Err(invalid("linux.seccomp", "it was not compiled beforehand"));
    }
    Ok(())
}

fn rootfs_idmap(
    linux: &Linux,
    context: &CompileContext,
) -> Result<Option<IdMappings>, CompileError> {
    if !context.idmapped_rootfs {
        return Ok(None);
    }
    let (uid, gid) = (linux.uid_mappings(), linux.gid_mappings());
    let mappings = mounts::id_mappings(uid.as_deref(), gid.as_deref());
    match mappings.uid.is_empty() || mappings.gid.is_empty() {
        true => Err(invalid(
            "linux.uidMappings",
            "an id-mapped root needs both maps",
        )),
        false => Ok(Some(mappings)),
    }
}

fn root_propagation(linux: &Linux) -> Result<Option<PropagationChange>, CompileError> {
    match linux.rootfs_propagation().as_deref() {
        None | Some("") => Ok(None),
        Some(word) => match mounts::propagation(word) {
            Some(change) => Ok(Some(change)),
            None => Err(invalid("linux.rootfsPropagation", format!("{word:?}"))),
        },
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
        assert_eq!(
            plan.devices.len(),
            super::super::devices::DEFAULT_DEVICES.len()
        );
        assert!(plan.masked_paths.contains(&"/proc/kcore".to_owned()));
    }

    #[test]
    fn a_path_is_masked_once() {
        let paths = json!(["/proc/kcore", "/proc/keys", "/proc/kcore"]);
        let plan = changed(&[("/linux/maskedPaths", paths)]).expect("compiles");
        assert_eq!(plan.masked_paths, ["/proc/kcore", "/proc/keys"]);
    }

    #[test]
    fn what_is_not_done_is_refused_by_name() {
        for (pointer, value, name) in [
            ("/linux/intelRdt", json!({}), "linux.intelRdt"),
            (
                "/linux/personality",
                json!({"domain": "LINUX", "flags": ["X"]}),
                "linux.personality.flags",
            ),
        ] {
            let refused = refusal(&[(pointer, value)]);
            assert!(refused.starts_with(name), "{refused}");
        }
    }
}
