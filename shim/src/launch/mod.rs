// SPDX-License-Identifier: Apache-2.0
//! Executes launch plans: clone3, namespaces, mounts, identity, exec.
//!
//! Two halves. The parent prepares: it turns every path into a C string, opens bind sources and
//! namespace files, and makes detached copies of bind mounts, all of which may fail or allocate.
//! The child only performs system calls on what was prepared, and reports the first failure as a
//! few numbers, which the parent turns into words with the plan at hand.

mod cgroup;
mod child;
pub mod external;
pub mod fifo;
mod filesystem;
pub mod hooks;
mod identity;
mod launcher;
mod listener;
mod prepare;
mod report;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use crate::plan::{CgroupJoin, Hooks, LaunchPlan, ProcessPlan, SeccompListener};
use crate::sys::{self, Clone, Errno, events, socket};

pub use cgroup::beside;
pub use hooks::HookPoint;
pub use launcher::{Launcher, serve};
pub use prepare::{
    new_network_namespace, new_user_namespace, readonly_file, through_readonly_mount,
};
pub use report::{Blame, Heard, LaunchError, Step, plain, reason};

/// The child has this long to set itself up; only a hung filesystem takes it.
pub const SETUP_DEADLINE_MS: i32 = 30_000;

/// Standard streams of a new process.
#[derive(Debug)]
pub enum Stdio {
    /// stdin, stdout, stderr.
    Streams([OwnedFd; 3]),
    /// A new terminal in the container's own devpts; its master is in [`Launched::terminal`].
    Terminal,
}

/// What holds a process back between set-up and exec.
#[derive(Debug)]
pub enum Gate {
    /// [`Launched::start`], or the end of this process, in which case it never runs.
    Parent,
    /// One byte in a FIFO, opened for reading and writing: `start` comes from another process.
    Fifo(OwnedFd),
}

/// What a child says, and the descriptors that came with it.
type Report<'a> = (report::Report<'a>, [Option<OwnedFd>; socket::MAX_FDS]);

/// A process that is set up.
#[derive(Debug)]
pub struct Launched {
    /// In this process's pid namespace.
    pub pid: u32,
    pub pidfd: OwnedFd,
    /// The master side of its terminal, with [`Stdio::Terminal`].
    pub terminal: Option<OwnedFd>,
    /// What was clamped because this process lacks a privilege.
    pub notes: Vec<String>,
    channel: OwnedFd,
    words: report::Words,
    hooks: Hooks,
    /// Of the child's own hooks.
    budget: Option<Duration>,
    /// Who gets the notify descriptor of its filter, and the container's process if it is another.
    listener: Option<SeccompListener>,
    container_pid: Option<u32>,
}

/// Makes a container: everything up to, not including, its exec.
///
/// It returns while the child still sets itself up: either wait with [`Launched::until_ready`], or
/// hear its words with [`Launched::hear`] whenever [`Launched::channel`] is readable. `Ready` comes
/// first.
///
/// Call it from a process with one thread (see [`sys::clone3`]).
///
/// # Errors
/// Those of the preparation, in words; no process is left then.
pub fn begin(
    plan: &LaunchPlan,
    stdio: Stdio,
    gate: Gate,
    sandbox: Option<BorrowedFd<'_>>,
) -> Result<Launched, LaunchError> {
    let (prepared, notes) = prepare::container(plan, sandbox)?;
    let words = report::Words::of_plan(plan);
    let made = spawn(prepared, &stdio, &gate, Kinship::Child, &words)?;
    drop((stdio, gate));
    Launched::of_container(plan, made, notes, words)
}

/// Starts a process in the namespaces of a running one. It returns while the child still sets itself
/// up, as [`begin`] does.
///
/// # Errors
/// Those of the preparation; no process is left then.
pub fn begin_execute(
    target: BorrowedFd<'_>,
    cgroup: &CgroupJoin,
    process: &ProcessPlan,
    stdio: Stdio,
) -> Result<Launched, LaunchError> {
    let (prepared, notes) = prepare::exec(target, cgroup, process)?;
    let words = report::Words::of_process(process);
    let made = spawn(prepared, &stdio, &Gate::Parent, Kinship::Child, &words)?;
    drop(stdio);
    Launched::of_process(target, process, made, notes, words)
}

