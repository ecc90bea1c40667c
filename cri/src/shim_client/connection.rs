// SPDX-License-Identifier: Apache-2.0
//! One connection to a shim, shared by all clones of a [`Shim`].

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use shim::plan::{CgroupJoin, LaunchPlan, ProcessPlan};
use shim::protocol::{ContainerIo, ExitRecord, FailureKind, ProcessId, ShimState};
use tokio::sync::broadcast;

use super::Programs;

/// How a pod's shim is started.
#[derive(Debug, Clone)]
pub struct SpawnOptions {
    /// The pod's directory, which exists. The shim ends when it disappears.
    pub dir: PathBuf,
    /// The cgroup that the shim itself lives in, made by the caller (`cgroup::Manager::create` and
    /// `join`): not the daemon's, so that stopping the daemon's service leaves the shim alone, and
    /// not a pod's. `<cgroup_parent>/shims` is a good place.
    pub cgroup: CgroupJoin,
}

/// What a started process is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Started {
    pub pid: u32,
    /// What had to be clamped (for example rlimits without CAP_SYS_RESOURCE); to be logged.
    pub notes: Vec<String>,
}

/// The standard streams of an exec.
#[derive(Debug)]
pub enum ExecStdio {
    /// stdin, stdout, stderr as the process gets them. Pass /dev/null for those unused.
    Streams([OwnedFd; 3]),
    /// A terminal: its master side comes back in [`ExecHandle::terminal`].
    Terminal,
}

/// A started exec.
#[derive(Debug)]
pub struct ExecHandle {
    pub process: ProcessId,
    pub pid: u32,
    /// The master side of the exec's terminal; resize it with TIOCSWINSZ.
    pub terminal: Option<OwnedFd>,
    pub notes: Vec<String>,
}

#[derive(Debug, thiserror::Error)]
pub enum ShimError {
    /// Nobody answers at this directory's socket: the shim is dead (or never was).
    #[error("no shim answers in {dir}")]
    Gone {
        dir: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("starting the shim in {dir}")]
    Spawn {
        dir: PathBuf,
        #[source]
        source: std::io::Error,
    },
    /// The shim refused; `message` is fit for a container status (runc's wording where it has one).
    #[error("{message}")]
    Refused { kind: FailureKind, message: String },
    #[error("the shim in {dir} did not answer {request} within {waited:?}")]
    Timeout {
        dir: PathBuf,
        request: &'static str,
        waited: std::time::Duration,
    },
    #[error("the shim in {dir} answered {request} with something else")]
    Protocol { dir: PathBuf, request: &'static str },
}

/// A handle on one pod's shim. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Shim {
    dir: PathBuf,
}

impl Shim {
    fn missing<T>(&self) -> Result<T, ShimError> {
        Err(ShimError::Gone {
            dir: self.dir.clone(),
            source: std::io::Error::other("not implemented yet"),
        })
    }

    /// Starts a shim and connects to it. The shim is in its own session and cgroup and survives us.
    ///
    /// # Errors
    /// `Spawn` when it does not come up; nothing is left behind then.
    pub async fn spawn(_programs: &Programs, options: SpawnOptions) -> Result<Shim, ShimError> {
        Shim { dir: options.dir }.missing()
    }

    /// Connects to the shim of a pod directory, after a daemon restart for example.
    ///
    /// # Errors
    /// `Gone` when none lives there. Exit records of a dead shim: [`read_records`](Self::read_records).
    pub async fn connect(dir: &Path) -> Result<Shim, ShimError> {
        Shim {
            dir: dir.to_path_buf(),
        }
        .missing()
    }

    /// The exit records that a shim, now dead, left in its directory.
    ///
    /// # Errors
    /// `Gone` when the directory cannot be read.
    pub fn read_records(_dir: &Path) -> Result<Vec<(ProcessId, ExitRecord)>, ShimError> {
        Ok(Vec::new())
    }

    /// Starts the pod's sandbox process. Once per shim.
    ///
    /// # Errors
    /// `Refused` with kind `Launch` when it cannot be started.
    pub async fn start_sandbox(&self, _plan: LaunchPlan) -> Result<Started, ShimError> {
        self.missing()
    }

