// SPDX-License-Identifier: Apache-2.0
//! The Node object and its status, computed from plain data. Texts are upstream's.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    ContainerImage, DaemonEndpoint, Node, NodeAddress, NodeCondition, NodeDaemonEndpoints,
    NodeFeatures, NodeRuntimeHandler, NodeRuntimeHandlerFeatures, NodeSpec, NodeStatus,
    NodeSwapStatus, NodeSystemInfo,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};

use super::machine::Machine;
use super::pressure::Pressure;
use super::{NodeFacts, NodeOptions};
use crate::cri_v1;
use crate::quantity::binary_kilo;

/// The API version that this kubelet implements.
const KUBELET_VERSION: &str = "v1.37.0+podwright";
/// Upstream's `nodeStatusMaxImages` and its bound on names per image.
const MAX_IMAGES: usize = 50;
const MAX_IMAGE_NAMES: usize = 5;
/// What `evictionHard` keeps back from pods.
const MEMORY_RESERVE_BYTES: i64 = 100 << 20;
const STORAGE_RESERVE_PERCENT: i64 = 10;

/// What the runtime said about itself, or that it didn't.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct RuntimeView {
    /// `None`: no answer to `Status`.
    pub(super) status: Option<cri_v1::StatusResponse>,
    pub(super) version: Option<cri_v1::VersionResponse>,
    pub(super) images: Vec<cri_v1::Image>,
    /// It answered at least once since the kubelet's start.
    pub(super) seen_before: bool,
}

/// Everything a status is made from.
pub(super) struct Inputs<'a> {
    pub(super) options: &'a NodeOptions,
    pub(super) machine: &'a Machine,
    pub(super) runtime: &'a RuntimeView,
    pub(super) pressure: Pressure,
    /// The conditions that the API has, for their transition times.
    pub(super) previous: &'a [NodeCondition],
    pub(super) now: Timestamp,
}

/// What pods may use of the machine.
pub(super) fn facts(options: &NodeOptions, machine: &Machine) -> NodeFacts {
    NodeFacts {
        name: options.name.clone(),
        ips: options.ips.clone(),
        allocatable_cpu_millis: machine.cpus.saturating_mul(1000),
        allocatable_memory_bytes: (machine.memory_bytes - MEMORY_RESERVE_BYTES).max(0),
        allocatable_storage_bytes: machine.storage_bytes
            - machine.storage_bytes / 100 * STORAGE_RESERVE_PERCENT,
    }
}

/// The object to create when the API has none.
pub(super) fn initial_node(options: &NodeOptions, machine: &Machine, status: NodeStatus) -> Node {
    Node {
        metadata: ObjectMeta {
            name: Some(options.name.clone()),
            labels: Some(labels(options, machine)),
            ..ObjectMeta::default()
        },
        spec: Some(NodeSpec {
            taints: Some(options.taints.clone()).filter(|taints| !taints.is_empty()),
            ..NodeSpec::default()
        }),
        status: Some(status),
    }
}

/// The labels that the kubelet keeps on its node. Others are not its business.
pub(super) fn labels(options: &NodeOptions, machine: &Machine) -> BTreeMap<String, String> {
    let mut labels = options.labels.clone();
    for (key, value) in [
        ("kubernetes.io/hostname", options.name.as_str()),
        ("kubernetes.io/os", "linux"),
        ("kubernetes.io/arch", machine.architecture.as_str()),
    ] {
        labels.insert(key.to_owned(), value.to_owned());
    }
    labels
}

