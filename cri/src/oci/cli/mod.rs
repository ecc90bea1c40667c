// SPDX-License-Identifier: Apache-2.0
//! The `podwright oci` commands: runc's verbs, flags and exit codes, over the same plans and the
//! same launcher as the CRI server, with no shim in between.
//!
//! Call [`main`] from a process with one thread: it forks without exec.

mod args;
mod cgroups;
mod config;
mod create;
mod events;
mod example;
mod exec;
mod features;
mod io;
mod launcher;
mod log;
mod manage;
mod names;
mod notify;
mod outside;
mod ps;
mod show;
mod store;
mod subgroup;
mod supervise;
mod terminal;
mod update;

use std::ffi::OsString;
use std::process::ExitCode;

use args::{Cli, Command, Global, Rootless};
use clap::{CommandFactory as _, Parser as _};
use log::Log;
use store::Store;

/// What went wrong, for a person or for the log that a caller reads.
#[derive(Debug)]
struct Failure {
    message: String,
    code: u8,
}

impl Failure {
    fn new(message: impl Into<String>) -> Failure {
        Failure {
            message: message.into(),
            code: 1,
        }
    }
}

type Outcome<T = ExitCode> = Result<T, Failure>;

/// Adds what was attempted to an error, and its whole chain of causes.
trait Attempt<T> {
    fn attempt(self, what: impl std::fmt::Display) -> Outcome<T>;
}

impl<T, E: std::error::Error + 'static> Attempt<T> for Result<T, E> {
    fn attempt(self, what: impl std::fmt::Display) -> Outcome<T> {
        self.map_err(|error| Failure::new(format!("{what}: {}", chain(&error))))
    }
}

fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = plain(error);
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&plain(cause));
        source = cause.source();
    }
    text
}

/// The system's words in the form of our own: lower case, without the number.
fn plain(error: &(dyn std::error::Error + 'static)) -> String {
    match error.downcast_ref::<std::io::Error>() {
        Some(error) => match error.raw_os_error() {
            Some(errno) => shim::launch::reason(errno),
            None => error.to_string(),
        },
        None => error.to_string(),
    }
}

/// What every command works with.
#[derive(Debug)]
struct Context {
    store: Store,
    log: Log,
    /// Whether new cgroups are systemd's.
    systemd: bool,
}

/// The program's name as an OCI runtime: whoever is executed under it calls [`main`] with all its
/// arguments. The launcher of [`main`] is executed so.
pub const NAME: &str = "podwright-oci";

/// Runs one command of the OCI runtime. `args` starts with the program's name (`podwright oci`).
/// Errors go to stderr and, as runc does, to the file of `--log`.
pub fn main(args: impl Iterator<Item = OsString>) -> ExitCode {
    let args: Vec<OsString> = args.collect();
    if let [_, verb, socket] = &args[..]
        && verb == launcher::VERB
    {
        return launcher::main(socket);
    }
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => return not_parsed(&error),
    };
    let log = Log::new(&cli.global);
    match context(cli.global).and_then(|context| run(&context, cli.command)) {
        Ok(code) => code,
        Err(failure) => {
            log.error(&failure.message);
            ExitCode::from(failure.code)
        }
    }
}

/// As runc: help, also for want of a verb, is no failure, and a verb that is none has a code of its own.
fn not_parsed(error: &clap::Error) -> ExitCode {
    /// runc's code for a verb that is none.
    const NO_SUCH_VERB: u8 = 3;
    use clap::error::{ContextKind, ErrorKind};
    let (said, code) = match (error.kind(), error.get(ContextKind::InvalidSubcommand)) {
        (ErrorKind::InvalidSubcommand, Some(verb)) => {
            eprintln!("podwright oci: No help topic for '{verb}'");
            return ExitCode::from(NO_SUCH_VERB);
        }
        (ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand | ErrorKind::MissingSubcommand, _) => {
            (Cli::command().print_help(), 0)
        }
        _ => (error.print(), u8::from(error.use_stderr())),
    };
    // Nothing can be done if the stream is closed.
    drop(said);
    ExitCode::from(code)
}

fn context(global: Global) -> Outcome<Context> {
    if global.rootless == Rootless::True {
        return Err(Failure::new(
            "--rootless=true is not supported: this runtime needs root",
        ));
    }
    Ok(Context {
        log: Log::new(&global),
        store: Store::new(global.root)?,
        systemd: global.systemd_cgroup,
    })
}

fn run(context: &Context, command: Command) -> Outcome {
    match command {
        Command::Create(options) => create::create(context, &options),
        Command::Run(options) => create::run(context, &options),
        Command::Start { id } => manage::start(context, &id),
        Command::State { id } => show::state(context, &id),
        Command::Kill { all, id, signal } => manage::kill(context, &id, &signal, all),
        Command::Delete { force, id } => manage::delete(context, &id, force),
        Command::Exec(options) => exec::exec(context, &options),
        Command::List { format, quiet } => show::list(context, format, quiet),
        Command::Ps {
            format,
            id,
            options,
        } => ps::ps(context, format, &id, options),
        Command::Pause { id } => manage::pause(context, &id),
        Command::Resume { id } => manage::resume(context, &id),
        Command::Update(options) => update::update(context, &options),
        Command::Events {
            stats,
            interval,
            id,
        } => events::events(context, &id, &interval, stats),
        Command::Features => features::features(),
        Command::Spec { bundle, rootless } => example::spec(&bundle, rootless),
        Command::Checkpoint(_) => Err(no_criu("checkpoint")),
        Command::Restore(_) => Err(no_criu("restore")),
    }
}

fn no_criu(verb: &str) -> Failure {
    Failure::new(format!(
        "{verb} is not supported: this runtime does not use CRIU"
    ))
}
