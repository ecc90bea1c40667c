// SPDX-License-Identifier: Apache-2.0
//! One task per probe of a running container. It reports every result; the pod's actor, which owns
//! the task and ends it with the container, decides what follows.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Probe;
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior};

use super::ProbeKind;
use super::handler::{self, Target};
use super::state::{Outcome, Track, Verdict};
use crate::ports::Runtime;

/// One result.
#[derive(Debug, Clone)]
pub struct Report {
    /// The runtime's container id.
    pub container_id: String,
    /// The container's name.
    pub container: String,
    /// Which probe.
    pub kind: ProbeKind,
    /// What it found.
    pub outcome: Outcome,
    /// Whether a threshold was reached.
    pub verdict: Option<Verdict>,
}

/// What to probe, and since when the container runs.
#[derive(Debug, Clone)]
pub struct Work {
    /// Which probe.
    pub kind: ProbeKind,
    /// Its settings.
    pub probe: Probe,
    /// Where.
    pub target: Target,
    /// `initialDelaySeconds` counts from here.
    pub started_at: Timestamp,
}

fn seconds(value: Option<i32>, default: u64) -> Duration {
    let value = value.and_then(|value| u64::try_from(value).ok());
    Duration::from_secs(value.unwrap_or(default))
}

/// How long from `now` until the first run.
pub fn first_wait(probe: &Probe, started_at: Timestamp, now: Timestamp) -> Duration {
    let ran = Duration::try_from(now.duration_since(started_at)).unwrap_or(Duration::ZERO);
    seconds(probe.initial_delay_seconds, 0).saturating_sub(ran)
}

/// Probes until the verdict ends the need for it: a passed startup probe, a failed startup or
/// liveness probe. Ends too when nobody listens any more.
pub async fn run(
    work: Work,
    runtime: Arc<dyn Runtime>,
    now: Timestamp,
    reports: mpsc::Sender<Report>,
) {
    let first = Instant::now() + first_wait(&work.probe, work.started_at, now);
    let period = seconds(work.probe.period_seconds, 10).max(Duration::from_secs(1));
    let mut ticks = tokio::time::interval_at(first, period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut track = Track::new(&work.probe);
    loop {
        ticks.tick().await;
        let outcome = handler::run(&work.probe, &work.target, runtime.as_ref()).await;
        let verdict = track.observe(&outcome);
        let report = Report {
            container_id: work.target.container_id.clone(),
            container: work.target.container.name.clone(),
            kind: work.kind,
            outcome,
            verdict,
        };
        if reports.send(report).await.is_err() {
            return;
        }
        match (work.kind, verdict) {
            (ProbeKind::Startup, Some(_)) | (ProbeKind::Liveness, Some(Verdict::Bad)) => return,
            _ => {}
        }
    }
}
