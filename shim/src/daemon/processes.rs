// SPDX-License-Identifier: Apache-2.0
//! The processes of one pod: the table of them, and the short things that can be done with one.
//! How they are made is in [`super::beginning`] and [`super::launching`], how they end in
//! [`super::burial`].

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use super::external::Outside;
use super::kill::{signal_cgroup, signal_tree};
use super::launching::Launching;
use super::records;
use super::streams::Streams;
use crate::launch::{self, LaunchError, Launched};
use crate::plan::{CgroupJoin, Hooks};
use crate::protocol::{
    Answer, ExitRecord, Failure, FailureKind, Phase, ProcessId, ProcessState, SANDBOX,
};
use crate::sys;

#[derive(Debug)]
pub(super) struct Processes {
    pub(super) dir: PathBuf,
    /// Somebody is removing the directory: no file of ours may get in between.
    pub(super) dir_goes: bool,
    pub(super) all: BTreeMap<ProcessId, Process>,
    /// What clients are to be told.
    pub(super) news: Vec<News>,
    /// Children that run poststop hooks.
    pub(super) hook_runners: Vec<u32>,
}

/// Something that clients wait for.
#[derive(Debug)]
pub(super) enum News {
    /// The answer to a request that took its time. The descriptor is an exec's terminal.
    Answer(Asked, Result<Answer, Failure>, Option<OwnedFd>),
    /// A process has ended.
    Ended(ProcessId, ExitRecord),
}

/// Who asked: a connection, and the number of its request.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked {
    pub(super) connection: u64,
    pub(super) request: u32,
}

#[derive(Debug)]
pub(super) struct Process {
    pub(super) pid: u32,
    pub(super) stage: Stage,
    pub(super) cgroup: CgroupJoin,
    /// Its end ends every process of its pid namespace.
    pub(super) own_pid_namespace: bool,
    pub(super) streams: Option<Box<Streams>>,
    /// Hooks to run when it has ended.
    pub(super) poststop: Option<Box<Hooks>>,
}

#[derive(Debug)]
pub(super) enum Stage {
    /// Sets itself up, or is about to execute its program.
    Launching(Box<Launching>),
    /// Waits at its gate.
    Created(Box<Launched>),
    /// Another runtime makes or starts it, or has made it.
    Outside(Box<Outside>),
    Running {
        started_at: i64,
    },
    Exited(ExitRecord),
}

/// An answer, or nothing when it comes later, as [`News`].
pub(super) type Handled = Result<Option<Answer>, Failure>;

pub(super) const DONE: Handled = Ok(Some(Answer::Done));

pub(super) fn failure(kind: FailureKind, message: impl Into<String>) -> Failure {
    Failure {
        kind,
        message: message.into(),
    }
}

pub(super) fn launch_failure(error: LaunchError) -> Failure {
    failure(FailureKind::Launch, error.message)
}

pub(super) fn system(what: &str) -> impl Fn(i32) -> Failure {
    move |errno| {
        let message = format!("{what}: {}", launch::reason(errno));
        failure(FailureKind::System, message)
    }
}

pub(super) fn unknown(id: &ProcessId) -> Failure {
    failure(
        FailureKind::NotFound,
        format!("no process {:?} in this pod", name(id)),
    )
}

pub(super) fn name(id: &ProcessId) -> &str {
    id.exec.as_ref().unwrap_or(&id.container)
}

pub(super) fn first(container: &str) -> ProcessId {
    ProcessId {
        container: container.to_owned(),
        exec: None,
    }
}

impl Process {
    pub(super) fn has_exited(&self) -> bool {
        matches!(self.stage, Stage::Exited(_))
    }

    fn phase(&self) -> Phase {
        match &self.stage {
            // Whoever asked for it may be gone: another client has to know that it is there.
            Stage::Launching(launching) if launching.is_starting() => Phase::Starting,
            Stage::Outside(outside) if outside.is_starting() => Phase::Starting,
            Stage::Launching(_) | Stage::Created(_) | Stage::Outside(_) => Phase::Created,
            Stage::Running { started_at } => Phase::Running {
                started_at: *started_at,
            },
            Stage::Exited(record) => Phase::Exited(*record),
        }
    }
}

impl Processes {
    pub(super) fn new(dir: &Path) -> Processes {
        Processes {
            dir: dir.to_path_buf(),
            dir_goes: false,
            all: BTreeMap::new(),
            news: Vec::new(),
            hook_runners: Vec::new(),
        }
    }

