// SPDX-License-Identifier: Apache-2.0
//! One connection to a shim, shared by all clones of a [`Shim`].
//!
//! A reader task owns the receiving side: it hands replies to their callers and exits to the
//! broadcast channel. It ends when the shim closes the connection or the last clone is dropped.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use shim::plan::{CgroupJoin, LaunchPlan, ProcessPlan};
use shim::protocol::{
    self, Answer, Body, ContainerIo, ExitRecord, FailureKind, Message, ProcessId, Request,
    SOCKET_NAME, ShimState,
};
use shim::sys::socket;
use shim::wire::{self, Packet};
use tokio::io::{AsyncReadExt, Interest};
use tokio::net::UnixStream;
use tokio::process::Command;
use tokio::sync::{broadcast, oneshot};

use super::Programs;

/// Set-up of a container has 30 s inside the shim; everything else is quicker.
const DEADLINE: Duration = Duration::from_secs(40);
const SPAWN_DEADLINE: Duration = Duration::from_secs(10);
/// Exits that a slow receiver may be behind before it has to look at the state.
const EXITS_KEPT: usize = 256;

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
    shared: Arc<Shared>,
    reader: Arc<Reader>,
}

/// Aborts the reader task with the last handle.
#[derive(Debug)]
struct Reader(tokio::task::JoinHandle<()>);

impl Drop for Reader {
    fn drop(&mut self) {
        self.0.abort();
    }
}

type Reply = (Result<Answer, protocol::Failure>, Vec<OwnedFd>);

#[derive(Debug)]
struct Shared {
    dir: PathBuf,
    /// A packet socket; tokio's stream type only lends its readiness.
    socket: UnixStream,
    next: AtomicU32,
    /// Callers by request number; `None` once the connection is gone.
    pending: Mutex<Option<HashMap<u32, oneshot::Sender<Reply>>>>,
    /// `None` once the connection is gone: dropping it tells the receivers.
    exits: Mutex<Option<broadcast::Sender<(ProcessId, ExitRecord)>>>,
}

/// Removes a caller that stopped waiting.
struct Pending<'a> {
    shared: &'a Shared,
    id: u32,
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        self.shared.with_pending(|pending| pending.remove(&self.id));
    }
}

impl Shared {
    fn with_pending<T>(
        &self,
        act: impl FnOnce(&mut HashMap<u32, oneshot::Sender<Reply>>) -> T,
    ) -> Option<T> {
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        pending.as_mut().map(act)
    }

    fn exits(&self) -> MutexGuard<'_, Option<broadcast::Sender<(ProcessId, ExitRecord)>>> {
        self.exits.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn gone(&self, source: io::Error) -> ShimError {
        ShimError::Gone {
            dir: self.dir.clone(),
            source,
        }
    }

