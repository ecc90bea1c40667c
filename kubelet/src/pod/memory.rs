// SPDX-License-Identifier: Apache-2.0
//! What one actor remembers of its pod between two looks: things that neither the spec nor the
//! runtime can tell. Plain data; lost at restart and then rebuilt from the last status.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::Timestamp;

use super::backoff::Backoff;

/// Everything that is remembered.
#[derive(Debug, Clone, Default)]
pub struct Memory {
    /// Set once the pod is to end; it never goes back.
    pub termination: Option<Termination>,
    /// Volumes are mounted.
    pub volumes_ready: bool,
    /// Volumes of an ended pod are gone.
    pub volumes_gone: bool,
    /// Failures of preparing or removing volumes.
    pub volumes: Trouble,
    /// Failures of making the sandbox, and of clean-up.
    pub sandbox: Trouble,
    /// By container name.
    pub containers: BTreeMap<String, ContainerMemory>,
    /// By container id: what probes have found out.
    pub probes: BTreeMap<String, ProbeMemory>,
    /// Work in flight.
    pub jobs: BTreeSet<Job>,
    /// The kubelet refused this pod: phase Failed with this reason and message.
    pub rejected: Option<Rejection>,
    /// Everything is gone and said; the actor may end.
    pub finished: bool,
}

/// Consecutive failures of one thing.
#[derive(Debug, Clone, Default)]
pub struct Trouble {
    /// How long to wait.
    pub backoff: Backoff,
    /// When it failed last, and how.
    pub failed: Option<(Timestamp, String)>,
}

/// Why a pod ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Termination {
    /// When stopping began.
    pub since: Timestamp,
    /// How long containers get.
    pub grace: Duration,
    /// Remove everything, and the API object too.
    pub delete: bool,
    /// `status.reason` and `status.message` with phase Failed, such as DeadlineExceeded.
    pub failure: Option<Rejection>,
}

/// A reason and a message for `status`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejection {
    /// CamelCase, from upstream's vocabulary.
    pub reason: String,
    /// For people.
    pub message: String,
}

/// What is remembered of one container of the spec.
#[derive(Debug, Clone, Default)]
pub struct ContainerMemory {
    /// Why it is not running.
    pub waiting: Option<Waiting>,
    /// Restarts.
    pub crash: Backoff,
    /// Image pulls.
    pub pull: Backoff,
    /// When the last start failed before the container ran, and where.
    pub failed_start: Option<(Timestamp, StartStage)>,
    /// Restart count to begin with when the runtime has no container of this name.
    pub restarts_known: Option<u32>,
}

/// `state.waiting`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    /// CamelCase, from upstream's vocabulary.
    pub reason: String,
    /// For people.
    pub message: String,
}

/// Where starting a container failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StartStage {
    /// The image could not be pulled; pulls back off.
    Pull,
    /// Everything else before the process ran; tried again at the pod worker's pace.
    Create,
    /// The process could not be started, or postStart failed: counts as a crash.
    Run,
}

/// What probes have found out about one container.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProbeMemory {
    /// The startup probe has passed.
    pub started: Option<bool>,
    /// The readiness probe's verdict.
    pub ready: Option<bool>,
    /// A liveness or startup probe wants the container killed.
    pub condemned: Option<Condemned>,
}

/// Why a running container has to go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Condemned {
    /// The first half of the event's message.
    pub message: String,
    /// The probe's own `terminationGracePeriodSeconds`.
    pub grace_secs: Option<i64>,
}

/// Work in flight; at most one per value.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Job {
    /// Preparing or removing volumes.
    Volumes,
    /// Making, stopping or removing sandboxes.
    Sandbox,
    /// Starting a container, its image pull and postStart included.
    Start(String),
    /// Stopping a container, by id, its preStop included.
    Stop(String),
    /// Removing a container, by id.
    Remove(String),
    /// Writing the last status and removing the pod from the API.
    Finish,
}

impl Memory {
    /// Whether any container is being started.
    pub fn starting(&self) -> bool {
        self.jobs.iter().any(|job| matches!(job, Job::Start(_)))
    }

    /// The memory of a container by name.
    pub fn container(&mut self, name: &str) -> &mut ContainerMemory {
        self.containers.entry(name.to_owned()).or_default()
    }

    /// The startup probe has passed, or there is none.
    pub fn is_started(&self, id: &str, has_probe: bool) -> bool {
        let known = self.probes.get(id).and_then(|probe| probe.started);
        known.unwrap_or(!has_probe)
    }

    /// The readiness probe says yes, or there is none.
    pub fn is_ready(&self, id: &str, has_probe: bool) -> bool {
        let known = self.probes.get(id).and_then(|probe| probe.ready);
        known.unwrap_or(!has_probe)
    }

    /// Why the container with this id has to go, if it has to.
    pub fn condemned(&self, id: &str) -> Option<&Condemned> {
        self.probes.get(id)?.condemned.as_ref()
    }
}
