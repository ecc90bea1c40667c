// SPDX-License-Identifier: Apache-2.0
//! The task that owns one pod. It takes messages, looks at the runtime, asks [`plan`] what to do,
//! starts jobs for it, and publishes the status. Nobody else changes the pod's state; a pod whose
//! jobs hang hurts itself only, because the loop never waits for a job.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::deps::Deps;
use super::memory::{Job, Memory, Rejection, StartStage, Termination, Trouble};
use super::plan::{self, Plan, Step};
use super::spec::{self, Kind};
use super::start::{Start, StartError};
use super::state::{ContainerState, Seen};
use super::status::{self, NodeView};
use super::{adopt, backoff, jobs, termination_log};
use crate::ports::{EventType, StatusSink};
use crate::probe::worker::Report;
use crate::probe::{ProbeKind, state::Outcome, state::Verdict};
use crate::volumes::PreparedVolumes;

/// How long a failed look at the runtime waits for the next one.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// Probe reports that wait for the actor; a probe whose report does not fit waits with it.
const QUEUE: usize = 64;
/// Plans per turn: each round's steps become jobs or memory, so two or three settle it.
const ROUNDS_MAX: usize = 16;

/// What the manager wants of an actor. A level, not an edge: only the newest matters.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// The pod's newest object.
    pub pod: Arc<Pod>,
    /// The pod is no longer wanted: end it, and remove every trace.
    pub delete: bool,
}

/// The actor's ears.
#[derive(Debug)]
pub struct Ears {
    /// The newest wish. When its sender goes, the actor ends and leaves the containers alone.
    pub wanted: watch::Receiver<Wanted>,
    /// Something happened in the runtime.
    pub look: Arc<Notify>,
}

/// How an actor begins.
#[derive(Debug, Clone, Default)]
pub struct Beginning {
    /// Admission refused the pod.
    pub rejected: Option<Rejection>,
    /// A pod that only the runtime knows: it is ended and nothing is written to the API.
    pub orphan: bool,
}

/// The actor. [`Actor::run`] is its life.
pub struct Actor {
    pub(super) deps: Arc<Deps>,
    pub(super) pod: Pod,
    pub(super) seen: Seen,
    pub(super) memory: Memory,
    pub(super) orphan: bool,
    ears: Ears,
    jobs: JoinSet<jobs::Done>,
    cancels: HashMap<Job, CancellationToken>,
    prepared: PreparedVolumes,
    probes: HashMap<(String, ProbeKind), AbortOnDropHandle<()>>,
    reports: (mpsc::Sender<Report>, mpsc::Receiver<Report>),
    messages: HashMap<String, String>,
    look: bool,
    looked: bool,
    refresh_due: bool,
    next_sync: Instant,
    published: Option<PodStatus>,
}

impl Actor {
    /// An actor for this pod; it does nothing until it runs.
    pub fn new(deps: Arc<Deps>, pod: Pod, beginning: Beginning, ears: Ears) -> Actor {
        let next_sync = Instant::now() + deps.settings.sync_frequency;
        let mut actor = Actor {
            deps,
            pod,
            seen: Seen::default(),
            memory: Memory {
                rejected: beginning.rejected,
                ..Default::default()
            },
            orphan: beginning.orphan,
            ears,
            jobs: JoinSet::new(),
            cancels: HashMap::new(),
            prepared: PreparedVolumes::default(),
            probes: HashMap::new(),
            reports: mpsc::channel(QUEUE),
            messages: HashMap::new(),
            look: true,
            looked: false,
            refresh_due: false,
            next_sync,
            published: None,
        };
        if actor.orphan {
            actor.end(true, None);
        }
        actor.heed_deletion();
        actor
    }

