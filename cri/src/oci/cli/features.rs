// SPDX-License-Identifier: Apache-2.0
//! `features`: what this runtime does, for tools that ask before they use it (features.md of the OCI
//! runtime specification).
//!
//! Nothing is listed by hand as done. Every candidate is put to the compilers that a config.json
//! goes through, and listed when they take it.

use std::process::ExitCode;

use oci_spec::runtime::{LinuxResources, LinuxSeccomp, Spec};
use serde_json::{Value, json};
use shim::plan::{LaunchPlan, MountKind};

use super::args::SPEC_VERSION;
use super::show::print;
use super::{Attempt, Outcome};
use crate::cgroup;
use crate::oci::{self, CompileContext, capability, spec};

const HOOKS: [&str; 6] = [
    "prestart",
    "createRuntime",
    "createContainer",
    "startContainer",
    "poststart",
    "poststop",
];
const NAMESPACES: [&str; 8] = [
    "cgroup", "ipc", "mount", "network", "pid", "time", "user", "uts",
];
const MOUNT_OPTIONS: &str = "acl async atime bind defaults dev diratime dirsync exec idmap \
    iversion lazytime loud mand noacl noatime nodev nodiratime noexec noiversion nolazytime nomand \
    norelatime nostrictatime nosuid nosymfollow private ratime rbind rdev rdiratime relatime \
    remount rexec ridmap rnoatime rnodev rnodiratime rnoexec rnorelatime rnostrictatime rnosuid \
    rnosymfollow ro rprivate rrelatime rro rrw rshared rslave rstrictatime rsuid rsymfollow \
    runbindable rw shared silent slave strictatime suid symfollow sync tmpcopyup unbindable";
const ACTIONS: &str = "SCMP_ACT_ALLOW SCMP_ACT_ERRNO SCMP_ACT_KILL SCMP_ACT_KILL_PROCESS \
    SCMP_ACT_KILL_THREAD SCMP_ACT_LOG SCMP_ACT_NOTIFY SCMP_ACT_TRACE SCMP_ACT_TRAP";
const OPERATORS: &str = "SCMP_CMP_EQ SCMP_CMP_GE SCMP_CMP_GT SCMP_CMP_LE SCMP_CMP_LT \
    SCMP_CMP_MASKED_EQ SCMP_CMP_NE";
/// Those of the machine. Others may be named in a profile, and say nothing about this machine.
const ARCHITECTURES: [&str; 3] = ["SCMP_ARCH_X32", "SCMP_ARCH_X86", "SCMP_ARCH_X86_64"];
const FLAGS: [&str; 4] = [
    "SECCOMP_FILTER_FLAG_LOG",
    "SECCOMP_FILTER_FLAG_SPEC_ALLOW",
    "SECCOMP_FILTER_FLAG_TSYNC",
    "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV",
];
const MEMORY_POLICIES: [&str; 7] = [
    "MPOL_BIND",
    "MPOL_DEFAULT",
    "MPOL_INTERLEAVE",
    "MPOL_LOCAL",
    "MPOL_PREFERRED",
    "MPOL_PREFERRED_MANY",
    "MPOL_WEIGHTED_INTERLEAVE",
];

const MEMORY_POLICY_FLAGS: [&str; 3] = [
    "MPOL_F_NUMA_BALANCING",
    "MPOL_F_RELATIVE_NODES",
    "MPOL_F_STATIC_NODES",
];

pub(super) fn features() -> Outcome {
    print(&serde_json::to_string_pretty(&document()).attempt("encoding")?)?;
    Ok(ExitCode::SUCCESS)
}