/// The whole status.
pub(super) fn status(inputs: &Inputs<'_>) -> NodeStatus {
    let Inputs {
        options, machine, ..
    } = inputs;
    let facts = facts(options, machine);
    NodeStatus {
        addresses: Some(addresses(options)),
        capacity: Some(resources(
            options,
            machine.cpus,
            binary_kilo(machine.memory_bytes),
            binary_kilo(machine.storage_bytes),
        )),
        allocatable: Some(resources(
            options,
            machine.cpus,
            binary_kilo(facts.allocatable_memory_bytes),
            ApiQuantity(facts.allocatable_storage_bytes.to_string()),
        )),
        conditions: Some(conditions(inputs)),
        daemon_endpoints: Some(NodeDaemonEndpoints {
            kubelet_endpoint: Some(DaemonEndpoint {
                port: i32::from(options.port),
            }),
        }),
        images: Some(images(&inputs.runtime.images)),
        node_info: Some(node_info(machine, inputs.runtime)),
        runtime_handlers: runtime_handlers(inputs.runtime),
        features: inputs.runtime.status.as_ref().map(|status| NodeFeatures {
            supplemental_groups_policy: status
                .features
                .as_ref()
                .map(|features| features.supplemental_groups_policy),
        }),
        ..NodeStatus::default()
    }
}

/// Equal but for heartbeats.
pub(super) fn same(a: &NodeStatus, b: &NodeStatus) -> bool {
    let quiet = |status: &NodeStatus| {
        let mut status = status.clone();
        for condition in status.conditions.iter_mut().flatten() {
            condition.last_heartbeat_time = None;
        }
        status
    };
    quiet(a) == quiet(b)
}

/// Whether `known` has every condition of `wanted`, but for times.
pub(super) fn same_conditions(known: &NodeStatus, wanted: &NodeStatus) -> bool {
    let known = known.conditions.as_deref().unwrap_or_default();
    let wanted = wanted.conditions.as_deref().unwrap_or_default();
    wanted.iter().all(|want| {
        known.iter().any(|have| {
            have.type_ == want.type_
                && have.status == want.status
                && have.reason == want.reason
                && have.message == want.message
        })
    })
}

/// Whether the status says `type_` is True.
pub(super) fn is_true(status: &NodeStatus, type_: &str) -> bool {
    let conditions = status.conditions.as_deref().unwrap_or_default();
    conditions
        .iter()
        .any(|condition| condition.type_ == type_ && condition.status == "True")
}

fn resources(
    options: &NodeOptions,
    cpus: i64,
    memory: ApiQuantity,
    storage: ApiQuantity,
) -> BTreeMap<String, ApiQuantity> {
    [
        ("cpu", ApiQuantity(cpus.to_string())),
        ("memory", memory),
        ("ephemeral-storage", storage),
        ("pods", ApiQuantity(options.max_pods.to_string())),
    ]
    .map(|(name, quantity)| (name.to_owned(), quantity))
    .into()
}

fn addresses(options: &NodeOptions) -> Vec<NodeAddress> {
    let address = |type_: &str, address: String| NodeAddress {
        type_: type_.to_owned(),
        address,
    };
    let ips = options.ips.iter();
    ips.map(|ip| address("InternalIP", ip.to_string()))
        .chain([address("Hostname", options.name.clone())])
        .collect()
}

fn node_info(machine: &Machine, runtime: &RuntimeView) -> NodeSystemInfo {
    let version = runtime.version.as_ref();
    NodeSystemInfo {
        architecture: machine.architecture.clone(),
        boot_id: machine.boot_id.clone(),
        container_runtime_version: version
            .map(|v| format!("{}://{}", v.runtime_name, v.runtime_version))
            .unwrap_or_default(),
        kernel_version: machine.kernel_version.clone(),
        kube_proxy_version: String::new(),
        kubelet_version: KUBELET_VERSION.to_owned(),
        machine_id: machine.machine_id.clone(),
        operating_system: "linux".to_owned(),
        os_image: machine.os_image.clone(),
        swap: Some(NodeSwapStatus {
            capacity: Some(machine.swap_bytes),
        }),
        system_uuid: machine.system_uuid.clone(),
        ..NodeSystemInfo::default()
    }
}

