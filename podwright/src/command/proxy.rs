// SPDX-License-Identifier: Apache-2.0
//! `podwright proxy`: the service proxy alone, beside any API server.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::run_node;
use crate::node_config::NodeFlags;
use crate::supervise::Supervisor;

#[derive(Args)]
pub(crate) struct ProxyArgs {
    #[command(flatten)]
    node: NodeFlags,

    /// Credentials for the API server
    #[arg(long, value_name = "FILE")]
    kubeconfig: PathBuf,
}

pub(crate) fn main(args: ProxyArgs) -> anyhow::Result<ExitCode> {
    let node = args.node.resolve()?;
    let config = node.proxy(args.kubeconfig)?;
    run_node(&node, async {
        let mut supervisor = Supervisor::new()?;
        supervisor
            .start("proxy", move |ready, stop| {
                ::proxy::run(config.clone(), ready, stop)
            })
            .await?;
        supervisor.run_until_stopped().await?;
        Ok(ExitCode::SUCCESS)
    })
}
