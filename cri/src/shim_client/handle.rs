// SPDX-License-Identifier: Apache-2.0
//! What a shim can be asked: one method per request.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use shim::plan::{LaunchPlan, ProcessPlan};
use shim::protocol::{self, Answer, Body, ContainerIo, ExitRecord, ProcessId, ShimState};
use tokio::sync::broadcast;

use super::ShimError;
use super::connection::{Reader, Shared};

/// Set-up of a container has 30 s inside the shim; everything else is quicker.
const DEADLINE: Duration = Duration::from_secs(40);

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

/// A handle on one pod's shim. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Shim {
    shared: Arc<Shared>,
    reader: Arc<Reader>,
    version: u32,
}

impl Shim {
    /// Connects to the shim of a pod directory, after a daemon restart for example.
    ///
    /// # Errors
    /// `Gone` when none lives there. Exit records of a dead shim: [`read_records`](Self::read_records).
    pub async fn connect(dir: &Path) -> Result<Shim, ShimError> {
        let (shared, reader) = Reader::connect(dir).map_err(|source| ShimError::Gone {
            dir: dir.to_path_buf(),
            source,
        })?;
        let mut shim = Shim {
            shared,
            reader,
            version: 0,
        };
        let version = protocol::VERSION;
        match shim.call("hello", Body::Hello { version }, &[]).await? {
            (Answer::Hello { version }, _) => shim.version = version,
            _ => return Err(shim.unexpected("hello")),
        }
        shim.done("subscribe", Body::Subscribe, &[]).await?;
        Ok(shim)
    }

    /// The protocol's version that the shim speaks. An older shim does all that its version knew,
    /// and refuses the rest with [`FailureKind::Newer`](super::FailureKind::Newer).
    pub fn version(&self) -> u32 {
        self.version
    }

