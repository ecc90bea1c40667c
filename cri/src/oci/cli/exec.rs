// SPDX-License-Identifier: Apache-2.0
//! `exec`: another process in a running container.

use std::os::fd::AsFd;
use std::process::ExitCode;

use oci_spec::runtime::{Process, Spec};
use serde_json::json;
use shim::launch::Launched;
use shim::plan::ProcessPlan;

use super::args::Exec;
use super::cgroups::Cgroup;
use super::create::not_started;
use super::launcher::Launcher;
use super::store::{self, Record, Status};
use super::supervise::{self, Signals};
use super::terminal::Relay;
use super::{Attempt, Context, Failure, Outcome, config, io, subgroup};
use crate::oci;

/// runc's code for an exec that could not be started.
const EXEC_FAILED: u8 = 255;

pub(super) fn exec(context: &Context, options: &Exec) -> Outcome {
    let done = Launcher::start_for(options.preserve_fds, false)
        .and_then(|(launcher, inherited)| start(context, options, launcher, inherited));
    done.map_err(|failure| Failure {
        message: format!("exec failed: {}", failure.message),
        code: EXEC_FAILED,
    })
}

fn start(
    context: &Context,
    options: &Exec,
    launcher: Launcher,
    inherited: io::Inherited,
) -> Outcome {
    let store = &context.store;
    let record = store.load(&options.id)?;
    match context.status(&record)? {
        Status::Stopped => return Err(Failure::new("cannot exec in a stopped container")),
        Status::Paused if !options.ignore_paused => {
            return Err(Failure::new(
                "cannot exec in a paused container (use --ignore-paused to override)",
            ));
        }
        _ => {}
    }
    let spec = store.spec(&options.id)?;
    let mut notes = Vec::new();
    let process = process(&spec, options, &mut notes)?;
    let terminal = process.terminal().unwrap_or(false);
    io::check_terminal(terminal, options.detach, options.console_socket.is_some())?;
    let filter = store.seccomp(&options.id)?;
    let bundle = record.bundle.to_string_lossy();
    let mut plan =
        oci::compile_exec(&spec, &process, filter, &options.id, &bundle).attempt("process")?;
    inherited.add_to(&mut plan);
    oci::keep_possible_ambient(&mut plan, &mut notes);
    notes.iter().for_each(|note| context.log.warn(note));
    context.log.launching(&plan);
    plan.session_keyring = record.keyring.clone();
    let signals = match options.detach {
        true => None,
        false => Some(Signals::block()?),
    };
    let mut launched = enter(&record, options, launcher, &plan)?;
    let relay = go(&mut launched, options).inspect_err(|_| launched.abandon())?;
    for note in &launched.notes {
        context.log.warn(note);
    }
    match signals {
        None => Ok(ExitCode::SUCCESS),
        Some(signals) => supervise::until_exit(&launched, signals, relay, None).map(ExitCode::from),
    }
}

fn go(launched: &mut Launched, options: &Exec) -> Outcome<Option<Relay>> {
    let pidfd_socket = options.pidfd_socket.as_deref();
    io::hand_over(
        launched,
        options.console_socket.as_deref(),
        pidfd_socket.map(|socket| (socket, "setns")),
    )?;
    let relay = Relay::of(launched)?;
    launched.start().map_err(|error| not_started(&error))?;
    io::write_pid(options.pid_file.as_deref(), launched.pid)?;
    Ok(relay)
}

fn enter(
    record: &Record,
    options: &Exec,
    launcher: Launcher,
    plan: &ProcessPlan,
) -> Outcome<Launched> {
    let target = store::first_process(record)
        .ok_or_else(|| Failure::new("cannot exec in a stopped container"))?;
    let cgroup = Cgroup::of_record(record)?;
    let own = cgroup.manager.join(&cgroup.path);
    let join = match options.cgroup.is_empty() {
        true => shim::launch::beside(own, record.pid),
        false => subgroup::join(own, &options.cgroup)?,
    };
    let begun = launcher.begin_execute(target.as_fd(), &join, plan);
    begun
        .and_then(Launched::until_ready)
        .map_err(|error| not_started(&error))
}

