// SPDX-License-Identifier: Apache-2.0
//! The heart: `(wanted pod, seen runtime state, memory, now) -> steps`. Pure. Called after every
//! message; a step that is already under way (a job in memory) is not planned again, so planning
//! twice changes nothing.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Container, Pod};

use super::backoff::{self, Backoff, Limits, go_duration};
use super::cri_config::container_hash;
use super::memory::{Job, Memory, Rejection, StartStage, Termination, Waiting};
use super::spec::{self, Kind, RestartPolicy};
use super::state::{ContainerSeen, ContainerState, SandboxSeen, Seen};

/// How long a container that failed before it ran waits for its next try: the pod worker's pace.
const RETRY: Limits = Limits {
    first: Duration::from_secs(10),
    max: Duration::from_secs(10),
};
/// ErrImagePull is shown this long before it turns to ImagePullBackOff.
const PULL_ERROR_SHOWN: SignedDuration = SignedDuration::from_secs(2);

const PULL_BACK_OFF: &str = "ImagePullBackOff";

/// One thing to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Mount the pod's volumes.
    PrepareVolumes,
    /// Make the sandbox.
    CreateSandbox {
        /// Its attempt number.
        attempt: u32,
    },
    /// Pull, create and start a container, and run its postStart.
    Start {
        /// Its name.
        name: String,
        /// Its restart count.
        restart_count: u32,
        /// When its predecessor ended, for the crash back-off; `None` on a first start.
        after: Option<Timestamp>,
    },
    /// Show why a container does not run.
    Wait {
        /// Its name.
        name: String,
        /// What to show.
        waiting: Waiting,
    },
    /// Run preStop, then stop the container.
    Stop {
        /// The runtime's id.
        id: String,
        /// Its name.
        name: String,
        /// The event's message; `None`: say nothing again.
        message: String,
        /// Time for preStop and the stop signal together.
        grace: Duration,
    },
    /// Remove a dead container that nobody needs.
    RemoveContainer {
        /// The runtime's id.
        id: String,
    },
    /// Stop a sandbox.
    StopSandbox {
        /// The runtime's id.
        id: String,
    },
    /// Remove a stopped sandbox.
    RemoveSandbox {
        /// The runtime's id.
        id: String,
    },
    /// The pod has to end by itself (deadline).
    Fail(Rejection),
    /// Unmount and remove the pod's volumes.
    TeardownVolumes,
    /// Write the last status, remove the API object, end the actor.
    Finish,
}

/// The steps to take now, and when to look again if nothing happens before.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// In order; independent of each other.
    pub steps: Vec<Step>,
    /// The next moment at which time alone changes the answer.
    pub wake_at: Option<Timestamp>,
}

impl Plan {
    fn wake(&mut self, at: Timestamp) {
        self.wake_at = Some(self.wake_at.map_or(at, |earlier| earlier.min(at)));
    }
}

/// Decides. See the module's text.
pub fn plan(pod: &Pod, seen: &Seen, memory: &Memory, now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    if memory.finished {
        return plan;
    }
    if let Some(termination) = &memory.termination {
        terminate(pod, seen, memory, termination, now, &mut plan);
        return plan;
    }
    if memory.rejected.is_some() {
        return plan;
    }
    if is_complete(pod, seen) {
        wind_down(pod, seen, memory, now, &mut plan);
        return plan;
    }
    if let Some(failure) = deadline(pod, now, &mut plan) {
        plan.steps.push(Step::Fail(failure));
        return plan;
    }
    if !memory.volumes_ready {
        if may_try(
            memory,
            &Job::Volumes,
            &memory.volumes,
            backoff::VOLUMES,
            now,
            &mut plan,
        ) {
            plan.steps.push(Step::PrepareVolumes);
        }
        return plan;
    }
    let Some(sandbox) = current_sandbox(seen) else {
        replace_sandbox(pod, seen, memory, now, &mut plan);
        return plan;
    };
    collect_garbage(seen, memory, sandbox, &mut plan);
    let mut pod_plan = Containers {
        pod,
        seen,
        memory,
        now,
        sandbox,
        plan,
        may_start: !memory.starting(),
    };
    pod_plan.all();
    pod_plan.plan
}

/// Only the newest sandbox counts, and only while it is ready.
fn current_sandbox(seen: &Seen) -> Option<&SandboxSeen> {
    seen.sandboxes.first().filter(|sandbox| sandbox.ready)
}

