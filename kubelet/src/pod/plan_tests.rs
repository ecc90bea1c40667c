// SPDX-License-Identifier: Apache-2.0
//! Tables for the plan: what is seen, and what is done about it.

use super::*;
use crate::pod::memory::ContainerMemory;
use crate::pod::testing::{at, exited, pod, running, sandbox, seen};

const ONE: &str = "containers: [{name: a, image: x}]";
const TWO: &str = "containers: [{name: a, image: x}, {name: b, image: x}]";
const INIT: &str = "
initContainers: [{name: i, image: x}, {name: j, image: x}]
containers: [{name: a, image: x}]";
const SIDE: &str = "
initContainers: [{name: s, image: x, restartPolicy: Always}, {name: t, image: x, restartPolicy: Always}]
containers: [{name: a, image: x}]";

fn ready() -> Memory {
    Memory {
        volumes_ready: true,
        ..Default::default()
    }
}

/// The steps in one line: `start a/0`, `stop a`, …
fn steps(spec: &str, seen: &Seen, memory: &Memory, now: i64) -> String {
    let plan = plan(&pod(spec), seen, memory, at(now));
    let word = |step: &Step| match step {
        Step::PrepareVolumes => "volumes".to_owned(),
        Step::CreateSandbox { attempt } => format!("sandbox/{attempt}"),
        Step::Start {
            name,
            restart_count,
            ..
        } => format!("start {name}/{restart_count}"),
        Step::Wait { name, waiting } => format!("wait {name} {}", waiting.reason),
        Step::Stop { id, grace, .. } => format!("stop {id} {}s", grace.as_secs()),
        Step::RemoveContainer { id } => format!("remove {id}"),
        Step::StopSandbox { id } => format!("stop-sandbox {id}"),
        Step::RemoveSandbox { id } => format!("remove-sandbox {id}"),
        Step::Fail(why) => format!("fail {}", why.reason),
        Step::TeardownVolumes => "teardown".to_owned(),
        Step::Finish => "finish".to_owned(),
    };
    let words: Vec<String> = plan.steps.iter().map(word).collect();
    words.join(", ")
}

fn check(spec: &str, containers: Vec<ContainerSeen>, expected: &str) {
    assert_eq!(
        steps(spec, &seen(containers), &ready(), 100),
        expected,
        "{spec}"
    );
}

#[test]
fn a_new_pod_gets_volumes_then_a_sandbox_then_containers_one_at_a_time() {
    let nothing = Seen::default();
    assert_eq!(steps(TWO, &nothing, &Memory::default(), 0), "volumes");
    assert_eq!(steps(TWO, &nothing, &ready(), 0), "sandbox/0");
    check(TWO, vec![], "start a/0");
    check(TWO, vec![running("a")], "start b/0");
    check(TWO, vec![running("a"), running("b")], "");
}

#[test]
fn what_is_under_way_is_not_planned_again() {
    let jobs = [
        (Seen::default(), Memory::default(), Job::Volumes),
        (Seen::default(), ready(), Job::Sandbox),
        (seen(vec![]), ready(), Job::Start("a".to_owned())),
    ];
    for (seen, mut memory, job) in jobs {
        memory.jobs.insert(job.clone());
        assert_eq!(steps(TWO, &seen, &memory, 0), "", "{job:?}");
    }
}

#[test]
fn init_containers_run_one_after_the_other() {
    check(INIT, vec![], "start i/0");
    check(INIT, vec![running("i")], "");
    check(INIT, vec![exited("i", 0, 5)], "start j/0");
    check(
        INIT,
        vec![exited("j", 0, 6), exited("i", 0, 5)],
        "start a/0",
    );
    // Once an app has been there, init is over, whatever has been collected since.
    check(INIT, vec![running("a")], "");
}

#[test]
fn a_failed_init_container_is_retried_or_ends_the_pod() {
    check(INIT, vec![exited("i", 1, 5)], "start i/1");
    let never = format!("restartPolicy: Never{INIT}");
    check(&never, vec![exited("i", 1, 5)], "stop-sandbox s0");
}

