// SPDX-License-Identifier: Apache-2.0
//! Writes pod statuses to the API: per pod one write at a time, and always the newest status, so a
//! burst of changes costs one or two patches. Static pods' statuses go to their mirrors. Failures
//! are tried again with a growing pause; a pod that is gone is forgotten.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use kube::api::{Api, DeleteParams, Patch, PatchParams, Preconditions};
use kube::{Client, Error};
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::mirror::Mirrors;
use super::status_patch;
use crate::pod::spec;
use crate::ports::StatusSink;

/// Writes at the same time.
const WRITES_MAX: usize = 16;
/// Pause after a failure; it doubles up to the longest.
const PAUSE_FIRST: Duration = Duration::from_millis(200);
const PAUSE_MAX: Duration = Duration::from_secs(10);
/// Deadline of one call.
const CALL: Duration = Duration::from_secs(30);

/// Where one pod's status goes.
#[derive(Debug, Clone)]
struct Target {
    namespace: String,
    name: String,
    uid: String,
}

#[derive(Debug, Default)]
struct State {
    dirty: BTreeMap<String, (Pod, PodStatus)>,
    busy: BTreeSet<String>,
    /// The newest status of each static pod, for mirrors that are yet to come.
    statics: HashMap<String, (Pod, PodStatus)>,
    /// The last status that the API is known to have, by the uid of the API object.
    bases: HashMap<String, Value>,
}

/// The sink. [`StatusWriter::run`] does the writing.
pub struct StatusWriter {
    client: Client,
    mirrors: Arc<Mirrors>,
    state: Mutex<State>,
    wake: Notify,
}

enum Failure {
    /// The object is gone or is another one: nothing to write any more.
    Gone,
    /// Try again.
    Later(String),
}

fn failure(error: Error) -> Failure {
    match error {
        Error::Api(status) if matches!(status.code, 404 | 409) => Failure::Gone,
        Error::Api(status) if status.code == 422 => {
            // The API refuses the content: the same write would fail for ever. The next change of
            // status brings another one.
            tracing::error!(message = status.message, "the API refused a pod status");
            Failure::Gone
        }
        other => Failure::Later(other.to_string()),
    }
}

async fn call<T>(work: impl Future<Output = Result<T, Error>>) -> Result<T, Failure> {
    match tokio::time::timeout(CALL, work).await {
        Ok(result) => result.map_err(failure),
        Err(_) => Err(Failure::Later(format!("no answer within {CALL:?}"))),
    }
}

