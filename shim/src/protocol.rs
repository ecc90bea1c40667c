// SPDX-License-Identifier: Apache-2.0
//! What a daemon and a shim say to each other.
//!
//! The socket is `<pod dir>/shim.sock`, of type SOCK_SEQPACKET: one packet is one message, and
//! descriptors travel with it (SCM_RIGHTS). A connection may carry any number of requests at once;
//! each reply names its request. Any number of connections may come, in sequence or side by side.
//! Nothing that a client does or leaves undone stops a container.
//!
//! Both ends may be of different builds. The types here and in [`crate::plan`] grow by the rules of
//! [`crate::format`] only, so a request that version N knew is encoded for ever as in version N, and
//! a shim refuses what is newer than itself by name ([`FailureKind::Newer`]). A client says its
//! version first ([`Body::Hello`]) and hears the shim's.

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::format::{self, Newer};
use crate::plan::{LaunchPlan, ProcessPlan};

/// The version of the protocol: grows with each release that adds to it.
pub const VERSION: u32 = 2;

/// The name of the socket in the pod's directory.
pub const SOCKET_NAME: &str = "shim.sock";

/// The name under which the sandbox process appears among the processes of a shim.
pub const SANDBOX: &str = "sandbox";

/// A message of a client, with the number that its reply will carry. Zero is reserved for events.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    pub id: u32,
    pub body: Body,
}

/// Everything that can be asked of a shim.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Body {
    /// The first request of a connection; a client that leaves it out is of version 1.
    /// Answer: [`Answer::Hello`].
    Hello { version: u32 },
    /// All processes, running and ended, and the shim's own pid. Answer: [`Answer::State`].
    State,
    /// Sends [`Message::Exit`] on this connection for every process that ends from now on.
    Subscribe,
    /// Starts the sandbox process. Allowed once. Answer: [`Answer::Started`].
    StartSandbox(Box<LaunchPlan>),
    /// Makes a container that waits for `Start`. Answer: [`Answer::Started`].
    Create {
        container: String,
        plan: Box<LaunchPlan>,
        io: ContainerIo,
    },
    /// Lets a created container run its first process. Answer: [`Answer::Done`].
    Start { container: String },
    /// Signals one process, or `all`: every process of the container, or an exec with all that it
    /// started. Succeeds when there is nothing left to signal.
    Signal {
        process: ProcessId,
        signal: i32,
        all: bool,
    },
    /// Runs a process in a running container. Without a terminal, three descriptors come with the
    /// request: stdin, stdout, stderr. With one, the answer carries the terminal's master side.
    Exec {
        container: String,
        exec: String,
        process: Box<ProcessPlan>,
    },
    /// Answered with [`Answer::Exited`] once the process has ended; at once if it already has.
    Wait { process: ProcessId },
    /// Sets the size of a container's terminal. (An exec's terminal is the client's own.)
    Resize {
        container: String,
        columns: u16,
        rows: u16,
    },
    /// Joins a container's output, and feeds its stdin. The descriptors come in the order stdin,
    /// stdout, stderr, those that are wanted.
    Attach {
        container: String,
        stdin: bool,
        stdout: bool,
        stderr: bool,
    },
    /// Opens the log file anew, after it was rotated.
    ReopenLog { container: String },
    /// Forgets an ended container or exec, and its exit record.
    Remove { process: ProcessId },
    /// Ends the shim. Everything that still runs is killed first.
    Shutdown,
}

/// A process as the shim knows it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ProcessId {
    /// The container, or [`SANDBOX`].
    pub container: String,
    /// The exec; none for the first process.
    pub exec: Option<String>,
}

/// What becomes of a container's standard streams.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerIo {
    /// The CRI log file; none discards the output.
    pub log_path: Option<String>,
    /// Keeps stdin open for attaching clients. Otherwise stdin is /dev/null.
    pub stdin: bool,
    /// Closes stdin for good when the first client that fed it is done.
    pub stdin_once: bool,
}

/// A message of the shim.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Message {
    /// The answer to request `id`.
    Reply {
        id: u32,
        result: Result<Answer, Failure>,
    },
    /// A process ended (only after `Subscribe`).
    Exit {
        process: ProcessId,
        record: ExitRecord,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    Done,
    /// The shim's version.
    Hello {
        version: u32,
    },
    /// The process's pid in the shim's pid namespace, and what had to be clamped to make it run.
    Started {
        pid: u32,
        notes: Vec<String>,
    },
    Exited(ExitRecord),
    State(ShimState),
}

/// Why a request failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    pub kind: FailureKind,
    /// What was attempted, on what, and the system's reason.
    pub message: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum FailureKind {
    /// No such container or exec.
    NotFound,
    /// The name is taken.
    Exists,
    /// Not possible in the process's present state.
    State,
    /// The container could not be started: the message is for its status.
    Launch,
    /// The request made no sense.
    Invalid,
    /// The system refused.
    System,
    /// This shim is older than what was asked of it.
    Newer,
}

/// All that the shim knows.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShimState {
    pub shim_pid: u32,
    pub processes: Vec<ProcessState>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessState {
    pub process: ProcessId,
    pub pid: u32,
    pub phase: Phase,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    /// Waits for `Start`.
    Created,
    Running {
        started_at: i64,
    },
    Exited(ExitRecord),
    /// Was told to start, and has not yet executed its program: `Running` or `Exited` comes soon.
    Starting,
}

/// How a process ended. Times are nanoseconds since the epoch.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitRecord {
    pub pid: u32,
    /// The exit code; 128 + signal when a signal ended it.
    pub code: i32,
    /// The signal that ended it, or zero.
    pub signal: i32,
    /// The kernel killed a process of this container for lack of memory.
    pub oom_killed: bool,
    /// Zero when it was never started.
    pub started_at: i64,
    pub finished_at: i64,
}

/// The part of a request that can be read even when the rest is newer than this build.
#[derive(Deserialize)]
struct RequestId {
    id: u32,
}

/// Encodes a message.
///
/// # Errors
/// Only when a value cannot be represented, which none of these types can cause.
pub fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, format::Error> {
    format::to_bytes(value)
}

/// Decodes a message; trailing bytes are an error, and so is what is newer than this build.
///
/// # Errors
/// When the bytes are not a message, or a newer one.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, format::Error> {
    format::from_bytes(bytes, Newer::Refuse)
}

/// Decodes a request. Of one that is newer than this build, the number comes with the error.
///
/// # Errors
/// The answer to the request, or nothing when it cannot be answered.
pub fn decode_request(bytes: &[u8]) -> Result<Request, Option<(u32, Failure)>> {
    decode(bytes).map_err(|error| {
        let RequestId { id } = format::from_bytes(bytes, Newer::Skip).ok()?;
        let failure = Failure {
            kind: match error.is_newer() {
                true => FailureKind::Newer,
                false => FailureKind::Invalid,
            },
            message: format!(
                "the pod's shim (protocol {VERSION}) cannot do this: {error}; \
                 a pod that is made anew gets a new shim"
            ),
        };
        Some((id, failure))
    })
}

/// Decodes a message of a shim, which may be newer: fields that this build does not know are left out.
///
/// # Errors
/// When the bytes are not a message.
pub fn decode_message(bytes: &[u8]) -> Result<Message, format::Error> {
    format::from_bytes(bytes, Newer::Skip)
}
