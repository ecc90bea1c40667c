// SPDX-License-Identifier: Apache-2.0
//! Hooks: programs that run at fixed points of a container's life, with its state on stdin.
//!
//! One runner serves the parent and the child, so it does not allocate: paths, arguments and the
//! state are prepared before. A hook that is still there at its deadline is killed with the
//! process group that it leads; of what it prints, the end is kept for the error message.

use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use super::report::{self, LaunchError, Step};
use crate::plan::{Hook, Hooks};
use crate::sys::{self, Clone, Errno, PointerArray, Sys, events};

/// What is kept of a hook's output.
pub(super) const OUTPUT_MAX: usize = 1024;
/// Reads from a pipe that a descendant of an ended hook may still write to.
const LAST_READS: usize = 16;

/// Where in the life of a container hooks run. The order is that of the life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HookPoint {
    Prestart,
    CreateRuntime,
    CreateContainer,
    StartContainer,
    Poststart,
    Poststop,
}

impl HookPoint {
    /// As in config.json.
    pub fn name(self) -> &'static str {
        match self {
            HookPoint::Prestart => "prestart",
            HookPoint::CreateRuntime => "createRuntime",
            HookPoint::CreateContainer => "createContainer",
            HookPoint::StartContainer => "startContainer",
            HookPoint::Poststart => "poststart",
            HookPoint::Poststop => "poststop",
        }
    }

    fn of(self, hooks: &Hooks) -> &[Hook] {
        match self {
            HookPoint::Prestart => &hooks.prestart,
            HookPoint::CreateRuntime => &hooks.create_runtime,
            HookPoint::CreateContainer => &hooks.create_container,
            HookPoint::StartContainer => &hooks.start_container,
            HookPoint::Poststart => &hooks.poststart,
            HookPoint::Poststop => &hooks.poststop,
        }
    }

    /// How long all hooks of this point may take; `None` when one has no deadline.
    pub(super) fn budget(self, hooks: &Hooks) -> Option<Duration> {
        self.of(hooks).iter().map(timeout).sum()
    }

    /// The container's status that hooks at this point are told.
    fn status(self) -> &'static [u8] {
        match self {
            HookPoint::Prestart | HookPoint::CreateRuntime | HookPoint::CreateContainer => {
                b"creating"
            }
            HookPoint::StartContainer => b"created",
            HookPoint::Poststart => b"running",
            HookPoint::Poststop => b"stopped",
        }
    }
}

/// The hooks of one point, ready to run.
pub(super) struct Ready {
    point: HookPoint,
    state: Vec<u8>,
    hooks: Vec<ReadyHook>,
}

pub(super) struct ReadyHook {
    path: CString,
    args: PointerArray,
    /// None: that of the container's process.
    env: Option<PointerArray>,
    _strings: [Vec<CString>; 2],
    timeout: Option<Duration>,
}

impl Ready {
    pub(super) fn new(point: HookPoint, hooks: &Hooks) -> Result<Ready, LaunchError> {
        let list = point.of(hooks);
        Ok(Ready {
            point,
            state: if list.is_empty() {
                Vec::new()
            } else {
                hooks.state.clone().into_bytes()
            },
            hooks: list
                .iter()
                .map(|hook| ready_hook(hook, point))
                .collect::<Result<_, _>>()?,
        })
    }

    /// Runs them in order, until one fails. `exec` is called in each hook's own process and does
    /// not return unless it fails. `pid` is the container's process as seen by the hook. `tail` is
    /// what the last one printed: the caller's, because it is large and no heap can be had here.
    pub(super) fn run(
        &self,
        pid: u32,
        tail: &mut Tail,
        exec: &mut Exec<'_>,
    ) -> Result<(), Failure> {
        for (index, hook) in self.hooks.iter().enumerate() {
            tail.length = 0;
            let cause = match self.stdin(pid) {
                Ok(stdin) => run_one(hook, stdin, exec, tail),
                Err(errno) => Some(Cause::System(errno)),
            };
            if let Some(cause) = cause {
                return Err(Failure { index, cause });
            }
        }
        Ok(())
    }

