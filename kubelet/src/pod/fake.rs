// SPDX-License-Identifier: Apache-2.0
//! Fakes that behave: a runtime in memory with CRI's semantics, a clock on tokio's (paused) time, a
//! sink and a recorder that remember. What a container does is written in its image's name:
//! `run` runs until stopped, `exit-<code>` ends at once, `gone` cannot be pulled, `sick` runs and
//! fails every exec.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{ObjectReference, Pod, PodStatus};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::labels;
use super::state::{ContainerSeen, ContainerState, ImageSeen, SandboxSeen, Seen};
use crate::cri_v1 as cri;
use crate::ports::{
    Clock, EventType, Events, ExecOutput, Runtime, RuntimeError, RuntimePod, RuntimeResult,
    StatusSink,
};

/// Wall clock that follows tokio's.
pub(crate) struct TokioClock {
    start: Instant,
}

impl TokioClock {
    pub(crate) fn new() -> Arc<TokioClock> {
        Arc::new(TokioClock {
            start: Instant::now(),
        })
    }
}

impl Clock for TokioClock {
    fn now(&self) -> Timestamp {
        let passed = SignedDuration::try_from(self.start.elapsed()).expect("tests are short");
        super::testing::at(0) + passed
    }
}

#[derive(Default)]
struct State {
    sandboxes: Vec<SandboxSeen>,
    containers: Vec<ContainerSeen>,
    images: Vec<String>,
    ids: u32,
    calls: Vec<String>,
}

/// The runtime of one pod.
pub(crate) struct FakeRuntime {
    clock: Arc<TokioClock>,
    state: Mutex<State>,
    pub(crate) look: Mutex<Arc<Notify>>,
}

fn refused<T>(call: &'static str, not_found: bool, message: &str) -> RuntimeResult<T> {
    Err(RuntimeError::Refused {
        call,
        not_found,
        unimplemented: false,
        message: message.to_owned(),
    })
}

impl FakeRuntime {
    pub(crate) fn new(clock: Arc<TokioClock>) -> Arc<FakeRuntime> {
        Arc::new(FakeRuntime {
            clock,
            state: Mutex::default(),
            look: Mutex::default(),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn changed(&self) {
        self.look
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .notify_one();
    }

    pub(crate) fn calls(&self) -> Vec<String> {
        self.state().calls.clone()
    }

    /// Makes an image known without a pull.
    pub(crate) fn add_image(&self, name: &str) {
        self.state().images.push(format!("{name}:latest"));
    }

    pub(crate) fn containers(&self) -> Vec<ContainerSeen> {
        self.state().containers.clone()
    }

    pub(crate) fn is_empty(&self) -> bool {
        let state = self.state();
        state.sandboxes.is_empty() && state.containers.is_empty()
    }

    fn end(&self, state: &mut State, id: &str, code: i32) {
        let now = self.clock.now();
        for container in &mut state.containers {
            if container.id == id && container.state == ContainerState::Running {
                container.state = ContainerState::Exited;
                container.exit_code = code;
                container.finished_at = Some(now);
            }
        }
    }
}

fn ready<T: Send + 'static>(value: T) -> BoxFuture<'static, T> {
    Box::pin(async move { value })
}

impl Runtime for FakeRuntime {
    fn name(&self) -> String {
        "fake".to_owned()
    }

    fn list(&self) -> BoxFuture<'_, RuntimeResult<Vec<RuntimePod>>> {
        ready(Ok(Vec::new()))
    }

    fn pod(&self, _: &str) -> BoxFuture<'_, RuntimeResult<Seen>> {
        let state = self.state();
        let mut seen = Seen {
            sandboxes: state.sandboxes.clone(),
            containers: state.containers.clone(),
        };
        seen.sandboxes.reverse();
        seen.containers.reverse();
        ready(Ok(seen))
    }

    fn handlers(&self) -> BoxFuture<'_, RuntimeResult<Vec<cri::RuntimeHandler>>> {
        ready(Ok(Vec::new()))
    }