/// What becomes of a process that has just been cloned, for whoever sees it through.
struct Made {
    pid: u32,
    pidfd: OwnedFd,
    channel: OwnedFd,
    /// It will make the container's process and end.
    in_two_steps: bool,
}

/// Whose child the new process is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kinship {
    /// Ours.
    Child,
    /// Our parent's.
    Sibling,
}

fn spawn(
    mut prepared: prepare::Prepared,
    stdio: &Stdio,
    gate: &Gate,
    kinship: Kinship,
    words: &report::Words,
) -> Result<Made, LaunchError> {
    let (ours, theirs) = socket::pair().map_err(|errno| words.error(Step::Channel, 0, errno))?;
    let own_pid_namespace = enter_pid_namespace(&prepared)
        .map_err(|errno| words.error(Step::JoinNamespace, 0, errno))?;
    let in_two_steps = prepared.spaces.in_two_steps();
    let flags = match in_two_steps {
        true => 0,
        false => prepared.spaces.new,
    };
    let unified = prepared.unified.as_ref().map(AsFd::as_fd);
    let cloned = match kinship {
        Kinship::Child => sys::clone3(flags, unified),
        Kinship::Sibling => sys::clone3_sibling(flags, unified),
    };
    if let Ok(Clone::Child) = cloned {
        // Or the parent's end would never show.
        drop(ours);
        child::run(&mut prepared, stdio, gate, theirs.as_fd());
    }
    if let Some(own) = own_pid_namespace {
        sys::setns(own.as_fd(), libc::CLONE_NEWPID)
            .map_err(|errno| words.error(Step::JoinNamespace, 0, errno))?;
    }
    match cloned {
        Ok(Clone::Parent { pid, pidfd }) => Ok(Made {
            pid,
            pidfd,
            channel: ours,
            in_two_steps,
        }),
        Ok(Clone::Child) => sys::exit(127),
        Err(errno) => Err(words.error(Step::Clone, 0, errno)),
    }
}

/// A pid namespace is joined by the parent, for its children; returns the way back.
fn enter_pid_namespace(prepared: &prepare::Prepared) -> Result<Option<OwnedFd>, Errno> {
    let Some(namespace) = &prepared.spaces.pid else {
        return Ok(None);
    };
    if prepared.spaces.in_two_steps() {
        // Joined by the first of the two, for the second.
        return Ok(None);
    }
    let own = sys::mounts::openat(sys::mounts::cwd(), c"/proc/self/ns/pid", libc::O_RDONLY, 0)?;
    sys::setns(namespace.as_fd(), libc::CLONE_NEWPID)?;
    Ok(Some(own))
}

/// The set-up's own deadline and that of its hooks.
fn patience_ms(hooks: Option<Duration>) -> i32 {
    hooks.map_or(-1, |hooks| {
        let hooks = i32::try_from(hooks.as_millis()).unwrap_or(i32::MAX);
        hooks.saturating_add(SETUP_DEADLINE_MS)
    })
}

impl Launched {
    /// The first process of a container, which its parent has to see through.
    fn of_container(
        plan: &LaunchPlan,
        made: Made,
        notes: Vec<String>,
        words: report::Words,
    ) -> Result<Launched, LaunchError> {
        let mut launched = Launched::new(&plan.process, made, notes, words)?;
        launched.hooks = plan.hooks.clone();
        let [create, start] = [HookPoint::CreateContainer, HookPoint::StartContainer]
            .map(|point| point.budget(&plan.hooks));
        launched.budget = create.zip(start).map(|(create, start)| create + start);
        Ok(launched)
    }

    /// A process beside that one.
    fn of_process(
        target: BorrowedFd<'_>,
        process: &ProcessPlan,
        made: Made,
        notes: Vec<String>,
        words: report::Words,
    ) -> Result<Launched, LaunchError> {
        let mut launched = Launched::new(process, made, notes, words)?;
        launched.container_pid = prepare::pid_of(target).ok();
        Ok(launched)
    }

