// SPDX-License-Identifier: Apache-2.0
//! `exec`: another process in a running container.

use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::process::CommandExt;
use std::process::ExitCode;

use oci_spec::runtime::{Process, Spec};
use serde_json::json;
use shim::launch;
use shim::sys::{self, mounts};

use super::args::Exec;
use super::store::{Record, Status, Store};
use super::{Attempt, Failure, Outcome, create, supervise};
use crate::cgroup::{self, CgroupPath};
use crate::oci;

/// runc's code for an exec that could not be started.
const EXEC_FAILED: u8 = 255;

pub(super) fn exec(store: &Store, options: &Exec) -> Outcome {
    seal()?;
    start(store, options).map_err(|failure| Failure {
        message: format!("exec failed: {}", failure.message),
        code: EXEC_FAILED,
    })
}

/// Runs this program again from a read-only mount of its directory, unless it already does.
///
/// The child that enters the container is a copy of this process, so a process in there could
/// find our executable under /proc/<pid>/exe and, if it were writable, replace it (CVE-2019-5736).
fn seal() -> Outcome<()> {
    let own = std::fs::File::open("/proc/self/exe").attempt("opening this program")?;
    let readonly = mounts::is_readonly(own.as_fd()).map_err(std::io::Error::from_raw_os_error);
    if readonly.attempt("looking at this program")? {
        return Ok(());
    }
    let path = std::env::current_exe().attempt("finding this program")?;
    let file = launch::readonly_file(&path.to_string_lossy()).attempt("sealing this program")?;
    let mut arguments = std::env::args_os();
    let mut command = std::process::Command::new(format!("/proc/self/fd/{}", file.as_raw_fd()));
    if let Some(name) = arguments.next() {
        command.arg0(name);
    }
    let error = command.args(arguments).exec();
    Err(error).attempt("running this program from a read-only mount")
}

fn start(store: &Store, options: &Exec) -> Outcome {
    if options.preserve_fds != 0 {
        return Err(Failure::new("--preserve-fds is not supported"));
    }
    let record = store.load(&options.id)?;
    if store.status(&record) == Status::Stopped {
        return Err(Failure::new("cannot exec in a stopped container"));
    }
    let spec = store.spec(&options.id)?;
    let process = process(&spec, options)?;
    let terminal = process.terminal().unwrap_or(false);
    if terminal != options.console_socket.is_some() {
        return Err(Failure::new(
            "a terminal and --console-socket need each other",
        ));
    }
    let plan = oci::compile_process(&process, create::seccomp(&spec)?).attempt("process")?;
    let mut launched = enter(&record, &plan, terminal)?;
    if let (Some(master), Some(socket)) = (launched.terminal.take(), &options.console_socket) {
        create::send_terminal(socket, &master)?;
    }
    if let Err(error) = launched.start() {
        launched.abandon();
        return Err(Failure::new(format!(
            "unable to start container process: {error}"
        )));
    }
    if let Some(path) = &options.pid_file {
        create::write_pid(path, launched.pid)?;
    }
    match options.detach {
        true => Ok(ExitCode::SUCCESS),
        false => supervise::until_exit(&launched).map(ExitCode::from),
    }
}

fn enter(
    record: &Record,
    plan: &shim::plan::ProcessPlan,
    terminal: bool,
) -> Outcome<launch::Launched> {
    let raw = std::io::Error::from_raw_os_error;
    let target = sys::pidfd_open(record.pid)
        .map_err(raw)
        .attempt("opening the container's process")?;
    let manager =
        cgroup::detect(std::path::Path::new(create::CGROUP_ROOT)).attempt("looking for cgroups")?;
    let cgroup = CgroupPath::new(&record.cgroup).attempt("reading the state")?;
    launch::execute(
        target.as_fd(),
        &manager.join(&cgroup),
        plan,
        create::stdio(terminal)?,
    )
    .map_err(|error| Failure::new(format!("unable to start container process: {error}")))
}

/// The container's own process with what was asked for in place of it, or a file's.
fn process(spec: &Spec, options: &Exec) -> Outcome<Process> {
    if let Some(path) = &options.process {
        let attempt = format!("reading {}", path.display());
        let text = std::fs::read(path).attempt(&attempt)?;
        return serde_json::from_slice(&text).attempt(&attempt);
    }
    if options.command.is_empty() {
        return Err(Failure::new("process args cannot be empty"));
    }
    let own = spec
        .process()
        .as_ref()
        .ok_or_else(|| Failure::new("config.json has no process"))?;
    let mut process = own.clone();
    process.set_args(Some(options.command.clone()));
    process.set_terminal(Some(options.tty));
    if let Some(cwd) = &options.cwd {
        process.set_cwd(cwd.clone());
    }
    let mut env = process.env().clone().unwrap_or_default();
    env.extend(options.env.iter().cloned());
    process.set_env(Some(env));
    if options.no_new_privs {
        process.set_no_new_privileges(Some(true));
    }
    if let Some(user) = &options.user {
        process.set_user(self::user(user)?);
    }
    if !options.additional_gids.is_empty() {
        let mut user = process.user().clone();
        user.set_additional_gids(Some(options.additional_gids.clone()));
        process.set_user(user);
    }
    add_capabilities(&mut process, &options.cap)?;
    Ok(process)
}

/// `uid[:gid]`, numbers that fit.
fn user(text: &str) -> Outcome<oci_spec::runtime::User> {
    let (uid, gid) = text.split_once(':').unwrap_or((text, "0"));
    let number = |part: &str| {
        let parsed = part.parse::<u32>();
        parsed.attempt(format_args!("--user {text:?} is not uid[:gid]"))
    };
    let user = json!({"uid": number(uid)?, "gid": number(gid)?});
    serde_json::from_value(user).attempt("--user")
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
    for set in ["bounding", "effective", "permitted"] {
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
    use super::user;

    #[test]
    fn users_are_numbers_that_fit() {
        let parsed = user("1000:7").expect("numbers");
        assert_eq!((parsed.uid(), parsed.gid()), (1000, 7));
        for bad in ["", "root", "-1", "4294967296", "1:x"] {
            assert!(user(bad).is_err(), "{bad:?}");
        }
    }
}