    async fn call(
        &self,
        name: &'static str,
        body: Body,
        fds: &[BorrowedFd<'_>],
    ) -> Result<(Answer, Vec<OwnedFd>), ShimError> {
        self.shared.call(name, body, fds, Some(DEADLINE)).await
    }

    async fn done(
        &self,
        name: &'static str,
        body: Body,
        fds: &[BorrowedFd<'_>],
    ) -> Result<(), ShimError> {
        match self.call(name, body, fds).await? {
            (Answer::Done, _) => Ok(()),
            _ => Err(self.unexpected(name)),
        }
    }

    async fn started(&self, name: &'static str, body: Body) -> Result<Started, ShimError> {
        match self.call(name, body, &[]).await? {
            (Answer::Started { pid, notes }, _) => Ok(Started { pid, notes }),
            _ => Err(self.unexpected(name)),
        }
    }

    fn unexpected(&self, request: &'static str) -> ShimError {
        ShimError::Protocol {
            dir: self.shared.dir.clone(),
            request,
        }
    }

    /// The exit records that a shim, now dead, left in its directory.
    ///
    /// # Errors
    /// `Gone` when the directory cannot be read.
    pub fn read_records(dir: &Path) -> Result<Vec<(ProcessId, ExitRecord)>, ShimError> {
        let records = shim::daemon::read_records(dir).map_err(|source| ShimError::Gone {
            dir: dir.to_path_buf(),
            source,
        })?;
        let named = |(container, record)| {
            let exec = None;
            (ProcessId { container, exec }, record)
        };
        Ok(records.into_iter().map(named).collect())
    }

    /// Starts the pod's sandbox process. Once per shim.
    ///
    /// # Errors
    /// `Refused` with kind `Launch` when it cannot be started.
    pub async fn start_sandbox(&self, plan: LaunchPlan) -> Result<Started, ShimError> {
        self.started("start_sandbox", Body::StartSandbox(Box::new(plan)))
            .await
    }

    /// Makes a container: namespaces, mounts, cgroup. Its process waits for [`start`](Self::start).
    ///
    /// # Errors
    /// `Refused`: `Exists` for a known id, `Launch` when it cannot be set up (a missing executable
    /// is found here, before start).
    pub async fn create(
        &self,
        id: &str,
        plan: LaunchPlan,
        io: ContainerIo,
    ) -> Result<Started, ShimError> {
        let body = Body::Create {
            container: id.to_owned(),
            plan: Box::new(plan),
            io,
        };
        self.started("create", body).await
    }

    /// Lets a created container run.
    ///
    /// # Errors
    /// `Refused`: `NotFound`; `State` when it runs or has ended; `Launch` when exec fails.
    pub async fn start(&self, id: &str) -> Result<(), ShimError> {
        let container = id.to_owned();
        self.done("start", Body::Start { container }, &[]).await
    }

    /// Sends a signal to the first process, or to `all` of the container. Idempotent: succeeds when
    /// nothing is left.
    ///
    /// # Errors
    /// `Refused`: `NotFound`.
    pub async fn signal(
        &self,
        process: &ProcessId,
        signal: i32,
        all: bool,
    ) -> Result<(), ShimError> {
        let body = Body::Signal {
            process: process.clone(),
            signal,
            all,
        };
        self.done("signal", body, &[]).await
    }

    /// Runs a process in a running container. Wait for it with [`wait`](Self::wait), then
    /// [`remove`](Self::remove) it.
    ///
    /// # Errors
    /// `Refused`: `NotFound`, `Exists`, `State`, or `Launch`.
    pub async fn exec(
        &self,
        id: &str,
        exec_id: &str,
        mut process: ProcessPlan,
        stdio: ExecStdio,
    ) -> Result<ExecHandle, ShimError> {
        let streams = match &stdio {
            ExecStdio::Streams(streams) => streams.iter().map(AsFd::as_fd).collect(),
            ExecStdio::Terminal => Vec::new(),
        };
        process.terminal = matches!(stdio, ExecStdio::Terminal);
        let body = Body::Exec {
            container: id.to_owned(),
            exec: exec_id.to_owned(),
            process: Box::new(process),
        };
        let (Answer::Started { pid, notes }, fds) = self.call("exec", body, &streams).await? else {
            return Err(self.unexpected("exec"));
        };
        Ok(ExecHandle {
            process: ProcessId {
                container: id.to_owned(),
                exec: Some(exec_id.to_owned()),
            },
            pid,
            terminal: fds.into_iter().next(),
            notes,
        })
    }

    /// Waits for a process to end; no deadline, returns at once if it has ended. All its output is
    /// in the log file by then.
    ///
    /// # Errors
    /// `Refused` with `NotFound`; `Gone` when the shim dies.
    pub async fn wait(&self, process: &ProcessId) -> Result<ExitRecord, ShimError> {
        let process = process.clone();
        let answer = self
            .shared
            .call("wait", Body::Wait { process }, &[], None)
            .await?;
        match answer {
            (Answer::Exited(record), _) => Ok(record),
            _ => Err(self.unexpected("wait")),
        }
    }

    /// Sets the size of a container's terminal.
    ///
    /// # Errors
    /// `Refused`: `NotFound`, or `State` when it has no terminal.
    pub async fn resize(&self, id: &str, columns: u16, rows: u16) -> Result<(), ShimError> {
        let body = Body::Resize {
            container: id.to_owned(),
            columns,
            rows,
        };
        self.done("resize", body, &[]).await
    }

    /// Joins a container's streams. The shim writes its output to `stdout` and `stderr` and reads
    /// its input from `stdin`, until the container ends or the other side closes; a client that
    /// reads nothing for some seconds is dropped.
    ///
    /// # Errors
    /// `Refused`: `NotFound`, `State` when it has ended.
    pub async fn attach(
        &self,
        id: &str,
        stdin: Option<OwnedFd>,
        stdout: Option<OwnedFd>,
        stderr: Option<OwnedFd>,
    ) -> Result<(), ShimError> {
        let body = Body::Attach {
            container: id.to_owned(),
            stdin: stdin.is_some(),
            stdout: stdout.is_some(),
            stderr: stderr.is_some(),
        };
        let streams = [&stdin, &stdout, &stderr];
        let fds: Vec<_> = streams.into_iter().flatten().map(AsFd::as_fd).collect();
        self.done("attach", body, &fds).await
    }

    /// Opens the container's log file anew after a rotation.
    ///
    /// # Errors
    /// `Refused`: `NotFound`, or `System` when the file cannot be opened.
    pub async fn reopen_log(&self, id: &str) -> Result<(), ShimError> {
        let container = id.to_owned();
        self.done("reopen_log", Body::ReopenLog { container }, &[])
            .await
    }

    /// Forgets an ended container or exec and its record. Idempotent.
    ///
    /// # Errors
    /// `Refused` with `State` while it runs.
    pub async fn remove(&self, process: &ProcessId) -> Result<(), ShimError> {
        let process = process.clone();
        self.done("remove", Body::Remove { process }, &[]).await
    }

    /// All processes, running and ended.
    ///
    /// # Errors
    /// `Gone`, `Timeout`.
    pub async fn state(&self) -> Result<ShimState, ShimError> {
        match self.call("state", Body::State, &[]).await? {
            (Answer::State(state), _) => Ok(state),
            _ => Err(self.unexpected("state")),
        }
    }

    /// Exits from now on. The channel closes when the shim or the connection is gone; a receiver
    /// that lags loses events, so look at [`state`](Self::state) then.
    pub fn exits(&self) -> broadcast::Receiver<(ProcessId, ExitRecord)> {
        match self.shared.exits().as_ref() {
            Some(exits) => exits.subscribe(),
            None => broadcast::channel(1).1,
        }
    }

    /// Kills what still runs and ends the shim. Idempotent.
    ///
    /// # Errors
    /// `Timeout` when it does not go.
    pub async fn shutdown(&self) -> Result<(), ShimError> {
        match self.done("shutdown", Body::Shutdown, &[]).await {
            // It may be gone before its answer is read.
            Err(ShimError::Gone { .. }) => Ok(()),
            other => other,
        }
    }

    /// The pod directory.
    pub fn dir(&self) -> &Path {
        &self.shared.dir
    }

    /// Whether the connection still stands. `false` means: [`connect`](Self::connect) again.
    pub fn is_connected(&self) -> bool {
        !self.reader.has_ended()
    }
}