fn may_try(
    memory: &Memory,
    job: &Job,
    trouble: &super::memory::Trouble,
    limits: Limits,
    now: Timestamp,
    plan: &mut Plan,
) -> bool {
    if memory.jobs.contains(job) {
        return false;
    }
    if let Some((failed_at, _)) = &trouble.failed
        && let Some(until) = trouble.backoff.wait_until(limits, *failed_at, now)
    {
        plan.wake(until);
        return false;
    }
    true
}

/// Whether nothing of the pod will ever run again: what phases Succeeded and Failed mean.
pub fn is_complete(pod: &Pod, seen: &Seen) -> bool {
    let policy = spec::restart_policy(pod);
    if policy == RestartPolicy::Never && failed_init(pod, seen) {
        return true;
    }
    let ended_for_good = |container: &Container| {
        seen.container(&container.name).is_some_and(|newest| {
            newest.state == ContainerState::Exited && !policy.restarts(newest.exit_code)
        })
    };
    let apps = &spec::spec(pod).containers;
    !apps.is_empty() && apps.iter().all(ended_for_good)
}

fn failed_init(pod: &Pod, seen: &Seen) -> bool {
    let apps = &spec::spec(pod).containers;
    if apps.iter().any(|app| seen.container(&app.name).is_some()) {
        return false;
    }
    spec::init_containers(pod).any(|(kind, container)| {
        kind == Kind::Init
            && seen.container(&container.name).is_some_and(|newest| {
                newest.state == ContainerState::Exited && newest.exit_code != 0
            })
    })
}

/// `activeDeadlineSeconds`, counted from `status.startTime`.
fn deadline(pod: &Pod, now: Timestamp, plan: &mut Plan) -> Option<Rejection> {
    let seconds = spec::spec(pod).active_deadline_seconds?;
    let start = pod.status.as_ref()?.start_time.as_ref()?.0;
    let end = start
        .saturating_add(SignedDuration::from_secs(seconds))
        .unwrap_or(Timestamp::MAX);
    if end > now {
        plan.wake(end);
        return None;
    }
    Some(Rejection {
        reason: "DeadlineExceeded".to_owned(),
        message: "Pod was active on the node longer than the specified deadline".to_owned(),
    })
}

/// Containers that still run, those to be stopped first in front: apps together, then sidecars one
/// by one, last started first (KEP-753).
fn stop_order<'a>(pod: &Pod, seen: &'a Seen) -> Vec<&'a ContainerSeen> {
    let sidecars: Vec<&str> = spec::init_containers(pod)
        .filter(|(kind, _)| *kind == Kind::Sidecar)
        .map(|(_, container)| container.name.as_str())
        .collect();
    let live = || seen.containers.iter().filter(|item| item.is_live());
    let apps: Vec<_> = live()
        .filter(|item| !sidecars.contains(&item.name.as_str()))
        .collect();
    if !apps.is_empty() {
        return apps;
    }
    let last = sidecars.iter().rev().find_map(|name| {
        let found: Vec<_> = live().filter(|item| item.name == *name).collect();
        (!found.is_empty()).then_some(found)
    });
    last.unwrap_or_default()
}

/// Stops containers in order, then sandboxes. True when nothing runs any more.
fn stop_all(pod: &Pod, seen: &Seen, memory: &Memory, grace: Duration, plan: &mut Plan) -> bool {
    if memory.starting() {
        return false;
    }
    let live = stop_order(pod, seen);
    for container in &live {
        if !memory.jobs.contains(&Job::Stop(container.id.clone())) {
            plan.steps.push(Step::Stop {
                id: container.id.clone(),
                name: container.name.clone(),
                message: format!("Stopping container {}", container.name),
                grace,
            });
        }
    }
    if !live.is_empty() || memory.jobs.contains(&Job::Sandbox) {
        return false;
    }
    let ready = seen.sandboxes.iter().find(|sandbox| sandbox.ready);
    if let Some(sandbox) = ready {
        plan.steps.push(Step::StopSandbox {
            id: sandbox.id.clone(),
        });
    }
    ready.is_none()
}

/// What is left of the grace period, at least a moment.
fn remaining(termination: &Termination, now: Timestamp) -> Duration {
    let spent = now.duration_since(termination.since);
    let spent = Duration::try_from(spent).unwrap_or(Duration::ZERO);
    termination
        .grace
        .saturating_sub(spent)
        .max(Duration::from_secs(1))
}