/// The container's own process with what was asked for in place of it, or a file's.
fn process(spec: &Spec, options: &Exec, notes: &mut Vec<String>) -> Outcome<Process> {
    if let Some(path) = &options.process {
        return config::read_process(path, notes);
    }
    if options.command.is_empty() {
        return Err(Failure::new("exec args cannot be empty"));
    }
    let own = spec.process().as_ref();
    let own = own.ok_or_else(|| Failure::new("config.json: process: it is missing"))?;
    let mut process = own.clone();
    process.set_args(Some(options.command.clone()));
    process.set_terminal(Some(options.tty));
    if let Some(cwd) = &options.cwd {
        process.set_cwd(cwd.clone());
    }
    if options.no_new_privs {
        process.set_no_new_privileges(Some(true));
    }
    if let Some(label) = options.process_label.as_ref().filter(|l| !l.is_empty()) {
        process.set_selinux_label(Some(label.clone()));
    }
    if let Some(profile) = options.apparmor.as_ref().filter(|p| !p.is_empty()) {
        process.set_apparmor_profile(Some(profile.clone()));
    }
    let mut env = process.env().clone().unwrap_or_default();
    env.extend(options.env.iter().cloned());
    process.set_env(Some(env));
    let mut user = process.user().clone();
    if let Some(text) = &options.user {
        let (uid, gid) = uid_and_gid(text)?;
        user.set_uid(uid);
        user.set_gid(gid.unwrap_or(user.gid()));
    }
    if !options.additional_gids.is_empty() {
        let mut groups = user.additional_gids().clone().unwrap_or_default();
        groups.extend(&options.additional_gids);
        user.set_additional_gids(Some(groups));
    }
    process.set_user(user);
    let given = options.cap.iter().cloned();
    let (known, unknown): (Vec<_>, Vec<_>) =
        given.partition(|name| oci::capability::bit(name).is_some());
    if !unknown.is_empty() {
        notes.push(config::without_capabilities(&unknown));
    }
    add_capabilities(&mut process, &known)?;
    Ok(process)
}

/// `uid[:gid]`, numbers that fit.
fn uid_and_gid(text: &str) -> Outcome<(u32, Option<u32>)> {
    let (uid, gid) = match text.split_once(':') {
        Some((uid, gid)) => (uid, Some(gid)),
        None => (text, None),
    };
    let number = |part: &str| {
        let parsed = part.parse::<u32>();
        parsed.attempt(format_args!("--user {text:?} is not uid[:gid]"))
    };
    Ok((number(uid)?, gid.map(number).transpose()?))
}

fn add_capabilities(process: &mut Process, names: &[String]) -> Outcome<()> {
    if names.is_empty() {
        return Ok(());
    }
    let added = oci::spec::capability_mask(names)
        .map_err(|name| Failure::new(format!("--cap: {name} is no capability")))?;
    let mut sets = serde_json::to_value(process.capabilities()).unwrap_or_default();
    if !sets.is_object() {
        sets = json!({});
    }
    // As runc does: ambient needs inheritable, which is not touched.
    let ambient = sets["inheritable"].is_array().then_some("ambient");
    for set in ["bounding", "effective", "permitted"]
        .into_iter()
        .chain(ambient)
    {
        let mut all = sets[set].as_array().cloned().unwrap_or_default();
        for name in oci::capability::names(added) {
            if !all.contains(&json!(name)) {
                all.push(json!(name));
            }
        }
        sets[set] = json!(all);
    }
    let sets = serde_json::from_value(sets).attempt("--cap")?;
    process.set_capabilities(Some(sets));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::uid_and_gid;

    #[test]
    fn users_are_numbers_that_fit() {
        assert_eq!(uid_and_gid("1000:7").expect("numbers"), (1000, Some(7)));
        assert_eq!(uid_and_gid("5").expect("a number"), (5, None));
        for bad in ["", "root", "-1", "4294967296", "1:x", "1:"] {
            assert!(uid_and_gid(bad).is_err(), "{bad:?}");
        }
    }
}
