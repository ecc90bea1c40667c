// SPDX-License-Identifier: Apache-2.0
//! What plugins want of a container, put into its OCI spec. Pure.

use oci_spec::runtime::Spec;
use serde_json::{Map, Value, json};

use super::merge::removed;
use super::{api, view};
use crate::fault::{Fault, Result};
use crate::spec_edit::SpecEdit;
use crate::v1;

/// Changes a spec. CDI devices are the caller's: they are looked up on the host.
///
/// # Errors
/// What podwright does not do, by name; a value that a spec cannot hold.
pub(crate) fn apply(spec: &Spec, adjust: &api::ContainerAdjustment) -> Result<Spec> {
    let mut edit = SpecEdit::new(spec)?;
    for (name, value) in in_order(&adjust.annotations) {
        match removed(name) {
            Some(name) => edit.unset(&["annotations", name]),
            None => edit.set(&["annotations", name], value.as_str()),
        }
    }
    env(&mut edit, &adjust.env);
    if !adjust.args.is_empty() {
        edit.set(&["process", "args"], adjust.args.clone());
    }
    if let Some(added) = &adjust.hooks {
        hooks(&mut edit, added);
    }
    if let Some(wanted) = &adjust.linux {
        linux(&mut edit, wanted)?;
    }
    mounts(&mut edit, &adjust.mounts);
    for limit in &adjust.rlimits {
        let value = json!({"type": limit.r#type, "hard": limit.hard, "soft": limit.soft});
        edit.put(&["process", "rlimits"], "type", value);
    }
    edit.finish("NRI plugins")
}

/// Removals first: one name may be removed and set anew.
fn in_order<V>(map: &std::collections::BTreeMap<String, V>) -> impl Iterator<Item = (&String, &V)> {
    let is_removal = |(name, _): &(&String, &V)| removed(name).is_some();
    let removals = map.iter().filter(is_removal);
    removals.chain(map.iter().filter(move |entry| !is_removal(entry)))
}

fn env(edit: &mut SpecEdit, wanted: &[api::KeyValue]) {
    for entry in wanted {
        match removed(&entry.key) {
            Some(name) => edit.unset_env(name),
            None => edit.set_env(&entry.key, &entry.value),
        }
    }
}

fn mounts(edit: &mut SpecEdit, wanted: &[api::Mount]) {
    for mount in wanted {
        if let Some(destination) = removed(&mount.destination) {
            edit.remove(&["mounts"], "destination", destination);
            continue;
        }
        edit.widen_root_propagation(&mount.options);
        let value = json!({
            "destination": mount.destination, "type": mount.r#type, "source": mount.source,
            "options": mount.options,
        });
        edit.put(&["mounts"], "destination", value);
    }
    if !wanted.is_empty() {
        edit.sort_mounts();
    }
}

fn hooks(edit: &mut SpecEdit, added: &api::Hooks) {
    let points = [
        ("prestart", &added.prestart),
        ("createRuntime", &added.create_runtime),
        ("createContainer", &added.create_container),
        ("startContainer", &added.start_container),
        ("poststart", &added.poststart),
        ("poststop", &added.poststop),
    ];
    for (point, list) in points {
        for hook in list {
            let mut value = json!({"path": hook.path, "args": hook.args, "env": hook.env});
            if let Some(timeout) = &hook.timeout {
                value["timeout"] = timeout.value.into();
            }
            edit.push(&["hooks", point], value);
        }
    }
}

fn linux(edit: &mut SpecEdit, wanted: &api::LinuxContainerAdjustment) -> Result<()> {
    for device in &wanted.devices {
        match removed(&device.path) {
            Some(path) => edit.remove(&["linux", "devices"], "path", path),
            None => put_device(edit, device),
        }
    }
    if let Some(limits) = &wanted.resources {
        resources(edit, limits)?;
    }
    process(edit, wanted)?;
    for namespace in &wanted.namespaces {
        let path = ["linux", "namespaces"];
        match removed(&namespace.r#type) {
            Some(kind) => edit.remove(&path, "type", kind),
            None => edit.put(&path, "type", namespace_value(namespace)),
        }
    }
    for (name, value) in in_order(&wanted.sysctl) {
        match removed(name) {
            Some(name) => edit.unset(&["linux", "sysctl", name]),
            None => edit.set(&["linux", "sysctl", name], value.as_str()),
        }
    }
    for (name, device) in in_order(&wanted.net_devices) {
        match removed(name) {
            Some(name) => edit.unset(&["linux", "netDevices", name]),
            None => edit.set(&["linux", "netDevices", name], json!({"name": device.name})),
        }
    }
    if let Some(wanted) = &wanted.rdt {
        rdt(edit, wanted);
    }
    Ok(())
}

fn namespace_value(namespace: &api::LinuxNamespace) -> Value {
    match namespace.path.as_str() {
        "" => json!({"type": namespace.r#type}),
        path => json!({"type": namespace.r#type, "path": path}),
    }
}

fn put_device(edit: &mut SpecEdit, device: &api::LinuxDevice) {
    let mut value = json!({
        "path": device.path, "type": device.r#type, "major": device.major, "minor": device.minor,
    });
    let said = [
        ("fileMode", device.file_mode.as_ref().map(|v| v.value)),
        ("uid", device.uid.as_ref().map(|v| v.value)),
        ("gid", device.gid.as_ref().map(|v| v.value)),
    ];
    for (name, number) in said {
        if let Some(number) = number {
            value[name] = number.into();
        }
    }
    edit.put_device(value, "rwm");
}

/// What of the Linux part belongs to the process or stands alone.
fn process(edit: &mut SpecEdit, wanted: &api::LinuxContainerAdjustment) -> Result<()> {
    if !wanted.cgroups_path.is_empty() {
        edit.set(&["linux", "cgroupsPath"], wanted.cgroups_path.as_str());
    }
    if let Some(score) = &wanted.oom_score_adj {
        edit.set(&["process", "oomScoreAdj"], score.value);
    }
    if let Some(priority) = &wanted.io_priority {
        let value = json!({
            "class": priority.class().as_str_name(), "priority": priority.priority,
        });
        edit.set(&["process", "ioPriority"], value);
    }
    if let Some(policy) = &wanted.seccomp_policy {
        edit.set(&["linux", "seccomp"], seccomp(policy)?);
    }
    if let Some(wanted) = &wanted.scheduler {
        edit.set(&["process", "scheduler"], scheduler(wanted)?);
    }
    if let Some(policy) = &wanted.memory_policy {
        let flags = policy.flags().map(|flag| flag.as_str_name());
        let value = json!({
            "mode": policy.mode().as_str_name(), "nodes": policy.nodes,
            "flags": flags.collect::<Vec<_>>(),
        });
        edit.set(&["linux", "memoryPolicy"], value);
    }
    Ok(())
}

fn scheduler(wanted: &api::LinuxScheduler) -> Result<Value> {
    let flags = wanted.flags().map(|flag| flag.as_str_name());
    let policy = wanted.policy();
    if policy == api::LinuxSchedulerPolicy::SchedNone {
        return Err(Fault::invalid("an NRI plugin's scheduler names no policy"));
    }
    Ok(json!({
        "policy": policy.as_str_name(), "nice": wanted.nice, "priority": wanted.priority,
        "flags": flags.collect::<Vec<_>>(), "runtime": wanted.runtime,
        "deadline": wanted.deadline, "period": wanted.period,
    }))
}

fn seccomp(policy: &api::LinuxSeccomp) -> Result<Value> {
    let calls = policy.syscalls.iter().map(|call| {
        let args = call.args.iter().map(|arg| {
            json!({
                "index": arg.index, "value": arg.value, "valueTwo": arg.value_two, "op": arg.op,
            })
        });
        let mut value = json!({
            "names": call.names, "action": call.action, "args": args.collect::<Vec<_>>(),
        });
        if let Some(errno) = &call.errno_ret {
            value["errnoRet"] = errno.value.into();
        }
        value
    });
    let mut value = json!({
        "defaultAction": policy.default_action, "architectures": policy.architectures,
        "flags": policy.flags, "syscalls": calls.collect::<Vec<_>>(),
    });
    let said = [
        ("listenerPath", &policy.listener_path),
        ("listenerMetadata", &policy.listener_metadata),
    ];
    for (name, text) in said.into_iter().filter(|(_, text)| !text.is_empty()) {
        value[name] = text.as_str().into();
    }
    if let Some(errno) = &policy.default_errno {
        value["defaultErrnoRet"] = errno.value.into();
    }
    Ok(value)
}

fn rdt(edit: &mut SpecEdit, wanted: &api::LinuxRdt) {
    let path = ["linux", "intelRdt"];
    if wanted.remove {
        edit.unset(&path);
    }
    if let Some(class) = &wanted.clos_id {
        edit.set(&["linux", "intelRdt", "closID"], class.value.as_str());
    }
    if let Some(schemata) = &wanted.schemata {
        edit.set(&["linux", "intelRdt", "schemata"], schemata.value.clone());
    }
    if let Some(on) = &wanted.enable_monitoring {
        edit.set(&["linux", "intelRdt", "enableMonitoring"], on.value);
    }
}

/// Limits of a container, put into its spec.
///
/// # Errors
/// A block I/O class, of which podwright has none.
pub(crate) fn limit(spec: &Spec, wanted: &api::LinuxResources) -> Result<Spec> {
    let mut edit = SpecEdit::new(spec)?;
    resources(&mut edit, wanted)?;
    edit.finish("NRI plugins")
}

/// CRI's limits, put into a spec over what it has.
///
/// # Errors
/// As [`limit`].
pub(crate) fn limits_in_spec(spec: &Spec, said: &v1::LinuxContainerResources) -> Result<Spec> {
    let mut wanted = view::from_cri(said);
    // Zeros alone are no limit: see `container::resources`.
    if wanted.hugepage_limits.iter().all(|limit| limit.limit == 0) {
        wanted.hugepage_limits.clear();
    }
    limit(spec, &wanted)
}

fn resources(edit: &mut SpecEdit, wanted: &api::LinuxResources) -> Result<()> {
    const AT: [&str; 2] = ["linux", "resources"];
    if let Some(class) = &wanted.blockio_class {
        if !class.value.is_empty() {
            return Err(Fault::invalid(format!(
                "block I/O class {:?}, which an NRI plugin asks for, is not configured",
                class.value
            )));
        }
        edit.unset(&[AT[0], AT[1], "blockIO"]);
    }
    for (part, fields) in [("memory", memory(wanted)), ("cpu", cpu(wanted))] {
        for (name, value) in fields {
            edit.set(&[AT[0], AT[1], part, &name], value);
        }
    }
    for limit in &wanted.hugepage_limits {
        let value = json!({"pageSize": limit.page_size, "limit": limit.limit});
        edit.put(&[AT[0], AT[1], "hugepageLimits"], "pageSize", value);
    }
    for (name, value) in &wanted.unified {
        edit.set(&[AT[0], AT[1], "unified", name], value.as_str());
    }
    if let Some(pids) = &wanted.pids {
        edit.set(&[AT[0], AT[1], "pids", "limit"], pids.limit);
    }
    for rule in &wanted.devices {
        edit.push(&[AT[0], AT[1], "devices"], device_rule(rule));
    }
    match wanted.rdt_class.as_ref().map(|class| class.value.as_str()) {
        None => {}
        Some("") => edit.unset(&["linux", "intelRdt"]),
        Some(class) => edit.set(&["linux", "intelRdt"], json!({"closID": class})),
    }
    Ok(())
}

fn device_rule(rule: &api::LinuxDeviceCgroup) -> Value {
    let mut value = json!({"allow": rule.allow, "access": rule.access});
    if !rule.r#type.is_empty() {
        value["type"] = rule.r#type.as_str().into();
    }
    for (name, number) in [("major", &rule.major), ("minor", &rule.minor)] {
        if let Some(number) = number {
            value[name] = number.value.into();
        }
    }
    value
}

fn said(fields: &[(&str, Option<Value>)]) -> Map<String, Value> {
    let named = fields.iter().filter_map(|(name, value)| {
        let value = value.clone()?;
        Some(((*name).to_owned(), value))
    });
    named.collect()
}

fn memory(wanted: &api::LinuxResources) -> Map<String, Value> {
    let memory = wanted.memory.unwrap_or_default();
    let signed = |value: Option<api::OptionalInt64>| value.map(|v| v.value.into());
    let flag = |value: Option<api::OptionalBool>| value.map(|v| v.value.into());
    said(&[
        ("limit", signed(memory.limit)),
        ("reservation", signed(memory.reservation)),
        ("swap", signed(memory.swap)),
        ("kernel", signed(memory.kernel)),
        ("kernelTCP", signed(memory.kernel_tcp)),
        ("swappiness", memory.swappiness.map(|v| v.value.into())),
        ("disableOOMKiller", flag(memory.disable_oom_killer)),
        ("useHierarchy", flag(memory.use_hierarchy)),
    ])
}

fn cpu(wanted: &api::LinuxResources) -> Map<String, Value> {
    let cpu = wanted.cpu.clone().unwrap_or_default();
    let signed = |value: Option<api::OptionalInt64>| value.map(|v| v.value.into());
    let unsigned = |value: Option<api::OptionalUInt64>| value.map(|v| v.value.into());
    let text = |value: String| (!value.is_empty()).then(|| value.into());
    said(&[
        ("shares", unsigned(cpu.shares)),
        ("quota", signed(cpu.quota)),
        ("period", unsigned(cpu.period)),
        ("realtimeRuntime", signed(cpu.realtime_runtime)),
        ("realtimePeriod", unsigned(cpu.realtime_period)),
        ("cpus", text(cpu.cpus)),
        ("mems", text(cpu.mems)),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn applied(adjust: &api::ContainerAdjustment) -> Value {
        let spec = crate::oci::spec::container_spec();
        serde_json::to_value(apply(&spec, adjust).unwrap()).unwrap()
    }

    #[test]
    fn everything_said_arrives_in_the_spec() {
        let linux = api::LinuxContainerAdjustment {
            devices: vec![api::LinuxDevice {
                path: "/dev/x".into(),
                r#type: "c".into(),
                major: 1,
                minor: 3,
                uid: Some(api::OptionalUInt32 { value: 4 }),
                ..Default::default()
            }],
            resources: Some(api::LinuxResources {
                pids: Some(api::LinuxPids { limit: 9 }),
                memory: Some(api::LinuxMemory {
                    limit: Some(api::OptionalInt64 { value: 77 }),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            cgroups_path: "/p".into(),
            oom_score_adj: Some(api::OptionalInt { value: 5 }),
            io_priority: Some(api::LinuxIoPriority {
                class: api::IoPrioClass::IoprioClassBe as i32,
                priority: 3,
            }),
            namespaces: vec![
                api::LinuxNamespace {
                    r#type: "-cgroup".into(),
                    path: String::new(),
                },
                api::LinuxNamespace {
                    r#type: "ipc".into(),
                    path: "/proc/1/ns/ipc".into(),
                },
            ],
            sysctl: [("net.a".to_owned(), "1".to_owned())].into(),
            seccomp_policy: Some(api::LinuxSeccomp {
                default_action: "SCMP_ACT_ALLOW".into(),
                syscalls: vec![api::LinuxSyscall {
                    names: vec!["mkdir".into()],
                    action: "SCMP_ACT_ERRNO".into(),
                    errno_ret: Some(api::OptionalUInt32 { value: 1 }),
                    args: Vec::new(),
                }],
                ..Default::default()
            }),
            ..Default::default()
        };
        let value = applied(&api::ContainerAdjustment {
            linux: Some(linux),
            args: vec!["a".into()],
            rlimits: vec![api::PosixRlimit {
                r#type: "RLIMIT_NOFILE".into(),
                hard: 8,
                soft: 7,
            }],
            hooks: Some(api::Hooks {
                create_runtime: vec![api::Hook {
                    path: "/h".into(),
                    timeout: Some(api::OptionalInt { value: 2 }),
                    ..Default::default()
                }],
                ..Default::default()
            }),
            ..Default::default()
        });
        for (pointer, expected) in [
            ("/process/args/0", json!("a")),
            ("/process/oomScoreAdj", json!(5)),
            ("/process/ioPriority/class", json!("IOPRIO_CLASS_BE")),
            ("/process/rlimits/0/soft", json!(7)),
            ("/hooks/createRuntime/0/timeout", json!(2)),
            ("/linux/devices/0/uid", json!(4)),
            ("/linux/resources/devices/1/minor", json!(3)),
            ("/linux/resources/pids/limit", json!(9)),
            ("/linux/resources/memory/limit", json!(77)),
            ("/linux/cgroupsPath", json!("/p")),
            ("/linux/sysctl/net.a", json!("1")),
            ("/linux/seccomp/syscalls/0/errnoRet", json!(1)),
        ] {
            assert_eq!(value.pointer(pointer), Some(&expected), "{pointer}");
        }
        let namespaces = value["linux"]["namespaces"].as_array().unwrap();
        assert!(!namespaces.iter().any(|n| n["type"] == "cgroup"));
        assert!(namespaces.contains(&json!({"type": "ipc", "path": "/proc/1/ns/ipc"})));
    }

    #[test]
    fn mounts_are_replaced_removed_and_ordered() {
        let mount = |destination: &str, options: &[&str]| api::Mount {
            destination: destination.into(),
            r#type: "bind".into(),
            source: "/src".into(),
            options: options.iter().map(|o| (*o).to_owned()).collect(),
        };
        let value = applied(&api::ContainerAdjustment {
            mounts: vec![
                mount("/deep/er", &["rbind", "rslave"]),
                mount("/deep", &[]),
                mount("-/dev/mqueue", &[]),
                mount("/dev/shm", &["rbind"]),
            ],
            ..Default::default()
        });
        let at = |path: &str| {
            let mounts = value["mounts"].as_array().unwrap();
            mounts.iter().position(|m| m["destination"] == path)
        };
        assert!(at("/deep").unwrap() < at("/deep/er").unwrap());
        assert_eq!(at("/dev/mqueue"), None);
        assert_eq!(value["mounts"][at("/dev/shm").unwrap()]["source"], "/src");
        assert_eq!(value["linux"]["rootfsPropagation"], "rslave");
    }

    #[test]
    fn a_block_class_is_refused_by_name() {
        let spec = crate::oci::spec::container_spec();
        let wanted = api::LinuxResources {
            blockio_class: Some(api::OptionalString {
                value: "fast".into(),
            }),
            ..Default::default()
        };
        let error = limit(&spec, &wanted).unwrap_err().to_string();
        assert!(error.contains("\"fast\""), "{error}");
    }
}
