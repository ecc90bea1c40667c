// SPDX-License-Identifier: Apache-2.0
//! Launches, step by step: the child's report channel is one more thing that the loop waits for, so
//! the pod's other containers go on while one sets itself up.
//!
//! ```text
//! create:   begin -> Ready: answer, Created
//! start:    release -> Closed: answer, Running
//! sandbox and exec: begin -> Ready: release -> Closed: answer, Running
//! ```
//!
//! A launch that fails is killed, and answered once the child is collected: then nothing is left of it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use super::processes::{Asked, News, Process, Processes, Stage, failure, launch_failure, system};
use super::streams::Streams;
use crate::launch::{Heard, Launched};
use crate::protocol::{Answer, ExitRecord, Failure, FailureKind, ProcessId};
use crate::sys::{self, events};

/// A killed child that has not ended by then is stuck in the kernel: its launch is answered anyway.
const BURIAL_DEADLINE: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub(super) struct Launching {
    launched: Launched,
    aim: Aim,
    /// It was let through its gate.
    released: bool,
    /// It said all that it had to say.
    silent: bool,
    /// Until the answer is given.
    asked: Option<Asked>,
    /// It was killed for this reason.
    failed: Option<Failure>,
    /// None: a hook may take for ever.
    deadline: Option<Instant>,
}

/// What was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Aim {
    /// To be created: it stays at its gate.
    Create,
    /// To be started after it was created.
    Start,
    /// Both at once.
    Run,
}

impl Processes {
    /// The report channels of launches that may still say something.
    pub(super) fn channels(&self) -> impl Iterator<Item = (&ProcessId, BorrowedFd<'_>)> {
        self.all.iter().filter_map(|(id, process)| {
            let Stage::Launching(launching) = &process.stage else {
                return None;
            };
            let talks = launching.failed.is_none() && !launching.silent;
            talks.then(|| (id, launching.launched.channel()))
        })
    }

    /// When the next launch is overdue.
    pub(super) fn launch_deadline(&self) -> Option<Instant> {
        let deadline = |process: &Process| match &process.stage {
            Stage::Launching(launching) if launching.asked.is_some() => launching.deadline,
            Stage::Outside(outside) => outside.deadline(),
            _ => None,
        };
        self.all.values().filter_map(deadline).min()
    }

    /// Gives up launches whose time is up.
    pub(super) fn expire_launches(&mut self) {
        let now = Instant::now();
        for process in self.all.values_mut() {
            if let Stage::Outside(outside) = &mut process.stage {
                outside.expire(now);
            }
            let Stage::Launching(launching) = &mut process.stage else {
                continue;
            };
            if launching.deadline.is_none_or(|deadline| now < deadline) {
                continue;
            }
            match (&launching.failed, launching.asked) {
                (None, _) => launching.fail(launch_failure(launching.launched.overdue())),
                (Some(failed), Some(asked)) => {
                    let answer = News::Answer(asked, Err(failed.clone()), None);
                    launching.asked = None;
                    self.news.push(answer);
                }
                (Some(_), None) => {}
            }
        }
    }

    /// A launching child has said something, or is gone.
    pub(super) fn hear(&mut self, id: &ProcessId) {
        let Some(process) = self.all.get_mut(id) else {
            return;
        };
        let Stage::Launching(launching) = &mut process.stage else {
            return;
        };
        let channel = launching.launched.channel();
        if launching.failed.is_some() || !events::wait_readable(channel, 0).unwrap_or(false) {
            return;
        }
        match (launching.launched.hear(), launching.released) {
            (Ok(Heard::Ready), false) => {
                if let Err(failed) = ready(launching, process.streams.as_deref_mut()) {
                    launching.fail(failed);
                } else if launching.aim == Aim::Create {
                    self.created(id);
                } else {
                    launching.release();
                }
            }
            (Ok(Heard::Helped), _) => launching.renew(),
            (Ok(Heard::Closed), true) => self.running(id),
            (Ok(Heard::Closed), false) => launching.silent = true,
            (Ok(Heard::Ready), true) => {
                launching.fail(launch_failure(launching.launched.overdue()))
            }
            (Err(error), _) => launching.fail(launch_failure(error)),
        }
    }

    fn created(&mut self, id: &ProcessId) {
        if let Some((process, mut launching)) = self.take_launching(id) {
            let answer = launching.started();
            let asked = launching.asked;
            process.stage = Stage::Created(Box::new(launching.launched));
            self.answer(asked, Ok(answer), None);
        }
    }

