// SPDX-License-Identifier: Apache-2.0
//! The processes of one pod, and what can be done with them.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use super::records;
use super::streams::Streams;
use crate::launch::{self, Gate, LaunchError, Launched, Stdio};
use crate::plan::{CgroupJoin, LaunchPlan, Namespace, ProcessPlan};
use crate::protocol::{
    Answer, ContainerIo, ExitRecord, Failure, FailureKind, Phase, ProcessId, ProcessState, SANDBOX,
};
use crate::sys::{self, mounts};

/// Ended execs that nobody removed are forgotten beyond this number.
const ENDED_EXECS_MAX: usize = 64;
/// Rounds of reading pids and killing them: a fork bomb can outrun one.
const KILL_ROUNDS: usize = 16;

#[derive(Debug)]
pub(super) struct Processes {
    dir: PathBuf,
    all: BTreeMap<ProcessId, Process>,
}

#[derive(Debug)]
struct Process {
    pid: u32,
    phase: Phase,
    /// Held until start.
    launched: Option<Box<Launched>>,
    cgroup: CgroupJoin,
    /// Its end ends every process of its pid namespace.
    own_pid_namespace: bool,
    streams: Option<Box<Streams>>,
}

pub(super) type Handled = Result<Answer, Failure>;

pub(super) fn failure(kind: FailureKind, message: impl Into<String>) -> Failure {
    Failure {
        kind,
        message: message.into(),
    }
}

fn launch_failure(error: LaunchError) -> Failure {
    failure(FailureKind::Launch, error.message)
}

fn system(what: &str) -> impl Fn(i32) -> Failure {
    move |errno| {
        let message = format!("{what}: {}", launch::reason(errno));
        failure(FailureKind::System, message)
    }
}

pub(super) fn first(container: &str) -> ProcessId {
    ProcessId {
        container: container.to_owned(),
        exec: None,
    }
}

impl Processes {
    pub(super) fn new(dir: &Path) -> Processes {
        Processes {
            dir: dir.to_path_buf(),
            all: BTreeMap::new(),
        }
    }

    fn get(&mut self, id: &ProcessId) -> Result<&mut Process, Failure> {
        self.all.get_mut(id).ok_or_else(|| {
            let name = id.exec.as_ref().unwrap_or(&id.container);
            failure(
                FailureKind::NotFound,
                format!("no process {name:?} in this pod"),
            )
        })
    }

    fn vacant(&self, id: &ProcessId) -> Result<(), Failure> {
        let name = id.exec.as_ref().unwrap_or(&id.container);
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        if name.is_empty() || name.starts_with('.') || !name.bytes().all(plain) {
            return Err(failure(FailureKind::Invalid, format!("{name:?} is no id")));
        }
        if self.all.contains_key(id) {
            return Err(failure(FailureKind::Exists, format!("{name:?} exists")));
        }
        Ok(())
    }

    pub(super) fn start_sandbox(&mut self, plan: &LaunchPlan) -> Handled {
        let id = first(SANDBOX);
        self.vacant(&id)?;
        let mut launched =
            launch::launch(plan, null_streams()?, Gate::Parent, None).map_err(launch_failure)?;
        if let Err(error) = launched.start() {
            launched.abandon();
            return Err(launch_failure(error));
        }
        let phase = Phase::Running {
            started_at: sys::now(),
        };
        Ok(self.add(
            id,
            launched,
            phase,
            &plan.cgroup,
            &plan.namespaces.pid,
            None,
        ))
    }

    pub(super) fn create(
        &mut self,
        container: &str,
        plan: &LaunchPlan,
        io: ContainerIo,
    ) -> Handled {
        let id = first(container);
        if container == SANDBOX {
            return Err(failure(FailureKind::Invalid, "the sandbox is no container"));
        }
        self.vacant(&id)?;
        let (stdio, mut streams) = connect(plan.process.terminal, io)?;
        let sandbox = match self.all.get(&first(SANDBOX)) {
            Some(process) if !matches!(process.phase, Phase::Exited(_)) => {
                Some(sys::pidfd_open(process.pid).map_err(system("opening the sandbox"))?)
            }
            _ => None,
        };
        let sandbox = sandbox.as_ref().map(AsFd::as_fd);
        let mut launched =
            launch::launch(plan, stdio, Gate::Parent, sandbox).map_err(launch_failure)?;
        if let Some(master) = launched.terminal.take() {
            streams
                .set_terminal(master)
                .map_err(system("setting up the terminal"))?;
        }
        let (cgroup, pid) = (&plan.cgroup, &plan.namespaces.pid);
        Ok(self.add(id, launched, Phase::Created, cgroup, pid, Some(streams)))
    }