    /// The state, in a file of memory: no reader can make us wait.
    fn stdin(&self, pid: u32) -> Sys<OwnedFd> {
        let file = sys::memory_file(c"state")?;
        let put = |bytes: &[u8]| sys::write(file.as_fd(), bytes).map(drop);
        put(b"{\"status\":\"")?;
        put(self.point.status())?;
        put(b"\",")?;
        if pid != 0 {
            put(b"\"pid\":")?;
            put(decimal(pid, &mut [0; 10]))?;
            put(b",")?;
        }
        put(self.state.get(1..).unwrap_or(b"}"))?;
        sys::rewind(file.as_fd())?;
        Ok(file)
    }
}

type Exec<'a> = dyn FnMut(&ReadyHook) -> Errno + 'a;

impl ReadyHook {
    /// Becomes the hook's program; returns only on failure. `own` is the environment for a hook
    /// that names none.
    pub(super) fn exec(&self, own: Option<&PointerArray>) -> Errno {
        match self.env.as_ref().or(own) {
            Some(env) => sys::execve(&self.path, &self.args, env),
            None => libc::EINVAL,
        }
    }
}

fn ready_hook(hook: &Hook, point: HookPoint) -> Result<ReadyHook, LaunchError> {
    let text = |value: &[u8]| {
        CString::new(value).map_err(|_| {
            let what = format!("hooks.{}: {:?} has a null byte", point.name(), hook.path);
            LaunchError::prepare(what, libc::EINVAL)
        })
    };
    let all = |list: &[String]| {
        let strings = list.iter().map(|value| text(value.as_bytes()));
        strings.collect::<Result<Vec<_>, _>>()
    };
    let args = match hook.args.is_empty() {
        true => vec![text(hook.path.as_bytes())?],
        false => all(&hook.args)?,
    };
    let env = match (hook.env.is_empty(), point) {
        (false, _) => Some(all(&hook.env)?),
        // As runc does: the container's hook gets what its process gets, others what we have.
        (true, HookPoint::StartContainer) => None,
        (true, _) => Some(own_environment()),
    };
    Ok(ReadyHook {
        path: text(hook.path.as_bytes())?,
        args: PointerArray::new(&args, 0),
        env: env.as_ref().map(|env| PointerArray::new(env, 0)),
        _strings: [args, env.unwrap_or_default()],
        timeout: timeout(hook),
    })
}

fn timeout(hook: &Hook) -> Option<Duration> {
    let seconds = hook.timeout_secs?;
    Some(Duration::from_secs(seconds.into()))
}

pub(super) fn own_environment() -> Vec<CString> {
    use std::os::unix::ffi::OsStrExt;
    let entry = |(key, value): (std::ffi::OsString, std::ffi::OsString)| {
        CString::new([key.as_bytes(), b"=", value.as_bytes()].concat()).ok()
    };
    std::env::vars_os().filter_map(entry).collect()
}

fn decimal(mut number: u32, digits: &mut [u8; 10]) -> &[u8] {
    let mut first = digits.len();
    for (index, digit) in digits.iter_mut().enumerate().rev() {
        *digit = b'0' + (number % 10) as u8;
        number /= 10;
        first = index;
        if number == 0 {
            break;
        }
    }
    digits.get(first..).unwrap_or_default()
}

/// Why a hook failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cause {
    /// It could not be run.
    System(Errno),
    Exit(u8),
    Signal(u8),
    Deadline,
}

impl Cause {
    const EXIT: i32 = 0x1_0000;
    const SIGNAL: i32 = 0x2_0000;
    const DEADLINE: i32 = 0x3_0000;

