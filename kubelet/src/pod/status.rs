// SPDX-License-Identifier: Apache-2.0
//! `(pod, seen, memory, last status, now) -> PodStatus`. Pure. Phases, conditions, reasons and
//! messages are upstream's (kubernetes/kubernetes, pkg/kubelet/status/generate.go describes them).

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    Container, ContainerState as ApiState, ContainerStateRunning, ContainerStateTerminated,
    ContainerStateWaiting, ContainerStatus, HostIP, Pod, PodCondition, PodIP, PodStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::memory::{Job, Memory};
use super::spec::{self, Kind, RestartPolicy};
use super::state::{ContainerSeen, ContainerState, Seen};

/// The conditions that the kubelet writes; all others belong to somebody else.
pub fn is_own(kind: &str) -> bool {
    const OWN: [&str; 5] = [
        "PodReadyToStartContainers",
        "Initialized",
        "Ready",
        "ContainersReady",
        "PodScheduled",
    ];
    OWN.contains(&kind)
}

/// Facts about the node that every status shows.
#[derive(Debug, Clone, Default)]
pub struct NodeView {
    /// The runtime's name: `<name>://<container id>`.
    pub runtime: String,
    /// The node's addresses, primary first.
    pub host_ips: Vec<String>,
}

/// What the status is computed from.
#[derive(Debug)]
pub struct Inputs<'a> {
    /// The pod, with the last status in `status`.
    pub pod: &'a Pod,
    /// The runtime's state.
    pub seen: &'a Seen,
    /// The actor's memory.
    pub memory: &'a Memory,
    /// The node.
    pub node: &'a NodeView,
    /// The time.
    pub now: Timestamp,
}

/// Computes the whole status. Called twice with the same input it answers the same; transition
/// times move only when a condition's status does.
pub fn compute(inputs: &Inputs<'_>) -> PodStatus {
    let pod = inputs.pod;
    let last = pod.status.clone().unwrap_or_default();
    if let Some(rejected) = &inputs.memory.rejected {
        return failed(inputs, last, &rejected.reason, &rejected.message);
    }
    let inits: Vec<ContainerStatus> = spec::init_containers(pod)
        .map(|(kind, container)| container_status(inputs, kind, container))
        .collect();
    let apps: Vec<ContainerStatus> = spec::spec(pod)
        .containers
        .iter()
        .map(|container| container_status(inputs, Kind::App, container))
        .collect();
    let failure = inputs
        .memory
        .termination
        .as_ref()
        .and_then(|end| end.failure.as_ref());
    let phase = phase_now(inputs, &last, &inits, &apps, failure.is_some());
    let conditions = conditions(inputs, &last, &phase, &inits, &apps);
    let mut status = PodStatus {
        phase: Some(phase),
        conditions: Some(conditions),
        observed_generation: pod.metadata.generation,
        reason: failure.map(|failure| failure.reason.clone()),
        message: failure.map(|failure| failure.message.clone()),
        container_statuses: some(apps),
        init_container_statuses: some(inits),
        qos_class: Some(spec::qos(pod).as_str().to_owned()),
        start_time: last.start_time.clone().or(Some(Time(inputs.now))),
        nominated_node_name: last.nominated_node_name.clone(),
        ..Default::default()
    };
    addresses(inputs, &last, &mut status);
    status
}

fn some<T>(items: Vec<T>) -> Option<Vec<T>> {
    (!items.is_empty()).then_some(items)
}

/// A pod that the kubelet refused: it keeps what it had and says why.
fn failed(inputs: &Inputs<'_>, last: PodStatus, reason: &str, message: &str) -> PodStatus {
    PodStatus {
        phase: Some("Failed".to_owned()),
        reason: Some(reason.to_owned()),
        message: Some(message.to_owned()),
        observed_generation: inputs.pod.metadata.generation,
        qos_class: Some(spec::qos(inputs.pod).as_str().to_owned()),
        start_time: last.start_time.clone().or(Some(Time(inputs.now))),
        ..last
    }
}

