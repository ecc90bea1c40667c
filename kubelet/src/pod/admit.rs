// SPDX-License-Identifier: Apache-2.0
//! May this pod run here at all? Unsupported fields are refused by name, resources must fit. Pure.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{Container, Pod};

use super::memory::Rejection;
use super::spec::{self, Kind};
use crate::ports::Allocatable;

/// Sysctls that every pod may set: namespaced, and harmless to neighbours (upstream's safe set).
const SAFE_SYSCTLS: [&str; 14] = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.ping_group_range",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_wmem",
    "net.ipv4.tcp_notsent_lowat",
    "net.ipv4.tcp_slow_start_after_idle",
];

/// The node's rules.
#[derive(Debug, Clone)]
pub struct Rules {
    /// What the node can give.
    pub allocatable: Allocatable,
    /// Sysctls beyond the safe set; a trailing `*` matches a prefix.
    pub allowed_unsafe_sysctls: BTreeSet<String>,
    /// RuntimeClasses can be read. They are in the API server, so a node without one has none.
    pub runtime_classes: bool,
}

/// Decides about a new pod beside those that are already admitted and not ended.
///
/// # Errors
/// The reason and message of the Failed phase.
pub fn admit(pod: &Pod, others: &[&Pod], rules: &Rules) -> Result<(), Rejection> {
    if let Some(field) = unsupported(pod).or_else(|| without_api(pod, rules)) {
        return Err(Rejection {
            reason: "UnexpectedAdmissionError".to_owned(),
            message: format!("Pod was rejected: {field} is not supported by this kubelet"),
        });
    }
    sysctls(pod, rules)?;
    fit(pod, others, &rules.allocatable)
}

/// The first field that this kubelet cannot honour, by its path.
pub fn unsupported(pod: &Pod) -> Option<String> {
    let spec_of = spec::spec(pod);
    let filled = |list: Option<usize>| list.unwrap_or(0) > 0;
    let checks = [
        (
            "spec.ephemeralContainers",
            filled(spec_of.ephemeral_containers.as_ref().map(Vec::len)),
        ),
        (
            "spec.resourceClaims",
            filled(spec_of.resource_claims.as_ref().map(Vec::len)),
        ),
        ("spec.resources", spec_of.resources.is_some()),
        (
            "spec.os.name other than linux",
            spec_of.os.as_ref().is_some_and(|os| os.name != "linux"),
        ),
        (
            "spec.securityContext.windowsOptions",
            spec_of
                .security_context
                .as_ref()
                .is_some_and(|context| context.windows_options.is_some()),
        ),
    ];
    let pod_level = checks.into_iter().find(|(_, present)| *present);
    if let Some((field, _)) = pod_level {
        return Some(field.to_owned());
    }
    spec::containers(pod).find_map(|(kind, container)| {
        let field = unsupported_in(kind, container)?;
        Some(format!("{}.{field}", kind.field_path(&container.name)))
    })
}

fn without_api(pod: &Pod, rules: &Rules) -> Option<String> {
    let named = spec::runtime_class(pod).is_some() && !rules.runtime_classes;
    named.then(|| "spec.runtimeClassName without an API server".to_owned())
}

fn unsupported_in(kind: Kind, container: &Container) -> Option<&'static str> {
    let filled = |list: Option<usize>| list.unwrap_or(0) > 0;
    let resources = container.resources.as_ref();
    let named = |map: Option<&std::collections::BTreeMap<String, _>>| {
        map.is_some_and(|map| {
            map.keys()
                .any(|key| !matches!(key.as_str(), "cpu" | "memory" | "ephemeral-storage"))
        })
    };
    let signal = container
        .lifecycle
        .as_ref()
        .and_then(|hooks| hooks.stop_signal.as_deref());
    let policy = container.restart_policy.as_deref();
    let context = container.security_context.as_ref();
    let checks = [
        (
            "volumeDevices",
            filled(container.volume_devices.as_ref().map(Vec::len)),
        ),
        (
            "restartPolicyRules",
            filled(container.restart_policy_rules.as_ref().map(Vec::len)),
        ),
        (
            "restartPolicy",
            policy.is_some_and(|policy| kind == Kind::App || policy != "Always"),
        ),
        (
            "resources.claims",
            filled(resources.and_then(|r| r.claims.as_ref()).map(Vec::len)),
        ),
        (
            "resources.requests of other than cpu, memory and ephemeral-storage",
            named(resources.and_then(|r| r.requests.as_ref())),
        ),
        (
            "resources.limits of other than cpu, memory and ephemeral-storage",
            named(resources.and_then(|r| r.limits.as_ref())),
        ),
        (
            "lifecycle.stopSignal with this name",
            signal.is_some_and(|name| super::cri_config::signal(name).is_none()),
        ),
        (
            "securityContext.windowsOptions",
            context.is_some_and(|context| context.windows_options.is_some()),
        ),
    ];
    checks
        .into_iter()
        .find(|(_, present)| *present)
        .map(|(field, _)| field)
}

fn sysctls(pod: &Pod, rules: &Rules) -> Result<(), Rejection> {
    for name in super::security::sysctls(pod).keys() {
        let safe = SAFE_SYSCTLS.contains(&name.as_str());
        let allowed =
            rules
                .allowed_unsafe_sysctls
                .iter()
                .any(|pattern| match pattern.strip_suffix('*') {
                    Some(prefix) => name.starts_with(prefix),
                    None => pattern == name,
                });
        let host = (name.starts_with("net.") && spec::host_network(pod))
            || (!name.starts_with("net.") && spec::spec(pod).host_ipc.unwrap_or(false));
        if host || !(safe || allowed) {
            return Err(Rejection {
                reason: "SysctlForbidden".to_owned(),
                message: format!("Pod was rejected: forbidden sysctl: \"{name}\" not allowlisted"),
            });
        }
    }
    Ok(())
}