impl StatusWriter {
    /// A writer; it writes once it runs.
    pub fn new(client: Client, mirrors: Arc<Mirrors>) -> Arc<StatusWriter> {
        Arc::new(StatusWriter {
            client,
            mirrors,
            state: Mutex::default(),
            wake: Notify::new(),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Every change under the lock is whole, so a poisoned state is still good.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn forget(&self, pod: &Pod) {
        let uid = spec::uid(pod);
        let mut state = self.state();
        state.dirty.remove(uid);
        state.statics.remove(uid);
        state.bases.remove(uid);
    }

    fn target(&self, pod: &Pod) -> Option<Target> {
        let of = |pod: &Pod| Target {
            namespace: spec::namespace(pod).to_owned(),
            name: spec::name(pod).to_owned(),
            uid: spec::uid(pod).to_owned(),
        };
        match spec::is_static(pod) {
            true => self.mirrors.mirror_of(pod).as_ref().map(of),
            false => Some(of(pod)),
        }
    }

    /// Writes until `stop`.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) {
        let mut writes: JoinSet<(String, Option<Duration>)> = JoinSet::new();
        let mut pauses: HashMap<String, Duration> = HashMap::new();
        loop {
            while writes.len() < WRITES_MAX {
                let Some((uid, pod, status)) = self.take() else {
                    break;
                };
                let writer = Arc::clone(&self);
                let pause = pauses.get(&uid).copied().unwrap_or(PAUSE_FIRST);
                writes.spawn(async move { writer.write_one(uid, pod, status, pause).await });
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.wake.notified() => {}
                () = self.mirrors.arrived() => {
                    let mut state = self.state();
                    let statics = state.statics.clone();
                    state.dirty.extend(statics);
                }
                Some(done) = writes.join_next() => {
                    let Ok((uid, pause)) = done else {
                        continue;
                    };
                    self.state().busy.remove(&uid);
                    match pause {
                        Some(pause) => pauses.insert(uid, (pause * 2).min(PAUSE_MAX)),
                        None => pauses.remove(&uid),
                    };
                }
            }
        }
    }

    fn take(&self) -> Option<(String, Pod, PodStatus)> {
        let mut state = self.state();
        let uid = state
            .dirty
            .keys()
            .find(|uid| !state.busy.contains(*uid))
            .cloned()?;
        let (pod, status) = state.dirty.remove(&uid)?;
        state.busy.insert(uid.clone());
        Some((uid, pod, status))
    }

    /// One attempt. After a failure it waits, puts the status back unless there is a newer one, and
    /// answers the pause.
    async fn write_one(
        &self,
        uid: String,
        pod: Pod,
        status: PodStatus,
        pause: Duration,
    ) -> (String, Option<Duration>) {
        // Without a mirror there is nothing to write to; its arrival brings the status back here.
        let Some(target) = self.target(&pod) else {
            return (uid, None);
        };
        let problem = match self.write(&target, &status).await {
            Ok(()) | Err(Failure::Gone) => return (uid, None),
            Err(Failure::Later(problem)) => problem,
        };
        tracing::debug!(
            pod = spec::display(&pod),
            problem,
            "the pod's status is not written yet"
        );
        tokio::time::sleep(pause).await;
        self.state()
            .dirty
            .entry(uid.clone())
            .or_insert((pod, status));
        (uid, Some(pause))
    }

    async fn write(&self, target: &Target, status: &PodStatus) -> Result<(), Failure> {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &target.namespace);
        let base = self.state().bases.get(&target.uid).cloned();
        let base = match base {
            Some(base) => base,
            None => {
                let live = call(api.get(&target.name)).await?;
                if spec::uid(&live) != target.uid {
                    return Err(Failure::Gone);
                }
                json_of(live.status.as_ref())
            }
        };
        let Some(change) = status_patch::diff(&base, &json_of(Some(status))) else {
            return Ok(());
        };
        let patch = json!({"metadata": {"uid": target.uid}, "status": change});
        let params = PatchParams::default();
        let patched =
            call(api.patch_status(&target.name, &params, &Patch::Strategic(&patch))).await;
        let mut state = self.state();
        match patched {
            Ok(pod) => {
                state
                    .bases
                    .insert(target.uid.clone(), json_of(pod.status.as_ref()));
                Ok(())
            }
            Err(failure) => {
                // What the API has now is uncertain: ask before the next patch.
                state.bases.remove(&target.uid);
                Err(failure)
            }
        }
    }

    async fn delete(&self, target: &Target) -> Result<(), Failure> {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &target.namespace);
        let params = DeleteParams {
            grace_period_seconds: Some(0),
            preconditions: Some(Preconditions {
                uid: Some(target.uid.clone()),
                resource_version: None,
            }),
            ..Default::default()
        };
        call(api.delete(&target.name, &params)).await.map(|_| ())
    }

    async fn last(&self, pod: &Pod, status: &PodStatus) -> Result<(), Failure> {
        let Some(target) = self.target(pod) else {
            return Ok(());
        };
        self.write(&target, status).await?;
        // A mirror is taken away by the mirror keeper, once no manifest wants it.
        if spec::is_static(pod) {
            self.state().bases.remove(&target.uid);
            return Ok(());
        }
        self.delete(&target).await
    }
}

fn json_of(status: Option<&PodStatus>) -> Value {
    status
        .and_then(|status| serde_json::to_value(status).ok())
        .unwrap_or_else(|| json!({}))
}

impl StatusSink for StatusWriter {
    fn publish(&self, pod: &Pod, status: PodStatus) {
        let light = Pod {
            metadata: pod.metadata.clone(),
            ..Default::default()
        };
        let uid = spec::uid(pod).to_owned();
        let mut state = self.state();
        if spec::is_static(pod) {
            state
                .statics
                .insert(uid.clone(), (light.clone(), status.clone()));
        }
        state.dirty.insert(uid, (light, status));
        drop(state);
        self.wake.notify_one();
    }

    fn finish<'a>(&'a self, pod: &'a Pod, status: PodStatus) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            self.forget(pod);
            let mut pause = PAUSE_FIRST;
            while let Err(Failure::Later(problem)) = self.last(pod, &status).await {
                tracing::warn!(
                    pod = spec::display(pod),
                    problem,
                    "cannot remove the pod from the API yet"
                );
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(PAUSE_MAX);
            }
            self.forget(pod);
        })
    }
}

/// The sink of a kubelet without an API server: the pod table is all there is.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoApi;

impl StatusSink for NoApi {
    fn publish(&self, _: &Pod, _: PodStatus) {}

    fn finish<'a>(&'a self, _: &'a Pod, _: PodStatus) -> BoxFuture<'a, ()> {
        Box::pin(async {})
    }
}