    pub(super) fn get(&mut self, id: &ProcessId) -> Result<&mut Process, Failure> {
        self.all.get_mut(id).ok_or_else(|| unknown(id))
    }

    pub(super) fn signal(&mut self, id: &ProcessId, signal: i32, all: bool) -> Handled {
        let process = self.get(id)?;
        match (all, &id.exec) {
            // What a container left behind belongs to it still; what an exec left does not.
            (true, None) => signal_cgroup(&process.cgroup, signal),
            (true, Some(_)) if !process.has_exited() => {
                signal_tree(process.pid, &process.cgroup, signal);
            }
            _ => {}
        }
        if process.has_exited() {
            return DONE;
        }
        match sys::kill(process.pid, signal) {
            Ok(()) | Err(libc::ESRCH) => DONE,
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
        DONE
    }

    pub(super) fn attach(&mut self, container: &str, fds: [Option<OwnedFd>; 3]) -> Handled {
        let process = self.get(&first(container))?;
        let ended = process.has_exited();
        let Some(streams) = process.streams.as_mut().filter(|_| !ended) else {
            let message = format!("container {container:?} is not running");
            return Err(failure(FailureKind::State, message));
        };
        streams.attach(fds).map_err(system("attaching"))?;
        DONE
    }

    pub(super) fn reopen_log(&mut self, container: &str) -> Handled {
        let process = self.get(&first(container))?;
        let done = process.streams.as_mut().map_or(Ok(()), |s| s.reopen_log());
        done.map_err(|error| {
            let errno = error.raw_os_error().unwrap_or(libc::EIO);
            system("reopening the log file")(errno)
        })?;
        DONE
    }

    pub(super) fn remove(&mut self, id: &ProcessId) -> Handled {
        match self.all.get(id) {
            None => return DONE,
            Some(process) if !process.has_exited() => {
                return Err(failure(FailureKind::State, "the process has not ended"));
            }
            Some(_) => {}
        }
        self.all.remove(id);
        if id.exec.is_none() {
            // An exec that has not ended is still our child: it keeps its entry until then.
            let others = |other: &ProcessId| other.container != id.container;
            self.all
                .retain(|other, process| others(other) || !process.has_exited());
            records::remove(&self.dir, &id.container);
        }
        DONE
    }

    /// How a process ended; the inner option is empty while it runs.
    pub(super) fn exited(&self, id: &ProcessId) -> Option<Option<ExitRecord>> {
        self.all.get(id).map(|process| match process.stage {
            Stage::Exited(record) => Some(record),
            _ => None,
        })
    }

    pub(super) fn states(&self) -> Vec<ProcessState> {
        let state = |(id, process): (&ProcessId, &Process)| ProcessState {
            process: id.clone(),
            pid: process.pid,
            phase: process.phase(),
        };
        self.all.iter().map(state).collect()
    }

    pub(super) fn streams(&self) -> impl Iterator<Item = (&ProcessId, &Streams)> {
        self.all
            .iter()
            .filter_map(|(id, process)| Some((id, process.streams.as_deref()?)))
    }

    pub(super) fn streams_of(&mut self, id: &ProcessId) -> Option<&mut Streams> {
        self.all.get_mut(id)?.streams.as_deref_mut()
    }

    /// Lets go of clients and streams that are finished.
    pub(super) fn sweep_streams(&mut self) {
        let now = std::time::Instant::now();
        for process in self.all.values_mut() {
            let exited = process.has_exited();
            if let Some(streams) = &mut process.streams {
                streams.sweep(now);
                if exited && streams.is_done() {
                    process.streams = None;
                }
            }
        }
    }

    /// Kills everything that runs, and what containers that have ended left behind.
    pub(super) fn kill_all(&mut self) {
        for (id, process) in &self.all {
            if id.exec.is_none() {
                signal_cgroup(&process.cgroup, libc::SIGKILL);
            }
            if !process.has_exited() {
                // Fails only when it is gone.
                let _ = sys::kill(process.pid, libc::SIGKILL);
            }
        }
    }

    pub(super) fn all_ended(&self) -> bool {
        self.all.values().all(Process::has_exited)
    }

    /// Whether this names the sandbox process.
    pub(super) fn is_sandbox(id: &ProcessId) -> bool {
        id.container == SANDBOX && id.exec.is_none()
    }
}