fn addresses(inputs: &Inputs<'_>, last: &PodStatus, status: &mut PodStatus) {
    let hosts = &inputs.node.host_ips;
    status.host_ip = hosts.first().cloned();
    let host_ips = hosts.iter().map(|ip| HostIP { ip: ip.clone() }).collect();
    status.host_ips = some(host_ips);
    let ips: Vec<String> = if spec::host_network(inputs.pod) {
        let any = !inputs.seen.sandboxes.is_empty();
        if any { hosts.clone() } else { Vec::new() }
    } else {
        inputs
            .seen
            .sandbox()
            .map(|sandbox| sandbox.ips.clone())
            .unwrap_or_default()
    };
    if ips.is_empty() && (inputs.memory.termination.is_some() || is_ended(status.phase.as_deref()))
    {
        // The sandbox is gone; what the address was is still worth knowing.
        status.pod_ip = last.pod_ip.clone();
        status.pod_ips = last.pod_ips.clone();
        return;
    }
    status.pod_ip = ips.first().cloned();
    status.pod_ips = some(ips.into_iter().map(|ip| PodIP { ip }).collect());
}

fn is_ended(phase: Option<&str>) -> bool {
    matches!(phase, Some("Succeeded" | "Failed"))
}

/// The phase, with two brakes: an ended pod never goes back, and a pod with a running container
/// does not end yet.
fn phase_now(
    inputs: &Inputs<'_>,
    last: &PodStatus,
    inits: &[ContainerStatus],
    apps: &[ContainerStatus],
    failing: bool,
) -> String {
    if is_ended(last.phase.as_deref()) {
        return last.phase.clone().unwrap_or_default();
    }
    let computed = if failing {
        "Failed"
    } else {
        phase(inputs.pod, inits, apps, inputs.memory.termination.is_some())
    };
    let runs = inputs.seen.containers.iter().any(ContainerSeen::is_live);
    if is_ended(Some(computed)) && runs {
        return last.phase.clone().unwrap_or_else(|| "Running".to_owned());
    }
    computed.to_owned()
}

fn phase(
    pod: &Pod,
    inits: &[ContainerStatus],
    apps: &[ContainerStatus],
    ending: bool,
) -> &'static str {
    let policy = spec::restart_policy(pod);
    let kinds = spec::init_containers(pod).map(|(kind, _)| kind);
    let mut pending_init = false;
    let mut failed_init = false;
    for (kind, status) in kinds.zip(inits) {
        let ended = terminated(status);
        match kind {
            Kind::Sidecar => pending_init |= status.started != Some(true) && ended.is_none(),
            _ => match ended {
                Some(end) if end.exit_code == 0 => {}
                Some(_) => failed_init = true,
                None => pending_init = true,
            },
        }
    }
    let (mut waiting, mut running, mut stopped, mut succeeded) = (0, 0, 0, 0);
    for status in apps {
        let state = status.state.as_ref();
        let last_end = status
            .last_state
            .as_ref()
            .and_then(|last| last.terminated.as_ref());
        if state.is_some_and(|state| state.running.is_some()) {
            running += 1;
        } else if let Some(end) = terminated(status) {
            stopped += 1;
            succeeded += usize::from(end.exit_code == 0);
        } else if last_end.is_some() {
            stopped += 1;
        } else {
            waiting += 1;
        }
    }
    if failed_init && policy == RestartPolicy::Never {
        return "Failed";
    }
    let nothing_ran = stopped == 0 && running == 0;
    if ending && nothing_ran {
        return "Failed";
    }
    if (pending_init || failed_init) && nothing_ran {
        return "Pending";
    }
    match (waiting, running, stopped) {
        (0, 0, 0) => "Pending",
        (w, ..) if w > 0 && !ending => "Pending",
        (_, r, _) if r > 0 => "Running",
        _ if stopped == succeeded && (policy != RestartPolicy::Always || ending) => "Succeeded",
        _ if ending => "Failed",
        _ => match policy {
            RestartPolicy::Never => "Failed",
            RestartPolicy::Always | RestartPolicy::OnFailure => "Running",
        },
    }
}

fn terminated(status: &ContainerStatus) -> Option<&ContainerStateTerminated> {
    status.state.as_ref()?.terminated.as_ref()
}

fn last_status<'a>(pod: &'a Pod, kind: Kind, name: &str) -> Option<&'a ContainerStatus> {
    let status = pod.status.as_ref()?;
    let list = match kind {
        Kind::App => status.container_statuses.as_ref(),
        Kind::Init | Kind::Sidecar => status.init_container_statuses.as_ref(),
    };
    list?.iter().find(|status| status.name == name)
}