    fn run_sandbox(
        &self,
        config: cri::PodSandboxConfig,
        _: String,
    ) -> BoxFuture<'_, RuntimeResult<String>> {
        let mut state = self.state();
        let attempt = config.metadata.unwrap_or_default().attempt;
        let id = format!("s{attempt}");
        state.sandboxes.push(SandboxSeen {
            id: id.clone(),
            attempt,
            ready: true,
            created_at: self.clock.now(),
            ips: vec!["127.0.0.1".to_owned()],
        });
        drop(state);
        self.changed();
        ready(Ok(id))
    }

    fn stop_sandbox(&self, id: &str) -> BoxFuture<'_, RuntimeResult<()>> {
        let mut state = self.state();
        let inside: Vec<String> = state
            .containers
            .iter()
            .filter(|item| item.sandbox == id)
            .map(|item| item.id.clone())
            .collect();
        for container in inside {
            self.end(&mut state, &container, 137);
        }
        for sandbox in state
            .sandboxes
            .iter_mut()
            .filter(|sandbox| sandbox.id == id)
        {
            sandbox.ready = false;
            sandbox.ips.clear();
        }
        drop(state);
        self.changed();
        ready(Ok(()))
    }

    fn remove_sandbox(&self, id: &str) -> BoxFuture<'_, RuntimeResult<()>> {
        let mut state = self.state();
        state.sandboxes.retain(|sandbox| sandbox.id != id);
        state.containers.retain(|container| container.sandbox != id);
        ready(Ok(()))
    }

    fn create_container(
        &self,
        sandbox: &str,
        config: cri::ContainerConfig,
        _: cri::PodSandboxConfig,
    ) -> BoxFuture<'_, RuntimeResult<String>> {
        let mut state = self.state();
        let metadata = config.metadata.unwrap_or_default();
        let taken = state.containers.iter().any(|item| {
            item.name == metadata.name
                && item.restart_count == metadata.attempt
                && item.sandbox == sandbox
        });
        if taken {
            return ready(refused("CreateContainer", false, "the name is taken"));
        }
        state.ids += 1;
        let id = format!("c{}", state.ids);
        let spec = config.image.unwrap_or_default();
        state.containers.push(ContainerSeen {
            id: id.clone(),
            sandbox: sandbox.to_owned(),
            restart_count: metadata.attempt,
            name: metadata.name,
            state: ContainerState::Created,
            created_at: self.clock.now(),
            started_at: None,
            finished_at: None,
            exit_code: 0,
            reason: String::new(),
            message: String::new(),
            image: spec.user_specified_image,
            image_ref: spec.image,
            hash: config
                .annotations
                .get(labels::CONTAINER_HASH)
                .cloned()
                .unwrap_or_default(),
            log_path: config.log_path,
            termination_log: None,
        });
        ready(Ok(id))
    }

    fn start_container(&self, id: &str) -> BoxFuture<'_, RuntimeResult<()>> {
        let mut state = self.state();
        let now = self.clock.now();
        let Some(container) = state.containers.iter_mut().find(|item| item.id == id) else {
            return ready(refused("StartContainer", true, "no such container"));
        };
        container.state = ContainerState::Running;
        container.started_at = Some(now);
        let code = container
            .image
            .strip_prefix("exit-")
            .and_then(|code| code.parse().ok());
        let name = container.name.clone();
        state.calls.push(format!("start {name}"));
        if let Some(code) = code {
            self.end(&mut state, id, code);
        }
        drop(state);
        self.changed();
        ready(Ok(()))
    }

    fn stop_container(&self, id: &str, grace: Duration) -> BoxFuture<'_, RuntimeResult<()>> {
        let mut state = self.state();
        let name = state
            .containers
            .iter()
            .find(|item| item.id == id)
            .map(|item| item.name.clone());
        state.calls.push(format!(
            "stop {} {}",
            name.unwrap_or_default(),
            grace.as_secs()
        ));
        self.end(&mut state, id, 143);
        drop(state);
        self.changed();
        ready(Ok(()))
    }

    fn remove_container(&self, id: &str) -> BoxFuture<'_, RuntimeResult<()>> {
        self.state()
            .containers
            .retain(|container| container.id != id);
        ready(Ok(()))
    }

    fn exec(
        &self,
        id: &str,
        command: Vec<String>,
        _: Duration,
    ) -> BoxFuture<'_, RuntimeResult<ExecOutput>> {
        let mut state = self.state();
        let sick = state
            .containers
            .iter()
            .any(|item| item.id == id && item.image == "sick");
        state.calls.push(format!("exec {}", command.join(" ")));
        ready(Ok(ExecOutput {
            output: b"out".to_vec(),
            exit_code: i32::from(sick),
        }))
    }

    fn image(&self, reference: &str) -> BoxFuture<'_, RuntimeResult<Option<ImageSeen>>> {
        let known = self.state().images.iter().any(|image| image == reference);
        ready(Ok(known.then(|| ImageSeen {
            id: format!("sha256:{reference}"),
            ..Default::default()
        })))
    }

    fn pull(
        &self,
        reference: &str,
        _: Option<cri::AuthConfig>,
        _: cri::PodSandboxConfig,
    ) -> BoxFuture<'_, RuntimeResult<String>> {
        let mut state = self.state();
        state.calls.push(format!("pull {reference}"));
        if reference.starts_with("gone") && !state.images.iter().any(|image| image == reference) {
            return ready(refused("PullImage", false, "no such image"));
        }
        state.images.push(reference.to_owned());
        ready(Ok(reference.to_owned()))
    }

    fn events(&self) -> BoxFuture<'_, RuntimeResult<BoxStream<'static, RuntimeResult<String>>>> {
        ready(Ok(futures::stream::pending().boxed()))
    }
}

/// Remembers what was published and what was finished.
#[derive(Default)]
pub(crate) struct FakeSink {
    pub(crate) statuses: Mutex<Vec<PodStatus>>,
    pub(crate) finished: Mutex<BTreeMap<String, PodStatus>>,
}

impl StatusSink for FakeSink {
    fn publish(&self, _: &Pod, status: PodStatus) {
        self.statuses
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(status);
    }

    fn finish<'a>(&'a self, pod: &'a Pod, status: PodStatus) -> BoxFuture<'a, ()> {
        let uid = super::spec::uid(pod).to_owned();
        self.finished
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(uid, status);
        ready(())
    }
}

/// Remembers events as `reason: message`.
#[derive(Default)]
pub(crate) struct FakeEvents {
    pub(crate) seen: Mutex<Vec<String>>,
}

impl Events for FakeEvents {
    fn record(&self, _: ObjectReference, _: EventType, reason: &str, message: String) {
        self.seen
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(format!("{reason}: {message}"));
    }
}
