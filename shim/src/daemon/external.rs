// SPDX-License-Identifier: Apache-2.0
//! Containers that another OCI runtime makes: its commands are children of the shim for as long as
//! they take, and what they leave is too (the shim is the subreaper), so logs, exits and signals go
//! through the same code as for containers of our own.
//!
//! ```text
//! create:  `create` runs -> it ends well, the pid is in a file: answer, Created
//! start:   `start` runs  -> it ends well: answer, Running
//! sandbox: both, one answer
//! exec:    `exec` runs in the foreground, and stands for the process inside
//! ```

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::{Duration, Instant};

use super::processes::{
    Asked, Handled, News, Process, Processes, Stage, failure, first, launch_failure, system,
};
use super::streams::Streams;
use crate::launch::{Stdio, external};
use crate::plan::{CgroupJoin, External, LaunchPlan, Namespace};
use crate::protocol::{Answer, Failure, FailureKind, ProcessId, SANDBOX};
use crate::sys::{self, socket};

/// A command of the runtime may take this long; it is killed then.
const COMMAND_DEADLINE: Duration = Duration::from_secs(30);
/// Of the runtime's own words about a failure, in its log.
const WORDS_MAX: usize = 4096;
/// Files in the bundle.
const PID_FILE: &str = "pid";
const CONSOLE: &str = "console";

/// A container on its way to run.
#[derive(Debug)]
pub(super) struct Outside {
    runtime: External,
    step: Step,
    /// Goes on to start by itself.
    run: bool,
    asked: Option<Asked>,
    console: Option<UnixListener>,
    /// The address of the console's socket leads through it.
    bundle_dir: Option<std::fs::File>,
    /// Its process ended before the command that started it.
    ended: Option<sys::Ended>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Creating(Command),
    Created,
    Starting(Command, i64),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Command {
    pid: u32,
    deadline: Option<Instant>,
}

impl Command {
    fn new(pid: u32) -> Command {
        Command {
            pid,
            deadline: Some(Instant::now() + COMMAND_DEADLINE),
        }
    }
}

impl Outside {
    fn command(&self) -> Option<&Command> {
        match &self.step {
            Step::Creating(command) | Step::Starting(command, _) => Some(command),
            Step::Created => None,
        }
    }

    pub(super) fn is_starting(&self) -> bool {
        matches!(self.step, Step::Starting(..))
    }

    pub(super) fn is_created(&self) -> bool {
        self.step == Step::Created
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        self.command()?.deadline
    }

    /// Kills a command whose time is up. Its end is then its failure.
    pub(super) fn expire(&mut self, now: Instant) {
        let (Step::Creating(command) | Step::Starting(command, _)) = &mut self.step else {
            return;
        };
        if command.deadline.is_some_and(|deadline| now >= deadline) {
            command.deadline = None;
            // It leads a session, and so a group. Fails only when it has just ended.
            let _ = sys::kill_group(command.pid, libc::SIGKILL);
        }
    }

    /// Words for a command of the runtime.
    fn words(&self, command: &[&str]) -> Vec<String> {
        let command = command.iter().map(|word| (*word).to_owned());
        self.runtime
            .command
            .iter()
            .cloned()
            .chain(command)
            .collect()
    }