    /// Lives until the pod is gone, or until the manager drops its sender (agent shutdown: then the
    /// containers go on without us).
    pub async fn run(mut self) {
        loop {
            if self.look {
                self.look_at_runtime().await;
            }
            let wake_at = self.act();
            if self.memory.finished {
                break;
            }
            if !self.wait(wake_at).await {
                break;
            }
        }
    }

    fn now(&self) -> Timestamp {
        self.deps.clock.now()
    }

    /// Waits for the next thing to happen and takes it in. False: the manager has gone.
    async fn wait(&mut self, wake_at: Option<Timestamp>) -> bool {
        let now = Instant::now();
        let mut until = if self.look {
            now + LOOK_AGAIN
        } else {
            self.next_sync
        };
        if let Some(at) = wake_at {
            let wait = Duration::try_from(at.duration_since(self.now())).unwrap_or(Duration::ZERO);
            until = until.min(now + wait);
        }
        tokio::select! {
            biased;
            Some(report) = self.reports.1.recv() => self.take_report(report),
            changed = self.ears.wanted.changed() => match changed {
                Ok(()) => self.take_wanted(),
                Err(_) => return false,
            },
            () = self.ears.look.notified() => self.look = true,
            Some(done) = self.jobs.join_next() => self.take_done(done),
            () = tokio::time::sleep_until(until) => {}
        }
        // Whatever else is ready is taken in the same turn: one status for all of it.
        while let Some(done) = self.jobs.try_join_next() {
            self.take_done(done);
        }
        if Instant::now() >= self.next_sync {
            self.next_sync = Instant::now() + self.deps.settings.sync_frequency;
            self.look = true;
            self.refresh_due = true;
        }
        true
    }

    fn take_wanted(&mut self) {
        let wanted = self.ears.wanted.borrow_and_update().clone();
        self.take_spec(Pod::clone(&wanted.pod));
        self.heed_deletion();
        if wanted.delete {
            self.end(true, None);
        }
    }

    /// The newest object wins, except for the status, which is this actor's: only conditions of
    /// other writers are taken over.
    fn take_spec(&mut self, mut pod: Pod) {
        let own = self.pod.status.take();
        let foreign = pod
            .status
            .take()
            .and_then(|status| status.conditions)
            .unwrap_or_default();
        pod.status = own;
        if let Some(status) = &mut pod.status {
            let conditions = status.conditions.get_or_insert_default();
            conditions.retain(|condition| status::is_own(&condition.type_));
            conditions.extend(
                foreign
                    .into_iter()
                    .filter(|condition| !status::is_own(&condition.type_)),
            );
        }
        self.pod = pod;
        // Labels and annotations may show in a downwardAPI volume.
        self.refresh_due = true;
        self.publish_table();
    }

    fn heed_deletion(&mut self) {
        if spec::is_deleting(&self.pod) {
            self.end(true, None);
        }
    }

    /// Begins the end, or hurries it: a shorter grace period or a wish to delete takes effect.
    fn end(&mut self, delete: bool, failure: Option<Rejection>) {
        let grace = Duration::from_secs(u64::try_from(spec::grace_secs(&self.pod)).unwrap_or(1));
        let now = self.now();
        match &mut self.memory.termination {
            None => {
                self.memory.termination = Some(Termination {
                    since: now,
                    grace,
                    delete,
                    failure,
                });
                // What failed on the way up says nothing about the way down.
                self.memory.volumes = Trouble::default();
                self.memory.sandbox = Trouble::default();
                self.cancel(|job| matches!(job, Job::Start(_) | Job::Stop(_)));
            }
            Some(termination) => {
                termination.delete |= delete;
                let ends = |since: Timestamp, grace: Duration| {
                    since.as_second().saturating_add_unsigned(grace.as_secs())
                };
                if ends(now, grace) < ends(termination.since, termination.grace) {
                    termination.since = now;
                    termination.grace = grace;
                    self.cancel(|job| matches!(job, Job::Stop(_)));
                }
            }
        }
        self.probes
            .retain(|(_, kind), _| *kind == ProbeKind::Readiness);
    }

