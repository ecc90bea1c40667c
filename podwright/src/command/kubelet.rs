// SPDX-License-Identifier: Apache-2.0
//! `podwright kubelet`: the kubelet alone, over any CRI runtime.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::run_node;
use crate::node_config::NodeFlags;
use crate::supervise::Supervisor;

#[derive(Args)]
pub(crate) struct KubeletArgs {
    #[command(flatten)]
    node: NodeFlags,

    /// Credentials for the API server; without them, static pods only
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,

    /// The runtime, as unix:///path [default: unix://<run-dir>/cri.sock]
    #[arg(long, value_name = "ENDPOINT")]
    container_runtime_endpoint: Option<String>,

    /// CA of the clients that the node API trusts
    #[arg(long, value_name = "FILE", requires = "tls_cert_file")]
    client_ca_file: Option<PathBuf>,

    /// Certificate that the node API shows
    #[arg(long, value_name = "FILE", requires = "tls_private_key_file")]
    tls_cert_file: Option<PathBuf>,

    /// Key of that certificate
    #[arg(long, value_name = "FILE", requires = "client_ca_file")]
    tls_private_key_file: Option<PathBuf>,
}

pub(crate) fn main(args: KubeletArgs) -> anyhow::Result<ExitCode> {
    let node = args.node.resolve()?;
    let mut config = node.kubelet(args.kubeconfig)?;
    if let Some(endpoint) = args.container_runtime_endpoint {
        config.container_runtime_endpoint = endpoint;
    }
    config.client_ca_file = args.client_ca_file;
    config.tls_cert_file = args.tls_cert_file;
    config.tls_private_key_file = args.tls_private_key_file;
    run_node(&node, async {
        let start = async |supervisor: &mut Supervisor| {
            supervisor
                .start("kubelet", move |ready, stop| {
                    ::kubelet::run(config.clone(), ready, stop)
                })
                .await?;
            Ok(())
        };
        Supervisor::new()?.run(start).await?;
        Ok(ExitCode::SUCCESS)
    })
}
