// SPDX-License-Identifier: Apache-2.0
//! The defaults that an API server would fill in (kubernetes/kubernetes, pkg/apis/core/v1/defaults.go
//! says which). Applying them twice changes nothing.

use k8s_openapi::api::core::v1::{Container, HTTPGetAction, Pod, PodSpec, Probe, Volume};

use crate::pod::image;

fn set(field: &mut Option<String>, value: &str) {
    if field.as_deref().unwrap_or_default().is_empty() {
        *field = Some(value.to_owned());
    }
}

/// Fills in what the manifest leaves out.
pub fn apply(pod: &mut Pod) {
    let Some(spec) = &mut pod.spec else {
        return;
    };
    set(&mut spec.restart_policy, "Always");
    set(&mut spec.dns_policy, "ClusterFirst");
    set(&mut spec.scheduler_name, "default-scheduler");
    spec.termination_grace_period_seconds.get_or_insert(30);
    spec.enable_service_links.get_or_insert(true);
    spec.security_context.get_or_insert_default();
    let host_network = spec.host_network.unwrap_or(false);
    for_each_container(spec, |container| default_container(container, host_network));
    for volume in spec.volumes.iter_mut().flatten() {
        default_volume(volume);
    }
}

fn for_each_container(spec: &mut PodSpec, mut each: impl FnMut(&mut Container)) {
    spec.init_containers
        .iter_mut()
        .flatten()
        .for_each(&mut each);
    spec.containers.iter_mut().for_each(&mut each);
}

fn default_container(container: &mut Container, host_network: bool) {
    let policy = image::default_policy(container.image.as_deref().unwrap_or_default());
    set(&mut container.image_pull_policy, policy);
    set(
        &mut container.termination_message_path,
        "/dev/termination-log",
    );
    set(&mut container.termination_message_policy, "File");
    for port in container.ports.iter_mut().flatten() {
        set(&mut port.protocol, "TCP");
        if host_network {
            port.host_port.get_or_insert(port.container_port);
        }
    }
    let resources = container.resources.get_or_insert_default();
    if let Some(limits) = &resources.limits {
        let requests = resources.requests.get_or_insert_default();
        for (name, limit) in limits {
            requests
                .entry(name.clone())
                .or_insert_with(|| limit.clone());
        }
    }
    let probes = [
        &mut container.liveness_probe,
        &mut container.readiness_probe,
        &mut container.startup_probe,
    ];
    probes.into_iter().flatten().for_each(default_probe);
    if let Some(hooks) = &mut container.lifecycle {
        let handlers = [&mut hooks.post_start, &mut hooks.pre_stop];
        for handler in handlers.into_iter().flatten() {
            handler.http_get.iter_mut().for_each(default_http);
        }
    }
}

fn default_http(action: &mut HTTPGetAction) {
    set(&mut action.scheme, "HTTP");
    set(&mut action.path, "/");
}

fn default_probe(probe: &mut Probe) {
    probe.http_get.iter_mut().for_each(default_http);
    for (field, value) in [
        (&mut probe.timeout_seconds, 1),
        (&mut probe.period_seconds, 10),
        (&mut probe.success_threshold, 1),
        (&mut probe.failure_threshold, 3),
    ] {
        if field.unwrap_or(0) == 0 {
            *field = Some(value);
        }
    }
    if let Some(grpc) = &mut probe.grpc {
        grpc.service.get_or_insert_default();
    }
}

/// File modes are decimal here: 420 is 0644.
const FILE_MODE: i32 = 0o644;

fn default_volume(volume: &mut Volume) {
    if let Some(source) = &mut volume.config_map {
        source.default_mode.get_or_insert(FILE_MODE);
    }
    if let Some(source) = &mut volume.secret {
        source.default_mode.get_or_insert(FILE_MODE);
    }
    if let Some(source) = &mut volume.projected {
        source.default_mode.get_or_insert(FILE_MODE);
    }
    if let Some(source) = &mut volume.host_path {
        source.type_.get_or_insert_default();
    }
    if let Some(source) = &mut volume.downward_api {
        source.default_mode.get_or_insert(FILE_MODE);
        for item in source.items.iter_mut().flatten() {
            if let Some(field) = &mut item.field_ref {
                set(&mut field.api_version, "v1");
            }
        }
    }
    // A volume that names no source is an emptyDir.
    let only_name = serde_json::to_value(&*volume)
        .is_ok_and(|value| value.as_object().is_some_and(|map| map.len() == 1));
    if only_name {
        volume.empty_dir = Some(Default::default());
    }
}