    fn cancel(&self, which: impl Fn(&Job) -> bool) {
        for (job, token) in &self.cancels {
            if which(job) {
                token.cancel();
            }
        }
    }

    async fn look_at_runtime(&mut self) {
        let uid = spec::uid(&self.pod).to_owned();
        let seen = self.deps.runtime.pod(&uid).await;
        match seen {
            Ok(seen) => {
                let before = std::mem::replace(&mut self.seen, seen);
                self.look = false;
                self.mind_the_vanished(&before);
            }
            Err(error) => {
                tracing::warn!(pod = spec::display(&self.pod), %error, "cannot look at the pod in the runtime");
                return;
            }
        }
        if !self.looked {
            self.looked = true;
            adopt::adopt(self).await;
        }
        self.read_termination_messages().await;
        let alive = |id: &str| {
            self.seen
                .containers
                .iter()
                .any(|container| container.id == id)
        };
        self.memory.probes.retain(|id, _| alive(id));
        self.messages.retain(|id, _| alive(id));
        self.cancels.retain(|job, _| match job {
            Job::Stop(id) => alive(id),
            _ => true,
        });
        self.follow_probes();
    }

    /// A container that somebody else removed still counts as one start.
    fn mind_the_vanished(&mut self, before: &Seen) {
        for (_, container) in spec::containers(&self.pod) {
            let (old, new) = (
                before.container(&container.name),
                self.seen.container(&container.name),
            );
            let ran = old.filter(|old| old.state != ContainerState::Created && new.is_none());
            if let Some(ran) = ran {
                let memory = self
                    .memory
                    .containers
                    .entry(container.name.clone())
                    .or_default();
                memory.restarts_known = Some(ran.restart_count.saturating_add(1));
            }
        }
    }

    async fn read_termination_messages(&mut self) {
        for container in &mut self.seen.containers {
            if container.state != ContainerState::Exited {
                continue;
            }
            if !self.messages.contains_key(&container.id) {
                let Some((_, wanted)) = spec::container(&self.pod, &container.name) else {
                    continue;
                };
                let file = jobs::log_directory(&self.deps, &self.pod).join(
                    super::cri_config::log_path(&container.name, container.restart_count),
                );
                let message = termination_log::read(wanted, container, file).await;
                self.messages.insert(container.id.clone(), message);
            }
            let message = self
                .messages
                .get(&container.id)
                .cloned()
                .unwrap_or_default();
            if !message.is_empty() {
                container.message = message;
            }
        }
    }

    /// One probe task per probe of a running container; startup first, then the others.
    fn follow_probes(&mut self) {
        let now = self.now();
        let mut wanted = Vec::new();
        for container in self
            .seen
            .containers
            .iter()
            .filter(|item| item.state == ContainerState::Running)
        {
            let Some((kind, of_spec)) = spec::container(&self.pod, &container.name) else {
                continue;
            };
            let started = self
                .memory
                .is_started(&container.id, of_spec.startup_probe.is_some());
            for (probe_kind, probe) in spec::probes(of_spec) {
                let its_turn = (probe_kind == ProbeKind::Startup) != started;
                let ending =
                    self.memory.termination.is_some() && probe_kind != ProbeKind::Readiness;
                let condemned = self.memory.condemned(&container.id).is_some();
                if let Some(probe) =
                    probe.filter(|_| its_turn && !ending && !condemned && kind != Kind::Init)
                {
                    wanted.push((
                        container.clone(),
                        of_spec.clone(),
                        probe_kind,
                        probe.clone(),
                    ));
                }
            }
        }
        let keys: Vec<(String, ProbeKind)> = wanted
            .iter()
            .map(|(seen, _, kind, _)| (seen.id.clone(), *kind))
            .collect();
        self.probes.retain(|key, _| keys.contains(key));
        let pod_ip = self
            .pod_ips()
            .first()
            .map(ToString::to_string)
            .unwrap_or_default();
        for (seen, container, kind, probe) in wanted {
            let key = (seen.id.clone(), kind);
            if self.probes.contains_key(&key) {
                continue;
            }
            let work = crate::probe::worker::Work {
                kind,
                probe,
                target: crate::probe::handler::Target {
                    container_id: seen.id,
                    container,
                    pod_ip: pod_ip.clone(),
                },
                started_at: seen.started_at.unwrap_or(now),
            };
            let task = crate::probe::worker::run(
                work,
                Arc::clone(&self.deps.runtime),
                now,
                self.reports.0.clone(),
            );
            self.probes
                .insert(key, AbortOnDropHandle::new(tokio::spawn(task)));
        }
    }

