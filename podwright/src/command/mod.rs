// SPDX-License-Identifier: Apache-2.0
//! The command line: one file per subcommand, and the exit codes.
//!
//! 0 success, 1 it failed (one line on stderr says what, on what, why), 2 the command line was
//! wrong. `oci`, `run` and `exec` return the code of what they ran.

mod agent;
mod check;
mod cri;
mod image;
mod kubelet;
mod proxy;
mod purge;
mod run;
mod server;
mod version;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::{Parser, Subcommand};

use crate::node_config::NodeConfig;
use crate::{client, logging, sys};

/// A Kubernetes node in one static binary.
#[derive(Parser)]
#[command(name = "podwright", version = version::VERSION, disable_help_subcommand = true)]
struct CommandLine {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Run the control plane and, unless told otherwise, a node
    Server(server::ServerArgs),
    /// Run a node whose control plane is elsewhere
    Agent(agent::AgentArgs),
    /// Run the container runtime alone (CRI v1 on a unix socket)
    Cri(cri::CriArgs),
    /// Run the kubelet alone, over any CRI runtime
    Kubelet(kubelet::KubeletArgs),
    /// Run the service proxy alone, beside any API server
    Proxy(proxy::ProxyArgs),
    /// Run pods from manifests with no control plane; logs on stdout, the pod's exit code
    Run(run::RunArgs),
    /// Run OCI containers with runc's verbs
    #[command(disable_help_flag = true)]
    Oci {
        /// Verb and flags, as runc takes them
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
    /// Pull, build, list and move images
    Image(image::ImageArgs),
    /// Say whether this host is fit to be a node, one line each
    Check(check::CheckArgs),
    /// End every pod of a node and remove all that it made, data included
    Purge(purge::PurgeArgs),
    #[command(flatten)]
    Client(client::Command),
    /// Print the version
    Version,
}

/// Parses the command line and runs it.
pub(crate) fn main(args: impl Iterator<Item = OsString>) -> ExitCode {
    let line = CommandLine::parse_from(args);
    let outcome = match line.verb {
        Verb::Server(args) => server::main(args),
        Verb::Agent(args) => agent::main(args),
        Verb::Cri(args) => cri::main(args),
        Verb::Kubelet(args) => kubelet::main(args),
        Verb::Proxy(args) => proxy::main(args),
        Verb::Run(args) => run::main(args),
        Verb::Oci { args } => {
            return ::cri::oci::cli::main(std::iter::once("podwright oci".into()).chain(args));
        }
        Verb::Image(args) => image::main(args),
        Verb::Check(args) => check::main(args),
        Verb::Purge(args) => purge::main(args),
        Verb::Client(verb) => {
            install_crypto();
            return client::run(verb, &client_data_dir());
        }
        Verb::Version => version::main(),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("podwright: {error:#}");
        ExitCode::FAILURE
    })
}

/// Threads for blocking calls end so soon after a burst: each holds its stack.
const IDLE_THREAD: Duration = Duration::from_secs(1);

/// Sets up logging and the executor for a long-running command, and runs it to its end.
fn run_node<F>(config: &NodeConfig, work: F) -> anyhow::Result<ExitCode>
where
    F: Future<Output = anyhow::Result<ExitCode>>,
{
    logging::init(&config.log_level, config.log_format)?;
    install_crypto();
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    sys::share_arenas(processors);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_keep_alive(IDLE_THREAD)
        .build()
        .context("starting the executor's threads")?;
    let outcome = runtime.block_on(work);
    // Blocking calls that outlive their deadline must not hold up the end of the process.
    runtime.shutdown_background();
    outcome
}

/// Names the one provider of cryptography for every TLS user in the process.
fn install_crypto() {
    rustls::crypto::aws_lc_rs::default_provider()
        .install_default()
        .expect("nothing has installed another provider in this process");
}

/// Where a server on this machine keeps its kubeconfig.
fn client_data_dir() -> PathBuf {
    std::env::var_os("PODWRIGHT_DATA_DIR")
        .map_or_else(|| "/var/lib/podwright".into(), PathBuf::from)
}