fn document() -> Value {
    let hooks = HOOKS.into_iter().filter(|name| {
        let hooks = json!({ *name: [{"path": "/bin/true"}] });
        takes(&[("/hooks", hooks)]).is_some()
    });
    let options = MOUNT_OPTIONS.split_whitespace().filter(|o| mount_option(o));
    json!({
        "ociVersionMin": "1.0.0",
        "ociVersionMax": SPEC_VERSION,
        "hooks": hooks.collect::<Vec<_>>(),
        "mountOptions": options.collect::<Vec<_>>(),
        "linux": linux(),
        "annotations": {
            "org.podwright.version": env!("CARGO_PKG_VERSION"),
            "org.opencontainers.runc.checkpoint.enabled": "false",
        },
        // Whoever lets others write annotations has to know.
        "potentiallyUnsafeConfigAnnotations": [cgroup::SYSTEMD_ANNOTATIONS],
    })
}

fn linux() -> Value {
    let enabled =
        |pointer: &str, value: Value| json!({"enabled": takes(&[(pointer, value)]).is_some()});
    let policies = MEMORY_POLICIES.into_iter().filter(|mode| {
        memory_policy(json!({ "mode": mode })) || memory_policy(json!({"mode": mode, "nodes": "0"}))
    });
    let flags = MEMORY_POLICY_FLAGS
        .into_iter()
        .filter(|flag| memory_policy(json!({"mode": "MPOL_BIND", "nodes": "0", "flags": [flag]})));
    let rdma = serde_json::from_value::<LinuxResources>(json!({"rdma": {"x": {"hcaHandles": 1}}}));
    json!({
        "namespaces": NAMESPACES.into_iter().filter(|kind| namespace(kind)).collect::<Vec<_>>(),
        "capabilities": capability::names(capability::ALL),
        "cgroup": {
            "v1": true,
            "v2": true,
            "systemd": true,
            "systemdUser": false,
            "rdma": rdma.is_ok_and(|resources| oci::limits(&resources).is_ok()),
        },
        "seccomp": seccomp(),
        "apparmor": enabled("/process/apparmorProfile", json!("podwright-asks")),
        "selinux": enabled("/process/selinuxLabel", json!("a:b:c:d")),
        "intelRdt": rdt(),
        "memoryPolicy": {"modes": policies.collect::<Vec<_>>(),
            "flags": flags.collect::<Vec<_>>()},
        "mountExtensions": {"idmap": {"enabled": mount_option("idmap")}},
        "netDevices": enabled("/linux/netDevices", json!({"eth0": {}})),
    })
}

fn rdt() -> Value {
    let takes = |rdt: Value| takes(&[("/linux/intelRdt", rdt)]).is_some();
    json!({
        "enabled": takes(json!({"closID": "podwright-asks"})),
        "schemata": takes(json!({"schemata": ["L3:0=f"]})),
        "monitoring": takes(json!({"enableMonitoring": true})),
    })
}

fn memory_policy(policy: Value) -> bool {
    takes(&[("/linux/memoryPolicy", policy)]).is_some()
}

/// The default specification with parts replaced: (JSON pointer, value). `None` when it is refused.
fn takes(changes: &[(&str, Value)]) -> Option<LaunchPlan> {
    let mut spec = serde_json::to_value(spec::container_spec()).ok()?;
    for (pointer, value) in changes {
        let (parent, key) = pointer.rsplit_once('/')?;
        spec.pointer_mut(parent)?[key] = value.clone();
    }
    let spec: Spec = serde_json::from_value(spec).ok()?;
    let context = CompileContext {
        does_the_rest: true,
        ..CompileContext::default()
    };
    oci::compile(&spec, &context).ok()
}

fn namespace(kind: &str) -> bool {
    let mut namespaces = vec![json!({"type": "mount"}), json!({"type": "uts"})];
    if !matches!(kind, "mount" | "uts") {
        namespaces.push(json!({ "type": kind }));
    }
    let ids = json!([{"containerID": 0, "hostID": 100_000, "size": 65_536}]);
    let mut changes = vec![("/linux/namespaces", json!(namespaces))];
    if kind == "user" {
        changes.push(("/linux/uidMappings", ids.clone()));
        changes.push(("/linux/gidMappings", ids));
    }
    takes(&changes).is_some()
}

