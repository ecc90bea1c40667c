// SPDX-License-Identifier: Apache-2.0
//! `start`, `kill`, `delete`, `pause`, `resume`: what happens to a container that is there.

use std::os::fd::{AsFd, BorrowedFd};
use std::process::ExitCode;

use shim::launch::{self, HookPoint, hooks};
use shim::plan::Hooks;
use shim::sys::{self, events};

use super::cgroups::Cgroup;
use super::create::not_started;
use super::notify::Notify;
use super::store::{self, Record, Status, no_such_container};
use super::{Attempt, Context, Failure, Outcome, outside};

/// A killed process is gone within milliseconds, unless it hangs in the kernel.
const KILL_DEADLINE_MS: i32 = 10_000;

impl Context {
    pub(super) fn status(&self, record: &Record) -> Outcome<Status> {
        match self.store.status(record) {
            Status::Created | Status::Running if Cgroup::of_record(record)?.frozen()? => {
                Ok(Status::Paused)
            }
            other => Ok(other),
        }
    }
}

pub(super) fn start(context: &Context, id: &str) -> Outcome {
    let store = &context.store;
    let record = store.load(id)?;
    match context.status(&record)? {
        Status::Created => {}
        Status::Stopped => return Err(Failure::new("cannot start a container that has stopped")),
        Status::Paused => {
            return Err(Failure::new("cannot start a container in the paused state"));
        }
        Status::Running => return Err(Failure::new("cannot start an already running container")),
    }
    let notify = Notify::of_environment(&store.dir(id))
        .map(Notify::listen)
        .transpose()?;
    let program = || {
        let spec = store.spec(id).ok();
        let process = spec.as_ref().and_then(|spec| spec.process().as_ref());
        let args = process.and_then(|process| process.args().as_ref());
        args.and_then(|args| args.first().cloned())
            .unwrap_or_default()
    };
    launch::fifo::release(&store.fifo(id), &record.hooks, program)
        .map_err(|error| not_started(&error))?;
    if let Err(error) = hooks::run(HookPoint::Poststart, &record.hooks, record.pid) {
        // As runc does. Fails only when it has just ended.
        let _ = sys::kill(record.pid, libc::SIGKILL);
        return Err(not_started(&error));
    }
    if let (Some(notify), Some(process)) = (notify, store::first_process(&record)) {
        notify.wait_and_forward(process.as_fd(), record.pid)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Runs the hooks that follow the container's end. Nothing depends on them any more, so a failure
/// is told and no more.
pub(super) fn poststop(context: &Context, hooks: &Hooks) {
    for error in hooks::run_poststop(hooks) {
        context.log.warn(&error.to_string());
    }
}

pub(super) fn kill(context: &Context, id: &str, signal: &str, all: bool) -> Outcome {
    let number =
        signal_number(signal).ok_or_else(|| Failure::new(format!("unknown signal {signal:?}")))?;
    let record = context.store.load(id)?;
    // Processes that share somebody else's pid namespace do not end with the first one.
    let everyone = all || (number == libc::SIGKILL && !record.own_pids);
    let process = store::first_process(&record);
    if everyone {
        let cgroup = Cgroup::of_record(&record)?;
        let pids = cgroup.pids()?;
        if pids.is_empty() && process.is_none() && !all {
            return Err(not_running());
        }
        for pid in pids {
            // Fails only for one that is gone.
            let _ = sys::kill(pid, number);
        }
    } else {
        let process = process.ok_or_else(not_running)?;
        sys::pidfd_send_signal(process.as_fd(), number)
            .map_err(std::io::Error::from_raw_os_error)
            .attempt(format_args!("sending {signal} to {}", record.pid))?;
    }
    if number == libc::SIGKILL {
        thaw_for_death(&record)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// containerd looks for these words.
fn not_running() -> Failure {
    Failure::new("container not running")
}

/// On v1 a frozen process dies only when it runs again.
fn thaw_for_death(record: &Record) -> Outcome<()> {
    let cgroup = Cgroup::of_record(record)?;
    match cgroup.frozen()? {
        true => cgroup.thaw(),
        false => Ok(()),
    }
}

/// A number, or a name with or without SIG; 0 only asks whether there is a process.
fn signal_number(text: &str) -> Option<i32> {
    const LAST: i32 = 64;
    if let Ok(number) = text.parse::<i32>() {
        return (0..=LAST).contains(&number).then_some(number);
    }
    let name = text.to_ascii_uppercase();
    let name = name.strip_prefix("SIG").unwrap_or(&name);
    let real_time = |name: &str, sign: &str| match name.strip_prefix(sign) {
        Some(offset) => offset.parse::<i32>().ok().filter(|offset| *offset >= 0),
        None => name.is_empty().then_some(0),
    };
    if let Some(rest) = name.strip_prefix("RTMIN") {
        let number = libc::SIGRTMIN() + real_time(rest, "+")?;
        return (number <= LAST).then_some(number);
    }
    if let Some(rest) = name.strip_prefix("RTMAX") {
        let number = libc::SIGRTMAX() - real_time(rest, "-")?;
        return (number >= libc::SIGRTMIN()).then_some(number);
    }
    let signal: nix::sys::signal::Signal = format!("SIG{name}").parse().ok()?;
    Some(signal as i32)
}

pub(super) fn delete(context: &Context, id: &str, force: bool) -> Outcome {
    let Some(record) = context.store.find(id)? else {
        if force {
            remove_unfinished(context, id)?;
            return Ok(ExitCode::SUCCESS);
        }
        return Err(no_such_container());
    };
    let status = context.status(&record)?;
    if matches!(status, Status::Running | Status::Paused) && !force {
        let status = status.name();
        let message = format!("cannot delete container {id} that is not stopped: {status}");
        return Err(Failure::new(message));
    }
    if status != Status::Stopped
        && let Some(process) = store::first_process(&record)
    {
        // Fails only when it has just ended.
        let _ = sys::pidfd_send_signal(process.as_fd(), libc::SIGKILL);
        if status == Status::Paused {
            thaw_for_death(&record)?;
        }
        wait_for_end(process.as_fd())?;
    }
    Cgroup::of_record(&record)?.destroy()?;
    outside::remove(&context.store, id)?;
    context.store.remove(id)?;
    poststop(context, &record.hooks);
    Ok(ExitCode::SUCCESS)
}

fn wait_for_end(process: BorrowedFd<'_>) -> Outcome<()> {
    let ended = events::wait_readable(process, KILL_DEADLINE_MS)
        .map_err(std::io::Error::from_raw_os_error)
        .attempt("waiting for the container to end")?;
    match ended {
        true => Ok(()),
        false => Err(Failure::new("container init still running")),
    }
}

/// What a `create` that was killed has left: perhaps a cgroup with a process, and its directory.
fn remove_unfinished(context: &Context, id: &str) -> Outcome<()> {
    if let Ok(spec) = context.store.spec(id) {
        let systemd = context.store.is_systemd(id);
        Cgroup::of_spec(systemd, &spec, id)?.destroy()?;
    }
    outside::remove(&context.store, id)?;
    context.store.remove(id)
}

pub(super) fn pause(context: &Context, id: &str) -> Outcome {
    let record = context.store.load(id)?;
    match context.status(&record)? {
        Status::Stopped | Status::Paused => Err(not_running()),
        _ => {
            Cgroup::of_record(&record)?.freeze()?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

pub(super) fn resume(context: &Context, id: &str) -> Outcome {
    let record = context.store.load(id)?;
    let cgroup = Cgroup::of_record(&record)?;
    match cgroup.frozen()? {
        true => cgroup.thaw().map(|()| ExitCode::SUCCESS),
        false => Err(Failure::new("container not paused")),
    }
}

#[cfg(test)]
mod tests {
    use super::signal_number;

    #[test]
    fn signals_have_names_and_numbers() {
        for (text, number) in [
            ("9", 9),
            ("KILL", 9),
            ("SIGTERM", 15),
            ("usr1", 10),
            ("0", 0),
            ("SIGRTMIN+3", 37),
            ("RTMAX-2", 62),
            ("rtmin", 34),
        ] {
            assert_eq!(signal_number(text), Some(number), "{text}");
        }
        for bad in ["65", "-9", "NOSUCH", "", "RTMIN+99", "RTMAX-99", "RTMIN-1"] {
            assert_eq!(signal_number(bad), None, "{bad}");
        }
    }
}
