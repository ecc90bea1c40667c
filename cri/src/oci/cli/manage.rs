// SPDX-License-Identifier: Apache-2.0
//! `start`, `state`, `kill`, `delete`, `list`.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use serde_json::{Value, json};
use shim::launch::{self, HookPoint, hooks};
use shim::plan::Hooks;
use shim::sys;

use super::args::ListFormat;
use super::create;
use super::create::CGROUP_ROOT;
use super::store::{Record, Status, Store};
use super::{Attempt, Failure, Outcome};
use crate::cgroup::{self, CgroupPath, Manager};

pub(super) fn start(store: &Store, id: &str) -> Outcome {
    let record = store.load(id)?;
    match store.status(&record) {
        Status::Created => {}
        Status::Running => {
            return Err(Failure::new("cannot start an already running container"));
        }
        Status::Stopped => return Err(Failure::new("cannot start a container that has stopped")),
    }
    let program = || {
        let spec = store.spec(id).ok();
        let process = spec.as_ref().and_then(|spec| spec.process().as_ref());
        let args = process.and_then(|process| process.args().as_ref());
        args.and_then(|args| args.first().cloned())
            .unwrap_or_default()
    };
    launch::fifo::release(&store.fifo(id), &record.hooks, program)
        .map_err(|error| create::not_started(&error))?;
    if let Err(error) = hooks::run(HookPoint::Poststart, &record.hooks, record.pid) {
        // As runc does. Fails only when it has just ended.
        let _ = sys::kill(record.pid, libc::SIGKILL);
        return Err(create::not_started(&error));
    }
    Ok(ExitCode::SUCCESS)
}

/// Runs the hooks that follow the container's end. Nothing depends on them any more, so a failure
/// is told and no more.
pub(super) fn poststop(hooks: &Hooks) {
    for error in hooks::run_poststop(hooks) {
        // Without stderr there is nobody to tell.
        let _ = writeln!(std::io::stderr(), "podwright oci: {error}");
    }
}

/// The OCI state, with the fields that runc adds.
fn describe(store: &Store, record: &Record) -> Value {
    let status = store.status(record);
    let mut state = json!({
        "ociVersion": record.oci_version,
        "id": record.id,
        "pid": if status == Status::Stopped { 0 } else { record.pid },
        "status": status.name(),
        "bundle": record.bundle,
        "rootfs": record.rootfs,
        "created": record.created,
        "owner": "",
    });
    if !record.annotations.is_empty() {
        state["annotations"] = json!(record.annotations);
    }
    state
}

fn print(text: &str) -> Outcome<()> {
    let mut out = std::io::stdout();
    writeln!(out, "{text}").attempt("writing to stdout")
}

pub(super) fn state(store: &Store, id: &str) -> Outcome {
    let record = store.load(id)?;
    let text = serde_json::to_string_pretty(&describe(store, &record)).attempt("encoding")?;
    print(&text)?;
    Ok(ExitCode::SUCCESS)
}

pub(super) fn kill(store: &Store, id: &str, signal: &str, all: bool) -> Outcome {
    let number =
        signal_number(signal).ok_or_else(|| Failure::new(format!("unknown signal {signal:?}")))?;
    let record = store.load(id)?;
    if all {
        let (manager, cgroup) = cgroup_of(&record)?;
        for pid in manager.pids(&cgroup).attempt("reading the cgroup")? {
            // Fails only for one that is gone.
            let _ = sys::kill(pid, number);
        }
        return Ok(ExitCode::SUCCESS);
    }
    if store.status(&record) == Status::Stopped {
        return Err(Failure::new("container not running"));
    }
    sys::kill(record.pid, number)
        .map_err(std::io::Error::from_raw_os_error)
        .attempt(format_args!("sending {signal} to {}", record.pid))?;
    Ok(ExitCode::SUCCESS)
}

/// A number, or a name with or without SIG.
fn signal_number(text: &str) -> Option<i32> {
    if let Ok(number) = text.parse::<i32>() {
        return (1..=64).contains(&number).then_some(number);
    }
    let name = text.to_ascii_uppercase();
    let name = match name.starts_with("SIG") {
        true => name,
        false => format!("SIG{name}"),
    };
    let signal: nix::sys::signal::Signal = name.parse().ok()?;
    Some(signal as i32)
}

fn cgroup_of(record: &Record) -> Outcome<(std::sync::Arc<dyn Manager>, CgroupPath)> {
    let manager = cgroup::detect(Path::new(CGROUP_ROOT)).attempt("looking for cgroups")?;
    let path = CgroupPath::new(&record.cgroup).attempt("reading the state")?;
    Ok((manager, path))
}

pub(super) fn delete(store: &Store, id: &str, force: bool) -> Outcome {
    let Some(record) = store.find(id)? else {
        if force {
            // What a killed `create` may have left.
            store.remove(id)?;
            return Ok(ExitCode::SUCCESS);
        }
        return Err(Failure::new(format!("container {id:?} does not exist")));
    };
    let status = store.status(&record);
    if status == Status::Running && !force {
        let status = status.name();
        let message = format!("cannot delete container {id} that is not stopped: {status}");
        return Err(Failure::new(message));
    }
    if status != Status::Stopped {
        // Fails only when it has just ended.
        let _ = sys::kill(record.pid, libc::SIGKILL);
    }
    let (manager, cgroup) = cgroup_of(&record)?;
    manager.kill(&cgroup).attempt("killing what is left")?;
    manager.remove(&cgroup).attempt("removing cgroups")?;
    store.remove(id)?;
    poststop(&record.hooks);
    Ok(ExitCode::SUCCESS)
}

pub(super) fn list(store: &Store, format: ListFormat, quiet: bool) -> Outcome {
    let records = store.all()?;
    let states: Vec<Value> = records
        .iter()
        .map(|record| describe(store, record))
        .collect();
    if quiet {
        for record in &records {
            print(&record.id)?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    if let ListFormat::Json = format {
        print(&json!(states).to_string())?;
        return Ok(ExitCode::SUCCESS);
    }
    print("ID\tPID\tSTATUS\tBUNDLE\tCREATED")?;
    for state in states {
        let column = |name: &str| match &state[name] {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        let row = ["id", "pid", "status", "bundle", "created"].map(column);
        print(&row.join("\t"))?;
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::signal_number;

    #[test]
    fn signals_have_names_and_numbers() {
        for (text, number) in [("9", 9), ("KILL", 9), ("SIGTERM", 15), ("usr1", 10)] {
            assert_eq!(signal_number(text), Some(number), "{text}");
        }
        for bad in ["0", "65", "-9", "NOSUCH", ""] {
            assert_eq!(signal_number(bad), None, "{bad}");
        }
    }
}
