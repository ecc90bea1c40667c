// SPDX-License-Identifier: Apache-2.0
//! Questions about a pod's spec that several parts of the core ask.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, ObjectReference, Pod, PodSpec, Probe};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;

use crate::quantity::Quantity;

/// The role of a container in its pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Runs to its end before the next one starts.
    Init,
    /// An init container with `restartPolicy: Always`: starts in order, then keeps running.
    Sidecar,
    /// One of `spec.containers`.
    App,
}

impl Kind {
    /// Where this container is in the pod, as events name it.
    pub fn field_path(self, name: &str) -> String {
        match self {
            Kind::Init | Kind::Sidecar => format!("spec.initContainers{{{name}}}"),
            Kind::App => format!("spec.containers{{{name}}}"),
        }
    }
}

/// `spec.restartPolicy`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RestartPolicy {
    /// Whatever the exit code.
    Always,
    /// When the exit code is not 0.
    OnFailure,
    /// Not at all.
    Never,
}

impl RestartPolicy {
    /// Whether a container that ended with this code is started again.
    pub fn restarts(self, exit_code: i32) -> bool {
        match self {
            RestartPolicy::Always => true,
            RestartPolicy::OnFailure => exit_code != 0,
            RestartPolicy::Never => false,
        }
    }
}

static EMPTY: std::sync::LazyLock<PodSpec> = std::sync::LazyLock::new(PodSpec::default);

/// The spec; an absent one reads as empty.
pub fn spec(pod: &Pod) -> &PodSpec {
    pod.spec.as_ref().unwrap_or(&EMPTY)
}

/// The pod's uid, or an empty string before it has one.
pub fn uid(pod: &Pod) -> &str {
    pod.metadata.uid.as_deref().unwrap_or_default()
}

/// The pod's name.
pub fn name(pod: &Pod) -> &str {
    pod.metadata.name.as_deref().unwrap_or_default()
}

/// The pod's namespace.
pub fn namespace(pod: &Pod) -> &str {
    pod.metadata.namespace.as_deref().unwrap_or("default")
}

/// `name_namespace(uid)`: how upstream's messages name a pod.
pub fn display(pod: &Pod) -> String {
    format!("{}_{}({})", name(pod), namespace(pod), uid(pod))
}

/// `spec.restartPolicy`, `Always` when absent.
pub fn restart_policy(pod: &Pod) -> RestartPolicy {
    match spec(pod).restart_policy.as_deref() {
        Some("Never") => RestartPolicy::Never,
        Some("OnFailure") => RestartPolicy::OnFailure,
        _ => RestartPolicy::Always,
    }
}

/// Init containers in order, with their roles.
pub fn init_containers(pod: &Pod) -> impl Iterator<Item = (Kind, &Container)> {
    let inits = spec(pod).init_containers.as_deref().unwrap_or_default();
    inits.iter().map(|container| {
        let sidecar = container.restart_policy.as_deref() == Some("Always");
        (if sidecar { Kind::Sidecar } else { Kind::Init }, container)
    })
}

/// Every container in the order in which they start.
pub fn containers(pod: &Pod) -> impl Iterator<Item = (Kind, &Container)> {
    init_containers(pod).chain(spec(pod).containers.iter().map(|item| (Kind::App, item)))
}

/// A container by name.
pub fn container<'a>(pod: &'a Pod, name: &str) -> Option<(Kind, &'a Container)> {
    containers(pod).find(|(_, container)| container.name == name)
}

/// The policy that decides about restarts of one container.
pub fn container_restart_policy(pod: &Pod, kind: Kind) -> RestartPolicy {
    match (kind, restart_policy(pod)) {
        (Kind::Sidecar, _) => RestartPolicy::Always,
        // A failed init container is retried unless the pod says Never; one that worked is not.
        (Kind::Init, RestartPolicy::Never) => RestartPolicy::Never,
        (Kind::Init, _) => RestartPolicy::OnFailure,
        (Kind::App, policy) => policy,
    }
}

/// `spec.hostNetwork`.
pub fn host_network(pod: &Pod) -> bool {
    spec(pod).host_network.unwrap_or(false)
}

/// `spec.hostUsers`: false gives the pod a user namespace of its own.
pub fn host_users(pod: &Pod) -> bool {
    spec(pod).host_users.unwrap_or(true)
}

/// `spec.runtimeClassName`, if it says something.
pub fn runtime_class(pod: &Pod) -> Option<&str> {
    let name = spec(pod).runtime_class_name.as_deref();
    name.filter(|name| !name.is_empty())
}

/// Whether somebody asked for the pod's deletion.
pub fn is_deleting(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some()
}

