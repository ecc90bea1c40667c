// SPDX-License-Identifier: Apache-2.0
//! Requests that begin a launch: the sandbox, a container, its start, an exec.

use std::os::fd::{AsFd, OwnedFd};

use super::launching::{Aim, Launching};
use super::poststop;
use super::processes::{
    Asked, Handled, Process, Processes, Stage, failure, first, launch_failure, name, system,
};
use super::streams::Streams;
use crate::launch::{self, Gate, LaunchError, Launched, Stdio};
use crate::plan::{CgroupJoin, Hooks, LaunchPlan, Namespace, ProcessPlan};
use crate::protocol::{ContainerIo, ExitRecord, Failure, FailureKind, ProcessId, SANDBOX};
use crate::sys::{self, mounts};

/// Ended execs that nobody removed are forgotten beyond this number.
const ENDED_EXECS_MAX: usize = 64;

/// What a new process is beside its plan.
struct Entry<'a> {
    cgroup: &'a CgroupJoin,
    own_pid_namespace: bool,
    streams: Option<Streams>,
    poststop: Option<Box<Hooks>>,
}

impl Processes {
    pub(super) fn start_sandbox(&mut self, plan: &LaunchPlan, asked: Asked) -> Handled {
        let id = first(SANDBOX);
        self.vacant(&id)?;
        if let Some(runtime) = &plan.external {
            return self.create_outside(id, plan, runtime, (null_streams()?, None), asked);
        }
        let launched = launch::begin(plan, null_streams()?, Gate::Parent, None);
        let entry = Entry {
            cgroup: &plan.cgroup,
            own_pid_namespace: plan.namespaces.pid == Namespace::New,
            streams: None,
            poststop: None,
        };
        self.add(id, launched, Aim::Run, asked, entry)
    }

    pub(super) fn create(
        &mut self,
        container: &str,
        plan: &LaunchPlan,
        io: ContainerIo,
        asked: Asked,
    ) -> Handled {
        let id = first(container);
        if container == SANDBOX {
            return Err(failure(FailureKind::Invalid, "the sandbox is no container"));
        }
        self.vacant(&id)?;
        let (stdio, streams) = connect(plan.process.terminal, io)?;
        if let Some(runtime) = &plan.external {
            return self.create_outside(id, plan, runtime, (stdio, Some(streams)), asked);
        }
        let sandbox = self.sandbox()?;
        let sandbox = sandbox.as_ref().map(AsFd::as_fd);
        let launched = launch::begin(plan, stdio, Gate::Parent, sandbox);
        let entry = Entry {
            cgroup: &plan.cgroup,
            own_pid_namespace: plan.namespaces.pid == Namespace::New,
            streams: Some(streams),
            poststop: poststop::of(&plan.hooks),
        };
        self.add(id, launched, Aim::Create, asked, entry)
    }

    pub(super) fn start(&mut self, container: &str, asked: Asked) -> Handled {
        let process = self.get(&first(container))?;
        let problem = match &process.stage {
            Stage::Outside(outside) if outside.is_created() => {
                return self.start_outside(&first(container), asked);
            }
            Stage::Outside(outside) if !outside.is_starting() => Some("is being created"),
            Stage::Created(_) => None,
            Stage::Launching(launching) if launching.is_being_created() => Some("is being created"),
            Stage::Exited(_) => Some("has ended"),
            _ => Some("was started before"),
        };
        if let Some(problem) = problem {
            let message = format!("container {container:?} {problem}");
            return Err(failure(FailureKind::State, message));
        }
        // Any stage serves for the moment in which nobody looks.
        let created = std::mem::replace(&mut process.stage, Stage::Exited(ExitRecord::default()));
        if let Stage::Created(launched) = created {
            let mut launching = Launching::new(*launched, Aim::Start, asked);
            launching.release();
            process.stage = Stage::Launching(Box::new(launching));
        }
        Ok(None)
    }