    /// Why a command failed: what the runtime says in its log, else how it ended.
    fn blame(&self, command: &str, ended: &sys::Ended) -> Failure {
        let said = last_words(&self.runtime.log);
        let program = self.runtime.command.first().map_or("", String::as_str);
        let message = match (said, ended.signal) {
            (Some(said), _) => format!("{program} {command}: {said}"),
            (None, 0) => format!("{program} {command} ended with {}", ended.code),
            (None, signal) => {
                let name = sys::signal_name(signal);
                format!("{program} {command} was ended by signal {signal} ({name})")
            }
        };
        failure(FailureKind::Launch, crate::launch::plain(&message))
    }
}

/// The last entry of a log in runc's JSON or text form.
fn last_words(path: &str) -> Option<String> {
    let text = std::fs::read_to_string(path).ok()?;
    let line = text.lines().rev().find(|line| !line.trim().is_empty())?;
    let said = match line.split_once("\"msg\":") {
        Some((_, rest)) => quoted(rest.trim_start())?,
        None => line.to_owned(),
    };
    let end = (0..=WORDS_MAX.min(said.len()))
        .rev()
        .find(|at| said.is_char_boundary(*at))?;
    said.get(..end).map(str::to_owned)
}

/// A JSON string at the beginning of `text`.
fn quoted(text: &str) -> Option<String> {
    let mut said = String::new();
    let mut characters = text.strip_prefix('"')?.chars();
    loop {
        match characters.next()? {
            '"' => return Some(said),
            '\\' => match characters.next()? {
                'n' => said.push('\n'),
                't' => said.push('\t'),
                other => said.push(other),
            },
            other => said.push(other),
        }
    }
}

impl Processes {
    /// Begins `create`, for a container or the sandbox.
    pub(super) fn create_outside(
        &mut self,
        id: ProcessId,
        plan: &LaunchPlan,
        runtime: &External,
        (stdio, streams): (Stdio, Option<Streams>),
        asked: Asked,
    ) -> Handled {
        let sandbox = self.sandbox()?;
        let bundle = runtime.bundle.as_str();
        let sandbox = sandbox.as_ref().map(AsFd::as_fd);
        let mounted = external::mounts(plan, runtime, sandbox).map_err(launch_failure)?;
        let pid_file = format!("{bundle}/{PID_FILE}");
        for old in [pid_file.as_str(), runtime.log.as_str()] {
            // Absent as a rule.
            let _ = std::fs::remove_file(old);
        }
        let mut outside = Outside {
            runtime: runtime.clone(),
            step: Step::Created,
            run: id.container == SANDBOX,
            asked: Some(asked),
            console: None,
            bundle_dir: None,
            ended: None,
        };
        let mut words = outside.words(&["create", "--bundle", bundle, "--pid-file", &pid_file]);
        let (dir, all) = match stdio {
            Stdio::Streams(all) => {
                external::give(&all, external::owner(plan)).map_err(launch_failure)?;
                (None, all)
            }
            Stdio::Terminal => {
                let dir = std::fs::File::open(bundle).map_err(console_failure)?;
                // A socket's address is short, and a bundle's may be long.
                let path = format!("/proc/{}/fd/{}", std::process::id(), dir.as_raw_fd());
                let path = format!("{path}/{CONSOLE}");
                let _ = std::fs::remove_file(&path);
                outside.console = Some(UnixListener::bind(&path).map_err(console_failure)?);
                words.extend(["--console-socket".to_owned(), path]);
                (Some(dir), super::beginning::null_trio()?)
            }
        };
        words.push(runtime.id.clone());
        let spawned = external::spawn(&words, &mounted, external::Streams::Three(all));
        let pid = spawned.map_err(launch_failure)?;
        outside.step = Step::Creating(Command::new(pid));
        outside.bundle_dir = dir;
        let process = Process {
            pid,
            stage: Stage::Outside(Box::new(outside)),
            cgroup: plan.cgroup.clone(),
            own_pid_namespace: plan.namespaces.pid == Namespace::New,
            streams: streams.map(Box::new),
            // The runtime's `delete` runs them.
            poststop: None,
        };
        self.all.insert(id, process);
        Ok(None)
    }

    /// Begins `start` of a created container.
    pub(super) fn start_outside(&mut self, id: &ProcessId, asked: Asked) -> Handled {
        let process = self.get(id)?;
        let Stage::Outside(outside) = &mut process.stage else {
            return Err(failure(FailureKind::State, "it is not created"));
        };
        outside.asked = Some(asked);
        outside.start()?;
        Ok(None)
    }

