// SPDX-License-Identifier: Apache-2.0
//! What the core needs from the world, as narrow traits: a runtime, a place for statuses, a place
//! for events, a clock. The adapters implement them; tests implement them with fakes that behave.

use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::BoxStream;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ObjectReference, Pod, PodStatus};

use crate::cri_v1 as cri;
use crate::pod::state::{ImageSeen, Seen};

/// Wall-clock time. Everything that decides by time asks this, so tests need not sleep.
pub trait Clock: Send + Sync + 'static {
    /// The time now.
    fn now(&self) -> Timestamp;
}

/// The machine's clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        Timestamp::now()
    }
}

/// A runtime call that did not work.
#[derive(Debug, Clone, thiserror::Error)]
pub enum RuntimeError {
    /// The runtime answered with an error. Its text is what users see in events and statuses.
    #[error("{message}")]
    Refused {
        /// The RPC.
        call: &'static str,
        /// Whether the object is simply not there.
        not_found: bool,
        /// Whether the runtime does not implement the call.
        unimplemented: bool,
        /// The runtime's own words.
        message: String,
    },
    /// The runtime did not answer in time.
    #[error("{call}: no answer from the runtime within {after:?}")]
    Deadline {
        /// The RPC.
        call: &'static str,
        /// The deadline that passed.
        after: Duration,
    },
    /// The runtime cannot be reached.
    #[error("{call}: the runtime cannot be reached: {message}")]
    Unreachable {
        /// The RPC.
        call: &'static str,
        /// What the transport said.
        message: String,
    },
}

impl RuntimeError {
    /// The object asked for does not exist: for stop and remove that is success.
    pub fn is_not_found(&self) -> bool {
        matches!(
            self,
            RuntimeError::Refused {
                not_found: true,
                ..
            }
        )
    }

    /// The runtime does not have this call.
    pub fn is_unimplemented(&self) -> bool {
        matches!(
            self,
            RuntimeError::Refused {
                unimplemented: true,
                ..
            }
        )
    }
}

/// Shorthand for what every runtime call answers.
pub type RuntimeResult<T> = Result<T, RuntimeError>;

/// What a command run inside a container answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecOutput {
    /// Standard output, then standard error.
    pub output: Vec<u8>,
    /// The exit code.
    pub exit_code: i32,
}

/// One runtime pod in a listing: enough to see whether anything changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuntimePod {
    /// The pod's uid.
    pub uid: String,
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub name: String,
    /// Sandbox and container ids with their states, sorted: two equal listings mean "no change".
    pub fingerprint: Vec<(String, i32)>,
    /// Whether any sandbox is ready or any container runs.
    pub running: bool,
    /// `io.kubernetes.pod.terminationGracePeriod` as the pod's containers carry it.
    pub grace_secs: Option<i64>,
}

/// The container runtime. Every call has a deadline inside. `stop_*` and `remove_*` of what is
/// already gone succeed. Dropping a future abandons the wait, not the work in the runtime.
pub trait Runtime: Send + Sync + 'static {
    /// The runtime's name, as in `<name>://<container id>`.
    fn name(&self) -> String;
    /// Every pod that the runtime knows, by uid.
    fn list(&self) -> BoxFuture<'_, RuntimeResult<Vec<RuntimePod>>>;
    /// Everything that the runtime knows of one pod.
    fn pod(&self, uid: &str) -> BoxFuture<'_, RuntimeResult<Seen>>;
    /// The handlers that the runtime has, with what they can do.
    fn handlers(&self) -> BoxFuture<'_, RuntimeResult<Vec<cri::RuntimeHandler>>>;
    /// Makes and starts a sandbox by a handler of the runtime; the empty name is the default one.
    fn run_sandbox(
        &self,
        config: cri::PodSandboxConfig,
        handler: String,
    ) -> BoxFuture<'_, RuntimeResult<String>>;
    /// Stops a sandbox and what runs in it.
    fn stop_sandbox(&self, id: &str) -> BoxFuture<'_, RuntimeResult<()>>;
    /// Removes a stopped sandbox and its containers.
    fn remove_sandbox(&self, id: &str) -> BoxFuture<'_, RuntimeResult<()>>;
    /// Creates a container in a sandbox.
    fn create_container(
        &self,
        sandbox: &str,
        config: cri::ContainerConfig,
        sandbox_config: cri::PodSandboxConfig,
    ) -> BoxFuture<'_, RuntimeResult<String>>;
    /// Starts a created container.
    fn start_container(&self, id: &str) -> BoxFuture<'_, RuntimeResult<()>>;
    /// Stops a container: its stop signal, then SIGKILL after `grace`.
    fn stop_container(&self, id: &str, grace: Duration) -> BoxFuture<'_, RuntimeResult<()>>;
    /// Removes a container.
    fn remove_container(&self, id: &str) -> BoxFuture<'_, RuntimeResult<()>>;
    /// Runs a command in a container and waits for it.
    fn exec(
        &self,
        id: &str,
        command: Vec<String>,
        timeout: Duration,
    ) -> BoxFuture<'_, RuntimeResult<ExecOutput>>;
    /// The image, if the runtime has it.
    fn image(&self, reference: &str) -> BoxFuture<'_, RuntimeResult<Option<ImageSeen>>>;
    /// Pulls an image and answers its reference.
    fn pull(
        &self,
        reference: &str,
        auth: Option<cri::AuthConfig>,
        sandbox_config: cri::PodSandboxConfig,
    ) -> BoxFuture<'_, RuntimeResult<String>>;
    /// Uids of pods in which something happened. Ends or errs when the stream breaks; the caller
    /// lists, since events may be lost.
    fn events(&self) -> BoxFuture<'_, RuntimeResult<BoxStream<'static, RuntimeResult<String>>>>;
}

/// Where pod statuses go. One writer per pod (its actor); the newest status wins.
pub trait StatusSink: Send + Sync + 'static {
    /// Hands over the newest status. Returns at once; the sink batches, retries, and drops what is
    /// superseded.
    fn publish(&self, pod: &Pod, status: PodStatus);
    /// Writes the last status and then removes the pod from its source of truth, unless the source
    /// has already dropped it. Returns when that is done; retries for as long as it takes.
    fn finish<'a>(&'a self, pod: &'a Pod, status: PodStatus) -> BoxFuture<'a, ()>;
}

/// `Normal` or `Warning`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventType {
    /// Nothing is wrong.
    Normal,
    /// Somebody should look.
    Warning,
}

impl EventType {
    /// The word the API uses.
    pub fn as_str(self) -> &'static str {
        match self {
            EventType::Normal => "Normal",
            EventType::Warning => "Warning",
        }
    }
}

/// Where events go. Best effort: an event may be dropped, and equal events are counted, not kept.
pub trait Events: Send + Sync + 'static {
    /// Records an event about an object. Returns at once.
    fn record(&self, about: ObjectReference, kind: EventType, reason: &str, message: String);
}

/// What the node can give to pods; from `node`, used by admission.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Allocatable {
    /// Thousandths of a CPU.
    pub cpu_millis: i64,
    /// Bytes.
    pub memory_bytes: i64,
    /// Bytes of local storage.
    pub ephemeral_storage_bytes: i64,
    /// Number of pods.
    pub pods: u32,
}
