// SPDX-License-Identifier: Apache-2.0
//! The `podwright oci` commands: runc's verbs, flags and exit codes, over the same plans and the
//! same launcher as the CRI server, with no shim in between.
//!
//! Call [`main`] from a process with one thread: it forks without exec.

mod args;
mod create;
mod exec;
mod manage;
mod store;
mod supervise;

use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;

use args::{Cli, Command, LogFormat};
use clap::Parser;

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

impl<T, E: std::error::Error> Attempt<T> for Result<T, E> {
    fn attempt(self, what: impl std::fmt::Display) -> Outcome<T> {
        self.map_err(|error| Failure::new(format!("{what}: {}", chain(&error))))
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

/// Runs one command of the OCI runtime. `args` starts with the program's name (`podwright oci`).
/// Errors go to stderr and, as runc does, to the file of `--log`.
pub fn main(args: impl Iterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are no failures. Nothing can be done if the stream is closed.
            let _ = error.print();
            return ExitCode::from(u8::from(error.use_stderr()));
        }
    };
    match run(&cli) {
        Ok(code) => code,
        Err(failure) => {
            report(&cli, &failure.message);
            ExitCode::from(failure.code)
        }
    }
}

fn run(cli: &Cli) -> Outcome {
    if cli.systemd_cgroup {
        return Err(Failure::new(
            "--systemd-cgroup is not supported: cgroups are made directly",
        ));
    }
    let store = store::Store::new(&cli.root);
    match &cli.command {
        Command::Create(options) => create::create(&store, options),
        Command::Run(options) => create::run(&store, options),
        Command::Start { id } => manage::start(&store, id),
        Command::State { id } => manage::state(&store, id),
        Command::Kill { all, id, signal } => manage::kill(&store, id, signal, *all),
        Command::Delete { force, id } => manage::delete(&store, id, *force),
        Command::List { format, quiet } => manage::list(&store, *format, *quiet),
        Command::Exec(options) => exec::exec(&store, options),
    }
}

/// Callers such as containerd and podman find the reason in the log file.
fn report(cli: &Cli, message: &str) {
    let time = jiff::Timestamp::now();
    let line = match cli.log_format {
        LogFormat::Text => format!("time=\"{time}\" level=error msg={message:?}\n"),
        LogFormat::Json => {
            let line =
                serde_json::json!({"level": "error", "msg": message, "time": time.to_string()});
            format!("{line}\n")
        }
    };
    let log = cli.log.as_ref().map(|path| {
        let mut options = std::fs::OpenOptions::new();
        options.append(true).create(true).open(path)
    });
    // A log that cannot be written must not hide the failure itself, which stderr still gets.
    if let Some(Ok(mut log)) = log {
        let _ = log.write_all(line.as_bytes());
    }
    let _ = writeln!(std::io::stderr(), "podwright oci: {message}");
}