    /// A command in a running container, whose process is `target`: `words` run as they are, with these
    /// streams.
    pub(super) fn exec_outside(
        &mut self,
        id: ProcessId,
        words: &[String],
        (cgroup, target): (CgroupJoin, u32),
        stdio: Stdio,
        asked: Asked,
    ) -> Handled {
        let (master, streams) = match stdio {
            Stdio::Streams(all) => {
                let owner = external::owner_of(target).map_err(launch_failure)?;
                external::give(&all, owner).map_err(launch_failure)?;
                (None, external::Streams::Three(all))
            }
            Stdio::Terminal => {
                let (master, slave) = external::terminal().map_err(system("making a terminal"))?;
                (Some(master), external::Streams::Terminal(slave))
            }
        };
        let spawned = external::spawn(words, &external::Mounted::default(), streams);
        let pid = spawned.map_err(launch_failure)?;
        let process = Process {
            pid,
            stage: Stage::Running {
                started_at: sys::now(),
            },
            cgroup,
            own_pid_namespace: true,
            streams: None,
            poststop: None,
        };
        self.all.insert(id, process);
        let notes = Vec::new();
        let answer = News::Answer(asked, Ok(Answer::Started { pid, notes }), master);
        self.news.push(answer);
        Ok(None)
    }

    /// Whether this child was a command of a runtime, or is held back for one; if so it is dealt with.
    pub(super) fn outside_ended(&mut self, child: &sys::Ended) -> bool {
        let found = self.all.iter_mut().find_map(|(id, process)| {
            let Stage::Outside(outside) = &mut process.stage else {
                return None;
            };
            let is_command = outside.command().is_some_and(|c| c.pid == child.pid);
            if !is_command && process.pid == child.pid && outside.is_starting() {
                outside.ended = Some(*child);
                return Some(None);
            }
            is_command.then(|| Some(id.clone()))
        });
        match found {
            None => false,
            Some(None) => true,
            Some(Some(id)) => {
                self.command_ended(&id, child);
                true
            }
        }
    }

    fn command_ended(&mut self, id: &ProcessId, child: &sys::Ended) {
        let Some(process) = self.all.get_mut(id) else {
            return;
        };
        let Stage::Outside(outside) = &mut process.stage else {
            return;
        };
        let asked = outside.asked.take();
        let well = (child.code, child.signal) == (0, 0);
        let result = match outside.step {
            Step::Creating(_) if !well => Err(outside.blame("create", child)),
            Step::Creating(_) => created(process),
            Step::Starting(..) if !well => Err(outside.blame("start", child)),
            Step::Starting(_, began) => {
                let answer = match outside.run {
                    true => started(process.pid),
                    false => Answer::Done,
                };
                let ended = outside.ended.take();
                process.stage = Stage::Running { started_at: began };
                self.tell_asked(asked, Ok(answer));
                ended.into_iter().for_each(|ended| self.bury(ended));
                return;
            }
            Step::Created => return,
        };
        match (result, asked) {
            (Ok(()), Some(asked)) => self.created_outside(id, asked),
            (Ok(()), None) => {}
            (Err(failed), asked) => {
                self.tell_asked(asked, Err(failed));
                self.give_up(id);
            }
        }
    }

    fn created_outside(&mut self, id: &ProcessId, asked: Asked) {
        let Some(process) = self.all.get_mut(id) else {
            return;
        };
        let pid = process.pid;
        let Stage::Outside(outside) = &mut process.stage else {
            return;
        };
        if !outside.run {
            return self.tell_asked(Some(asked), Ok(started(pid)));
        }
        outside.asked = Some(asked);
        if let Err(failed) = outside.start() {
            self.tell_asked(Some(asked), Err(failed));
            self.give_up(id);
        }
    }

    /// A container that could not be created or started. What there is of it is killed; it stays
    /// known, as ended without having started, if it was created.
    fn give_up(&mut self, id: &ProcessId) {
        let Some(process) = self.all.get_mut(id) else {
            return;
        };
        let Stage::Outside(outside) = &mut process.stage else {
            return;
        };
        let was_created = !matches!(outside.step, Step::Creating(_));
        let ended = outside.ended.take();
        outside.step = Step::Created;
        super::kill::signal_cgroup(&process.cgroup, libc::SIGKILL);
        if !was_created {
            self.all.remove(id);
            return;
        }
        // Fails only when it has ended.
        let _ = sys::kill(process.pid, libc::SIGKILL);
        ended.into_iter().for_each(|ended| self.bury(ended));
    }