/// The grace period for stopping this pod, in seconds.
pub fn grace_secs(pod: &Pod) -> i64 {
    let own = spec(pod).termination_grace_period_seconds.unwrap_or(30);
    let grace = if is_deleting(pod) {
        pod.metadata.deletion_grace_period_seconds.unwrap_or(own)
    } else {
        own
    };
    grace.max(1)
}

/// An annotation of the pod.
pub fn annotation<'a>(pod: &'a Pod, key: &str) -> Option<&'a str> {
    let annotations = pod.metadata.annotations.as_ref()?;
    annotations.get(key).map(String::as_str)
}

/// A pod from a manifest on this node, not from the API server.
pub fn is_static(pod: &Pod) -> bool {
    matches!(annotation(pod, super::labels::CONFIG_SOURCE), Some(source) if source != "api")
}

/// The API object that stands for a static pod.
pub fn is_mirror(pod: &Pod) -> bool {
    annotation(pod, super::labels::CONFIG_MIRROR).is_some()
}

/// `phase` Succeeded or Failed.
pub fn is_terminal(pod: &Pod) -> bool {
    let phase = pod
        .status
        .as_ref()
        .and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

/// The object reference of events about this pod, or about one of its containers.
pub fn reference(pod: &Pod, container: Option<(Kind, &str)>) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Pod".to_owned()),
        name: pod.metadata.name.clone(),
        namespace: Some(namespace(pod).to_owned()),
        uid: pod.metadata.uid.clone(),
        resource_version: pod.metadata.resource_version.clone(),
        field_path: container.map(|(kind, name)| kind.field_path(name)),
    }
}

/// The probes of a container, by what they are for.
pub fn probes(container: &Container) -> [(crate::probe::ProbeKind, Option<&Probe>); 3] {
    use crate::probe::ProbeKind;
    [
        (ProbeKind::Startup, container.startup_probe.as_ref()),
        (ProbeKind::Liveness, container.liveness_probe.as_ref()),
        (ProbeKind::Readiness, container.readiness_probe.as_ref()),
    ]
}

/// Requests or limits in the units that the kernel takes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Amounts {
    /// Thousandths of a CPU; `None`: not given.
    pub cpu_millis: Option<i64>,
    /// Bytes; `None`: not given.
    pub memory_bytes: Option<i64>,
    /// Bytes of local storage; `None`: not given.
    pub storage_bytes: Option<i64>,
}

impl Amounts {
    fn read(map: Option<&BTreeMap<String, ApiQuantity>>) -> Amounts {
        let get = |key: &str| {
            let quantity = map.and_then(|map| map.get(key))?;
            // Validation refused what does not parse before a pod gets here.
            Quantity::from_api(quantity).ok()
        };
        Amounts {
            cpu_millis: get("cpu").map(Quantity::milli_value),
            memory_bytes: get("memory").map(Quantity::value),
            storage_bytes: get("ephemeral-storage").map(Quantity::value),
        }
    }

    fn combine(self, other: Amounts, with: impl Fn(i64, i64) -> i64) -> Amounts {
        let join = |a: Option<i64>, b: Option<i64>| match (a, b) {
            (Some(a), Some(b)) => Some(with(a, b)),
            (a, b) => a.or(b),
        };
        Amounts {
            cpu_millis: join(self.cpu_millis, other.cpu_millis),
            memory_bytes: join(self.memory_bytes, other.memory_bytes),
            storage_bytes: join(self.storage_bytes, other.storage_bytes),
        }
    }
}

/// A container's requests. A limit without a request counts as the request, as defaulting does.
pub fn requests(container: &Container) -> Amounts {
    let resources = container.resources.as_ref();
    let requests = Amounts::read(resources.and_then(|r| r.requests.as_ref()));
    requests.combine(limits(container), |request, _| request)
}

/// A container's limits.
pub fn limits(container: &Container) -> Amounts {
    let resources = container.resources.as_ref();
    Amounts::read(resources.and_then(|r| r.limits.as_ref()))
}

/// What the pod needs at once: its containers, and its overhead (KEP-688).
pub fn pod_requests(pod: &Pod) -> Amounts {
    container_requests(pod).combine(overhead(pod), i64::saturating_add)
}

/// What the pod's RuntimeClass adds to what its containers need.
pub fn overhead(pod: &Pod) -> Amounts {
    Amounts::read(spec(pod).overhead.as_ref())
}

/// What the containers need at once: the larger of the running ones together and of the hungriest
/// moment during init (KEP-753: sidecars that already run count along).
pub fn container_requests(pod: &Pod) -> Amounts {
    let mut running = Amounts::default();
    for container in &spec(pod).containers {
        running = running.combine(requests(container), i64::saturating_add);
    }
    let mut sidecars = Amounts::default();
    let mut peak = Amounts::default();
    for (kind, container) in init_containers(pod) {
        let own = requests(container).combine(sidecars, i64::saturating_add);
        if kind == Kind::Sidecar {
            sidecars = own;
        }
        peak = peak.combine(own, i64::max);
    }
    let steady = running.combine(sidecars, i64::saturating_add);
    steady.combine(peak, i64::max)
}