    fn take_report(&mut self, report: Report) {
        self.report_event(&report);
        // A report may outlive its container by a moment.
        if !self
            .seen
            .containers
            .iter()
            .any(|seen| seen.id == report.container_id)
        {
            return;
        }
        let grace_secs =
            spec::container(&self.pod, &report.container).and_then(|(_, container)| {
                let probes = spec::probes(container);
                let probe = probes
                    .into_iter()
                    .find(|(kind, _)| *kind == report.kind)?
                    .1?;
                probe.termination_grace_period_seconds
            });
        let ending = self.memory.termination.is_some();
        let known = self
            .memory
            .probes
            .entry(report.container_id.clone())
            .or_default();
        let condemn = |what: &str| super::memory::Condemned {
            message: format!("Container {} failed {what} probe", report.container),
            grace_secs,
        };
        match (report.kind, report.verdict) {
            (_, None) => {}
            (ProbeKind::Readiness, Some(verdict)) => known.ready = Some(verdict == Verdict::Good),
            (ProbeKind::Startup, Some(Verdict::Good)) => known.started = Some(true),
            (ProbeKind::Liveness, Some(Verdict::Good)) => {}
            (_, Some(Verdict::Bad)) if ending => {}
            (ProbeKind::Startup, Some(Verdict::Bad)) => known.condemned = Some(condemn("startup")),
            (ProbeKind::Liveness, Some(Verdict::Bad)) => {
                known.condemned = Some(condemn("liveness"))
            }
        }
        self.follow_probes();
    }

    fn report_event(&self, report: &Report) {
        let word = report.kind.as_str();
        let (reason, message) = match &report.outcome {
            Outcome::Success(_) => return,
            Outcome::Warning(text) => ("ProbeWarning", format!("{word} probe warning: {text}")),
            Outcome::Failure(text) => ("Unhealthy", format!("{word} probe failed: {text}")),
            Outcome::Unknown(text) => (
                "Unhealthy",
                format!("{word} probe errored and resulted in unknown state: {text}"),
            ),
        };
        self.container_event(&report.container, EventType::Warning, reason, message);
    }

    pub(super) fn event(&self, kind: EventType, reason: &str, message: String) {
        if !self.orphan {
            let about = spec::reference(&self.pod, None);
            self.deps.events.record(about, kind, reason, message);
        }
    }

    pub(super) fn container_event(
        &self,
        name: &str,
        kind: EventType,
        reason: &str,
        message: String,
    ) {
        if self.orphan {
            return;
        }
        let role = spec::container(&self.pod, name).map_or(Kind::App, |(role, _)| role);
        let about = spec::reference(&self.pod, Some((role, name)));
        self.deps.events.record(about, kind, reason, message);
    }

    /// The addresses of the pod, as far as they are known.
    pub(super) fn pod_ips(&self) -> Vec<IpAddr> {
        if spec::host_network(&self.pod) {
            return self.deps.settings.node_ips.clone();
        }
        let sandbox = self.seen.sandbox();
        let ips = sandbox
            .map(|sandbox| sandbox.ips.as_slice())
            .unwrap_or_default();
        ips.iter().filter_map(|ip| ip.parse().ok()).collect()
    }

