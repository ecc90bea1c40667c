// SPDX-License-Identifier: Apache-2.0
//! Tables for the status.

use super::*;
use crate::pod::memory::{Rejection, Termination, Waiting};
use crate::pod::testing::{at, exited, pod, running, seen};

const ONE: &str = "containers: [{name: a, image: x}]";
const TWO: &str = "containers: [{name: a, image: x}, {name: b, image: x}]";
const INIT: &str = "initContainers: [{name: i, image: x}]\ncontainers: [{name: a, image: x}]";

fn status_of(pod: &Pod, seen: &Seen, memory: &Memory) -> PodStatus {
    let node = NodeView {
        runtime: "podwright".to_owned(),
        host_ips: vec!["192.0.2.7".to_owned()],
    };
    compute(&Inputs {
        pod,
        seen,
        memory,
        node: &node,
        now: at(100),
    })
}

fn phase_of(spec: &str, containers: Vec<ContainerSeen>) -> String {
    let status = status_of(&pod(spec), &seen(containers), &Memory::default());
    status.phase.unwrap_or_default()
}

fn condition(status: &PodStatus, kind: &str) -> (String, String, String) {
    let conditions = status.conditions.as_deref().unwrap_or_default();
    let found = conditions
        .iter()
        .find(|condition| condition.type_ == kind)
        .expect("the condition is there");
    (
        found.status.clone(),
        found.reason.clone().unwrap_or_default(),
        found.message.clone().unwrap_or_default(),
    )
}

fn words(status: &str, reason: &str, message: &str) -> (String, String, String) {
    (status.to_owned(), reason.to_owned(), message.to_owned())
}

#[test]
fn phases_follow_containers_and_policy() {
    let cases: [(&str, &str, Vec<ContainerSeen>, &str); 12] = [
        ("Always", ONE, vec![], "Pending"),
        ("Always", ONE, vec![running("a")], "Running"),
        ("Always", TWO, vec![running("a")], "Pending"),
        ("Always", ONE, vec![exited("a", 1, 5)], "Running"),
        ("Always", ONE, vec![exited("a", 0, 5)], "Running"),
        ("OnFailure", ONE, vec![exited("a", 0, 5)], "Succeeded"),
        ("OnFailure", ONE, vec![exited("a", 1, 5)], "Running"),
        ("Never", ONE, vec![exited("a", 1, 5)], "Failed"),
        (
            "Never",
            TWO,
            vec![exited("a", 0, 5), exited("b", 0, 5)],
            "Succeeded",
        ),
        (
            "Never",
            TWO,
            vec![exited("a", 1, 5), running("b")],
            "Running",
        ),
        ("Never", INIT, vec![exited("i", 1, 5)], "Failed"),
        ("Always", INIT, vec![exited("i", 1, 5)], "Pending"),
    ];
    for (policy, spec, containers, expected) in cases {
        let spec = format!("restartPolicy: {policy}\n{spec}");
        assert_eq!(phase_of(&spec, containers), expected, "{spec}");
    }
}

#[test]
fn a_running_pod_is_ready_with_its_addresses() {
    let status = status_of(&pod(ONE), &seen(vec![running("a")]), &Memory::default());
    for kind in [
        "PodReadyToStartContainers",
        "Initialized",
        "Ready",
        "ContainersReady",
        "PodScheduled",
    ] {
        assert_eq!(condition(&status, kind), words("True", "", ""), "{kind}");
    }
    assert_eq!(status.pod_ip.as_deref(), Some("10.1.0.5"));
    assert_eq!(status.host_ip.as_deref(), Some("192.0.2.7"));
    assert_eq!(status.qos_class.as_deref(), Some("BestEffort"));
    assert_eq!(status.observed_generation, Some(1));
    let container = &status.container_statuses.as_deref().unwrap_or_default()[0];
    assert_eq!(container.container_id.as_deref(), Some("podwright://a-0"));
    assert_eq!(
        (container.ready, container.started, container.restart_count),
        (true, Some(true), 0)
    );
}

#[test]
fn unready_containers_are_named() {
    let probed = "containers: [{name: a, image: x, readinessProbe: {tcpSocket: {port: 1}}}, {name: b, image: x}]";
    let mut memory = Memory::default();
    let state = seen(vec![running("a"), running("b")]);
    let status = status_of(&pod(probed), &state, &memory);
    let unready = words(
        "False",
        "ContainersNotReady",
        "containers with unready status: [a]",
    );
    assert_eq!(condition(&status, "Ready"), unready);
    assert_eq!(condition(&status, "ContainersReady"), unready);
    memory.probes.entry("a-0".to_owned()).or_default().ready = Some(true);
    let status = status_of(&pod(probed), &state, &memory);
    assert_eq!(condition(&status, "Ready"), words("True", "", ""));
}