    /// In the place of an errno, all of which are smaller.
    pub(super) fn encode(self) -> i32 {
        match self {
            Cause::System(errno) => errno,
            Cause::Exit(code) => Self::EXIT | i32::from(code),
            Cause::Signal(signal) => Self::SIGNAL | i32::from(signal),
            Cause::Deadline => Self::DEADLINE,
        }
    }

    pub(super) fn decode(word: i32) -> Cause {
        let low = (word & 0xff) as u8;
        match word & !0xff {
            Self::EXIT => Cause::Exit(low),
            Self::SIGNAL => Cause::Signal(low),
            Self::DEADLINE => Cause::Deadline,
            _ => Cause::System(word),
        }
    }
}

impl std::fmt::Display for Cause {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Cause::System(errno) => out.write_str(&report::reason(*errno)),
            Cause::Exit(code) => write!(out, "exit status {code}"),
            Cause::Signal(signal) => {
                let name = sys::signal_name(i32::from(*signal));
                write!(out, "ended by signal {signal} ({name})")
            }
            Cause::Deadline => out.write_str("it ran past its timeout and was killed"),
        }
    }
}

/// A hook that failed.
pub(super) struct Failure {
    pub index: usize,
    pub cause: Cause,
}

/// The end of what was printed.
pub(super) struct Tail {
    bytes: [u8; OUTPUT_MAX],
    length: usize,
}

impl Default for Tail {
    fn default() -> Tail {
        Tail {
            bytes: [0; OUTPUT_MAX],
            length: 0,
        }
    }
}

impl Tail {
    pub(super) fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or_default()
    }

    fn push(&mut self, more: &[u8]) {
        for byte in more {
            if self.length == OUTPUT_MAX {
                self.bytes.copy_within(OUTPUT_MAX / 2.., 0);
                self.length = OUTPUT_MAX / 2;
            }
            if let Some(slot) = self.bytes.get_mut(self.length) {
                *slot = *byte;
                self.length += 1;
            }
        }
    }
}

/// The two pipes between a hook and its runner.
struct Pipes {
    output: OwnedFd,
    /// Carries an errno; closed by a successful exec.
    failed: OwnedFd,
}

/// `None` when it succeeded.
fn run_one(
    hook: &ReadyHook,
    stdin: OwnedFd,
    exec: &mut Exec<'_>,
    tail: &mut Tail,
) -> Option<Cause> {
    let started = (|| {
        let (output, printed) = sys::pipe()?;
        let (failed, failing) = sys::pipe()?;
        sys::set_nonblocking(output.as_fd())?;
        let (pid, pidfd) = match sys::clone3(0, None)? {
            Clone::Parent { pid, pidfd } => (pid, pidfd),
            Clone::Child => {
                let connected = connect(stdin.as_fd(), printed.as_fd());
                let errno = connected.map_or_else(|errno| errno, |()| exec(hook));
                // Without a reader there is nobody to tell.
                let _ = sys::write(failing.as_fd(), &errno.to_ne_bytes());
                sys::exit(127)
            }
        };
        Ok((pid, pidfd, Pipes { output, failed }))
    })();
    match started {
        Ok((pid, pidfd, pipes)) => supervise(hook, pid, &pidfd, &pipes, tail),
        Err(errno) => Some(Cause::System(errno)),
    }
}

/// In the hook's process: a group of its own, its streams, and no other descriptor.
fn connect(stdin: BorrowedFd<'_>, output: BorrowedFd<'_>) -> Sys<()> {
    sys::setsid()?;
    sys::reset_signals()?;
    sys::dup_to(stdin, 0)?;
    sys::dup_to(output, 1)?;
    sys::dup_to(output, 2)?;
    sys::cloexec_from(3)
}