    /// Plans and carries out until nothing is left to begin, then says how things are. Answers when
    /// to look again.
    fn act(&mut self) -> Option<Timestamp> {
        if !self.looked {
            return None;
        }
        let mut wake_at = None;
        for _ in 0..ROUNDS_MAX {
            // What was seen is out of date: acting on it could do a thing twice.
            if self.look {
                break;
            }
            let plan: Plan = plan::plan(&self.pod, &self.seen, &self.memory, self.now());
            wake_at = plan.wake_at;
            if plan.steps.is_empty() {
                break;
            }
            for step in plan.steps {
                self.carry_out(step);
            }
        }
        self.refresh_volumes();
        self.publish();
        wake_at
    }

    /// Brings ConfigMap, Secret and downwardAPI content up to date.
    fn refresh_volumes(&mut self) {
        let has_volumes = spec::spec(&self.pod)
            .volumes
            .as_ref()
            .is_some_and(|list| !list.is_empty());
        let settled = self.memory.volumes_ready
            && self.memory.termination.is_none()
            && !plan::is_complete(&self.pod, &self.seen);
        if !self.refresh_due || !has_volumes || !settled || self.memory.jobs.contains(&Job::Volumes)
        {
            return;
        }
        self.refresh_due = false;
        self.spawn(Job::Volumes, jobs::refresh_volumes(&self.deps, &self.pod));
    }

    fn publish(&mut self) {
        if self.orphan {
            return;
        }
        let node = NodeView {
            runtime: self.deps.runtime.name(),
            host_ips: self
                .deps
                .settings
                .node_ips
                .iter()
                .map(ToString::to_string)
                .collect(),
        };
        let status = status::compute(&status::Inputs {
            pod: &self.pod,
            seen: &self.seen,
            memory: &self.memory,
            node: &node,
            now: self.now(),
        });
        if self.published.as_ref() == Some(&status) {
            return;
        }
        let first = self.published.is_none() && self.pod.status.as_ref() == Some(&status);
        self.pod.status = Some(status.clone());
        self.published = Some(status.clone());
        self.publish_table();
        // After a restart of the agent, the API may already have exactly this.
        if !first {
            let sink: &dyn StatusSink = self.deps.sink.as_ref();
            sink.publish(&self.pod, status);
        }
    }

    fn publish_table(&self) {
        if !self.orphan {
            self.deps.table.put(Arc::new(self.pod.clone()));
        }
    }

    fn carry_out(&mut self, step: Step) {
        match step {
            Step::Wait { name, waiting } => {
                self.say_waiting(&name, &waiting);
                self.memory.container(&name).waiting = Some(waiting);
            }
            Step::Fail(failure) => {
                self.event(EventType::Normal, &failure.reason, failure.message.clone());
                self.end(false, Some(failure));
            }
            Step::Start {
                name,
                restart_count,
                after,
            } => self.start(&name, restart_count, after),
            Step::PrepareVolumes => {
                self.spawn(Job::Volumes, jobs::prepare_volumes(&self.deps, &self.pod))
            }
            Step::TeardownVolumes => {
                self.spawn(Job::Volumes, jobs::teardown_volumes(&self.deps, &self.pod))
            }
            Step::CreateSandbox { attempt } => {
                if attempt > 0 {
                    let message = "Pod sandbox changed, it will be killed and re-created.";
                    self.event(EventType::Normal, "SandboxChanged", message.to_owned());
                }
                let work = jobs::create_sandbox(&self.deps, &self.pod, attempt);
                self.spawn(Job::Sandbox, work);
            }
            Step::StopSandbox { id } => {
                self.spawn(Job::Sandbox, jobs::stop_sandbox(&self.deps, &self.pod, id));
            }
            Step::RemoveSandbox { id } => {
                self.spawn(
                    Job::Sandbox,
                    jobs::remove_sandbox(&self.deps, &self.pod, id),
                );
            }
            Step::Stop {
                id,
                name,
                message,
                grace,
            } => self.stop(id, &name, message, grace),
            Step::RemoveContainer { id } => self.remove_container(id),
            Step::Finish => {
                self.publish();
                let work = jobs::finish(&self.deps, &self.pod, self.orphan);
                self.spawn(Job::Finish, work);
            }
        }
    }

