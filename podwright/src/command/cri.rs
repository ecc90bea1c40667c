// SPDX-License-Identifier: Apache-2.0
//! `podwright cri`: the container runtime alone.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;
use tracing::{info, warn};

use super::run_node;
use crate::node_config::NodeFlags;
use crate::supervise::Supervisor;

#[derive(Args)]
pub(crate) struct CriArgs {
    #[command(flatten)]
    node: NodeFlags,

    /// Endpoint to serve on, as unix:///path [default: unix://<run-dir>/cri.sock]
    #[arg(long, value_name = "ENDPOINT")]
    listen: Option<String>,

    /// Print the configuration that would be used, as a file for --config, and end
    #[arg(long)]
    print_config: bool,
}

pub(crate) fn main(args: CriArgs) -> anyhow::Result<ExitCode> {
    let mut node = args.node.clone().resolve()?;
    if let Some(endpoint) = &args.listen {
        node.cri_socket = socket_path(endpoint)?;
    }
    if args.print_config {
        print!("{}", node.cri_file()?);
        return Ok(ExitCode::SUCCESS);
    }
    let config = node.cri();
    run_node(&node, async {
        let start = async |supervisor: &mut Supervisor| {
            start_reloading(supervisor, config, args.node).await
        };
        Supervisor::new()?.run(start).await?;
        Ok(ExitCode::SUCCESS)
    })
}

/// The runtime as a component.
///
/// # Errors
/// When it does not serve in time.
pub(crate) async fn start(
    supervisor: &mut Supervisor,
    config: ::cri::Config,
) -> anyhow::Result<()> {
    let run = move |ready, stop| ::cri::run(config.clone(), ready, stop);
    supervisor.start("cri", run).await
}

/// As [`start`]; and at each SIGHUP the file that `flags` name is read anew. One that is wrong
/// changes nothing.
///
/// # Errors
/// As [`start`], and when the signal cannot be waited for.
pub(crate) async fn start_reloading(
    supervisor: &mut Supervisor,
    config: ::cri::Config,
    flags: NodeFlags,
) -> anyhow::Result<()> {
    let settings = config.settings.clone();
    supervisor.on_hangup(move || match flags.clone().resolve() {
        Ok(node) => {
            let waiting = settings.reload(node.cri);
            info!("configuration read again");
            for field in waiting {
                warn!(field = %format!("cri.{field}"), "changed in the file; it takes a restart to act");
            }
        }
        Err(error) => warn!("the configuration stays as it is: {error:#}"),
    })?;
    start(supervisor, config).await
}

/// The path in `unix:///path` or `/path`.
pub(crate) fn socket_path(endpoint: &str) -> anyhow::Result<PathBuf> {
    let path = endpoint.strip_prefix("unix://").unwrap_or(endpoint);
    Some(PathBuf::from(path))
        .filter(|path| path.is_absolute())
        .with_context(|| {
            format!("{endpoint:?} is not a unix socket: unix:///run/podwright/cri.sock")
        })
}
