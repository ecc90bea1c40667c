// SPDX-License-Identifier: Apache-2.0
//! `podwright cri`: the container runtime alone.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;

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
}

pub(crate) fn main(args: CriArgs) -> anyhow::Result<ExitCode> {
    let node = args.node.resolve()?;
    let mut config = node.cri();
    if let Some(endpoint) = &args.listen {
        config.listen = socket_path(endpoint)?;
    }
    run_node(&node, async {
        let mut supervisor = Supervisor::new()?;
        supervisor
            .start("cri", move |ready, stop| {
                ::cri::run(config.clone(), ready, stop)
            })
            .await?;
        supervisor.run_until_stopped().await?;
        Ok(ExitCode::SUCCESS)
    })
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