#[test]
fn sidecars_start_in_order_and_gate_on_their_startup_probe() {
    check(SIDE, vec![], "start s/0");
    check(SIDE, vec![running("s")], "start t/0");
    check(SIDE, vec![running("t"), running("s")], "start a/0");
    let probed = SIDE.replace(
        "{name: s, image: x,",
        "{name: s, image: x, startupProbe: {tcpSocket: {port: 1}},",
    );
    check(&probed, vec![running("s")], "");
    let mut memory = ready();
    memory.probes.entry("s-0".to_owned()).or_default().started = Some(true);
    assert_eq!(
        steps(&probed, &seen(vec![running("s")]), &memory, 9),
        "start t/0"
    );
}

#[test]
fn restart_policies_decide_about_ended_containers() {
    let cases = [
        ("Always", 0, "start a/1"),
        ("Always", 1, "start a/1"),
        ("OnFailure", 1, "start a/1"),
        ("OnFailure", 0, "stop-sandbox s0"),
        ("Never", 1, "stop-sandbox s0"),
        ("Never", 0, "stop-sandbox s0"),
    ];
    for (policy, code, expected) in cases {
        check(
            &format!("restartPolicy: {policy}\n{ONE}"),
            vec![exited("a", code, 50)],
            expected,
        );
    }
}

#[test]
fn a_crashing_container_waits_and_says_so() {
    let mut memory = ready();
    let mut known = ContainerMemory::default();
    known.crash.step(backoff::CRASH, at(40), at(40));
    memory.containers.insert("a".to_owned(), known);
    let state = seen(vec![exited("a", 1, 50)]);
    assert_eq!(steps(ONE, &state, &memory, 55), "wait a CrashLoopBackOff");
    assert_eq!(
        plan(&pod(ONE), &state, &memory, at(55)).wake_at,
        Some(at(60))
    );
    assert_eq!(steps(ONE, &state, &memory, 60), "start a/1");
    // The other container does not wait with it.
    assert_eq!(
        steps(TWO, &state, &memory, 55),
        "wait a CrashLoopBackOff, start b/0"
    );
}

#[test]
fn a_failed_pull_turns_into_back_off_and_is_tried_again() {
    let mut memory = ready();
    let known = memory.container("a");
    known.pull.step(backoff::PULL, at(40), at(40));
    known.failed_start = Some((at(40), StartStage::Pull));
    known.waiting = Some(Waiting {
        reason: "ErrImagePull".to_owned(),
        message: "no such image".to_owned(),
    });
    assert_eq!(steps(ONE, &seen(vec![]), &memory, 41), "");
    assert_eq!(
        steps(ONE, &seen(vec![]), &memory, 43),
        "wait a ImagePullBackOff"
    );
    assert_eq!(steps(ONE, &seen(vec![]), &memory, 50), "start a/0");
}

#[test]
fn a_condemned_container_is_stopped_with_the_probes_grace() {
    let mut memory = ready();
    let probe = memory.probes.entry("a-0".to_owned()).or_default();
    probe.condemned = Some(crate::pod::memory::Condemned {
        message: "Container a failed liveness probe".to_owned(),
        grace_secs: Some(3),
    });
    let state = seen(vec![running("a")]);
    assert_eq!(steps(ONE, &state, &memory, 9), "stop a-0 3s");
    let plan = plan(&pod(ONE), &state, &memory, at(9));
    let Some(Step::Stop { message, .. }) = plan.steps.first() else {
        panic!("a stop");
    };
    assert_eq!(
        message,
        "Container a failed liveness probe, will be restarted"
    );
}

#[test]
fn a_changed_image_restarts_the_container() {
    let mut changed = running("a");
    changed.hash = "0".to_owned();
    check(ONE, vec![changed], "stop a-0 30s");
}

#[test]
fn a_lost_sandbox_is_replaced_unless_nothing_may_restart() {
    let mut state = seen(vec![exited("a", 137, 50)]);
    state.sandboxes[0].ready = false;
    assert_eq!(steps(ONE, &state, &ready(), 60), "sandbox/1");
    let mut live = seen(vec![running("a")]);
    live.sandboxes[0].ready = false;
    assert_eq!(steps(ONE, &live, &ready(), 60), "stop a-0 30s");
    // In the new sandbox, init runs again.
    let mut second = seen(vec![
        exited("a", 137, 50),
        exited("j", 0, 4),
        exited("i", 0, 3),
    ]);
    second.sandboxes.insert(
        0,
        SandboxSeen {
            id: "s1".to_owned(),
            attempt: 1,
            ..sandbox()
        },
    );
    assert!(steps(INIT, &second, &ready(), 60).contains("start i/1"));
}