#[test]
fn incomplete_init_containers_are_named() {
    let status = status_of(&pod(INIT), &seen(vec![running("i")]), &Memory::default());
    let incomplete = words(
        "False",
        "ContainersNotInitialized",
        "containers with incomplete status: [i]",
    );
    assert_eq!(condition(&status, "Initialized"), incomplete);
    let app = &status.container_statuses.as_deref().unwrap_or_default()[0];
    let waiting = app
        .state
        .clone()
        .and_then(|state| state.waiting)
        .and_then(|waiting| waiting.reason);
    assert_eq!(waiting.as_deref(), Some("PodInitializing"));
}

#[test]
fn a_crash_loop_shows_the_wait_and_the_last_end() {
    let mut memory = Memory::default();
    memory.container("a").waiting = Some(Waiting {
        reason: "CrashLoopBackOff".to_owned(),
        message: "back-off 10s".to_owned(),
    });
    let status = status_of(&pod(ONE), &seen(vec![exited("a", 3, 50)]), &memory);
    let container = status.container_statuses.unwrap_or_default().remove(0);
    let waiting = container
        .state
        .and_then(|state| state.waiting)
        .and_then(|waiting| waiting.reason);
    assert_eq!(waiting.as_deref(), Some("CrashLoopBackOff"));
    let last = container
        .last_state
        .and_then(|state| state.terminated)
        .map(|end| end.exit_code);
    assert_eq!(last, Some(3));
    assert_eq!(status.phase.as_deref(), Some("Running"));
}

#[test]
fn transition_times_move_only_with_the_status() {
    let mut wanted = pod(ONE);
    let state = seen(vec![running("a")]);
    wanted.status = Some(status_of(&wanted, &state, &Memory::default()));
    let node = NodeView::default();
    let later = compute(&Inputs {
        pod: &wanted,
        seen: &state,
        memory: &Memory::default(),
        node: &node,
        now: at(500),
    });
    let time = |status: &PodStatus| {
        let conditions = status.conditions.clone().unwrap_or_default();
        conditions
            .iter()
            .map(|condition| condition.last_transition_time.clone())
            .collect::<Vec<_>>()
    };
    assert_eq!(
        time(&later),
        time(wanted.status.as_ref().expect("set above"))
    );
}

#[test]
fn a_rejected_pod_has_failed() {
    let memory = Memory {
        rejected: Some(Rejection {
            reason: "OutOfcpu".to_owned(),
            message: "m".to_owned(),
        }),
        ..Default::default()
    };
    let status = status_of(&pod(ONE), &Seen::default(), &memory);
    assert_eq!(
        (status.phase.as_deref(), status.reason.as_deref()),
        (Some("Failed"), Some("OutOfcpu"))
    );
}

fn ending() -> Memory {
    Memory {
        termination: Some(Termination {
            since: at(90),
            grace: std::time::Duration::from_secs(30),
            delete: true,
            failure: None,
        }),
        ..Default::default()
    }
}

#[test]
fn an_ending_pod_stays_running_until_its_last_container_ends() {
    let mut wanted = pod(TWO);
    wanted.status = Some(status_of(
        &wanted,
        &seen(vec![running("a"), running("b")]),
        &Memory::default(),
    ));
    let half = status_of(
        &wanted,
        &seen(vec![exited("a", 137, 95), running("b")]),
        &ending(),
    );
    assert_eq!(half.phase.as_deref(), Some("Running"));
    let over = status_of(
        &wanted,
        &seen(vec![exited("a", 137, 95), exited("b", 0, 95)]),
        &ending(),
    );
    assert_eq!(over.phase.as_deref(), Some("Failed"));
}

#[test]
fn a_container_that_vanished_is_said_to_be_unknown() {
    let mut wanted = pod(ONE);
    wanted.status = Some(status_of(
        &wanted,
        &seen(vec![running("a")]),
        &Memory::default(),
    ));
    let status = status_of(&wanted, &Seen::default(), &Memory::default());
    let container = status.container_statuses.unwrap_or_default().remove(0);
    let last = container
        .last_state
        .and_then(|state| state.terminated)
        .expect("a last state");
    assert_eq!(
        (last.exit_code, last.reason.as_deref()),
        (137, Some("ContainerStatusUnknown"))
    );
}

#[test]
fn readiness_gates_need_their_condition() {
    let gated = format!("readinessGates: [{{conditionType: example.org/ok}}]\n{ONE}");
    let status = status_of(&pod(&gated), &seen(vec![running("a")]), &Memory::default());
    let (is, reason, message) = condition(&status, "Ready");
    assert_eq!(
        (is.as_str(), reason.as_str()),
        ("False", "ReadinessGatesNotReady")
    );
    assert!(message.contains("example.org/ok"));
}

#[test]
fn conditions_of_others_are_kept() {
    let mut wanted = pod(ONE);
    wanted.status = Some(PodStatus {
        conditions: Some(vec![PodCondition {
            type_: "DisruptionTarget".to_owned(),
            status: "True".to_owned(),
            ..Default::default()
        }]),
        ..Default::default()
    });
    let status = status_of(&wanted, &seen(vec![running("a")]), &Memory::default());
    assert_eq!(condition(&status, "DisruptionTarget").0, "True");
}
