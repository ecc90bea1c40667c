// SPDX-License-Identifier: Apache-2.0
//! What plugins are told of a pod and of a container. Pure.

use oci_spec::runtime::Spec;
use serde_json::Value;

use super::api;
use super::merge::resources::overlay;
use crate::container::{ContainerRecord, State};
use crate::sandbox::SandboxRecord;
use crate::v1;

/// A pod.
pub(crate) fn pod(record: &SandboxRecord) -> api::PodSandbox {
    let config = &record.config.0;
    let metadata = config.metadata.clone().unwrap_or_default();
    let linux = config.linux.clone().unwrap_or_default();
    let limits = |said: &Option<v1::LinuxContainerResources>| {
        Some(from_cri(said.as_ref().unwrap_or(&Default::default())))
    };
    api::PodSandbox {
        id: record.id.clone(),
        name: metadata.name,
        uid: metadata.uid,
        namespace: metadata.namespace,
        labels: config.labels.clone().into_iter().collect(),
        annotations: config.annotations.clone().into_iter().collect(),
        runtime_handler: record.runtime_handler.clone(),
        pid: record.pid.unwrap_or_default(),
        ips: record.ips.clone(),
        linux: Some(api::LinuxPodSandbox {
            pod_overhead: limits(&linux.overhead),
            pod_resources: limits(&linux.resources),
            cgroup_parent: linux.cgroup_parent,
            cgroups_path: crate::sandbox::cgroup::member(&record.cgroup, &record.id),
            namespaces: record
                .netns
                .iter()
                .map(|path| network_namespace(path))
                .collect(),
            resources: limits(&linux.resources),
        }),
    }
}

fn network_namespace(path: &std::path::Path) -> api::LinuxNamespace {
    api::LinuxNamespace {
        r#type: "network".to_owned(),
        path: path.display().to_string(),
    }
}

/// A container with the spec that it has, or will have.
pub(crate) fn container(record: &ContainerRecord, spec: &Spec) -> api::Container {
    let config = &record.config.0;
    let spec = serde_json::to_value(spec).unwrap_or_default();
    let at = |pointer: &str| spec.pointer(pointer).unwrap_or(&Value::Null);
    let mut seen = api::Container {
        id: record.id.clone(),
        pod_sandbox_id: record.sandbox_id.clone(),
        name: config.metadata.clone().unwrap_or_default().name,
        labels: config.labels.clone().into_iter().collect(),
        annotations: map(at("/annotations"), text).collect(),
        args: list(at("/process/args"), text),
        env: list(at("/process/env"), text),
        mounts: list(at("/mounts"), mount),
        hooks: Some(hooks(at("/hooks"))),
        linux: Some(linux(record, &spec)),
        rlimits: list(at("/process/rlimits"), rlimit),
        created_at: record.created_at,
        cdi_devices: cdi_devices(config),
        user: Some(api::User {
            uid: record.user.uid,
            gid: record.user.gid,
            additional_gids: record.user.groups.clone(),
        }),
        image: Some(image(record)),
        ..api::Container::default()
    };
    state(&mut seen, &record.state);
    seen
}

fn state(seen: &mut api::Container, state: &State) {
    use api::ContainerState as Seen;
    let now = match state {
        State::Created => Seen::ContainerCreated,
        State::Running { pid, started_at } => {
            seen.pid = *pid;
            seen.started_at = *started_at;
            Seen::ContainerRunning
        }
        State::Exited(exit) => {
            seen.started_at = exit.started_at;
            seen.finished_at = exit.finished_at;
            seen.exit_code = exit.code;
            seen.status_reason.clone_from(&exit.reason);
            seen.status_message.clone_from(&exit.message);
            Seen::ContainerStopped
        }
    };
    seen.set_state(now);
}

fn cdi_devices(config: &v1::ContainerConfig) -> Vec<api::CdiDevice> {
    let named = config.cdi_devices.iter().map(|device| api::CdiDevice {
        name: device.name.clone(),
    });
    named.collect()
}

fn image(record: &ContainerRecord) -> api::Image {
    let config = record.config.0.image.clone().unwrap_or_default();
    let name = match config.user_specified_image.is_empty() {
        true => config.image,
        false => config.user_specified_image,
    };
    let digest = record.image_ref.rsplit_once('@');
    api::Image {
        name,
        digest: digest
            .map(|(_, digest)| digest.to_owned())
            .unwrap_or_default(),
        config_digest: record.image_id.clone(),
    }
}