/// The pod's limits, each only if every container has it (otherwise the pod has none).
pub fn pod_limits(pod: &Pod) -> Amounts {
    let mut total = Amounts {
        cpu_millis: Some(0),
        memory_bytes: Some(0),
        storage_bytes: None,
    };
    let mut peak = Amounts::default();
    let add = |a: Option<i64>, b: Option<i64>| Some(a?.saturating_add(b?));
    for (kind, container) in containers(pod) {
        let own = limits(container);
        if kind == Kind::Init {
            peak = peak.combine(own, i64::max);
            let missing = own.cpu_millis.is_none();
            total.cpu_millis = total.cpu_millis.filter(|_| !missing);
            total.memory_bytes = total.memory_bytes.filter(|_| own.memory_bytes.is_some());
            continue;
        }
        total.cpu_millis = add(total.cpu_millis, own.cpu_millis);
        total.memory_bytes = add(total.memory_bytes, own.memory_bytes);
    }
    let at_least = |a: Option<i64>, b: Option<i64>| a.map(|a| a.max(b.unwrap_or(0)));
    Amounts {
        cpu_millis: at_least(total.cpu_millis, peak.cpu_millis),
        memory_bytes: at_least(total.memory_bytes, peak.memory_bytes),
        storage_bytes: None,
    }
}

/// Quality of service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Qos {
    /// Every container has cpu and memory limits equal to its requests.
    Guaranteed,
    /// Something is requested.
    Burstable,
    /// Nothing is requested.
    BestEffort,
}

impl Qos {
    /// The word in `status.qosClass`.
    pub fn as_str(self) -> &'static str {
        match self {
            Qos::Guaranteed => "Guaranteed",
            Qos::Burstable => "Burstable",
            Qos::BestEffort => "BestEffort",
        }
    }
}

/// The pod's class, computed as upstream does from cpu and memory of all containers.
pub fn qos(pod: &Pod) -> Qos {
    let positive = |value: Option<i64>| value.filter(|value| *value > 0);
    let mut any = false;
    let mut guaranteed = true;
    for (_, container) in containers(pod) {
        let (request, limit) = (requests(container), limits(container));
        for (request, limit) in [
            (request.cpu_millis, limit.cpu_millis),
            (request.memory_bytes, limit.memory_bytes),
        ] {
            any |= positive(request).is_some() || positive(limit).is_some();
            guaranteed &= positive(limit).is_some() && request == limit;
        }
    }
    match (any, guaranteed) {
        (false, _) => Qos::BestEffort,
        (true, true) => Qos::Guaranteed,
        (true, false) => Qos::Burstable,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::testing::pod;

    #[test]
    fn qos_follows_requests_and_limits() {
        let cases = [
            ("{}", Qos::BestEffort),
            ("{requests: {cpu: 100m}}", Qos::Burstable),
            ("{limits: {cpu: 1, memory: 1Gi}}", Qos::Guaranteed),
            (
                "{limits: {cpu: 1, memory: 1Gi}, requests: {cpu: 500m, memory: 1Gi}}",
                Qos::Burstable,
            ),
            ("{limits: {memory: 1Gi}}", Qos::Burstable),
        ];
        for (resources, expected) in cases {
            let pod = pod(&format!(
                "containers: [{{name: a, image: x, resources: {resources}}}]"
            ));
            assert_eq!(qos(&pod), expected, "{resources}");
        }
    }

    #[test]
    fn a_sidecar_counts_with_the_apps_and_an_init_container_by_itself() {
        let pod = pod("
initContainers:
- {name: side, image: x, restartPolicy: Always, resources: {requests: {cpu: 100m}}}
- {name: init, image: x, resources: {requests: {cpu: 900m}}}
containers:
- {name: a, image: x, resources: {requests: {cpu: 300m}}}
- {name: b, image: x, resources: {requests: {cpu: 300m}}}");
        assert_eq!(pod_requests(&pod).cpu_millis, Some(1000));
    }

    #[test]
    fn overhead_comes_on_top_of_what_containers_request() {
        let pod = pod("
overhead: {cpu: 50m, memory: 1Mi}
containers: [{name: a, image: x, resources: {requests: {cpu: 300m}}}]");
        let all = pod_requests(&pod);
        assert_eq!(
            (all.cpu_millis, all.memory_bytes),
            (Some(350), Some(1 << 20))
        );
        assert_eq!(container_requests(&pod).cpu_millis, Some(300));
    }
}
