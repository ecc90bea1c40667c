// SPDX-License-Identifier: Apache-2.0
//! From a pod to the CRI messages that make it: sandbox and containers. Pure; built again for every
//! call, so the same pod gives the same message.

use std::collections::HashMap;

use k8s_openapi::api::core::v1::{Container, Pod};

use super::dns::Dns;
use super::labels;
use super::security;
use super::spec::{self, Kind, Qos};
use super::state::ImageSeen;
use crate::cri_v1 as cri;

/// The shortest CFS period slice that the kernel takes, in microseconds.
const QUOTA_MIN_US: i64 = 1000;
/// CFS period, in microseconds (upstream's `cpuCFSQuotaPeriod`).
const PERIOD_US: i64 = 100_000;
/// The kernel's smallest cpu.shares.
const SHARES_MIN: i64 = 2;
/// The kernel's largest cpu.shares.
const SHARES_MAX: i64 = 262_144;

/// What a sandbox depends on beside the pod.
#[derive(Debug, Clone, Default)]
pub struct SandboxContext {
    /// `<pod_logs_dir>/<namespace>_<name>_<uid>`.
    pub log_directory: String,
    /// The configured cgroup parent.
    pub cgroup_parent: String,
    /// Resolver settings; `None` leaves the image's file alone.
    pub dns: Option<Dns>,
    /// Used by `setHostnameAsFQDN`.
    pub cluster_domain: String,
    /// The node's name: the host name of pods on the host network.
    pub node_name: String,
    /// The pod's user namespace.
    pub userns: cri::UserNamespace,
}

/// What a container depends on beside the pod.
#[derive(Debug, Clone, Default)]
pub struct ContainerContext {
    /// Counts restarts; also the log file's number.
    pub restart_count: u32,
    /// The environment, references resolved.
    pub env: Vec<(String, String)>,
    /// Mounts, in order.
    pub mounts: Vec<cri::Mount>,
    /// The node's memory, for the OOM score.
    pub node_memory_bytes: i64,
    /// The image, for its user.
    pub image: ImageSeen,
    /// The sandbox's user namespace.
    pub userns: cri::UserNamespace,
}

/// The pod's host name: `hostname`, else its name, cut to 63 characters as upstream does.
pub fn hostname(pod: &Pod) -> String {
    let spec = spec::spec(pod);
    if let Some(name) = &spec.hostname_override {
        return name.clone();
    }
    let own = spec.hostname.as_deref().filter(|name| !name.is_empty());
    let mut name = own.unwrap_or(spec::name(pod)).to_owned();
    if name.len() > 63 {
        let cut = (0..=63).rev().find(|at| name.is_char_boundary(*at));
        name.truncate(cut.unwrap_or(0));
        name.truncate(name.trim_end_matches(['-', '.']).len());
    }
    name
}

/// `<subdomain>.<namespace>.svc.<cluster domain>`, or empty without a subdomain.
pub fn host_domain(pod: &Pod, cluster_domain: &str) -> String {
    match spec::spec(pod).subdomain.as_deref() {
        Some(subdomain) if !subdomain.is_empty() => {
            format!("{subdomain}.{}.svc.{cluster_domain}", spec::namespace(pod))
        }
        _ => String::new(),
    }
}

/// `<cgroup parent>/kubepods[/<class>]/pod<uid>`.
pub fn cgroup_parent(pod: &Pod, parent: &str) -> String {
    let parent = parent.trim_end_matches('/');
    let class = match spec::qos(pod) {
        Qos::Guaranteed => "",
        Qos::Burstable => "/burstable",
        Qos::BestEffort => "/besteffort",
    };
    format!("{parent}/kubepods{class}/pod{}", spec::uid(pod))
}

fn pod_labels(pod: &Pod) -> HashMap<String, String> {
    let own = pod.metadata.labels.clone().unwrap_or_default();
    let mut labels: HashMap<String, String> = own.into_iter().collect();
    labels.insert(labels::POD_NAME.to_owned(), spec::name(pod).to_owned());
    labels.insert(
        labels::POD_NAMESPACE.to_owned(),
        spec::namespace(pod).to_owned(),
    );
    labels.insert(labels::POD_UID.to_owned(), spec::uid(pod).to_owned());
    labels
}

