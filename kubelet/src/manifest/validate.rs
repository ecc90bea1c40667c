// SPDX-License-Identifier: Apache-2.0
//! The checks that an API server would make before a pod reaches a kubelet: names, ports, mounts,
//! probes, quantities. What a later stage refuses with a good message is left to it.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, Probe};

use crate::quantity::Quantity;

type Problems = Vec<(String, String)>;

/// Every problem, by field path. Empty: the pod may run.
pub(super) fn check(pod: &Pod) -> Problems {
    let mut found = Problems::new();
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    if !is_dns_name(name, 253, true) {
        found.push((
            "metadata.name".to_owned(),
            format!("is {name:?}, expected a lower-case DNS name of letters, digits, '-' and '.'"),
        ));
    }
    let namespace = pod.metadata.namespace.as_deref();
    if let Some(namespace) = namespace.filter(|namespace| !is_dns_name(namespace, 63, false)) {
        found.push((
            "metadata.namespace".to_owned(),
            format!("is {namespace:?}, expected a lower-case DNS label"),
        ));
    }
    match &pod.spec {
        None => found.push(("spec".to_owned(), "required".to_owned())),
        Some(spec) => check_spec(spec, &mut found),
    }
    found
}

fn is_dns_name(name: &str, longest: usize, dots: bool) -> bool {
    let label = |part: &str| {
        let alphanumeric = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        !part.is_empty()
            && part.bytes().all(|byte| alphanumeric(byte) || byte == b'-')
            && !part.starts_with('-')
            && !part.ends_with('-')
    };
    name.len() <= longest
        && if dots {
            name.split('.').all(label)
        } else {
            label(name)
        }
}

fn one_of(path: &str, value: Option<&str>, allowed: &[&str], found: &mut Problems) {
    if let Some(value) = value.filter(|value| !allowed.contains(value)) {
        found.push((
            path.to_owned(),
            format!("is {value:?}, expected one of {}", allowed.join(", ")),
        ));
    }
}

fn check_spec(spec: &PodSpec, found: &mut Problems) {
    let policies = ["Always", "OnFailure", "Never"];
    one_of(
        "spec.restartPolicy",
        spec.restart_policy.as_deref(),
        &policies,
        found,
    );
    let dns = ["ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"];
    one_of("spec.dnsPolicy", spec.dns_policy.as_deref(), &dns, found);
    if spec.containers.is_empty() {
        found.push((
            "spec.containers".to_owned(),
            "required, at least one container".to_owned(),
        ));
    }
    if spec
        .termination_grace_period_seconds
        .is_some_and(|secs| secs < 0)
    {
        found.push((
            "spec.terminationGracePeriodSeconds".to_owned(),
            "expected 0 or more".to_owned(),
        ));
    }
    if spec.active_deadline_seconds.is_some_and(|secs| secs < 1) {
        found.push((
            "spec.activeDeadlineSeconds".to_owned(),
            "expected 1 or more".to_owned(),
        ));
    }
    host_users(spec, found);
    let mut volumes = BTreeSet::new();
    for (index, volume) in spec.volumes.iter().flatten().enumerate() {
        let path = format!("spec.volumes[{index}].name");
        if !is_dns_name(&volume.name, 63, false) {
            found.push((
                path,
                format!("is {:?}, expected a lower-case DNS label", volume.name),
            ));
        } else if !volumes.insert(volume.name.as_str()) {
            found.push((path, format!("duplicate name {:?}", volume.name)));
        }
    }
    let mut names = BTreeSet::new();
    let inits = spec.init_containers.iter().flatten();
    for (index, container) in inits.enumerate() {
        let path = format!("spec.initContainers[{index}]");
        check_container(&path, container, &volumes, &mut names, found);
    }
    for (index, container) in spec.containers.iter().enumerate() {
        let path = format!("spec.containers[{index}]");
        check_container(&path, container, &volumes, &mut names, found);
    }
}

/// A pod with a user namespace of its own cannot be in the host's other namespaces.
fn host_users(spec: &PodSpec, found: &mut Problems) {
    let fields = [
        ("spec.hostNetwork", spec.host_network),
        ("spec.hostPID", spec.host_pid),
        ("spec.hostIPC", spec.host_ipc),
    ];
    for (field, host) in fields {
        if host == Some(true) && spec.host_users == Some(false) {
            let text = "forbidden when `hostUsers` is false";
            found.push((field.to_owned(), text.to_owned()));
        }
    }
}

