// SPDX-License-Identifier: Apache-2.0
//! The task: Nodes in, steps in the kernel and the own announcement out.

use std::collections::BTreeSet;
use std::pin::pin;
use std::time::{Duration, Instant};

use cni::overlay::{Kernel, OverlayError, Own, Peer, Problem, Report};
use futures::{FutureExt, StreamExt};
use k8s_openapi::api::core::v1::{Node, ObjectReference};
use kube::api::{Patch, PatchParams};
use kube::runtime::events::{Event, EventType, Recorder};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client};
use serde_json::json;
use tokio::sync::oneshot;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::nodes::Nodes;
use super::{ANNOTATION, Config};
use crate::Error;

/// How often the kernel is compared with what it should have, whatever happens.
const LOOK_AGAIN: Duration = Duration::from_secs(3);
/// An announcement that the API server did not take is tried again after this time.
const SAY_AGAIN: Duration = Duration::from_secs(2);
/// Time for one request.
const REQUEST: Duration = Duration::from_secs(10);
/// How many events are taken in before the kernel hears of them.
const EVENTS_PER_SYNC: usize = 10_000;
/// Problems of one look that become Events; the log has all of them.
const EVENTS_PER_LOOK: usize = 10;

/// Run until `stop`. `ready` is sent at once: a node without others is whole, and one that cannot
/// reach the API server keeps what it has.
///
/// # Errors
/// When the kubeconfig cannot be used.
pub async fn run(
    config: Config,
    ready: oneshot::Sender<()>,
    stop: CancellationToken,
) -> Result<(), Error> {
    let client = crate::run::client(&config.kubeconfig).await?;
    let api = Api::<Node>::all(client.clone());
    let mut events = pin!(watcher(api, watcher::Config::default()).default_backoff());
    let mut work = Work::new(config, client);
    let mut look = tokio::time::interval(LOOK_AGAIN);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // The receiver is gone when the supervisor has given up; then there is nobody to tell.
    let _ = ready.send(());
    loop {
        let mut due = tokio::select! {
            () = stop.cancelled() => return Ok(()),
            event = events.next() => work.event(event)?,
            _ = look.tick() => true,
        };
        for _ in 0..EVENTS_PER_SYNC {
            let Some(event) = events.next().now_or_never() else {
                break;
            };
            due |= work.event(event)?;
        }
        if due && work.nodes.complete() {
            work.sync().await?;
            work.announce().await;
        }
    }
}

type Watched = Option<Result<watcher::Event<Node>, watcher::Error>>;

struct Work {
    config: Config,
    client: Client,
    recorder: Recorder,
    nodes: Nodes,
    /// Opened at the first use, and again after an error.
    kernel: Option<Kernel>,
    problems: BTreeSet<Problem>,
    /// What was last said, and when.
    said: Option<(Option<String>, Instant)>,
}

impl Work {
    fn new(config: Config, client: Client) -> Work {
        let reporter = "podwright-overlay".to_owned().into();
        Work {
            recorder: Recorder::new(client.clone(), reporter),
            nodes: Nodes::default(),
            kernel: None,
            problems: BTreeSet::new(),
            said: None,
            config,
            client,
        }
    }

    fn event(&mut self, event: Watched) -> Result<bool, Error> {
        match event {
            None => Err(Error::WatchEnded("Nodes")),
            Some(Ok(event)) => Ok(self.nodes.event(event)),
            Some(Err(error)) => {
                tracing::warn!(%error, "watching Nodes");
                Ok(false)
            }
        }
    }

    /// This node, once it has ranges for its pods.
    fn own(&self) -> Option<Own> {
        let known = self.nodes.get(&self.config.node_name)?;
        (!known.pod_cidrs.is_empty()).then(|| Own {
            name: self.config.node_name.clone(),
            addresses: self.config.node_ips.clone(),
            pod_cidrs: known.pod_cidrs.clone(),
            keys: None,
        })
    }