    fn add(
        &mut self,
        id: ProcessId,
        mut launched: Launched,
        phase: Phase,
        cgroup: &CgroupJoin,
        pid_namespace: &Namespace,
        streams: Option<Streams>,
    ) -> Answer {
        let pid = launched.pid;
        let notes = std::mem::take(&mut launched.notes);
        let process = Process {
            pid,
            launched: (phase == Phase::Created).then(|| Box::new(launched)),
            phase,
            cgroup: cgroup.clone(),
            own_pid_namespace: *pid_namespace == Namespace::New,
            streams: streams.map(Box::new),
        };
        self.all.insert(id, process);
        Answer::Started { pid, notes }
    }

    pub(super) fn start(&mut self, container: &str) -> Handled {
        let process = self.get(&first(container))?;
        let Some(mut launched) = process.launched.take() else {
            let message = format!("container {container:?} was started before");
            return Err(failure(FailureKind::State, message));
        };
        if let Phase::Exited(_) = process.phase {
            let message = format!("container {container:?} has ended");
            return Err(failure(FailureKind::State, message));
        }
        // A failure ends the process, whose exit is recorded like any other.
        launched.start().map_err(launch_failure)?;
        process.phase = Phase::Running {
            started_at: sys::now(),
        };
        Ok(Answer::Done)
    }

    pub(super) fn exec(
        &mut self,
        container: &str,
        exec: String,
        plan: &ProcessPlan,
        fds: Vec<OwnedFd>,
    ) -> Result<(Answer, Option<OwnedFd>), Failure> {
        let id = ProcessId {
            container: container.to_owned(),
            exec: Some(exec),
        };
        self.vacant(&id)?;
        let stdio = match (plan.terminal, <[OwnedFd; 3]>::try_from(fds)) {
            (true, _) => Stdio::Terminal,
            (false, Ok(streams)) => Stdio::Streams(streams),
            (false, Err(_)) => {
                let message = "an exec without a terminal needs three streams";
                return Err(failure(FailureKind::Invalid, message));
            }
        };
        let target = self.get(&first(container))?;
        let Phase::Running { .. } = target.phase else {
            let message = format!("container {container:?} is not running");
            return Err(failure(FailureKind::State, message));
        };
        let cgroup = target.cgroup.clone();
        let pidfd = sys::pidfd_open(target.pid).map_err(system("opening the container"))?;
        let mut launched =
            launch::execute(pidfd.as_fd(), &cgroup, plan, stdio).map_err(launch_failure)?;
        if let Err(error) = launched.start() {
            launched.abandon();
            return Err(launch_failure(error));
        }
        let terminal = launched.terminal.take();
        let phase = Phase::Running {
            started_at: sys::now(),
        };
        self.forget_old_execs();
        let answer = self.add(id, launched, phase, &cgroup, &Namespace::New, None);
        Ok((answer, terminal))
    }

    fn forget_old_execs(&mut self) {
        let ended = |(id, process): (&ProcessId, &Process)| match process.phase {
            Phase::Exited(record) if id.exec.is_some() => Some((record.finished_at, id.clone())),
            _ => None,
        };
        let mut execs: Vec<_> = self.all.iter().filter_map(ended).collect();
        if execs.len() > ENDED_EXECS_MAX {
            execs.sort();
            for (_, id) in execs.iter().take(execs.len() - ENDED_EXECS_MAX) {
                self.all.remove(id);
            }
        }
    }

    pub(super) fn signal(&mut self, id: &ProcessId, signal: i32, all: bool) -> Handled {
        let process = self.get(id)?;
        if all {
            signal_cgroup(&process.cgroup, signal);
        }
        if let Phase::Exited(_) = process.phase {
            return Ok(Answer::Done);
        }
        match sys::kill(process.pid, signal) {
            Ok(()) | Err(libc::ESRCH) => Ok(Answer::Done),
            Err(errno) => Err(system("sending a signal")(errno)),
        }
    }