fn supervise(
    hook: &ReadyHook,
    pid: u32,
    pidfd: &OwnedFd,
    pipes: &Pipes,
    tail: &mut Tail,
) -> Option<Cause> {
    let waited = wait(hook.timeout, pidfd, pipes, tail);
    if waited != Ok(true) {
        // Fails only when it has just ended. The group is there once it has called setsid.
        let _ = sys::kill_group(pid, libc::SIGKILL);
        let _ = sys::pidfd_send_signal(pidfd.as_fd(), libc::SIGKILL);
    }
    let ended = sys::reap(Some(pid), true);
    for _ in 0..LAST_READS {
        if !matches!(drain(pipes.output.as_fd(), tail), Ok(count) if count > 0) {
            break;
        }
    }
    let mut errno = [0; 4];
    match (waited, ended) {
        (Ok(false), _) => Some(Cause::Deadline),
        (Err(errno), _) | (_, Err(errno)) => Some(Cause::System(errno)),
        (Ok(true), Ok(ended)) => match sys::read(pipes.failed.as_fd(), &mut errno) {
            Ok(4) => Some(Cause::System(i32::from_ne_bytes(errno))),
            _ => ended.and_then(|ended| match (ended.signal, ended.code) {
                (0, 0) => None,
                (0, code) => Some(Cause::Exit(code as u8)),
                (signal, _) => Some(Cause::Signal(signal as u8)),
            }),
        },
    }
}

/// Takes what it prints until it ends (true) or its time is up (false).
fn wait(timeout: Option<Duration>, pidfd: &OwnedFd, pipes: &Pipes, tail: &mut Tail) -> Sys<bool> {
    let deadline = timeout.map(|timeout| Instant::now() + timeout);
    let mut printing = true;
    loop {
        let mut left = -1;
        if let Some(deadline) = deadline {
            let rest = deadline.saturating_duration_since(Instant::now());
            if rest.is_zero() {
                return Ok(false);
            }
            left = i32::try_from(rest.as_millis()).unwrap_or(i32::MAX).max(1);
        }
        let mut fds = [&pidfd, &&pipes.output].map(|fd| events::interest(fd.as_fd(), libc::POLLIN));
        if !printing {
            fds[1].fd = -1;
        }
        events::poll(&mut fds, left)?;
        if fds[1].revents != 0 {
            printing = !matches!(drain(pipes.output.as_fd(), tail), Ok(0));
        }
        if fds[0].revents != 0 {
            return Ok(true);
        }
    }
}

fn drain(output: BorrowedFd<'_>, tail: &mut Tail) -> Sys<usize> {
    let mut buffer = [0; 4096];
    let count = sys::read(output, &mut buffer)?;
    tail.push(buffer.get(..count).unwrap_or_default());
    Ok(count)
}

/// Runs the hooks of one point in this process's namespaces. `pid` is the container's process as
/// seen from here, 0 when there is none any more.
///
/// # Errors
/// The first hook that fails: its number, path, exit status and the end of what it printed.
pub fn run(point: HookPoint, hooks: &Hooks, pid: u32) -> Result<(), LaunchError> {
    let ready = Ready::new(point, hooks)?;
    let mut tail = Tail::default();
    let ran = ready.run(pid, &mut tail, &mut |hook| hook.exec(None));
    ran.map_err(|Failure { index, cause }| {
        let path = point.of(hooks).get(index).map(|hook| &*hook.path);
        error(point, index, path, cause, tail.bytes())
    })
}

/// Runs all hooks after the container's end, of which none keeps another from running; returns
/// what failed.
pub fn run_poststop(hooks: &Hooks) -> Vec<LaunchError> {
    let one = |hook: &Hook| Hooks {
        state: hooks.state.clone(),
        poststop: vec![hook.clone()],
        ..Hooks::default()
    };
    let failures = hooks
        .poststop
        .iter()
        .map(|hook| run(HookPoint::Poststop, &one(hook), 0).err());
    failures.flatten().collect()
}