/// Picks one resource.
type Pick = fn(&spec::Amounts) -> Option<i64>;

fn fit(pod: &Pod, others: &[&Pod], node: &Allocatable) -> Result<(), Rejection> {
    let count = others.len() + 1;
    let limit = usize::try_from(node.pods).unwrap_or(usize::MAX);
    if count > limit {
        return Err(out_of(
            "pods",
            1,
            others.len().try_into().unwrap_or(i64::MAX),
            i64::from(node.pods),
        ));
    }
    let own = spec::pod_requests(pod);
    let sum = |pick: Pick| {
        let each = others
            .iter()
            .map(|other| pick(&spec::pod_requests(other)).unwrap_or(0));
        each.fold(0i64, i64::saturating_add)
    };
    let resources: [(&str, Pick, i64); 3] = [
        ("cpu", |amounts| amounts.cpu_millis, node.cpu_millis),
        ("memory", |amounts| amounts.memory_bytes, node.memory_bytes),
        (
            "ephemeral-storage",
            |amounts| amounts.storage_bytes,
            node.ephemeral_storage_bytes,
        ),
    ];
    for (name, pick, capacity) in resources {
        let wanted = pick(&own).unwrap_or(0);
        let used = sum(pick);
        if wanted > 0 && used.saturating_add(wanted) > capacity {
            return Err(out_of(name, wanted, used, capacity));
        }
    }
    Ok(())
}

fn out_of(name: &str, requested: i64, used: i64, capacity: i64) -> Rejection {
    Rejection {
        reason: format!("OutOf{name}"),
        message: format!(
            "Pod was rejected: Node didn't have enough resource: {name}, requested: {requested}, used: {used}, capacity: {capacity}"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::testing::pod;

    fn rules() -> Rules {
        Rules {
            allocatable: Allocatable {
                cpu_millis: 2000,
                memory_bytes: 1 << 30,
                ephemeral_storage_bytes: 1 << 40,
                pods: 3,
            },
            allowed_unsafe_sysctls: ["net.core.*".to_owned()].into(),
            runtime_classes: false,
        }
    }

    fn reason(spec: &str, others: usize) -> String {
        let other = pod("containers: [{name: a, image: x, resources: {requests: {cpu: 600m}}}]");
        let others: Vec<&Pod> = std::iter::repeat_n(&other, others).collect();
        let answer = admit(&pod(spec), &others, &rules());
        answer
            .err()
            .map(|rejection| rejection.reason)
            .unwrap_or_default()
    }

    #[test]
    fn resources_have_to_fit() {
        let plain = "containers: [{name: a, image: x}]";
        let hungry = "containers: [{name: a, image: x, resources: {requests: {cpu: 1}}}]";
        let fat = "containers: [{name: a, image: x, resources: {requests: {memory: 2Gi}}}]";
        assert_eq!(reason(plain, 2), "");
        assert_eq!(reason(plain, 3), "OutOfpods");
        assert_eq!(reason(hungry, 1), "");
        assert_eq!(reason(hungry, 2), "OutOfcpu");
        assert_eq!(reason(fat, 0), "OutOfmemory");
    }

    #[test]
    fn unsupported_fields_are_refused_by_name() {
        let cases = [
            (
                "containers: [{name: a, image: x, volumeDevices: [{name: d, devicePath: /d}]}]",
                "spec.containers{a}.volumeDevices",
            ),
            (
                "containers: [{name: a, image: x, resources: {limits: {nvidia.com/gpu: 1}}}]",
                "spec.containers{a}.resources.limits of other than cpu, memory and ephemeral-storage",
            ),
        ];
        for (spec, field) in cases {
            assert_eq!(unsupported(&pod(spec)).as_deref(), Some(field), "{spec}");
        }
    }

    #[test]
    fn a_runtime_class_takes_an_api_server_and_overhead_has_to_fit() {
        let classed = pod("runtimeClassName: kata\ncontainers: [{name: a, image: x}]");
        let refused = admit(&classed, &[], &rules()).expect_err("no API server");
        assert_eq!(
            refused.message,
            "Pod was rejected: spec.runtimeClassName without an API server is not supported by this kubelet"
        );
        let with = Rules {
            runtime_classes: true,
            ..rules()
        };
        assert_eq!(admit(&classed, &[], &with), Ok(()));
        let heavy = "overhead: {memory: 2Gi}\ncontainers: [{name: a, image: x}]";
        assert_eq!(reason(heavy, 0), "OutOfmemory");
    }

    #[test]
    fn sysctls_are_safe_or_allowed_or_forbidden() {
        let with = |name: &str| {
            format!(
                "containers: [{{name: a, image: x}}]\nsecurityContext: {{sysctls: [{{name: {name}, value: '1'}}]}}"
            )
        };
        assert_eq!(reason(&with("kernel.shm_rmid_forced"), 0), "");
        assert_eq!(reason(&with("net.core.somaxconn"), 0), "");
        assert_eq!(reason(&with("kernel.msgmax"), 0), "SysctlForbidden");
    }
}