/// The pod ends: stop, then take away, then say so.
fn terminate(
    pod: &Pod,
    seen: &Seen,
    memory: &Memory,
    termination: &Termination,
    now: Timestamp,
    plan: &mut Plan,
) {
    let grace = remaining(termination, now);
    let waiting = memory.jobs.contains(&Job::Volumes) || !may_touch_sandbox(memory, now, plan);
    if waiting || !stop_all(pod, seen, memory, grace, plan) {
        return;
    }
    if !memory.volumes_gone {
        teardown_volumes(memory, now, plan);
        return;
    }
    if !termination.delete {
        return;
    }
    // Removing a sandbox removes its containers; containers of a vanished sandbox go one by one.
    if let Some(sandbox) = seen.sandboxes.first() {
        plan.steps.push(Step::RemoveSandbox {
            id: sandbox.id.clone(),
        });
        return;
    }
    for container in &seen.containers {
        remove(container, memory, plan);
    }
    if seen.containers.is_empty() && !memory.jobs.contains(&Job::Finish) {
        plan.steps.push(Step::Finish);
    }
}

/// Whether it is time to try something on the sandbox (again).
fn may_touch_sandbox(memory: &Memory, now: Timestamp, plan: &mut Plan) -> bool {
    may_try(
        memory,
        &Job::Sandbox,
        &memory.sandbox,
        backoff::SYNC,
        now,
        plan,
    )
}

/// Gives the volumes back, when it is time to try (again).
fn teardown_volumes(memory: &Memory, now: Timestamp, plan: &mut Plan) {
    if may_try(
        memory,
        &Job::Volumes,
        &memory.volumes,
        backoff::VOLUMES,
        now,
        plan,
    ) {
        plan.steps.push(Step::TeardownVolumes);
    }
}

/// The pod has ended by itself: stop what is left, give back volumes, keep the dead containers for
/// their logs until the pod is deleted.
fn wind_down(pod: &Pod, seen: &Seen, memory: &Memory, now: Timestamp, plan: &mut Plan) {
    let grace = Duration::from_secs(u64::try_from(spec::grace_secs(pod)).unwrap_or(0));
    if !may_touch_sandbox(memory, now, plan)
        || !stop_all(pod, seen, memory, grace, plan)
        || memory.volumes_gone
    {
        return;
    }
    teardown_volumes(memory, now, plan);
}

/// There is no usable sandbox: stop the remains of the old one, then make a new one if any
/// container still has something to do.
fn replace_sandbox(pod: &Pod, seen: &Seen, memory: &Memory, now: Timestamp, plan: &mut Plan) {
    let grace = Duration::from_secs(u64::try_from(spec::grace_secs(pod)).unwrap_or(0));
    let stopped = stop_all(pod, seen, memory, grace, plan);
    if !stopped || !may_touch_sandbox(memory, now, plan) {
        return;
    }
    let attempt = seen.sandboxes.first().map_or(0, |old| old.attempt + 1);
    // The containers of a pod that must not restart died with its sandbox.
    let never = spec::restart_policy(pod) == RestartPolicy::Never;
    if never && attempt > 0 && !seen.containers.is_empty() {
        return;
    }
    plan.steps.push(Step::CreateSandbox { attempt });
}

fn remove(container: &ContainerSeen, memory: &Memory, plan: &mut Plan) {
    if !memory.jobs.contains(&Job::Remove(container.id.clone())) {
        plan.steps.push(Step::RemoveContainer {
            id: container.id.clone(),
        });
    }
}

/// Keeps, of each container, the newest and the newest dead one; removes older dead ones, and dead
/// sandboxes that no kept container is in.
fn collect_garbage(seen: &Seen, memory: &Memory, current: &SandboxSeen, plan: &mut Plan) {
    if memory.starting() {
        return;
    }
    let mut dead_kept: Vec<&str> = Vec::new();
    let mut used: Vec<&str> = vec![&current.id];
    for container in &seen.containers {
        let dead = container.state == ContainerState::Exited;
        if dead && dead_kept.contains(&container.name.as_str()) {
            remove(container, memory, plan);
            continue;
        }
        if dead {
            dead_kept.push(&container.name);
        }
        used.push(&container.sandbox);
    }
    if memory.jobs.contains(&Job::Sandbox) {
        return;
    }
    let unused = |sandbox: &&SandboxSeen| !sandbox.ready && !used.contains(&sandbox.id.as_str());
    if let Some(sandbox) = seen.sandboxes.iter().find(unused) {
        plan.steps.push(Step::RemoveSandbox {
            id: sandbox.id.clone(),
        });
    }
}