    fn spawn(&mut self, job: Job, work: impl Future<Output = jobs::Outcome> + Send + 'static) {
        self.memory.jobs.insert(job.clone());
        self.jobs.spawn(async move {
            jobs::Done {
                job,
                outcome: work.await,
            }
        });
    }

    fn token(&mut self, job: &Job) -> CancellationToken {
        let token = CancellationToken::new();
        self.cancels.insert(job.clone(), token.clone());
        token
    }

    fn say_waiting(&self, name: &str, waiting: &super::memory::Waiting) {
        let image = || {
            let container = spec::container(&self.pod, name);
            container
                .and_then(|(_, container)| container.image.clone())
                .unwrap_or_default()
        };
        match waiting.reason.as_str() {
            "CrashLoopBackOff" => {
                let message = format!(
                    "Back-off restarting failed container {name} in pod {}",
                    spec::display(&self.pod)
                );
                self.container_event(name, EventType::Warning, "BackOff", message);
            }
            "ImagePullBackOff" => {
                let message = format!("Back-off pulling image \"{}\"", image());
                self.container_event(name, EventType::Normal, "BackOff", message);
                self.container_event(
                    name,
                    EventType::Warning,
                    "Failed",
                    "Error: ImagePullBackOff".to_owned(),
                );
            }
            _ => {}
        }
    }

    fn start(&mut self, name: &str, restart_count: u32, after: Option<Timestamp>) {
        let found =
            spec::container(&self.pod, name).map(|(kind, container)| (kind, container.clone()));
        let (Some((kind, container)), Some(sandbox)) = (found, self.seen.sandbox().cloned()) else {
            return;
        };
        let now = self.now();
        let memory = self.memory.container(name);
        let ran_and_failed = match memory.failed_start {
            Some((at, StartStage::Run)) => Some(at),
            _ => after,
        };
        if let Some(ended) = ran_and_failed {
            memory.crash.step(backoff::CRASH, ended, now);
        }
        memory.failed_start = None;
        let job = Job::Start(name.to_owned());
        let cancel = self.token(&job);
        let work = Start {
            deps: Arc::clone(&self.deps),
            pod: self.pod.clone(),
            kind,
            container,
            restart_count,
            sandbox_id: sandbox.id,
            sandbox: jobs::sandbox_config(&self.deps, &self.pod, sandbox.attempt).0,
            pod_ips: self.pod_ips(),
            volumes: self.prepared.clone(),
            cancel,
        };
        self.spawn(job, async move { jobs::Outcome::Started(work.run().await) });
    }

    fn stop(&mut self, id: String, name: &str, message: String, grace: Duration) {
        let job = Job::Stop(id.clone());
        // Hurrying a stop that was announced is not news.
        if !self.cancels.contains_key(&job) {
            self.container_event(name, EventType::Normal, "Killing", message);
        }
        let cancel = self.token(&job);
        let container = spec::container(&self.pod, name).map(|(_, container)| container.clone());
        let pod_ip = self
            .pod_ips()
            .first()
            .map(ToString::to_string)
            .unwrap_or_default();
        let work =
            jobs::stop_container(&self.deps, &self.pod, container, id, pod_ip, grace, cancel);
        self.spawn(job, work);
    }

