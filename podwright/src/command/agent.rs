// SPDX-License-Identifier: Apache-2.0
//! `podwright agent`: a worker, whose API server is elsewhere. Runtime, kubelet, pod network and
//! proxy in one process, as `podwright server` runs them beside the control plane.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, ensure};
use base64::Engine;
use clap::Args;
use kube::config::Kubeconfig;
use tracing::info;

use super::run_node;
use super::server::{Credentials, NETWORK_POLICY, Parts, start_node};
use crate::cluster_dns;
use crate::data_lock::DataLock;
use crate::node_config::NodeFlags;
use crate::supervise::Supervisor;

#[derive(Args)]
pub(crate) struct AgentArgs {
    #[command(flatten)]
    node: NodeFlags,

    /// Credentials for the API server: a node's, or an admin's
    #[arg(long, value_name = "FILE", env = "PODWRIGHT_KUBECONFIG")]
    kubeconfig: PathBuf,

    /// CA of the clients that the node API trusts [default: the kubeconfig's cluster's]
    #[arg(long, value_name = "FILE")]
    client_ca_file: Option<PathBuf>,

    /// Certificate that the node API shows [default: one that it signs itself]
    #[arg(long, value_name = "FILE", requires = "tls_private_key_file")]
    tls_cert_file: Option<PathBuf>,

    /// Key of that certificate
    #[arg(long, value_name = "FILE", requires = "tls_cert_file")]
    tls_private_key_file: Option<PathBuf>,

    /// Addresses of Services, as the server has them; cluster DNS is the tenth of each range, unless
    /// --cluster-dns says otherwise
    #[arg(
        long,
        value_name = "CIDRS",
        env = "PODWRIGHT_SERVICE_CIDR",
        default_value = cluster_dns::DEFAULT_SERVICE_CIDR
    )]
    service_cidr: String,

    /// Leave out a part: network-policy, or dns (its address stays for another)
    #[arg(
        long,
        value_name = "NAME",
        value_delimiter = ',',
        value_parser = [NETWORK_POLICY, cluster_dns::PART]
    )]
    disable: Vec<String>,
}

pub(crate) fn main(args: AgentArgs) -> anyhow::Result<ExitCode> {
    let flags = args.node.clone();
    let mut node = flags.clone().resolve()?;
    node.check_backend()?;
    cluster_dns::complete(&mut node, &args.service_cidr)?;
    let wanted = |part: &str| !args.disable.iter().any(|name| name == part);
    let parts = Parts {
        policy: wanted(NETWORK_POLICY),
        dns: wanted(cluster_dns::PART).then(|| args.service_cidr.clone()),
    };
    let _lock = DataLock::take(&node.data_dir)?;
    let client_ca = match args.client_ca_file {
        Some(file) => file,
        None => write_cluster_ca(&args.kubeconfig, &node.data_dir)?,
    };
    let credentials = Credentials {
        kubelet_kubeconfig: args.kubeconfig.clone(),
        proxy_kubeconfig: args.kubeconfig,
        client_ca,
        serving: args.tls_cert_file.zip(args.tls_private_key_file),
    };
    run_node(&node, async {
        let start = async |supervisor: &mut Supervisor| {
            super::cri::start_reloading(supervisor, node.cri(), flags).await?;
            start_node(supervisor, &node, credentials, parts).await?;
            info!(node = node.node_name, "the node is running");
            Ok(())
        };
        Supervisor::new()?.run(start).await?;
        Ok(ExitCode::SUCCESS)
    })
}

/// Writes the authority that the kubeconfig trusts to a file, as the node API wants it: whoever
/// shows a certificate of the cluster is somebody there.
fn write_cluster_ca(kubeconfig: &Path, data_dir: &Path) -> anyhow::Result<PathBuf> {
    let read = Kubeconfig::read_from(kubeconfig)
        .with_context(|| format!("reading {}", kubeconfig.display()))?;
    let current = read.current_context.clone().unwrap_or_default();
    let context = read.contexts.iter().find(|c| c.name == current);
    let cluster = context.and_then(|c| c.context.as_ref()).map(|c| &c.cluster);
    let cluster = read.clusters.iter().find(|c| Some(&c.name) == cluster);
    let cluster = cluster.and_then(|c| c.cluster.as_ref()).with_context(|| {
        format!(
            "{}: context {current:?} names no cluster",
            kubeconfig.display()
        )
    })?;
    let pem = match (
        &cluster.certificate_authority_data,
        &cluster.certificate_authority,
    ) {
        (Some(data), _) => base64::engine::general_purpose::STANDARD
            .decode(data.trim())
            .with_context(|| format!("{}: certificate-authority-data", kubeconfig.display()))?,
        (None, Some(file)) => std::fs::read(file).with_context(|| format!("reading {file}"))?,
        (None, None) => Vec::new(),
    };
    ensure!(
        !pem.is_empty(),
        "{}: the cluster has no certificate authority; give one with --client-ca-file",
        kubeconfig.display()
    );
    let dir = data_dir.join("agent");
    std::fs::create_dir_all(&dir).with_context(|| format!("creating {}", dir.display()))?;
    let path = dir.join("client-ca.crt");
    std::fs::write(&path, pem).with_context(|| format!("writing {}", path.display()))?;
    Ok(path)
}