fn runtime_handlers(runtime: &RuntimeView) -> Option<Vec<NodeRuntimeHandler>> {
    let handlers = &runtime.status.as_ref()?.runtime_handlers;
    let mut handlers: Vec<NodeRuntimeHandler> = handlers
        .iter()
        .map(|handler| NodeRuntimeHandler {
            name: Some(handler.name.clone()),
            features: handler
                .features
                .as_ref()
                .map(|f| NodeRuntimeHandlerFeatures {
                    recursive_read_only_mounts: Some(f.recursive_read_only_mounts),
                    user_namespaces: Some(f.user_namespaces),
                }),
        })
        .collect();
    handlers.sort_by(|a, b| a.name.cmp(&b.name));
    Some(handlers).filter(|handlers| !handlers.is_empty())
}

/// The largest images first, since those are worth scheduling for.
fn images(images: &[cri_v1::Image]) -> Vec<ContainerImage> {
    let mut sorted: Vec<&cri_v1::Image> = images.iter().collect();
    sorted.sort_by(|a, b| b.size.cmp(&a.size).then_with(|| a.id.cmp(&b.id)));
    sorted
        .into_iter()
        .filter(|image| !(image.repo_digests.is_empty() && image.repo_tags.is_empty()))
        .take(MAX_IMAGES)
        .map(|image| {
            let names = image.repo_digests.iter().chain(&image.repo_tags);
            ContainerImage {
                names: Some(names.take(MAX_IMAGE_NAMES).cloned().collect()),
                size_bytes: Some(i64::try_from(image.size).unwrap_or(i64::MAX)),
            }
        })
        .collect()
}

fn conditions(inputs: &Inputs<'_>) -> Vec<NodeCondition> {
    let pressure = inputs.pressure;
    let problem = not_ready(inputs.runtime);
    let memory = if pressure.memory {
        (
            "KubeletHasInsufficientMemory",
            "kubelet has insufficient memory available",
        )
    } else {
        (
            "KubeletHasSufficientMemory",
            "kubelet has sufficient memory available",
        )
    };
    let disk = if pressure.disk {
        ("KubeletHasDiskPressure", "kubelet has disk pressure")
    } else {
        ("KubeletHasNoDiskPressure", "kubelet has no disk pressure")
    };
    let pid = if pressure.pid {
        (
            "KubeletHasInsufficientPID",
            "kubelet has insufficient PID available",
        )
    } else {
        (
            "KubeletHasSufficientPID",
            "kubelet has sufficient PID available",
        )
    };
    let ready = match &problem {
        Some(problem) => ("KubeletNotReady", problem.as_str()),
        None => ("KubeletReady", "kubelet is posting ready status"),
    };
    vec![
        condition(inputs, "MemoryPressure", pressure.memory, memory),
        condition(inputs, "DiskPressure", pressure.disk, disk),
        condition(inputs, "PIDPressure", pressure.pid, pid),
        condition(inputs, "Ready", problem.is_none(), ready),
    ]
}

fn condition(
    inputs: &Inputs<'_>,
    type_: &str,
    holds: bool,
    (reason, message): (&str, &str),
) -> NodeCondition {
    let status = if holds { "True" } else { "False" };
    let previous = inputs.previous.iter().find(|c| c.type_ == type_);
    let since = previous
        .filter(|previous| previous.status == status)
        .and_then(|previous| previous.last_transition_time.clone());
    let now = Time(whole_second(inputs.now));
    NodeCondition {
        type_: type_.to_owned(),
        status: status.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message.to_owned()),
        last_heartbeat_time: Some(now.clone()),
        last_transition_time: Some(since.unwrap_or(now)),
    }
}

/// The API keeps seconds; sending more would look like a change each time it is read back.
fn whole_second(at: Timestamp) -> Timestamp {
    Timestamp::from_second(at.as_second()).unwrap_or(at)
}