    async fn call(
        &self,
        name: &'static str,
        body: Body,
        fds: &[BorrowedFd<'_>],
        deadline: Option<Duration>,
    ) -> Result<(Answer, Vec<OwnedFd>), ShimError> {
        let work = self.exchange(body, fds);
        let (result, fds) = match deadline {
            None => work.await?,
            Some(waited) => {
                tokio::time::timeout(waited, work)
                    .await
                    .map_err(|_| ShimError::Timeout {
                        dir: self.dir.clone(),
                        request: name,
                        waited,
                    })??
            }
        };
        match result {
            Ok(answer) => Ok((answer, fds)),
            Err(failure) => Err(ShimError::Refused {
                kind: failure.kind,
                message: failure.message,
            }),
        }
    }

    async fn exchange(&self, body: Body, fds: &[BorrowedFd<'_>]) -> Result<Reply, ShimError> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (sender, receiver) = oneshot::channel();
        let closed = || self.gone(io::ErrorKind::BrokenPipe.into());
        self.with_pending(|pending| pending.insert(id, sender))
            .ok_or_else(closed)?;
        let _pending = Pending { shared: self, id };
        let bytes = protocol::encode(&Request { id, body })
            .map_err(|error| self.gone(io::Error::other(error)))?;
        let packet = Packet::new(&bytes).map_err(|errno| self.gone(raw(errno)))?;
        self.socket
            .async_io(Interest::WRITABLE, || {
                packet.send(self.socket.as_fd(), fds).map_err(raw)
            })
            .await
            .map_err(|source| self.gone(source))?;
        receiver.await.map_err(|_| closed())
    }

    /// The reader task's work.
    async fn read(&self) {
        loop {
            let received = self
                .socket
                .async_io(Interest::READABLE, || {
                    wire::receive(self.socket.as_fd()).map_err(raw)
                })
                .await;
            let Ok(Some((bytes, fds))) = received else {
                break;
            };
            match protocol::decode(&bytes) {
                Ok(Message::Reply { id, result }) => {
                    let caller = self.with_pending(|pending| pending.remove(&id)).flatten();
                    if let Some(caller) = caller {
                        // A caller that went away does not want it any more.
                        let _ = caller.send((result, fds));
                    }
                }
                Ok(Message::Exit { process, record }) => {
                    // Fails only while nobody listens.
                    if let Some(exits) = self.exits().as_ref() {
                        let _ = exits.send((process, record));
                    }
                }
                Err(_) => break,
            }
        }
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        // Dropping the callers' channels tells them.
        *pending = None;
        *self.exits() = None;
    }
}

fn raw(errno: i32) -> io::Error {
    io::Error::from_raw_os_error(errno)
}

/// Through the directory's descriptor: a socket's path is limited to 107 bytes.
fn dial(dir: &Path) -> io::Result<OwnedFd> {
    let open = std::fs::File::open(dir)?;
    let path = format!("/proc/self/fd/{}/{SOCKET_NAME}", open.as_raw_fd());
    let socket = socket::socket(true).map_err(raw)?;
    socket::connect(socket.as_fd(), path.as_bytes()).map_err(raw)?;
    Ok(socket)
}

impl Shim {
    /// Starts a shim and connects to it. The shim is in its own session and cgroup and survives us.
    ///
    /// # Errors
    /// `Spawn` when it does not come up; nothing is left behind then.
    pub async fn spawn(programs: &Programs, options: SpawnOptions) -> Result<Shim, ShimError> {
        let dir = options.dir.clone();
        let failed = |source| ShimError::Spawn {
            dir: dir.clone(),
            source,
        };
        let started = tokio::time::timeout(SPAWN_DEADLINE, start_process(programs, &options)).await;
        match started {
            Ok(Ok(())) => Shim::connect(&dir).await,
            Ok(Err(source)) => Err(failed(source)),
            Err(_) => Err(failed(io::ErrorKind::TimedOut.into())),
        }
    }

    /// Connects to the shim of a pod directory, after a daemon restart for example.
    ///
    /// # Errors
    /// `Gone` when none lives there. Exit records of a dead shim: [`read_records`](Self::read_records).
    pub async fn connect(dir: &Path) -> Result<Shim, ShimError> {
        let gone = |source| ShimError::Gone {
            dir: dir.to_path_buf(),
            source,
        };
        let socket = dial(dir)
            .and_then(|fd| UnixStream::from_std(fd.into()))
            .map_err(gone)?;
        let shared = Arc::new(Shared {
            dir: dir.to_path_buf(),
            socket,
            next: AtomicU32::new(1),
            pending: Mutex::new(Some(HashMap::new())),
            exits: Mutex::new(Some(broadcast::channel(EXITS_KEPT).0)),
        });
        let reading = Arc::clone(&shared);
        let task = tokio::spawn(async move { reading.read().await });
        let shim = Shim {
            shared,
            reader: Arc::new(Reader(task)),
        };
        shim.done("subscribe", Body::Subscribe, &[]).await?;
        Ok(shim)
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
        !self.reader.0.is_finished()
    }
}

/// Runs the shim's executable from a read-only mount, so that none of its children in a container
/// offers a writable way to it, and waits until it listens.
async fn start_process(programs: &Programs, options: &SpawnOptions) -> io::Result<()> {
    let program = programs.shim.to_string_lossy();
    let file = shim::launch::readonly_file(&program).map_err(io::Error::other)?;
    // The name by which exec finds the open file; the copy without close-on-exec is the child's.
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let mut command = Command::new(path);
    command
        .arg0("podwright-shim")
        .arg(&options.dir)
        .args(&options.cgroup.unified)
        .args(&options.cgroup.v1)
        .env_clear()
        .stdin(std::process::Stdio::null())
        .kill_on_drop(true);
    let mut child = command
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()?;
    drop(file);
    let (mut stdout, mut stderr) = (Vec::new(), String::new());
    if let Some(mut pipe) = child.stdout.take() {
        // The shim closes its end when it has said `ready`, or ends.
        pipe.read_to_end(&mut stdout).await?;
    }
    if stdout != b"ready\n"
        && let Some(mut pipe) = child.stderr.take()
    {
        pipe.read_to_string(&mut stderr).await?;
    }
    child.wait().await?;
    if stdout == b"ready\n" {
        return Ok(());
    }
    Err(io::Error::other(stderr.trim().to_owned()))
}