/// The containers of a pod with a sandbox.
struct Containers<'a> {
    pod: &'a Pod,
    seen: &'a Seen,
    memory: &'a Memory,
    now: Timestamp,
    sandbox: &'a SandboxSeen,
    plan: Plan,
    may_start: bool,
}

/// What one container's turn came to.
#[derive(Debug, PartialEq, Eq)]
enum Turn {
    /// Runs (and has started), or has done its work.
    Done,
    /// Something is still to happen.
    Pending,
}

impl Containers<'_> {
    fn all(&mut self) {
        if !self.init() {
            return;
        }
        for container in &spec::spec(self.pod).containers {
            self.one(Kind::App, container);
        }
    }

    /// Init containers in order. True when the apps may go.
    fn init(&mut self) -> bool {
        let initialized = self.is_initialized();
        for (kind, container) in spec::init_containers(self.pod) {
            if initialized && kind == Kind::Init {
                continue;
            }
            let turn = self.one(kind, container);
            if turn == Turn::Pending && !initialized {
                return false;
            }
        }
        true
    }

    /// An app container in this sandbox proves that init is over, even when the init containers
    /// have been collected since.
    fn is_initialized(&self) -> bool {
        let apps = &spec::spec(self.pod).containers;
        apps.iter().any(|app| self.here(&app.name).is_some())
    }

    fn here(&self, name: &str) -> Option<&ContainerSeen> {
        let newest = self.seen.container(name)?;
        (newest.sandbox == self.sandbox.id).then_some(newest)
    }

    fn one(&mut self, kind: Kind, container: &Container) -> Turn {
        let name = &container.name;
        if self.memory.jobs.contains(&Job::Start(name.clone())) {
            return Turn::Pending;
        }
        let newest = self.seen.container(name).cloned();
        match (newest, self.here(name).is_some()) {
            (Some(newest), true) => {
                match newest.state {
                    ContainerState::Running => self.running(kind, container, &newest),
                    ContainerState::Exited => self.exited(kind, container, &newest),
                    ContainerState::Created => self.created(container, &newest),
                    ContainerState::Unknown => {
                        self.stop(&newest, format!("Container {name} is in unknown state, try killing it before restart"), None);
                        Turn::Pending
                    }
                }
            }
            // It ran in an earlier sandbox. Init runs again; apps follow their restart policy.
            (Some(newest), false) => {
                let policy = spec::container_restart_policy(self.pod, kind);
                let over =
                    newest.state == ContainerState::Exited && !policy.restarts(newest.exit_code);
                if kind == Kind::App && over {
                    return Turn::Done;
                }
                self.start(container, newest.restart_count + 1, None);
                Turn::Pending
            }
            (None, _) => {
                let known = self.memory.containers.get(name);
                let count = known.and_then(|known| known.restarts_known).unwrap_or(0);
                self.first_start(container, count);
                Turn::Pending
            }
        }
    }

    fn running(&mut self, kind: Kind, container: &Container, newest: &ContainerSeen) -> Turn {
        let restarts =
            spec::restart_policy(self.pod) != RestartPolicy::Never || kind == Kind::Sidecar;
        let suffix = if restarts { ", will be restarted" } else { "" };
        if let Some(condemned) = self.memory.condemned(&newest.id) {
            let message = format!("{}{suffix}", condemned.message);
            self.stop(newest, message, condemned.grace_secs);
            return Turn::Pending;
        }
        if !newest.hash.is_empty() && newest.hash != container_hash(container) {
            let message = format!(
                "Container {} definition changed, will be restarted",
                newest.name
            );
            self.stop(newest, message, None);
            return Turn::Pending;
        }
        let has_probe = container.startup_probe.is_some();
        let started = self.memory.is_started(&newest.id, has_probe);
        match kind {
            Kind::Init => Turn::Pending,
            Kind::Sidecar if !started => Turn::Pending,
            _ => Turn::Done,
        }
    }

    fn exited(&mut self, kind: Kind, container: &Container, newest: &ContainerSeen) -> Turn {
        let policy = spec::container_restart_policy(self.pod, kind);
        if !policy.restarts(newest.exit_code) {
            return Turn::Done;
        }
        let ended = newest.finished_at.unwrap_or(newest.created_at);
        self.start(container, newest.restart_count + 1, Some(ended));
        Turn::Pending
    }

    /// Created and never started: the kubelet died in between, or the start failed. It is taken
    /// away, and its number is used again.
    fn created(&mut self, container: &Container, newest: &ContainerSeen) -> Turn {
        if self.may_start && !self.waits(container, None) {
            remove(newest, self.memory, &mut self.plan);
        }
        Turn::Pending
    }

    fn first_start(&mut self, container: &Container, restart_count: u32) {
        if !self.waits(container, None) {
            self.push_start(container, restart_count, None);
        }
    }

    fn start(&mut self, container: &Container, restart_count: u32, after: Option<Timestamp>) {
        if !self.waits(container, after) {
            self.push_start(container, restart_count, after);
        }
    }

    /// One start at a time, in the order of the spec, as upstream does it.
    fn push_start(&mut self, container: &Container, restart_count: u32, after: Option<Timestamp>) {
        if !std::mem::replace(&mut self.may_start, false) {
            return;
        }
        self.plan.steps.push(Step::Start {
            name: container.name.clone(),
            restart_count,
            after,
        });
    }

    /// Whether the container has to wait for one of its back-offs; says so if it does.
    fn waits(&mut self, container: &Container, ended: Option<Timestamp>) -> bool {
        let Some(known) = self.memory.containers.get(&container.name) else {
            return false;
        };
        let (wait, waiting) = match known.failed_start {
            Some((at, StartStage::Pull)) => self.pull_wait(container, at, &known.pull),
            Some((at, StartStage::Create)) => {
                let mut pace = Backoff::default();
                pace.step(RETRY, at, at);
                (pace.wait_until(RETRY, at, self.now), None)
            }
            Some((at, StartStage::Run)) => self.crash_wait(container, at, &known.crash),
            None => match ended {
                Some(ended) => self.crash_wait(container, ended, &known.crash),
                None => (None, None),
            },
        };
        let Some(until) = wait else {
            return false;
        };
        self.plan.wake(until);
        if let Some(waiting) = waiting
            && known.waiting.as_ref() != Some(&waiting)
        {
            self.plan.steps.push(Step::Wait {
                name: container.name.clone(),
                waiting,
            });
        }
        true
    }

    fn pull_wait(
        &mut self,
        container: &Container,
        failed: Timestamp,
        pull: &Backoff,
    ) -> (Option<Timestamp>, Option<Waiting>) {
        let until = pull.wait_until(backoff::PULL, failed, self.now);
        let shown_until = failed.saturating_add(PULL_ERROR_SHOWN).unwrap_or(failed);
        if until.is_some() && self.now < shown_until {
            self.plan.wake(shown_until);
            return (until, None);
        }
        let last = self.memory.containers.get(&container.name);
        let error = last
            .and_then(|known| known.waiting.as_ref())
            .filter(|waiting| waiting.reason != PULL_BACK_OFF)
            .map(|waiting| format!("{}: {}", waiting.reason, waiting.message));
        // Already says ImagePullBackOff: leave it.
        let waiting = error.map(|error| Waiting {
            reason: PULL_BACK_OFF.to_owned(),
            message: format!(
                "Back-off pulling image \"{}\": {error}",
                container.image.as_deref().unwrap_or_default()
            ),
        });
        (until, waiting)
    }

    fn crash_wait(
        &self,
        container: &Container,
        ended: Timestamp,
        crash: &Backoff,
    ) -> (Option<Timestamp>, Option<Waiting>) {
        let until = crash.wait_until(backoff::CRASH, ended, self.now);
        let waiting = Waiting {
            reason: "CrashLoopBackOff".to_owned(),
            message: format!(
                "back-off {} restarting failed container={} pod={}",
                go_duration(crash.delay()),
                container.name,
                spec::display(self.pod)
            ),
        };
        (until, Some(waiting))
    }

    fn stop(&mut self, container: &ContainerSeen, message: String, grace_secs: Option<i64>) {
        if self.memory.jobs.contains(&Job::Stop(container.id.clone())) {
            return;
        }
        let secs = grace_secs.unwrap_or_else(|| spec::grace_secs(self.pod));
        self.plan.steps.push(Step::Stop {
            id: container.id.clone(),
            name: container.name.clone(),
            message,
            grace: Duration::from_secs(u64::try_from(secs).unwrap_or(1).max(1)),
        });
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