    fn new(
        process: &ProcessPlan,
        made: Made,
        notes: Vec<String>,
        words: report::Words,
    ) -> Result<Launched, LaunchError> {
        let filter = process.seccomp.as_ref();
        let mut launched = Launched {
            pid: made.pid,
            pidfd: made.pidfd,
            terminal: None,
            notes,
            channel: made.channel,
            words,
            hooks: Hooks::default(),
            budget: Some(Duration::ZERO),
            listener: filter.and_then(|filter| filter.listener.clone()),
            container_pid: None,
        };
        if made.in_two_steps
            && let Err(error) = launched.follow()
        {
            launched.abandon();
            return Err(error);
        }
        Ok(launched)
    }

    /// Lets the process exec, waits until it has, and runs the poststart hooks.
    ///
    /// # Errors
    /// When exec fails, the process died before it, or a hook fails, which ends the process.
    pub fn start(&mut self) -> Result<(), LaunchError> {
        self.release()?;
        match self.wait()? {
            Heard::Closed => self.poststart(),
            _ => Err(self.words.error(Step::Gate, 0, libc::EPROTO)),
        }
    }

    /// Runs the poststart hooks, once the process has executed.
    ///
    /// # Errors
    /// A hook that fails. The process is killed then, as runc does.
    pub fn poststart(&self) -> Result<(), LaunchError> {
        hooks::run(HookPoint::Poststart, &self.hooks, self.pid).inspect_err(|_| {
            // Fails only when it has just ended.
            let _ = sys::pidfd_send_signal(self.pidfd.as_fd(), libc::SIGKILL);
        })
    }