    /// Makes a container: namespaces, mounts, cgroup. Its process waits for [`start`](Self::start).
    ///
    /// # Errors
    /// `Refused`: `Exists` for a known id, `Launch` when it cannot be set up (a missing executable
    /// is found here, before start).
    pub async fn create(
        &self,
        _id: &str,
        _plan: LaunchPlan,
        _io: ContainerIo,
    ) -> Result<Started, ShimError> {
        self.missing()
    }

    /// Lets a created container run.
    ///
    /// # Errors
    /// `Refused`: `NotFound`; `State` when it runs or has ended; `Launch` when exec fails.
    pub async fn start(&self, _id: &str) -> Result<(), ShimError> {
        self.missing()
    }

    /// Sends a signal to the first process, or to `all` of the container. Idempotent: succeeds when
    /// nothing is left.
    ///
    /// # Errors
    /// `Refused`: `NotFound`.
    pub async fn signal(
        &self,
        _process: &ProcessId,
        _signal: i32,
        _all: bool,
    ) -> Result<(), ShimError> {
        self.missing()
    }

    /// Runs a process in a running container. Wait for it with [`wait`](Self::wait), then
    /// [`remove`](Self::remove) it.
    ///
    /// # Errors
    /// `Refused`: `NotFound`, `Exists`, `State`, or `Launch`.
    pub async fn exec(
        &self,
        _id: &str,
        _exec_id: &str,
        _process: ProcessPlan,
        _stdio: ExecStdio,
    ) -> Result<ExecHandle, ShimError> {
        self.missing()
    }

    /// Waits for a process to end; no deadline, returns at once if it has ended. All its output is
    /// in the log file by then.
    ///
    /// # Errors
    /// `Refused` with `NotFound`; `Gone` when the shim dies.
    pub async fn wait(&self, _process: &ProcessId) -> Result<ExitRecord, ShimError> {
        self.missing()
    }

    /// Sets the size of a container's terminal.
    ///
    /// # Errors
    /// `Refused`: `NotFound`, or `State` when it has no terminal.
    pub async fn resize(&self, _id: &str, _columns: u16, _rows: u16) -> Result<(), ShimError> {
        self.missing()
    }

    /// Joins a container's streams. The shim writes its output to `stdout` and `stderr` and reads
    /// its input from `stdin`, until the container ends or the other side closes; a client that
    /// reads nothing for some seconds is dropped.
    ///
    /// # Errors
    /// `Refused`: `NotFound`, `State` when it has ended.
    pub async fn attach(
        &self,
        _id: &str,
        _stdin: Option<OwnedFd>,
        _stdout: Option<OwnedFd>,
        _stderr: Option<OwnedFd>,
    ) -> Result<(), ShimError> {
        self.missing()
    }

    /// Opens the container's log file anew after a rotation.
    ///
    /// # Errors
    /// `Refused`: `NotFound`, or `System` when the file cannot be opened.
    pub async fn reopen_log(&self, _id: &str) -> Result<(), ShimError> {
        self.missing()
    }

    /// Forgets an ended container or exec and its record. Idempotent.
    ///
    /// # Errors
    /// `Refused` with `State` while it runs.
    pub async fn remove(&self, _process: &ProcessId) -> Result<(), ShimError> {
        self.missing()
    }

    /// All processes, running and ended.
    ///
    /// # Errors
    /// `Gone`, `Timeout`.
    pub async fn state(&self) -> Result<ShimState, ShimError> {
        self.missing()
    }

    /// Exits from now on. The channel closes when the shim or the connection is gone; a receiver
    /// that lags loses events, so look at [`state`](Self::state) then.
    pub fn exits(&self) -> broadcast::Receiver<(ProcessId, ExitRecord)> {
        broadcast::channel(1).1
    }

    /// Kills what still runs and ends the shim. Idempotent.
    ///
    /// # Errors
    /// `Timeout` when it does not go.
    pub async fn shutdown(&self) -> Result<(), ShimError> {
        self.missing()
    }

    /// The pod directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }
}