    fn running(&mut self, id: &ProcessId) {
        if let Some((process, mut launching)) = self.take_launching(id) {
            process.stage = Stage::Running {
                started_at: sys::now(),
            };
            let started = launching.launched.poststart().map_err(launch_failure);
            let answer = started.map(|()| match launching.aim {
                Aim::Start => Answer::Done,
                _ => launching.started(),
            });
            let terminal = launching.launched.terminal.take();
            self.answer(launching.asked, answer, terminal);
        }
    }

    fn take_launching(&mut self, id: &ProcessId) -> Option<(&mut Process, Launching)> {
        let process = self.all.get_mut(id)?;
        // Replaced by the caller, who knows what comes next.
        let stage = std::mem::replace(&mut process.stage, Stage::Exited(ExitRecord::default()));
        match stage {
            Stage::Launching(launching) => Some((process, *launching)),
            other => {
                process.stage = other;
                None
            }
        }
    }

    fn answer(
        &mut self,
        asked: Option<Asked>,
        result: Result<Answer, Failure>,
        terminal: Option<OwnedFd>,
    ) {
        if let Some(asked) = asked {
            self.news.push(News::Answer(asked, result, terminal));
        }
    }

    /// A launching child has ended. Hears its last words first: if it had executed its program by
    /// then, this was no failure. Returns whether the process is to be forgotten: one that was never
    /// created is.
    pub(super) fn launch_ended(&mut self, id: &ProcessId, child: &sys::Ended, oom: bool) -> bool {
        self.hear(id);
        // It may have become ready with its last breath.
        self.hear(id);
        if !matches!(
            self.all.get(id).map(|p| &p.stage),
            Some(Stage::Launching(_))
        ) {
            return false;
        }
        let Some((_, launching)) = self.take_launching(id) else {
            return false;
        };
        let failed = launching.failed.unwrap_or_else(|| death(child, oom));
        self.answer(launching.asked, Err(failed), None);
        launching.aim != Aim::Start
    }
}

/// Why a child that said nothing ended; the first wording is runc's.
fn death(child: &sys::Ended, oom: bool) -> Failure {
    let message = match (oom, child.signal) {
        (true, _) => "container init was OOM-killed (memory limit too low?)".to_owned(),
        (_, 0) => format!("the process exited with {} while it was set up", child.code),
        (_, signal) => {
            let name = sys::signal_name(signal);
            format!("the process was ended by signal {signal} ({name}) while it was set up")
        }
    };
    failure(FailureKind::Launch, message)
}

/// The terminal of a container stays here; that of an exec goes to its client.
fn ready(launching: &mut Launching, streams: Option<&mut Streams>) -> Result<(), Failure> {
    if let Some(streams) = streams
        && let Some(master) = launching.launched.terminal.take()
    {
        streams
            .set_terminal(master)
            .map_err(system("setting up the terminal"))?;
    }
    Ok(())
}

impl Launching {
    pub(super) fn new(launched: Launched, aim: Aim, asked: Asked) -> Launching {
        Launching {
            launched,
            aim,
            released: false,
            silent: false,
            asked: Some(asked),
            failed: None,
            deadline: None,
        }
        .renewed()
    }

    fn renewed(mut self) -> Launching {
        self.renew();
        self
    }

    /// The child gets the time anew that it may be silent.
    fn renew(&mut self) {
        let patience = u64::try_from(self.launched.patience_ms()).ok();
        self.deadline = patience.map(|ms| Instant::now() + Duration::from_millis(ms));
    }

    pub(super) fn release(&mut self) {
        self.released = true;
        self.renew();
        // Fails only when it is gone. Why, its exit will tell.
        let _ = self.launched.release();
    }

    pub(super) fn is_being_created(&self) -> bool {
        self.aim == Aim::Create
    }

    /// Whether it was asked to run, so that it may run at any moment.
    pub(super) fn is_starting(&self) -> bool {
        self.aim == Aim::Start
    }

    fn fail(&mut self, failed: Failure) {
        // Fails only when it is gone, which is what is wanted.
        let _ = sys::pidfd_send_signal(self.launched.pidfd.as_fd(), libc::SIGKILL);
        self.failed = Some(failed);
        self.deadline = Some(Instant::now() + BURIAL_DEADLINE);
    }

    fn started(&mut self) -> Answer {
        Answer::Started {
            pid: self.launched.pid,
            notes: std::mem::take(&mut self.launched.notes),
        }
    }
}