    fn remove_container(&mut self, id: String) {
        let container = self
            .seen
            .containers
            .iter()
            .find(|seen| seen.id == id)
            .cloned();
        // One that never ran gives its number back.
        if let Some(created) = container
            .as_ref()
            .filter(|seen| seen.state == ContainerState::Created)
        {
            self.memory.container(&created.name).restarts_known = Some(created.restart_count);
        }
        let log = container.map(|seen| {
            let file = super::cri_config::log_path(&seen.name, seen.restart_count);
            jobs::log_directory(&self.deps, &self.pod).join(file)
        });
        let work = jobs::remove_container(&self.deps, &self.pod, id.clone(), log);
        self.spawn(Job::Remove(id), work);
    }

    fn take_done(&mut self, done: Result<jobs::Done, tokio::task::JoinError>) {
        let done = match done {
            Ok(done) => done,
            Err(error) => {
                // A job that panicked cannot say which it was: forget them all and look afresh.
                tracing::error!(pod = spec::display(&self.pod), %error, "a job of the pod ended abnormally");
                self.jobs.abort_all();
                self.memory.jobs.clear();
                self.cancels.clear();
                self.look = true;
                return;
            }
        };
        self.memory.jobs.remove(&done.job);
        if !matches!(done.job, Job::Stop(_)) {
            self.cancels.remove(&done.job);
        }
        self.look = true;
        let now = self.now();
        match (done.job, done.outcome) {
            (_, jobs::Outcome::Done) => {}
            (_, jobs::Outcome::Volumes(result)) => self.volumes_done(result, now),
            (_, jobs::Outcome::VolumesGone(result)) => match result {
                Ok(()) => self.memory.volumes_gone = true,
                Err(problem) => self.volumes_failed(problem, now),
            },
            (_, jobs::Outcome::Sandbox(result)) => self.sandbox_done(result, now),
            (Job::Start(name), jobs::Outcome::Started(result)) => self.started(&name, result, now),
            (_, jobs::Outcome::Started(_)) => {}
            (_, jobs::Outcome::Finished) => {
                self.memory.finished = true;
                self.look = false;
                self.deps.table.remove(spec::uid(&self.pod));
            }
        }
    }

    fn volumes_done(&mut self, result: Result<PreparedVolumes, String>, now: Timestamp) {
        match result {
            Ok(prepared) => {
                for note in &prepared.notes {
                    self.event(EventType::Warning, "VolumeNote", note.clone());
                }
                self.prepared = prepared;
                self.memory.volumes_ready = true;
                self.memory.volumes.failed = None;
                self.memory.volumes.backoff.reset();
            }
            Err(problem) => {
                self.event(EventType::Warning, "FailedMount", problem.clone());
                self.volumes_failed(problem, now);
            }
        }
    }

    fn volumes_failed(&mut self, problem: String, now: Timestamp) {
        self.memory.volumes.backoff.step(backoff::VOLUMES, now, now);
        self.memory.volumes.failed = Some((now, problem));
    }

    fn sandbox_done(&mut self, result: Result<(), String>, now: Timestamp) {
        match result {
            Ok(()) => {
                self.memory.sandbox.failed = None;
                self.memory.sandbox.backoff.reset();
            }
            Err(problem) => {
                self.memory.sandbox.backoff.step(backoff::SYNC, now, now);
                self.memory.sandbox.failed = Some((now, problem));
            }
        }
    }

    fn started(&mut self, name: &str, result: Result<(), StartError>, now: Timestamp) {
        let memory = self.memory.container(name);
        match result {
            Ok(()) => {
                memory.waiting = None;
                memory.failed_start = None;
                memory.pull.reset();
            }
            Err(StartError::Cancelled) => {}
            Err(StartError::Failed(stage, waiting)) => {
                if stage == StartStage::Pull {
                    memory.pull.step(backoff::PULL, now, now);
                }
                memory.failed_start = Some((now, stage));
                memory.waiting = Some(waiting);
            }
        }
    }
}

#[cfg(test)]
#[path = "actor_tests.rs"]
mod tests;