fn linux(record: &ContainerRecord, spec: &Value) -> api::LinuxContainer {
    let at = |pointer: &str| spec.pointer(pointer).unwrap_or(&Value::Null);
    let mut resources = resources(at("/linux/resources"));
    let config = record.config.0.linux.clone().unwrap_or_default();
    overlay(
        &mut resources,
        &from_cri(&config.resources.unwrap_or_default()),
    );
    let context = config.security_context.unwrap_or_default();
    api::LinuxContainer {
        namespaces: list(at("/linux/namespaces"), |n| api::LinuxNamespace {
            r#type: text(&n["type"]),
            path: text(&n["path"]),
        }),
        devices: list(at("/linux/devices"), device),
        resources: Some(resources),
        oom_score_adj: at("/process/oomScoreAdj")
            .as_i64()
            .map(|value| api::OptionalInt { value }),
        cgroups_path: text(at("/linux/cgroupsPath")),
        io_priority: io_priority(at("/process/ioPriority")),
        seccomp_profile: Some(seccomp_profile(&context)),
        sysctl: map(at("/linux/sysctl"), text).collect(),
        net_devices: map(at("/linux/netDevices"), |d| api::LinuxNetDevice {
            name: text(&d["name"]),
        })
        .collect(),
        ..api::LinuxContainer::default()
    }
}

fn io_priority(value: &Value) -> Option<api::LinuxIoPriority> {
    let class = api::IoPrioClass::from_str_name(value.get("class")?.as_str()?)?;
    Some(api::LinuxIoPriority {
        class: class as i32,
        priority: small(&value["priority"]),
    })
}

fn seccomp_profile(context: &v1::LinuxContainerSecurityContext) -> api::SecurityProfile {
    use api::security_profile::ProfileType as Seen;
    let Some(said) = &context.seccomp else {
        return api::SecurityProfile {
            profile_type: Seen::Unconfined as i32,
            ..api::SecurityProfile::default()
        };
    };
    let kind = match said.profile_type() {
        v1::security_profile::ProfileType::RuntimeDefault => Seen::RuntimeDefault,
        v1::security_profile::ProfileType::Unconfined => Seen::Unconfined,
        v1::security_profile::ProfileType::Localhost => Seen::Localhost,
    };
    api::SecurityProfile {
        profile_type: kind as i32,
        localhost_ref: said.localhost_ref.clone(),
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn small(value: &Value) -> i32 {
    value
        .as_i64()
        .and_then(|n| i32::try_from(n).ok())
        .unwrap_or_default()
}

fn list<T>(value: &Value, entry: impl Fn(&Value) -> T) -> Vec<T> {
    value.as_array().into_iter().flatten().map(entry).collect()
}

fn map<'a, T>(
    value: &'a Value,
    entry: impl Fn(&Value) -> T + 'a,
) -> impl Iterator<Item = (String, T)> + 'a {
    let entries = value.as_object().into_iter().flatten();
    entries.map(move |(name, value)| (name.clone(), entry(value)))
}

fn mount(value: &Value) -> api::Mount {
    api::Mount {
        destination: text(&value["destination"]),
        r#type: text(&value["type"]),
        source: text(&value["source"]),
        options: list(&value["options"], text),
    }
}

fn hooks(value: &Value) -> api::Hooks {
    let of = |point: &str| {
        list(&value[point], |hook| api::Hook {
            path: text(&hook["path"]),
            args: list(&hook["args"], text),
            env: list(&hook["env"], text),
            timeout: hook["timeout"]
                .as_i64()
                .map(|value| api::OptionalInt { value }),
        })
    };
    api::Hooks {
        prestart: of("prestart"),
        create_runtime: of("createRuntime"),
        create_container: of("createContainer"),
        start_container: of("startContainer"),
        poststart: of("poststart"),
        poststop: of("poststop"),
    }
}

fn rlimit(value: &Value) -> api::PosixRlimit {
    api::PosixRlimit {
        r#type: text(&value["type"]),
        hard: value["hard"].as_u64().unwrap_or_default(),
        soft: value["soft"].as_u64().unwrap_or_default(),
    }
}

fn device(value: &Value) -> api::LinuxDevice {
    let id = |name: &str| {
        let number = value[name].as_u64().and_then(|n| u32::try_from(n).ok());
        number.map(|value| api::OptionalUInt32 { value })
    };
    let mode = id("fileMode").map(|mode| api::OptionalFileMode { value: mode.value });
    api::LinuxDevice {
        path: text(&value["path"]),
        r#type: text(&value["type"]),
        major: value["major"].as_i64().unwrap_or_default(),
        minor: value["minor"].as_i64().unwrap_or_default(),
        file_mode: mode,
        uid: id("uid"),
        gid: id("gid"),
    }
}

fn i64_of(value: &Value) -> Option<api::OptionalInt64> {
    value.as_i64().map(|value| api::OptionalInt64 { value })
}

fn u64_of(value: &Value) -> Option<api::OptionalUInt64> {
    value.as_u64().map(|value| api::OptionalUInt64 { value })
}

fn bool_of(value: &Value) -> Option<api::OptionalBool> {
    value.as_bool().map(|value| api::OptionalBool { value })
}