/// The sandbox of a pod.
pub fn sandbox(pod: &Pod, attempt: u32, context: &SandboxContext) -> cri::PodSandboxConfig {
    let host_network = spec::host_network(pod);
    let hostname = match (host_network, spec::spec(pod).set_hostname_as_fqdn) {
        (true, _) => context.node_name.clone(),
        (false, Some(true)) => {
            let domain = host_domain(pod, &context.cluster_domain);
            let name = hostname(pod);
            if domain.is_empty() {
                name
            } else {
                format!("{name}.{domain}")
            }
        }
        (false, _) => hostname(pod),
    };
    let annotations = pod.metadata.annotations.clone().unwrap_or_default();
    let mut annotations: HashMap<String, String> = annotations.into_iter().collect();
    annotations.insert(
        labels::GRACE_PERIOD.to_owned(),
        spec::grace_secs(pod).to_string(),
    );
    cri::PodSandboxConfig {
        metadata: Some(cri::PodSandboxMetadata {
            name: spec::name(pod).to_owned(),
            uid: spec::uid(pod).to_owned(),
            namespace: spec::namespace(pod).to_owned(),
            attempt,
        }),
        hostname,
        log_directory: context.log_directory.clone(),
        dns_config: context.dns.as_ref().map(|dns| cri::DnsConfig {
            servers: dns.servers.clone(),
            searches: dns.searches.clone(),
            options: dns.options.clone(),
        }),
        port_mappings: port_mappings(pod),
        labels: pod_labels(pod),
        annotations,
        linux: Some(cri::LinuxPodSandboxConfig {
            cgroup_parent: cgroup_parent(pod, &context.cgroup_parent),
            security_context: Some(security::sandbox(pod, &context.userns)),
            sysctls: security::sysctls(pod),
            overhead: overhead(pod),
            resources: Some(pod_resources(pod)),
        }),
        windows: None,
    }
}

/// Host ports only: a container port without one needs nothing from the runtime.
fn port_mappings(pod: &Pod) -> Vec<cri::PortMapping> {
    if spec::host_network(pod) {
        return Vec::new();
    }
    let ports = spec::containers(pod)
        .filter(|(kind, _)| *kind != Kind::Init)
        .flat_map(|(_, container)| container.ports.iter().flatten());
    ports
        .filter(|port| port.host_port.is_some_and(|port| port > 0))
        .map(|port| cri::PortMapping {
            protocol: match port.protocol.as_deref() {
                Some("UDP") => cri::Protocol::Udp.into(),
                Some("SCTP") => cri::Protocol::Sctp.into(),
                _ => cri::Protocol::Tcp.into(),
            },
            container_port: port.container_port,
            host_port: port.host_port.unwrap_or(0),
            host_ip: port.host_ip.clone().unwrap_or_default(),
        })
        .collect()
}

/// cpu.shares for a request: 1024 for a whole CPU.
pub fn cpu_shares(millis: Option<i64>) -> i64 {
    match millis {
        Some(millis) if millis > 0 => {
            (millis.saturating_mul(1024) / 1000).clamp(SHARES_MIN, SHARES_MAX)
        }
        _ => SHARES_MIN,
    }
}

/// CFS quota per period for a limit; 0: no limit.
pub fn cpu_quota(millis: Option<i64>) -> i64 {
    match millis {
        Some(millis) if millis > 0 => (millis.saturating_mul(PERIOD_US) / 1000).max(QUOTA_MIN_US),
        _ => 0,
    }
}

/// What the containers have together. The runtime adds the overhead.
fn pod_resources(pod: &Pod) -> cri::LinuxContainerResources {
    let (requests, limits) = (spec::container_requests(pod), spec::pod_limits(pod));
    let quota = cpu_quota(limits.cpu_millis);
    cri::LinuxContainerResources {
        cpu_shares: cpu_shares(requests.cpu_millis),
        cpu_period: if quota > 0 { PERIOD_US } else { 0 },
        cpu_quota: quota,
        memory_limit_in_bytes: limits.memory_bytes.unwrap_or(0),
        ..Default::default()
    }
}

/// The pod's overhead, request and limit in one.
fn overhead(pod: &Pod) -> Option<cri::LinuxContainerResources> {
    spec::spec(pod).overhead.as_ref()?;
    let overhead = spec::overhead(pod);
    let quota = cpu_quota(overhead.cpu_millis);
    Some(cri::LinuxContainerResources {
        cpu_shares: cpu_shares(overhead.cpu_millis),
        cpu_period: if quota > 0 { PERIOD_US } else { 0 },
        cpu_quota: quota,
        memory_limit_in_bytes: overhead.memory_bytes.unwrap_or(0),
        ..Default::default()
    })
}

/// How willingly the kernel's OOM killer picks the container: -997 for Guaranteed, 1000 for
/// BestEffort, between for Burstable by its share of the node's memory
/// (kubernetes/kubernetes, pkg/kubelet/qos/policy.go).
pub fn oom_score_adj(pod: &Pod, container: &Container, node_memory_bytes: i64) -> i64 {
    let spec_of = spec::spec(pod);
    let critical = spec_of
        .priority
        .is_some_and(|priority| priority >= 2_000_000_000);
    match spec::qos(pod) {
        _ if critical => -997,
        Qos::Guaranteed => -997,
        Qos::BestEffort => 1000,
        Qos::Burstable => {
            let request = spec::requests(container).memory_bytes.unwrap_or(0);
            let share = 1000 * i128::from(request) / i128::from(node_memory_bytes.max(1));
            i64::try_from(1000 - share).unwrap_or(3).clamp(3, 999)
        }
    }
}