/// One container's status from its newest container, the one before it, memory and last status.
fn container_status(inputs: &Inputs<'_>, kind: Kind, container: &Container) -> ContainerStatus {
    let mut of_name = inputs
        .seen
        .containers
        .iter()
        .filter(|seen| seen.name == container.name);
    let newest = of_name.next();
    let last = last_status(inputs.pod, kind, &container.name);
    let mut status = match newest {
        Some(newest) if newest.state != ContainerState::Created => {
            let before = of_name.find(|seen| seen.state == ContainerState::Exited);
            from_seen(inputs, kind, container, newest, before)
        }
        _ => not_there(inputs, container, last),
    };
    if let Some(created) = newest.filter(|newest| newest.state == ContainerState::Created) {
        status.restart_count = i32::try_from(created.restart_count).unwrap_or(i32::MAX);
    }
    status
}

fn base(container: &Container) -> ContainerStatus {
    ContainerStatus {
        name: container.name.clone(),
        image: container.image.clone().unwrap_or_default(),
        started: Some(false),
        ..Default::default()
    }
}

fn from_seen(
    inputs: &Inputs<'_>,
    kind: Kind,
    container: &Container,
    newest: &ContainerSeen,
    before: Option<&ContainerSeen>,
) -> ContainerStatus {
    let memory = inputs.memory;
    let runs = newest.state == ContainerState::Running;
    let started = runs && memory.is_started(&newest.id, container.startup_probe.is_some());
    let probed = memory.is_ready(&newest.id, container.readiness_probe.is_some());
    let end = terminated_state(inputs, newest);
    let ready = match kind {
        Kind::App | Kind::Sidecar => started && probed,
        Kind::Init => end.as_ref().is_some_and(|end| end.exit_code == 0),
    };
    let mut status = ContainerStatus {
        image: newest.image.clone(),
        image_id: newest.image_ref.clone(),
        container_id: Some(id(inputs, &newest.id)),
        restart_count: i32::try_from(newest.restart_count).unwrap_or(i32::MAX),
        ready,
        started: Some(started),
        last_state: Some(ApiState {
            terminated: before.and_then(|before| terminated_state(inputs, before)),
            ..Default::default()
        }),
        ..base(container)
    };
    let mut state = ApiState {
        terminated: end,
        ..Default::default()
    };
    if runs {
        state.running = Some(ContainerStateRunning {
            started_at: newest.started_at.map(Time),
        });
    }
    // It ended, and waits to be started again: the end is then the last state.
    if let Some(waiting) = waiting_again(inputs, &container.name, newest) {
        status.last_state = Some(std::mem::take(&mut state));
        state.waiting = Some(waiting);
    }
    status.state = Some(state);
    status
}

fn waiting_again(
    inputs: &Inputs<'_>,
    name: &str,
    newest: &ContainerSeen,
) -> Option<ContainerStateWaiting> {
    if newest.state != ContainerState::Exited || inputs.memory.termination.is_some() {
        return None;
    }
    let known = inputs.memory.containers.get(name)?.waiting.as_ref()?;
    Some(ContainerStateWaiting {
        reason: Some(known.reason.clone()),
        message: Some(known.message.clone()).filter(|message| !message.is_empty()),
    })
}

fn id(inputs: &Inputs<'_>, container: &str) -> String {
    format!("{}://{container}", inputs.node.runtime)
}

fn terminated_state(inputs: &Inputs<'_>, seen: &ContainerSeen) -> Option<ContainerStateTerminated> {
    if !matches!(seen.state, ContainerState::Exited | ContainerState::Unknown) {
        return None;
    }
    let word =
        |text: &str, default: &str| Some(if text.is_empty() { default } else { text }.to_owned());
    let default = if seen.exit_code == 0 {
        "Completed"
    } else {
        "Error"
    };
    Some(ContainerStateTerminated {
        container_id: Some(id(inputs, &seen.id)),
        exit_code: seen.exit_code,
        reason: word(&seen.reason, default),
        message: Some(seen.message.clone()).filter(|message| !message.is_empty()),
        started_at: seen.started_at.map(Time),
        finished_at: seen.finished_at.map(Time),
        signal: None,
    })
}