    fn tell_asked(&mut self, asked: Option<Asked>, result: Result<Answer, Failure>) {
        if let Some(asked) = asked {
            self.news.push(News::Answer(asked, result, None));
        }
    }

    pub(super) fn sandbox(&self) -> Result<Option<OwnedFd>, Failure> {
        match self.all.get(&first(SANDBOX)) {
            Some(process) if !process.has_exited() => sys::pidfd_open(process.pid)
                .map(Some)
                .map_err(system("opening the sandbox")),
            _ => Ok(None),
        }
    }
}

impl Outside {
    fn start(&mut self) -> Result<(), Failure> {
        // Whatever was said before is of `create`.
        let _ = std::fs::remove_file(&self.runtime.log);
        let words = self.words(&["start", &self.runtime.id.clone()]);
        let streams = external::Streams::Three(super::beginning::null_trio()?);
        let spawned = external::spawn(&words, &external::Mounted::default(), streams);
        let pid = spawned.map_err(launch_failure)?;
        self.step = Step::Starting(Command::new(pid), sys::now());
        Ok(())
    }
}

fn started(pid: u32) -> Answer {
    Answer::Started {
        pid,
        notes: Vec::new(),
    }
}

/// `create` went well: the pid is known, and the terminal is here.
fn created(process: &mut Process) -> Result<(), Failure> {
    let Stage::Outside(outside) = &mut process.stage else {
        return Ok(());
    };
    let path = Path::new(&outside.runtime.bundle).join(PID_FILE);
    let text = std::fs::read_to_string(&path).unwrap_or_default();
    let pid = text.trim().parse().ok().filter(|pid| *pid > 1);
    let pid = pid.ok_or_else(|| {
        let program = outside.runtime.command.first().map_or("", String::as_str);
        let message = format!("{program} create left no pid in {}", path.display());
        failure(FailureKind::Launch, message)
    })?;
    // It waits to be started, so that it is there unless something has killed it.
    sys::kill(pid, 0).map_err(system("looking for the container's process"))?;
    process.pid = pid;
    outside.step = Step::Created;
    outside.bundle_dir = None;
    if let Some(console) = outside.console.take() {
        let _ = std::fs::remove_file(Path::new(&outside.runtime.bundle).join(CONSOLE));
        let master = receive_terminal(&console).map_err(system("receiving the terminal"))?;
        if let Some(streams) = &mut process.streams {
            let set = streams.set_terminal(master);
            set.map_err(system("setting up the terminal"))?;
        }
    }
    Ok(())
}

/// The runtime has sent it before it ended, so nothing here waits.
fn receive_terminal(console: &UnixListener) -> sys::Sys<OwnedFd> {
    let number = |error: std::io::Error| error.raw_os_error().unwrap_or(libc::EIO);
    console.set_nonblocking(true).map_err(number)?;
    let (peer, _) = console.accept().map_err(number)?;
    peer.set_nonblocking(true).map_err(number)?;
    let mut name = [0; 4096];
    let (_, fds) = socket::receive(peer.as_fd(), &mut name)?;
    fds.into_iter().flatten().next().ok_or(libc::EPROTO)
}

fn console_failure(error: std::io::Error) -> Failure {
    system("making a socket for the terminal")(error.raw_os_error().unwrap_or(libc::EIO))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_runtimes_last_words_are_found() {
        let dir = tempfile_dir();
        let path = dir.join("log");
        let said = |text: &str| {
            std::fs::write(&path, text).unwrap();
            last_words(path.to_str().unwrap())
        };
        let json = "{\"level\":\"error\",\"msg\":\"no \\\"x\\\" here\",\"time\":\"t\"}\n\n";
        assert_eq!(said(json).as_deref(), Some("no \"x\" here"));
        assert_eq!(said("a\nplain words\n").as_deref(), Some("plain words"));
        assert_eq!(said(""), None);
        assert_eq!(last_words("/nowhere"), None);
        std::fs::remove_dir_all(dir).unwrap();
    }

    fn tempfile_dir() -> std::path::PathBuf {
        let dir = std::env::temp_dir().join(format!("shim-external-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        dir
    }
}