/// Limits of one container.
pub fn resources(
    pod: &Pod,
    container: &Container,
    node_memory_bytes: i64,
) -> cri::LinuxContainerResources {
    let (requests, limits) = (spec::requests(container), spec::limits(container));
    let quota = cpu_quota(limits.cpu_millis);
    let memory = limits.memory_bytes.unwrap_or(0);
    cri::LinuxContainerResources {
        cpu_shares: cpu_shares(requests.cpu_millis),
        cpu_period: PERIOD_US,
        cpu_quota: quota,
        memory_limit_in_bytes: memory,
        // No swap beyond the memory limit: upstream's NoSwap.
        memory_swap_limit_in_bytes: memory,
        oom_score_adj: oom_score_adj(pod, container, node_memory_bytes),
        ..Default::default()
    }
}

/// Changes when a running container has to be made again: its name or its image (as upstream since
/// in-place resize). FNV-1a, in hex.
pub fn container_hash(container: &Container) -> String {
    let mut hash: u32 = 0x811c_9dc5;
    let image = container.image.as_deref().unwrap_or_default();
    for byte in container.name.bytes().chain([0]).chain(image.bytes()) {
        hash = (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193);
    }
    format!("{hash:x}")
}

/// `<container>/<restart count>.log`, below the sandbox's log directory.
pub fn log_path(container: &str, restart_count: u32) -> String {
    format!("{container}/{restart_count}.log")
}

fn container_annotations(
    pod: &Pod,
    container: &Container,
    restart_count: u32,
) -> HashMap<String, String> {
    let text =
        |value: &Option<String>, default: &str| value.as_deref().unwrap_or(default).to_owned();
    let mut annotations: HashMap<String, String> = [
        (labels::CONTAINER_HASH, container_hash(container)),
        (labels::RESTART_COUNT, restart_count.to_string()),
        (labels::GRACE_PERIOD, spec::grace_secs(pod).to_string()),
        (
            labels::TERMINATION_PATH,
            text(&container.termination_message_path, "/dev/termination-log"),
        ),
        (
            labels::TERMINATION_POLICY,
            text(&container.termination_message_policy, "File"),
        ),
    ]
    .map(|(key, value)| (key.to_owned(), value))
    .into();
    let pre_stop = container
        .lifecycle
        .as_ref()
        .and_then(|hooks| hooks.pre_stop.as_ref());
    let mut json = |key: &str, value: Result<String, serde_json::Error>| {
        // These are plain structures: they always encode.
        if let Ok(value) = value {
            annotations.insert(key.to_owned(), value);
        }
    };
    if let Some(hook) = pre_stop {
        json(labels::PRE_STOP, serde_json::to_string(hook));
    }
    if let Some(ports) = container.ports.as_ref().filter(|ports| !ports.is_empty()) {
        json(labels::CONTAINER_PORTS, serde_json::to_string(ports));
    }
    annotations
}

/// In a user namespace every mount shows its files with the ids of the container.
fn mapped(mounts: &[cri::Mount], userns: &cri::UserNamespace) -> Vec<cri::Mount> {
    let map = |mount: &cri::Mount| cri::Mount {
        uid_mappings: userns.uids.clone(),
        gid_mappings: userns.gids.clone(),
        ..mount.clone()
    };
    mounts.iter().map(map).collect()
}