/// The runtime has no container of this name that ever ran.
fn not_there(
    inputs: &Inputs<'_>,
    container: &Container,
    last: Option<&ContainerStatus>,
) -> ContainerStatus {
    let ending = inputs.memory.termination.is_some();
    let mut status = base(container);
    if let Some(last) = last {
        status.restart_count = last.restart_count;
        status.last_state = last.last_state.clone();
        status.image_id = last.image_id.clone();
        let was = last.state.as_ref();
        if let Some(end) = was.and_then(|state| state.terminated.as_ref()) {
            // Collected after it ended: what it ended with still holds.
            return ContainerStatus {
                state: Some(ApiState {
                    terminated: Some(end.clone()),
                    ..Default::default()
                }),
                ready: last.ready && end.exit_code == 0,
                container_id: last.container_id.clone(),
                started: Some(false),
                ..status
            };
        }
        if was.is_some_and(|state| state.running.is_some()) {
            let lost = lost_state(last, ending);
            if ending {
                status.state = Some(lost);
                status.container_id = last.container_id.clone();
                return status;
            }
            status.last_state = Some(lost);
        }
    }
    if ending {
        // It never ran and never will. Upstream says the same of a container that it cannot find.
        if status
            .last_state
            .as_ref()
            .is_none_or(|state| state.terminated.is_none())
        {
            status.state = Some(waiting_state(inputs, container));
            return status;
        }
    }
    status.state = Some(waiting_state(inputs, container));
    status
}