/// Whether an option means something of its own: on a bind mount, or on a new filesystem without
/// being handed to that filesystem.
fn mount_option(option: &str) -> bool {
    let ids = json!([{"containerID": 0, "hostID": 100_000, "size": 65_536}]);
    let mut bind = json!({"destination": "/x", "type": "bind", "source": "/y",
        "options": ["bind", option]});
    if option.ends_with("idmap") {
        bind["uidMappings"] = ids.clone();
        bind["gidMappings"] = ids;
    }
    if takes(&[("/mounts", json!([bind]))]).is_some() {
        return true;
    }
    let tmpfs = json!({"destination": "/x", "type": "tmpfs", "options": [option]});
    let plan = takes(&[("/mounts", json!([tmpfs]))]);
    plan.is_some_and(|plan| {
        plan.mounts.iter().all(|mount| match &mount.kind {
            MountKind::Filesystem { options, .. } => !options.iter().any(|word| word == option),
            _ => true,
        })
    })
}

fn seccomp() -> Value {
    let compiles = |profile: Value| {
        let profile = serde_json::from_value::<LinuxSeccomp>(profile);
        profile.is_ok_and(|profile| spec::oci_seccomp(&profile).is_ok())
    };
    let action = |action: &&str| {
        let rule = json!({"names": ["chmod"], "action": action});
        let default = if *action == "SCMP_ACT_ALLOW" {
            "SCMP_ACT_ERRNO"
        } else {
            "SCMP_ACT_ALLOW"
        };
        let mut profile = json!({"defaultAction": default, "syscalls": [rule]});
        if *action == "SCMP_ACT_NOTIFY" {
            profile["listenerPath"] = json!("/run/podwright-asks.sock");
        }
        compiles(profile)
    };
    let operator = |operator: &&str| {
        let argument = json!({"index": 0, "value": 1, "valueTwo": 1, "op": operator});
        let rule = json!({"names": ["chmod"], "action": "SCMP_ACT_ERRNO", "args": [argument]});
        compiles(json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]}))
    };
    let with = |field: &str, value: &str| {
        compiles(json!({"defaultAction": "SCMP_ACT_ALLOW", field: [value]}))
    };
    let flags: Vec<_> = FLAGS.into_iter().filter(|f| with("flags", f)).collect();
    json!({
        "enabled": true,
        "actions": ACTIONS.split_whitespace().filter(action).collect::<Vec<_>>(),
        "operators": OPERATORS.split_whitespace().filter(operator).collect::<Vec<_>>(),
        "archs": ARCHITECTURES.into_iter().filter(|a| with("architectures", a)).collect::<Vec<_>>(),
        "knownFlags": flags,
        "supportedFlags": flags,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_done_is_listed_and_what_is_not_is_not() {
        let document = document();
        let listed = |pointer: &str, word: &str| {
            let list = document.pointer(pointer).and_then(Value::as_array);
            list.expect("a list").contains(&json!(word))
        };
        assert!(listed("/mountOptions", "rbind") && listed("/mountOptions", "nosuid"));
        assert!(!mount_option("bogus"));
        assert!(listed("/hooks", "poststop"));
        for kind in ["pid", "user", "time", "mount"] {
            assert!(listed("/linux/namespaces", kind), "{kind}");
        }
        assert!(!namespace("nosuch"));
        assert!(listed("/linux/seccomp/actions", "SCMP_ACT_ERRNO"));
        assert!(listed("/linux/seccomp/operators", "SCMP_CMP_MASKED_EQ"));
        assert!(listed("/linux/capabilities", "CAP_BPF"));
        let read: Result<oci_spec::runtime::Features, _> = serde_json::from_value(document.clone());
        assert!(read.is_ok(), "{read:?}");
    }
}