fn ending(delete: bool) -> Memory {
    Memory {
        termination: Some(Termination {
            since: at(100),
            grace: Duration::from_secs(30),
            delete,
            failure: None,
        }),
        ..ready()
    }
}

#[test]
fn a_deleted_pod_is_taken_apart_in_order() {
    let mut memory = ending(true);
    let running_pod = seen(vec![running("a"), running("b")]);
    assert_eq!(
        steps(TWO, &running_pod, &memory, 100),
        "stop a-0 30s, stop b-0 30s"
    );
    assert_eq!(
        steps(TWO, &running_pod, &memory, 110),
        "stop a-0 20s, stop b-0 20s"
    );
    let mut dead = seen(vec![exited("a", 0, 101), exited("b", 137, 101)]);
    assert_eq!(steps(TWO, &dead, &memory, 102), "stop-sandbox s0");
    dead.sandboxes[0].ready = false;
    assert_eq!(steps(TWO, &dead, &memory, 102), "teardown");
    memory.volumes_gone = true;
    assert_eq!(steps(TWO, &dead, &memory, 103), "remove-sandbox s0");
    assert_eq!(steps(TWO, &Seen::default(), &memory, 104), "finish");
    memory.jobs.insert(Job::Finish);
    assert_eq!(steps(TWO, &Seen::default(), &memory, 105), "");
}

#[test]
fn sidecars_are_stopped_last_and_in_reverse() {
    let memory = ending(true);
    check_with(
        SIDE,
        vec![running("a"), running("t"), running("s")],
        &memory,
        "stop a-0 30s",
    );
    check_with(
        SIDE,
        vec![exited("a", 0, 101), running("t"), running("s")],
        &memory,
        "stop t-0 30s",
    );
    check_with(
        SIDE,
        vec![exited("a", 0, 101), exited("t", 0, 101), running("s")],
        &memory,
        "stop s-0 30s",
    );
}

fn check_with(spec: &str, containers: Vec<ContainerSeen>, memory: &Memory, expected: &str) {
    assert_eq!(steps(spec, &seen(containers), memory, 100), expected);
}

#[test]
fn an_ended_pod_keeps_its_containers_until_it_is_deleted() {
    let spec = format!("restartPolicy: Never\n{ONE}");
    let mut state = seen(vec![exited("a", 0, 50)]);
    assert_eq!(steps(&spec, &state, &ready(), 60), "stop-sandbox s0");
    state.sandboxes[0].ready = false;
    assert_eq!(steps(&spec, &state, &ready(), 60), "teardown");
    let memory = Memory {
        volumes_gone: true,
        ..ready()
    };
    assert_eq!(steps(&spec, &state, &memory, 60), "");
}

#[test]
fn the_active_deadline_fails_the_pod() {
    let mut wanted = pod(&format!("activeDeadlineSeconds: 10\n{ONE}"));
    wanted.status = Some(k8s_openapi::api::core::v1::PodStatus {
        start_time: Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(at(0))),
        ..Default::default()
    });
    let state = seen(vec![running("a")]);
    let before = plan(&wanted, &state, &ready(), at(9));
    assert_eq!((before.steps, before.wake_at), (vec![], Some(at(10))));
    let after = plan(&wanted, &state, &ready(), at(10));
    assert!(
        matches!(after.steps.as_slice(), [Step::Fail(why)] if why.reason == "DeadlineExceeded")
    );
}

#[test]
fn only_the_newest_dead_container_is_kept() {
    let older = |id: &str| ContainerSeen {
        id: id.to_owned(),
        ..exited("a", 1, 5)
    };
    check(
        ONE,
        vec![running("a"), older("old1"), older("old2")],
        "remove old2",
    );
}

#[test]
fn a_container_that_was_created_but_never_ran_is_made_again() {
    let created = ContainerSeen {
        state: ContainerState::Created,
        ..running("a")
    };
    check(ONE, vec![created], "remove a-0");
}

#[test]
fn a_rejected_pod_does_nothing() {
    let mut memory = ready();
    memory.rejected = Some(Rejection {
        reason: "OutOfcpu".to_owned(),
        message: String::new(),
    });
    assert_eq!(steps(ONE, &Seen::default(), &memory, 0), "");
}