fn check_container<'a>(
    path: &str,
    container: &'a Container,
    volumes: &BTreeSet<&str>,
    names: &mut BTreeSet<&'a str>,
    found: &mut Problems,
) {
    let at = |field: &str| format!("{path}.{field}");
    if !is_dns_name(&container.name, 63, false) {
        found.push((
            at("name"),
            format!("is {:?}, expected a lower-case DNS label", container.name),
        ));
    } else if !names.insert(&container.name) {
        found.push((at("name"), format!("duplicate name {:?}", container.name)));
    }
    if container
        .image
        .as_deref()
        .unwrap_or_default()
        .trim()
        .is_empty()
    {
        found.push((at("image"), "required".to_owned()));
    }
    let pulls = ["Always", "IfNotPresent", "Never"];
    one_of(
        &at("imagePullPolicy"),
        container.image_pull_policy.as_deref(),
        &pulls,
        found,
    );
    let messages = ["File", "FallbackToLogsOnError"];
    one_of(
        &at("terminationMessagePolicy"),
        container.termination_message_policy.as_deref(),
        &messages,
        found,
    );
    for (index, port) in container.ports.iter().flatten().enumerate() {
        let range = |field: &str, value: i32, lowest: i32, found: &mut Problems| {
            if !(lowest..=65535).contains(&value) {
                found.push((
                    at(&format!("ports[{index}].{field}")),
                    format!("is {value}, expected a port from {lowest} to 65535"),
                ));
            }
        };
        range("containerPort", port.container_port, 1, found);
        range("hostPort", port.host_port.unwrap_or(0), 0, found);
        one_of(
            &at(&format!("ports[{index}].protocol")),
            port.protocol.as_deref(),
            &["TCP", "UDP", "SCTP"],
            found,
        );
    }
    for (index, mount) in container.volume_mounts.iter().flatten().enumerate() {
        if !volumes.contains(mount.name.as_str()) {
            found.push((
                at(&format!("volumeMounts[{index}].name")),
                format!("no volume is named {:?}", mount.name),
            ));
        }
        if mount.mount_path.is_empty() {
            found.push((
                at(&format!("volumeMounts[{index}].mountPath")),
                "required".to_owned(),
            ));
        }
    }
    for (index, variable) in container.env.iter().flatten().enumerate() {
        if variable.name.is_empty() || variable.name.contains('=') {
            found.push((
                at(&format!("env[{index}].name")),
                format!("is {:?}, expected a name without '='", variable.name),
            ));
        }
    }
    let resources = container.resources.clone().unwrap_or_default();
    for (kind, map) in [
        ("limits", resources.limits),
        ("requests", resources.requests),
    ] {
        for (name, quantity) in map.into_iter().flatten() {
            if let Err(error) = Quantity::from_api(&quantity) {
                found.push((at(&format!("resources.{kind}[{name}]")), error.to_string()));
            }
        }
    }
    for (name, probe) in [
        ("livenessProbe", &container.liveness_probe),
        ("readinessProbe", &container.readiness_probe),
        ("startupProbe", &container.startup_probe),
    ] {
        if let Some(probe) = probe {
            check_probe(&at(name), probe, name != "readinessProbe", found);
        }
    }
}

fn check_probe(path: &str, probe: &Probe, must_succeed_once: bool, found: &mut Problems) {
    let handlers = [
        probe.exec.is_some(),
        probe.http_get.is_some(),
        probe.tcp_socket.is_some(),
        probe.grpc.is_some(),
    ];
    if handlers.iter().filter(|there| **there).count() != 1 {
        found.push((
            path.to_owned(),
            "expected exactly one of exec, httpGet, tcpSocket, grpc".to_owned(),
        ));
    }
    for (field, value) in [
        ("initialDelaySeconds", probe.initial_delay_seconds),
        ("timeoutSeconds", probe.timeout_seconds),
        ("periodSeconds", probe.period_seconds),
        ("successThreshold", probe.success_threshold),
        ("failureThreshold", probe.failure_threshold),
    ] {
        if value.is_some_and(|value| value < 0) {
            found.push((format!("{path}.{field}"), "expected 0 or more".to_owned()));
        }
    }
    if must_succeed_once && probe.success_threshold.unwrap_or(1) != 1 {
        found.push((format!("{path}.successThreshold"), "expected 1".to_owned()));
    }
}