    /// Lets the process exec. It has when `Closed` is heard.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn release(&self) -> Result<(), LaunchError> {
        socket::send(self.channel.as_fd(), &[1], &[])
            .map_err(|errno| self.words.error(Step::Gate, 0, errno))
    }

    /// Kills and reaps a process that will not be started.
    pub fn abandon(&self) {
        // Both fail only when it is gone, which is what is wanted.
        let _ = sys::pidfd_send_signal(self.pidfd.as_fd(), libc::SIGKILL);
        let _ = sys::reap(Some(self.pid), true);
    }

    /// What becomes readable when the child has something to say.
    pub fn channel(&self) -> BorrowedFd<'_> {
        self.channel.as_fd()
    }

    /// The child's next word. Blocks unless its channel is readable. The end of the channel means,
    /// after `Ready`: it has executed, or was killed.
    ///
    /// # Errors
    /// What the child reports.
    pub fn hear(&mut self) -> Result<Heard, LaunchError> {
        let mut buffer = [0; report::REPORT_MAX];
        let Some((report, descriptors)) = self.receive(&mut buffer)? else {
            return Ok(Heard::Closed);
        };
        match report {
            (Step::Ready, listened, ..) => {
                self.terminal = descriptors.into_iter().flatten().next();
                match listened {
                    0 => Ok(Heard::Ready),
                    _ => self.hand_over().map(|()| Heard::Ready),
                }
            }
            (Step::Hooks, ..) => self.run_hooks().map(|()| Heard::Helped),
            (Step::Idmap, index, recursive, _) => {
                let mut descriptors = descriptors.into_iter().flatten();
                self.idmap(descriptors.next().zip(descriptors.next()), recursive != 0)
                    .map_err(|errno| self.words.error(Step::Mount, index, errno))?;
                self.release().map(|()| Heard::Helped)
            }
            (step, index, number, output) => Err(self.words.reported(step, index, number, output)),
        }
    }

    /// Waits for the process that takes the first one's place, which only enters namespaces: until
    /// then nothing in it depends on anything that is slow.
    fn follow(&mut self) -> Result<(), LaunchError> {
        self.wait_for_word()?;
        let mut buffer = [0; report::REPORT_MAX];
        match self.receive(&mut buffer)? {
            Some(((Step::Replaced, pid, ..), [Some(pidfd), ..])) => {
                let first = std::mem::replace(&mut self.pid, pid as u32);
                self.pidfd = pidfd;
                // It has nothing left to do but to end.
                sys::reap(Some(first), true)
                    .map_err(|errno| self.words.error(Step::Replaced, 0, errno))?;
                Ok(())
            }
            Some(((step, index, number, output), _)) => {
                Err(self.words.reported(step, index, number, output))
            }
            None => Err(self.words.error(Step::Channel, 0, libc::ECONNRESET)),
        }
    }

    /// The next report, with the descriptor that came with it; none at the channel's end.
    fn receive<'a>(
        &self,
        buffer: &'a mut [u8; report::REPORT_MAX],
    ) -> Result<Option<Report<'a>>, LaunchError> {
        let failed = |errno| self.words.error(Step::Channel, 0, errno);
        let (length, fds) = socket::receive(self.channel.as_fd(), buffer).map_err(failed)?;
        if length == 0 {
            return Ok(None);
        }
        let report = report::decode(buffer.get(..length).unwrap_or_default())
            .ok_or_else(|| failed(libc::EPROTO))?;
        Ok(Some((report, fds)))
    }

    /// Gives the notify descriptor of the child's filter to its listener, and lets the child go on.
    fn hand_over(&self) -> Result<(), LaunchError> {
        self.wait_for_word()?;
        let mut buffer = [0; report::REPORT_MAX];
        let number = match self.receive(&mut buffer)? {
            Some(((Step::Listener, number, ..), _)) => number,
            Some(((step, index, number, output), _)) => {
                return Err(self.words.reported(step, index, number, output));
            }
            None => return Err(self.words.error(Step::Listener, 0, libc::ECONNRESET)),
        };
        let descriptor = sys::pidfd_getfd(self.pidfd.as_fd(), number)
            .map_err(|errno| self.words.error(Step::Listener, 0, errno))?;
        if let Some(listener) = &self.listener {
            listener::tell(listener, self.pid, self.container_pid, &descriptor)?;
        }
        self.release()
    }

    /// Id-maps a copy of a mount for a child in a user namespace, which has no say over the host's ids.
    fn idmap(&self, what: Option<(OwnedFd, OwnedFd)>, recursive: bool) -> sys::Sys<()> {
        let (tree, users) = what.ok_or(libc::EPROTO)?;
        sys::mounts::set_idmap(tree.as_fd(), users.as_fd(), recursive)
    }

    /// Runs the parent's hooks before the root is changed, and lets the child go on.
    fn run_hooks(&self) -> Result<(), LaunchError> {
        hooks::run(HookPoint::Prestart, &self.hooks, self.pid)?;
        hooks::run(HookPoint::CreateRuntime, &self.hooks, self.pid)?;
        self.release()
    }

    /// How long the child may be silent: -1 is for ever, because of a hook without a timeout.
    pub fn patience_ms(&self) -> i32 {
        patience_ms(self.budget)
    }

    /// The failure of a child that has been silent for [`Launched::patience_ms`].
    pub fn overdue(&self) -> LaunchError {
        self.words.error(Step::Channel, 0, libc::ETIMEDOUT)
    }

    /// Waits until it is set up. On failure no process is left.
    ///
    /// # Errors
    /// The step that failed.
    pub fn until_ready(mut self) -> Result<Launched, LaunchError> {
        let failed = loop {
            match self.wait() {
                Ok(Heard::Ready) => return Ok(self),
                Ok(Heard::Helped) => {}
                // It was killed before it could say anything.
                Ok(Heard::Closed) => break self.words.error(Step::Channel, 0, libc::ECONNRESET),
                Err(error) => break error,
            }
        };
        self.abandon();
        Err(failed)
    }

    fn wait(&mut self) -> Result<Heard, LaunchError> {
        self.wait_for_word()?;
        self.hear()
    }

    fn wait_for_word(&self) -> Result<(), LaunchError> {
        match events::wait_readable(self.channel.as_fd(), self.patience_ms()) {
            Ok(true) => Ok(()),
            Ok(false) => Err(self.overdue()),
            Err(errno) => Err(self.words.error(Step::Channel, 0, errno)),
        }
    }
}