/// Why the node can't take pods, in upstream's words; `None` when it can.
fn not_ready(runtime: &RuntimeView) -> Option<String> {
    let Some(status) = &runtime.status else {
        let text = if runtime.seen_before {
            "container runtime is down"
        } else {
            "container runtime status check may not have completed yet"
        };
        return Some(text.to_owned());
    };
    let conditions = status.status.as_ref().map(|s| s.conditions.as_slice());
    let conditions = conditions.unwrap_or_default();
    let problem = |type_: &str, what: &str| {
        let found = conditions
            .iter()
            .find(|condition| condition.r#type == type_);
        match found {
            Some(condition) if condition.status => None,
            Some(c) => Some(format!(
                "{what} not ready: {}={} reason:{} message:{}",
                c.r#type, c.status, c.reason, c.message
            )),
            None => Some(format!("{what} not ready: <nil>")),
        }
    };
    let problems: Vec<String> = [
        problem("RuntimeReady", "container runtime"),
        problem("NetworkReady", "container runtime network"),
    ]
    .into_iter()
    .flatten()
    .collect();
    match problems.as_slice() {
        [] => None,
        [one] => Some(one.clone()),
        several => Some(format!("[{}]", several.join(", "))),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn options() -> NodeOptions {
        NodeOptions {
            name: "n1".into(),
            ips: vec![[10, 0, 0, 1].into(), "fd00::1".parse().expect("an address")],
            labels: [("tier".to_owned(), "edge".to_owned())].into(),
            taints: vec![],
            max_pods: 110,
            port: 10250,
            data_dir: "/d".into(),
            status_update_frequency: Duration::from_secs(10),
            status_report_frequency: Duration::from_secs(300),
            lease_duration: Duration::from_secs(40),
            eviction_hard: super::super::Thresholds::default(),
        }
    }

    fn machine() -> Machine {
        Machine {
            cpus: 2,
            memory_bytes: 8 << 30,
            storage_bytes: 100 << 30,
            architecture: "amd64".into(),
            ..Machine::default()
        }
    }

    fn runtime(conditions: &[(&str, bool, &str, &str)]) -> RuntimeView {
        let conditions = conditions
            .iter()
            .map(
                |(type_, status, reason, message)| cri_v1::RuntimeCondition {
                    r#type: (*type_).to_owned(),
                    status: *status,
                    reason: (*reason).to_owned(),
                    message: (*message).to_owned(),
                },
            )
            .collect();
        RuntimeView {
            status: Some(cri_v1::StatusResponse {
                status: Some(cri_v1::RuntimeStatus { conditions }),
                ..cri_v1::StatusResponse::default()
            }),
            version: Some(cri_v1::VersionResponse {
                runtime_name: "podwright".into(),
                runtime_version: "0.1.0".into(),
                ..cri_v1::VersionResponse::default()
            }),
            ..RuntimeView::default()
        }
    }

    fn build(runtime: &RuntimeView, previous: &[NodeCondition], second: i64) -> NodeStatus {
        status(&Inputs {
            options: &options(),
            machine: &machine(),
            runtime,
            pressure: Pressure::default(),
            previous,
            now: Timestamp::from_second(second).expect("a time"),
        })
    }

    #[test]
    fn readiness_repeats_what_the_runtime_says() {
        let up = ("RuntimeReady", true, "", "");
        let net = ("NetworkReady", true, "", "");
        let net_down = (
            "NetworkReady",
            false,
            "NetworkPluginNotReady",
            "no conflist",
        );
        let down = ("RuntimeReady", false, "Broken", "oops");
        let net_text = "container runtime network not ready: NetworkReady=false \
            reason:NetworkPluginNotReady message:no conflist";
        let run_text = "container runtime not ready: RuntimeReady=false reason:Broken message:oops";
        for (view, want) in [
            (runtime(&[up, net]), None),
            (runtime(&[up, net_down]), Some(net_text.to_owned())),
            (
                runtime(&[down, net_down]),
                Some(format!("[{run_text}, {net_text}]")),
            ),
            (
                runtime(&[up]),
                Some("container runtime network not ready: <nil>".to_owned()),
            ),
            (
                RuntimeView::default(),
                Some("container runtime status check may not have completed yet".to_owned()),
            ),
            (
                RuntimeView {
                    seen_before: true,
                    ..RuntimeView::default()
                },
                Some("container runtime is down".to_owned()),
            ),
        ] {
            assert_eq!(not_ready(&view), want);
            assert_eq!(is_true(&build(&view, &[], 0), "Ready"), want.is_none());
        }
    }

    #[test]
    fn only_a_change_of_status_moves_the_transition_time() {
        let ready = runtime(&[
            ("RuntimeReady", true, "", ""),
            ("NetworkReady", true, "", ""),
        ]);
        let first = build(&ready, &[], 100);
        let second = build(&ready, first.conditions.as_deref().unwrap_or_default(), 200);
        assert!(same(&first, &second));
        let third = build(
            &RuntimeView::default(),
            second.conditions.as_deref().unwrap_or_default(),
            300,
        );
        assert!(!same(&second, &third));
        let time = |status: &NodeStatus, type_: &str| {
            let conditions = status.conditions.as_deref().unwrap_or_default();
            let condition = conditions.iter().find(|c| c.type_ == type_).expect("there");
            condition
                .last_transition_time
                .as_ref()
                .map(|time| time.0.as_second())
        };
        assert_eq!(time(&third, "Ready"), Some(300));
        assert_eq!(time(&third, "DiskPressure"), Some(100));
    }

    #[test]
    fn resources_addresses_and_versions() {
        let status = build(&runtime(&[]), &[], 0);
        let amount = |map: &Option<BTreeMap<String, ApiQuantity>>, name: &str| {
            map.as_ref()
                .and_then(|map| map.get(name))
                .map(|q| q.0.clone())
        };
        assert_eq!(
            amount(&status.capacity, "memory").as_deref(),
            Some("8388608Ki")
        );
        assert_eq!(
            amount(&status.allocatable, "memory").as_deref(),
            Some("8286208Ki")
        );
        assert_eq!(amount(&status.allocatable, "cpu").as_deref(), Some("2"));
        assert_eq!(amount(&status.allocatable, "pods").as_deref(), Some("110"));
        assert_eq!(
            amount(&status.allocatable, "ephemeral-storage").as_deref(),
            Some("96636764160")
        );
        let addresses = status.addresses.expect("addresses");
        let addresses: Vec<_> = addresses
            .iter()
            .map(|a| (a.type_.as_str(), a.address.as_str()))
            .collect();
        assert_eq!(
            addresses,
            [
                ("InternalIP", "10.0.0.1"),
                ("InternalIP", "fd00::1"),
                ("Hostname", "n1")
            ]
        );
        let info = status.node_info.expect("info");
        assert_eq!(info.container_runtime_version, "podwright://0.1.0");
        assert_eq!(info.kubelet_version, "v1.37.0+podwright");
    }

    #[test]
    fn labels_of_the_operator_cannot_replace_well_known_ones() {
        let mut options = options();
        options
            .labels
            .insert("kubernetes.io/os".into(), "plan9".into());
        let labels = labels(&options, &machine());
        assert_eq!(labels["kubernetes.io/os"], "linux");
        assert_eq!(labels["kubernetes.io/hostname"], "n1");
        assert_eq!(labels["tier"], "edge");
    }

    #[test]
    fn images_are_bounded_and_the_largest_come_first() {
        let image = |size: u64| cri_v1::Image {
            id: format!("i{size}"),
            size,
            repo_tags: (0..9).map(|n| format!("t{n}")).collect(),
            ..cri_v1::Image::default()
        };
        let list: Vec<_> = (0..60).map(image).collect();
        let shown = images(&list);
        assert_eq!(shown.len(), 50);
        assert_eq!(shown[0].size_bytes, Some(59));
        assert_eq!(shown[0].names.as_ref().map(Vec::len), Some(5));
    }
}
