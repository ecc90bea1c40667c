// SPDX-License-Identifier: Apache-2.0
//! A small client for a machine without kubectl: the same verbs, flags, texts and exit codes.
//!
//! One file per verb. `connection` finds the server, `kinds` turns what people type into kinds,
//! `failure` turns errors into kubectl's lines. Data goes to stdout, everything else to stderr.

mod apply;
mod connection;
mod delete;
mod describe;
mod events;
mod exec;
mod failure;
mod get;
mod kinds;
mod logs;
mod merge;
mod network;
mod port_forward;
mod sys;
mod table;
mod terminal;

pub(crate) use logs::duration;

use std::path::Path;
use std::process::ExitCode;

/// The client's commands.
#[derive(clap::Subcommand)]
pub(crate) enum Command {
    /// Show objects
    Get(get::GetArgs),
    /// Show one object with its events
    Describe(describe::DescribeArgs),
    /// Create or change objects from manifests
    Apply(apply::ApplyArgs),
    /// Delete objects
    Delete(delete::DeleteArgs),
    /// Print what a container has written
    Logs(logs::LogsArgs),
    /// Run a command in a container
    Exec(exec::ExecArgs),
    /// List events
    Events(events::EventsArgs),
    /// Forward local ports to a pod
    PortForward(port_forward::PortForwardArgs),
    /// Show the way of a packet on this node: rules, chains, endpoints
    Network(network::NetworkArgs),
}

/// Runs one command to its end. `data_dir` is where a server on this machine keeps its kubeconfig,
/// which is used when no other is found.
pub(crate) fn run(command: Command, data_dir: &Path) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: starting the runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    let result = runtime.block_on(async {
        match command {
            Command::Get(args) => get::run(args, data_dir).await,
            Command::Describe(args) => describe::run(args, data_dir).await,
            Command::Apply(args) => apply::run(args, data_dir).await,
            Command::Delete(args) => delete::run(args, data_dir).await,
            Command::Logs(args) => logs::run(args, data_dir).await,
            Command::Exec(args) => exec::run(args, data_dir).await,
            Command::Events(args) => events::run(args, data_dir).await,
            Command::Network(args) => network::run(args).await,
            Command::PortForward(args) => port_forward::run(args, data_dir).await,
        }
    });
    // A read of the terminal that is still waiting must not hold up the end.
    runtime.shutdown_background();
    failure::exit_code(result)
}