fn lost_state(last: &ContainerStatus, ending: bool) -> ApiState {
    let when = if ending {
        "terminated"
    } else {
        "deleted.  The container used to be Running"
    };
    ApiState {
        terminated: Some(ContainerStateTerminated {
            container_id: last.container_id.clone(),
            exit_code: 137,
            reason: Some("ContainerStatusUnknown".to_owned()),
            message: Some(format!(
                "The container could not be located when the pod was {when}"
            )),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn is_pull_failure(reason: &str) -> bool {
    let reasons = [
        "ErrImagePull",
        "ImagePullBackOff",
        "RegistryUnavailable",
        "SignatureValidationFailed",
    ];
    reasons.contains(&reason)
}

fn waiting_state(inputs: &Inputs<'_>, container: &Container) -> ApiState {
    let known = inputs.memory.containers.get(&container.name);
    let starting = inputs
        .memory
        .jobs
        .contains(&Job::Start(container.name.clone()));
    let waiting = known.and_then(|known| known.waiting.as_ref());
    let has_inits = spec::init_containers(inputs.pod).next().is_some();
    let default = if has_inits {
        "PodInitializing"
    } else {
        "ContainerCreating"
    };
    let (reason, message) = match waiting {
        // A new try is under way. Until it ends, a failed pull is still the news.
        Some(waiting) if !starting || is_pull_failure(&waiting.reason) => {
            (waiting.reason.clone(), Some(waiting.message.clone()))
        }
        _ => (default.to_owned(), None),
    };
    ApiState {
        waiting: Some(ContainerStateWaiting {
            reason: Some(reason),
            message: message.filter(|message| !message.is_empty()),
        }),
        ..Default::default()
    }
}

/// One condition before it has its transition time.
struct Draft {
    kind: &'static str,
    status: bool,
    reason: Option<&'static str>,
    message: Option<String>,
}

fn draft(kind: &'static str, status: bool) -> Draft {
    Draft {
        kind,
        status,
        reason: None,
        message: None,
    }
}

fn conditions(
    inputs: &Inputs<'_>,
    last: &PodStatus,
    phase: &str,
    inits: &[ContainerStatus],
    apps: &[ContainerStatus],
) -> Vec<PodCondition> {
    let sidecars: Vec<&ContainerStatus> = spec::init_containers(inputs.pod)
        .zip(inits)
        .filter(|((kind, _), _)| *kind == Kind::Sidecar)
        .map(|(_, status)| status)
        .collect();
    let containers_ready = containers_ready(phase, &sidecars, apps);
    let ready = pod_ready(inputs.pod, last, &containers_ready);
    let sandbox = match inputs.seen.sandbox() {
        Some(sandbox) => spec::host_network(inputs.pod) || !sandbox.ips.is_empty(),
        None => false,
    };
    let drafts = [
        draft("PodReadyToStartContainers", sandbox),
        initialized(inputs.pod, phase, inits, apps),
        ready,
        containers_ready,
        draft("PodScheduled", true),
    ];
    let old = last.conditions.as_deref().unwrap_or_default();
    let mut all: Vec<PodCondition> = drafts
        .into_iter()
        .map(|draft| finish(inputs, old, draft))
        .collect();
    let foreign = |condition: &&PodCondition| all.iter().all(|own| own.type_ != condition.type_);
    let kept: Vec<PodCondition> = old.iter().filter(foreign).cloned().collect();
    all.extend(kept);
    all
}

fn finish(inputs: &Inputs<'_>, old: &[PodCondition], draft: Draft) -> PodCondition {
    let status = if draft.status { "True" } else { "False" };
    let before = old.iter().find(|condition| condition.type_ == draft.kind);
    let unchanged = before.filter(|before| before.status == status);
    let since = unchanged.and_then(|before| before.last_transition_time.clone());
    PodCondition {
        type_: draft.kind.to_owned(),
        status: status.to_owned(),
        reason: draft.reason.map(str::to_owned),
        message: draft.message,
        last_probe_time: None,
        last_transition_time: since.or(Some(Time(inputs.now))),
        observed_generation: inputs.pod.metadata.generation,
    }
}

fn initialized(
    pod: &Pod,
    phase: &str,
    inits: &[ContainerStatus],
    apps: &[ContainerStatus],
) -> Draft {
    // An app container that has run proves it, even when a sidecar is down right now.
    let ran = |status: &ContainerStatus| status.container_id.is_some();
    let incomplete: Vec<&str> = spec::init_containers(pod)
        .zip(inits)
        .filter(|((kind, _), status)| match kind {
            Kind::Sidecar => status.started != Some(true),
            _ => terminated(status).is_none_or(|end| end.exit_code != 0),
        })
        .map(|(_, status)| status.name.as_str())
        .collect();
    if phase == "Succeeded" {
        return Draft {
            reason: Some("PodCompleted"),
            ..draft("Initialized", true)
        };
    }
    if incomplete.is_empty() || apps.iter().any(ran) {
        return draft("Initialized", true);
    }
    Draft {
        reason: Some("ContainersNotInitialized"),
        message: Some(format!(
            "containers with incomplete status: [{}]",
            incomplete.join(" ")
        )),
        ..draft("Initialized", false)
    }
}

fn containers_ready(phase: &str, sidecars: &[&ContainerStatus], apps: &[ContainerStatus]) -> Draft {
    if phase == "Succeeded" {
        return Draft {
            reason: Some("PodCompleted"),
            ..draft("ContainersReady", false)
        };
    }
    if phase == "Failed" {
        return Draft {
            reason: Some("PodFailed"),
            ..draft("ContainersReady", false)
        };
    }
    let all = sidecars.iter().copied().chain(apps);
    let unready: Vec<&str> = all
        .filter(|status| !status.ready)
        .map(|status| status.name.as_str())
        .collect();
    if unready.is_empty() {
        return draft("ContainersReady", true);
    }
    Draft {
        reason: Some("ContainersNotReady"),
        message: Some(format!(
            "containers with unready status: [{}]",
            unready.join(" ")
        )),
        ..draft("ContainersReady", false)
    }
}

/// Ready: the containers are, and every readiness gate's condition is True.
fn pod_ready(pod: &Pod, last: &PodStatus, containers: &Draft) -> Draft {
    if !containers.status {
        return Draft {
            kind: "Ready",
            status: false,
            reason: containers.reason,
            message: containers.message.clone(),
        };
    }
    let gates = spec::spec(pod)
        .readiness_gates
        .as_deref()
        .unwrap_or_default();
    let conditions = last.conditions.as_deref().unwrap_or_default();
    let complaint = |gate: &str| match conditions.iter().find(|known| known.type_ == gate) {
        None => Some(format!(
            "corresponding condition of pod readiness gate \"{gate}\" does not exist."
        )),
        Some(known) if known.status != "True" => Some(format!(
            "the status of pod readiness gate \"{gate}\" is not \"True\", but {}",
            known.status
        )),
        Some(_) => None,
    };
    let complaints: Vec<String> = gates
        .iter()
        .filter_map(|gate| complaint(&gate.condition_type))
        .collect();
    if complaints.is_empty() {
        return draft("Ready", true);
    }
    Draft {
        reason: Some("ReadinessGatesNotReady"),
        message: Some(complaints.join(", ")),
        ..draft("Ready", false)
    }
}

#[cfg(test)]
#[path = "status_tests.rs"]
mod tests;