/// The limits of a spec.
fn resources(value: &Value) -> api::LinuxResources {
    let (memory, cpu) = (&value["memory"], &value["cpu"]);
    api::LinuxResources {
        memory: Some(api::LinuxMemory {
            limit: i64_of(&memory["limit"]),
            reservation: i64_of(&memory["reservation"]),
            swap: i64_of(&memory["swap"]),
            kernel: i64_of(&memory["kernel"]),
            kernel_tcp: i64_of(&memory["kernelTCP"]),
            swappiness: u64_of(&memory["swappiness"]),
            disable_oom_killer: bool_of(&memory["disableOOMKiller"]),
            use_hierarchy: bool_of(&memory["useHierarchy"]),
        }),
        cpu: Some(api::LinuxCpu {
            shares: u64_of(&cpu["shares"]),
            quota: i64_of(&cpu["quota"]),
            period: u64_of(&cpu["period"]),
            realtime_runtime: i64_of(&cpu["realtimeRuntime"]),
            realtime_period: u64_of(&cpu["realtimePeriod"]),
            cpus: text(&cpu["cpus"]),
            mems: text(&cpu["mems"]),
        }),
        hugepage_limits: list(&value["hugepageLimits"], |limit| api::HugepageLimit {
            page_size: text(&limit["pageSize"]),
            limit: limit["limit"].as_u64().unwrap_or_default(),
        }),
        unified: map(&value["unified"], text).collect(),
        devices: list(&value["devices"], |rule| api::LinuxDeviceCgroup {
            allow: rule["allow"].as_bool().unwrap_or_default(),
            r#type: text(&rule["type"]),
            major: i64_of(&rule["major"]),
            minor: i64_of(&rule["minor"]),
            access: text(&rule["access"]),
        }),
        pids: value["pids"]["limit"]
            .as_i64()
            .map(|limit| api::LinuxPids { limit }),
        ..api::LinuxResources::default()
    }
}

/// CRI's limits, in which zero is "not said".
pub(crate) fn from_cri(said: &v1::LinuxContainerResources) -> api::LinuxResources {
    let signed = |value: i64| (value != 0).then_some(api::OptionalInt64 { value });
    let unsigned = |value: i64| {
        let value = u64::try_from(value).ok().filter(|value| *value != 0);
        value.map(|value| api::OptionalUInt64 { value })
    };
    api::LinuxResources {
        memory: Some(api::LinuxMemory {
            limit: signed(said.memory_limit_in_bytes),
            swap: signed(said.memory_swap_limit_in_bytes),
            ..api::LinuxMemory::default()
        }),
        cpu: Some(api::LinuxCpu {
            shares: unsigned(said.cpu_shares),
            quota: signed(said.cpu_quota),
            period: unsigned(said.cpu_period),
            cpus: said.cpuset_cpus.clone(),
            mems: said.cpuset_mems.clone(),
            ..api::LinuxCpu::default()
        }),
        hugepage_limits: said
            .hugepage_limits
            .iter()
            .map(|limit| api::HugepageLimit {
                page_size: limit.page_size.clone(),
                limit: limit.limit,
            })
            .collect(),
        unified: said.unified.clone().into_iter().collect(),
        ..api::LinuxResources::default()
    }
}

/// The part of the limits that CRI has words for, so that a status shows them.
pub(crate) fn to_cri(said: &api::LinuxResources) -> v1::LinuxContainerResources {
    let memory = said.memory.unwrap_or_default();
    let cpu = said.cpu.clone().unwrap_or_default();
    let signed = |value: Option<api::OptionalInt64>| value.map_or(0, |v| v.value);
    let unsigned = |value: Option<api::OptionalUInt64>| {
        value.map_or(0, |v| i64::try_from(v.value).unwrap_or(i64::MAX))
    };
    v1::LinuxContainerResources {
        memory_limit_in_bytes: signed(memory.limit),
        memory_swap_limit_in_bytes: signed(memory.swap),
        cpu_shares: unsigned(cpu.shares),
        cpu_quota: signed(cpu.quota),
        cpu_period: unsigned(cpu.period),
        cpuset_cpus: cpu.cpus,
        cpuset_mems: cpu.mems,
        hugepage_limits: said
            .hugepage_limits
            .iter()
            .map(|limit| v1::HugepageLimit {
                page_size: limit.page_size.clone(),
                limit: limit.limit,
            })
            .collect(),
        unified: said.unified.clone().into_iter().collect(),
        ..v1::LinuxContainerResources::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_survive_the_round_trip() {
        let said = v1::LinuxContainerResources {
            memory_limit_in_bytes: 5,
            cpu_shares: 7,
            cpu_quota: -1,
            cpuset_cpus: "0-1".into(),
            hugepage_limits: vec![v1::HugepageLimit {
                page_size: "2MB".into(),
                limit: 0,
            }],
            unified: [("memory.high".to_owned(), "9".to_owned())].into(),
            ..Default::default()
        };
        assert_eq!(to_cri(&from_cri(&said)), said);
        assert_eq!(to_cri(&from_cri(&Default::default())), Default::default());
    }

    #[test]
    fn a_spec_is_shown_as_it_is() {
        let spec = crate::oci::spec::container_spec();
        let value = serde_json::to_value(&spec).unwrap();
        let mounts = list(&value["mounts"], mount);
        assert_eq!(mounts[0].destination, "/proc");
        assert_eq!(mounts[0].options, ["nosuid", "noexec", "nodev"]);
        let limits = resources(&value["linux"]["resources"]);
        assert_eq!(limits.devices.len(), 1);
        assert!(!limits.devices[0].allow);
    }
}