    pub(super) fn exec(
        &mut self,
        container: &str,
        exec: String,
        plan: &ProcessPlan,
        fds: Vec<OwnedFd>,
        asked: Asked,
    ) -> Handled {
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
        let Stage::Running { .. } = target.stage else {
            let message = format!("container {container:?} is not running");
            return Err(failure(FailureKind::State, message));
        };
        let (cgroup, pid) = (target.cgroup.clone(), target.pid);
        if let Some(words) = &plan.external {
            self.forget_old_execs();
            return self.exec_outside(id, words, (cgroup, pid), stdio, asked);
        }
        let pidfd = sys::pidfd_open(pid).map_err(system("opening the container"))?;
        let beside = launch::beside(cgroup.clone(), pid);
        let launched = launch::begin_execute(pidfd.as_fd(), &beside, plan, stdio);
        self.forget_old_execs();
        let entry = Entry {
            cgroup: &cgroup,
            own_pid_namespace: true,
            streams: None,
            poststop: None,
        };
        self.add(id, launched, Aim::Run, asked, entry)
    }

    fn vacant(&self, id: &ProcessId) -> Result<(), Failure> {
        let name = name(id);
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        if name.is_empty() || name.starts_with('.') || !name.bytes().all(plain) {
            return Err(failure(FailureKind::Invalid, format!("{name:?} is no id")));
        }
        if self.all.contains_key(id) {
            return Err(failure(FailureKind::Exists, format!("{name:?} exists")));
        }
        Ok(())
    }

    fn forget_old_execs(&mut self) {
        let ended = |(id, process): (&ProcessId, &Process)| match process.stage {
            Stage::Exited(record) if id.exec.is_some() => Some((record.finished_at, id.clone())),
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

    fn add(
        &mut self,
        id: ProcessId,
        launched: Result<Launched, LaunchError>,
        aim: Aim,
        asked: Asked,
        entry: Entry<'_>,
    ) -> Handled {
        let launched = match launched {
            Ok(launched) => launched,
            Err(error) => {
                self.run_poststop(entry.poststop);
                return Err(launch_failure(error));
            }
        };
        let process = Process {
            pid: launched.pid,
            stage: Stage::Launching(Box::new(Launching::new(launched, aim, asked))),
            cgroup: entry.cgroup.clone(),
            own_pid_namespace: entry.own_pid_namespace,
            streams: entry.streams.map(Box::new),
            poststop: entry.poststop,
        };
        self.all.insert(id, process);
        Ok(None)
    }
}

fn null(flags: i32) -> Result<OwnedFd, Failure> {
    mounts::openat(mounts::cwd(), c"/dev/null", flags, 0).map_err(system("opening /dev/null"))
}

fn null_streams() -> Result<Stdio, Failure> {
    null_trio().map(Stdio::Streams)
}

/// Nothing to read, and nobody who reads.
pub(super) fn null_trio() -> Result<[OwnedFd; 3], Failure> {
    Ok([
        null(libc::O_RDONLY)?,
        null(libc::O_WRONLY)?,
        null(libc::O_WRONLY)?,
    ])
}

/// Both ends of a container's streams: the process's and ours.
fn connect(terminal: bool, io: ContainerIo) -> Result<(Stdio, Streams), Failure> {
    let path = io.log_path.clone().unwrap_or_default();
    let log_failure = |error: std::io::Error| {
        let errno = error.raw_os_error().unwrap_or(libc::EIO);
        system(&format!("opening the log file {path:?}"))(errno)
    };
    if terminal {
        let streams = Streams::new(io, None, [None, None], true).map_err(log_failure)?;
        return Ok((Stdio::Terminal, streams));
    }
    let pipe = || sys::pipe().map_err(system("making a pipe"));
    let (their_in, our_in) = match io.stdin {
        true => pipe().map(|(read, write)| (read, Some(write)))?,
        false => (null(libc::O_RDONLY)?, None),
    };
    let ((our_out, their_out), (our_err, their_err)) = (pipe()?, pipe()?);
    let ours = [Some(our_out), Some(our_err)];
    let streams = Streams::new(io, our_in, ours, false).map_err(log_failure)?;
    Ok((Stdio::Streams([their_in, their_out, their_err]), streams))
}