    /// Bring the kernel in line.
    async fn sync(&mut self) -> Result<(), Error> {
        let Some(own) = self.own() else { return Ok(()) };
        let (peers, mut problems) = self.nodes.peers(&own.name);
        let (kernel, settings) = (self.kernel.take(), self.config.settings.clone());
        let said = self.nodes.get(&own.name);
        let said = said.and_then(|known| known.announcement.clone());
        let synced = tokio::task::spawn_blocking(move || {
            let mut kernel = match kernel {
                Some(kernel) => kernel,
                None => Kernel::open(settings)?,
            };
            let report = turn(&mut kernel, &own, &peers, said.as_deref())?;
            Ok::<_, OverlayError>((kernel, report))
        });
        match synced.await.map_err(|_| Error::Died)? {
            Ok((kernel, report)) => {
                self.kernel = Some(kernel);
                for step in &report.done {
                    tracing::info!("{step}");
                }
                problems.extend(report.problems);
            }
            Err(error) => problems.push(Problem {
                peer: None,
                text: cni::chain(&error),
            }),
        }
        self.note(problems).await;
        Ok(())
    }

    /// Tell of problems that are new, and of those that are gone.
    async fn note(&mut self, problems: Vec<Problem>) {
        let problems: BTreeSet<Problem> = problems.into_iter().collect();
        for gone in self.problems.difference(&problems) {
            tracing::info!("no longer: {gone}");
        }
        let new: Vec<Problem> = problems.difference(&self.problems).cloned().collect();
        self.problems = problems;
        for (index, problem) in new.iter().enumerate() {
            tracing::warn!("{problem}");
            if index < EVENTS_PER_LOOK {
                self.record(problem).await;
            }
        }
    }

    async fn record(&self, problem: &Problem) {
        let name = &self.config.node_name;
        let about = ObjectReference {
            api_version: Some("v1".into()),
            kind: Some("Node".into()),
            name: Some(name.clone()),
            // kubelets name their Node so in events, and kubectl looks for that.
            uid: Some(name.clone()),
            ..ObjectReference::default()
        };
        let event = Event {
            type_: EventType::Warning,
            reason: "OverlayProblem".into(),
            note: Some(problem.to_string()),
            action: "Connecting".into(),
            secondary: None,
        };
        let sent = tokio::time::timeout(REQUEST, self.recorder.publish(&event, &about)).await;
        if !matches!(sent, Ok(Ok(()))) {
            tracing::debug!("an event about the overlay was not taken");
        }
    }

    /// Say how this node is reached, unless its Node says so already. What was said before stays for
    /// as long as the kernel cannot be looked at.
    async fn announce(&mut self) {
        let Some((own, known)) = self.own().zip(self.nodes.get(&self.config.node_name)) else {
            return;
        };
        let Some(kernel) = &self.kernel else { return };
        let wanted = kernel.announcement(&own).map(|said| said.text());
        let again = self
            .said
            .as_ref()
            .is_none_or(|(what, when)| *what != wanted || when.elapsed() >= SAY_AGAIN);
        if known.announcement == wanted || !again {
            return;
        }
        let patch = json!({
            "metadata": {"uid": known.uid, "annotations": {ANNOTATION: wanted}}
        });
        let api = Api::<Node>::all(self.client.clone());
        let (params, patch) = (PatchParams::default(), Patch::Merge(&patch));
        let sent = api.patch_metadata(&own.name, &params, &patch);
        self.said = Some((wanted, Instant::now()));
        match tokio::time::timeout(REQUEST, sent).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => tracing::warn!(%error, "announcing how this node is reached"),
            Err(_) => {
                tracing::warn!("announcing how this node is reached: no answer in {REQUEST:?}")
            }
        }
    }
}

/// Go on towards another key, if it is time, and bring the kernel in line. `said` is what the Node of
/// this node tells the others.
fn turn(
    kernel: &mut Kernel,
    own: &Own,
    peers: &[Peer],
    said: Option<&str>,
) -> Result<Report, OverlayError> {
    let wanted = kernel.announcement(own).map(|wanted| wanted.text());
    let turned = kernel.rotate(wanted.as_deref() == said);
    let mut report = kernel.sync(own, peers)?;
    match turned {
        Ok(done) => report.done.extend(done),
        Err(error) => report.problems.push(Problem {
            peer: None,
            text: cni::chain(&error),
        }),
    }
    Ok(report)
}