    pub(super) fn resize(&mut self, container: &str, columns: u16, rows: u16) -> Handled {
        let process = self.get(&first(container))?;
        let Some(terminal) = process.streams.as_ref().and_then(|s| s.terminal()) else {
            let message = format!("container {container:?} has no terminal");
            return Err(failure(FailureKind::State, message));
        };
        sys::set_window_size(terminal, columns, rows).map_err(system("resizing the terminal"))?;
        Ok(Answer::Done)
    }

    pub(super) fn attach(&mut self, container: &str, fds: [Option<OwnedFd>; 3]) -> Handled {
        let process = self.get(&first(container))?;
        let (Some(streams), false) = (
            process.streams.as_mut(),
            matches!(process.phase, Phase::Exited(_)),
        ) else {
            let message = format!("container {container:?} is not running");
            return Err(failure(FailureKind::State, message));
        };
        let [stdin, stdout, stderr] = fds;
        streams
            .attach(stdin, stdout, stderr, sys::now())
            .map_err(system("attaching"))?;
        Ok(Answer::Done)
    }

    pub(super) fn reopen_log(&mut self, container: &str) -> Handled {
        let process = self.get(&first(container))?;
        let done = process.streams.as_mut().map_or(Ok(()), |s| s.reopen_log());
        done.map_err(|error| {
            let errno = error.raw_os_error().unwrap_or(libc::EIO);
            system("reopening the log file")(errno)
        })?;
        Ok(Answer::Done)
    }

    pub(super) fn remove(&mut self, id: &ProcessId) -> Handled {
        match self.all.get(id) {
            None => return Ok(Answer::Done),
            Some(process) if !matches!(process.phase, Phase::Exited(_)) => {
                return Err(failure(FailureKind::State, "the process has not ended"));
            }
            Some(_) => {}
        }
        self.all.remove(id);
        if id.exec.is_none() {
            self.all.retain(|other, _| other.container != id.container);
            records::remove(&self.dir, &id.container);
        }
        Ok(Answer::Done)
    }

    pub(super) fn exited(&self, id: &ProcessId) -> Option<Option<ExitRecord>> {
        self.all.get(id).map(|process| match process.phase {
            Phase::Exited(record) => Some(record),
            _ => None,
        })
    }

    pub(super) fn states(&self) -> Vec<ProcessState> {
        let state = |(id, process): (&ProcessId, &Process)| ProcessState {
            process: id.clone(),
            pid: process.pid,
            phase: process.phase.clone(),
        };
        self.all.iter().map(state).collect()
    }

    /// Collects every child that has ended; orphans of containers are collected too, unnamed.
    pub(super) fn reap(&mut self) -> Vec<(ProcessId, ExitRecord)> {
        let mut ended = Vec::new();
        while let Ok(Some(child)) = sys::reap(None, false) {
            if let Some(exit) = self.bury(child) {
                ended.push(exit);
            }
        }
        ended
    }

    fn bury(&mut self, child: sys::Ended) -> Option<(ProcessId, ExitRecord)> {
        let alive = |process: &Process| !matches!(process.phase, Phase::Exited(_));
        let (id, process) = self
            .all
            .iter_mut()
            .find(|(_, process)| process.pid == child.pid && alive(process))?;
        let started_at = match process.phase {
            Phase::Running { started_at } => started_at,
            _ => 0,
        };
        let first_process = id.exec.is_none();
        let record = ExitRecord {
            pid: child.pid,
            code: child.code,
            signal: child.signal,
            oom_killed: first_process && oom_kills(&process.cgroup) > 0,
            started_at,
            finished_at: sys::now(),
        };
        process.phase = Phase::Exited(record);
        process.launched = None;
        if first_process && !process.own_pid_namespace && id.container != SANDBOX {
            signal_cgroup(&process.cgroup, libc::SIGKILL);
        }
        if let Some(streams) = &mut process.streams {
            streams.drain(record.finished_at);
            streams.close_input();
        }
        if first_process && let Err(error) = records::write(&self.dir, &id.container, &record) {
            super::complain(format_args!(
                "writing the exit record of {}: {error}",
                id.container
            ));
        }
        Some((id.clone(), record))
    }