/// One container of a pod. `command` and `args` are expanded with the environment.
pub fn container(
    pod: &Pod,
    container: &Container,
    context: &ContainerContext,
) -> cri::ContainerConfig {
    let expand = |words: &Option<Vec<String>>| -> Vec<String> {
        let words = words.iter().flatten();
        words
            .map(|word| crate::env::expand(word, &context.env))
            .collect()
    };
    let image = container.image.clone().unwrap_or_default();
    let envs = context.env.iter().map(|(key, value)| cri::KeyValue {
        key: key.clone(),
        value: value.clone().into_bytes(),
    });
    let own_labels = [
        (labels::POD_NAME, spec::name(pod)),
        (labels::POD_NAMESPACE, spec::namespace(pod)),
        (labels::POD_UID, spec::uid(pod)),
        (labels::CONTAINER_NAME, &container.name),
    ];
    cri::ContainerConfig {
        metadata: Some(cri::ContainerMetadata {
            name: container.name.clone(),
            attempt: context.restart_count,
        }),
        image: Some(cri::ImageSpec {
            image: context.image.id.clone(),
            user_specified_image: image,
            ..Default::default()
        }),
        command: expand(&container.command),
        args: expand(&container.args),
        working_dir: container.working_dir.clone().unwrap_or_default(),
        envs: envs.collect(),
        mounts: mapped(&context.mounts, &context.userns),
        labels: own_labels
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into(),
        annotations: container_annotations(pod, container, context.restart_count),
        log_path: log_path(&container.name, context.restart_count),
        stdin: container.stdin.unwrap_or(false),
        stdin_once: container.stdin_once.unwrap_or(false),
        tty: container.tty.unwrap_or(false),
        linux: Some(cri::LinuxContainerConfig {
            resources: Some(resources(pod, container, context.node_memory_bytes)),
            security_context: Some(security::container(
                pod,
                container,
                &context.image,
                &context.userns,
            )),
        }),
        stop_signal: stop_signal(container),
        ..Default::default()
    }
}

/// `lifecycle.stopSignal`; admission refused names that CRI does not know.
fn stop_signal(container: &Container) -> i32 {
    let named = container
        .lifecycle
        .as_ref()
        .and_then(|hooks| hooks.stop_signal.as_deref());
    named
        .and_then(signal)
        .unwrap_or(cri::Signal::RuntimeDefault)
        .into()
}

/// CRI's number for a signal name.
pub fn signal(name: &str) -> Option<cri::Signal> {
    cri::Signal::from_str_name(&format!(
        "SIGNAL_{}",
        name.replace('+', "PLUS").replace("MAX-", "MAXMINUS")
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::testing::pod;

    fn first(pod: &Pod) -> &Container {
        &spec::spec(pod).containers[0]
    }

    #[test]
    fn shares_and_quota_follow_upstream() {
        let shares = [
            (None, 2),
            (Some(0), 2),
            (Some(1), 2),
            (Some(100), 102),
            (Some(1000), 1024),
        ];
        for (millis, expected) in shares {
            assert_eq!(cpu_shares(millis), expected, "{millis:?}");
        }
        let quotas = [
            (None, 0),
            (Some(1), 1000),
            (Some(250), 25_000),
            (Some(2000), 200_000),
        ];
        for (millis, expected) in quotas {
            assert_eq!(cpu_quota(millis), expected, "{millis:?}");
        }
    }

    #[test]
    fn oom_scores_by_class() {
        let gib = 1024 * 1024 * 1024;
        let cases = [
            ("{}", 1000),
            ("{limits: {cpu: 1, memory: 1Gi}}", -997),
            ("{requests: {memory: 1Gi}}", 900),
            ("{requests: {memory: 10Gi}}", 3),
            ("{requests: {cpu: 1}}", 999),
        ];
        for (resources, expected) in cases {
            let pod = pod(&format!(
                "containers: [{{name: a, image: x, resources: {resources}}}]"
            ));
            assert_eq!(
                oom_score_adj(&pod, first(&pod), 10 * gib),
                expected,
                "{resources}"
            );
        }
    }

    #[test]
    fn cgroups_are_by_class_below_the_parent() {
        let best_effort = pod("containers: [{name: a, image: x}]");
        assert_eq!(
            cgroup_parent(&best_effort, "/podwright/"),
            "/podwright/kubepods/besteffort/podu"
        );
    }

    #[test]
    fn only_host_ports_are_mapped() {
        let pod = pod(
            "containers: [{name: a, image: x, ports: [{containerPort: 80}, {containerPort: 53, hostPort: 5353, protocol: UDP}]}]",
        );
        let mapped = port_mappings(&pod);
        assert_eq!(mapped.len(), 1);
        assert_eq!(
            (
                mapped[0].container_port,
                mapped[0].host_port,
                mapped[0].protocol
            ),
            (53, 5353, 1)
        );
    }

    #[test]
    fn the_hash_follows_the_image_and_nothing_else() {
        let one = pod("containers: [{name: a, image: x}]");
        let other = pod("containers: [{name: a, image: y}]");
        let env = pod("containers: [{name: a, image: x, env: [{name: A, value: b}]}]");
        assert_ne!(container_hash(first(&one)), container_hash(first(&other)));
        assert_eq!(container_hash(first(&one)), container_hash(first(&env)));
    }

    #[test]
    fn signals_have_upstreams_names() {
        assert_eq!(signal("SIGUSR1"), Some(cri::Signal::Sigusr1));
        assert_eq!(signal("SIGRTMIN+1"), Some(cri::Signal::Sigrtminplus1));
        assert_eq!(signal("USR1"), None);
    }
}