pub(super) fn error(
    point: HookPoint,
    index: usize,
    path: Option<&str>,
    cause: Cause,
    output: &[u8],
) -> LaunchError {
    let output = String::from_utf8_lossy(output);
    let output = match output.trim() {
        "" => String::new(),
        text => format!(", output: {text}"),
    };
    let (name, path) = (point.name(), path.unwrap_or_default());
    LaunchError {
        step: Step::Hooks,
        errno: match cause {
            Cause::System(errno) => errno,
            _ => libc::ECANCELED,
        },
        blame: report::Blame::System,
        message: format!("error running {name} hook #{index}: {path}: {cause}{output}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hooks(script: &str, timeout_secs: Option<u32>) -> Hooks {
        let hook = Hook {
            path: "/bin/sh".into(),
            args: vec!["sh".into(), "-c".into(), script.into()],
            env: vec!["NAME=value".into()],
            timeout_secs,
        };
        Hooks {
            state: r#"{"id":"x"}"#.into(),
            poststart: vec![hook],
            ..Hooks::default()
        }
    }

    fn message(hooks: &Hooks) -> String {
        let failed = run(HookPoint::Poststart, hooks, 7);
        failed.expect_err("fails").message
    }

    #[test]
    fn a_hook_gets_the_state_and_its_environment() {
        let script = r#"test "$(cat)" = '{"status":"running","pid":7,"id":"x"}' -a $NAME = value"#;
        run(HookPoint::Poststart, &hooks(script, None), 7).expect("succeeds");
    }

    #[test]
    fn a_failure_says_which_hook_and_how_it_ended() {
        assert_eq!(
            message(&hooks("echo why >&2; exit 3", None)),
            "error running poststart hook #0: /bin/sh: exit status 3, output: why"
        );
        assert!(message(&hooks("kill -9 $$", None)).ends_with("ended by signal 9 (killed)"));
        let mut missing = hooks("", None);
        missing.poststart.insert(0, missing.poststart[0].clone());
        missing.poststart[1].path = "/nosuch".into();
        assert_eq!(
            message(&missing),
            "error running poststart hook #1: /nosuch: no such file or directory"
        );
    }

    #[test]
    fn a_hook_is_killed_at_its_deadline_and_what_it_started_too() {
        let start = Instant::now();
        let late = message(&hooks("sleep 1000 & echo $!; wait", Some(1)));
        assert!(start.elapsed() < Duration::from_secs(20));
        let (said, child) = late.rsplit_once(' ').expect("a pid");
        assert!(said.contains("ran past its timeout"), "{late}");
        let deadline = Instant::now() + Duration::from_secs(20);
        let running = || {
            let stat = std::fs::read_to_string(format!("/proc/{child}/stat"));
            stat.is_ok_and(|stat| !stat.contains(") Z "))
        };
        while running() {
            assert!(Instant::now() < deadline, "{child} runs on");
            std::thread::yield_now();
        }
    }

    #[test]
    fn the_end_of_a_long_output_is_kept() {
        let loud = message(&hooks("yes | head -c 200000; echo last; exit 1", None));
        assert!(loud.ends_with("last") && loud.len() < 2 * OUTPUT_MAX);
    }

    #[test]
    fn every_poststop_hook_runs() {
        let mut all = hooks("exit 1", None);
        all.poststop = vec![all.poststart[0].clone(); 2];
        assert_eq!(run_poststop(&all).len(), 2);
    }

    #[test]
    fn causes_survive_the_channel() {
        for cause in [
            Cause::System(2),
            Cause::Exit(255),
            Cause::Signal(9),
            Cause::Deadline,
        ] {
            assert_eq!(Cause::decode(cause.encode()), cause);
        }
    }

    #[test]
    fn numbers_are_written_without_a_buffer_of_their_own() {
        for number in [0, 7, 10, u32::MAX] {
            assert_eq!(decimal(number, &mut [0; 10]), number.to_string().as_bytes());
        }
    }
}