    pub(super) fn streams(&mut self) -> impl Iterator<Item = (&ProcessId, &mut Streams)> {
        self.all
            .iter_mut()
            .filter_map(|(id, process)| Some((id, process.streams.as_deref_mut()?)))
    }

    pub(super) fn streams_of(&mut self, id: &ProcessId) -> Option<&mut Streams> {
        self.all.get_mut(id)?.streams.as_deref_mut()
    }

    /// Lets go of streams that are finished.
    pub(super) fn sweep_streams(&mut self, now: i64) {
        for process in self.all.values_mut() {
            if let Some(streams) = &mut process.streams {
                streams.sweep(now);
                if streams.is_done() && matches!(process.phase, Phase::Exited(_)) {
                    process.streams = None;
                }
            }
        }
    }

    /// Kills everything that runs; the sandbox last, which ends a shared pid namespace.
    pub(super) fn kill_all(&mut self) {
        for process in self.all.values() {
            if !matches!(process.phase, Phase::Exited(_)) {
                signal_cgroup(&process.cgroup, libc::SIGKILL);
                // Fails only when it is gone.
                let _ = sys::kill(process.pid, libc::SIGKILL);
            }
        }
    }

    pub(super) fn all_ended(&self) -> bool {
        self.all
            .values()
            .all(|process| matches!(process.phase, Phase::Exited(_)))
    }
}

/// Signals every process of a cgroup, best effort: what cannot be read has no processes.
fn signal_cgroup(join: &CgroupJoin, signal: i32) {
    if let (libc::SIGKILL, Some(dir)) = (signal, &join.unified)
        && std::fs::write(format!("{dir}/cgroup.kill"), "1").is_ok()
    {
        return;
    }
    let Some(dir) = join.unified.as_ref().or(join.v1.first()) else {
        return;
    };
    let rounds = if signal == libc::SIGKILL {
        KILL_ROUNDS
    } else {
        1
    };
    for _ in 0..rounds {
        let pids = std::fs::read_to_string(format!("{dir}/cgroup.procs")).unwrap_or_default();
        let mut any = false;
        for pid in pids.lines().filter_map(|line| line.parse().ok()) {
            any |= sys::kill(pid, signal).is_ok();
        }
        if !any {
            return;
        }
    }
}

fn oom_kills(join: &CgroupJoin) -> u64 {
    let text = join.oom_file.as_ref().map(std::fs::read_to_string);
    let Some(Ok(text)) = text else { return 0 };
    text.lines()
        .find_map(|line| line.strip_prefix("oom_kill "))
        .and_then(|count| count.trim().parse().ok())
        .unwrap_or(0)
}

fn null(flags: i32) -> Result<OwnedFd, Failure> {
    mounts::openat(mounts::cwd(), c"/dev/null", flags, 0).map_err(system("opening /dev/null"))
}

fn null_streams() -> Result<Stdio, Failure> {
    Ok(Stdio::Streams([
        null(libc::O_RDONLY)?,
        null(libc::O_WRONLY)?,
        null(libc::O_WRONLY)?,
    ]))
}

/// Both ends of a container's streams: the process's and ours.
fn connect(terminal: bool, io: ContainerIo) -> Result<(Stdio, Streams), Failure> {
    let log_failure = |path: Option<String>| {
        move |error: std::io::Error| {
            let errno = error.raw_os_error().unwrap_or(libc::EIO);
            let path = path.unwrap_or_default();
            system(&format!("opening the log file {path:?}"))(errno)
        }
    };
    let path = io.log_path.clone();
    if terminal {
        let streams = Streams::new(io, None, None, None, true).map_err(log_failure(path))?;
        return Ok((Stdio::Terminal, streams));
    }
    let pipe = || sys::pipe().map_err(system("making a pipe"));
    let (their_in, our_in) = match io.stdin {
        true => pipe().map(|(read, write)| (read, Some(write)))?,
        false => (null(libc::O_RDONLY)?, None),
    };
    let ((our_out, their_out), (our_err, their_err)) = (pipe()?, pipe()?);
    let streams =
        Streams::new(io, our_in, Some(our_out), Some(our_err), false).map_err(log_failure(path))?;
    Ok((Stdio::Streams([their_in, their_out, their_err]), streams))
}
