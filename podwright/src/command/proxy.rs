// SPDX-License-Identifier: Apache-2.0
//! `podwright proxy`: the service proxy alone, beside any API server.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use ::proxy::{DetectLocal, NodePortAddresses};
use anyhow::{Context, bail};
use clap::Args;

use super::run_node;
use crate::cluster_dns;
use crate::node_config::NodeFlags;
use crate::supervise::Supervisor;

#[derive(Args)]
pub(crate) struct ProxyArgs {
    #[command(flatten)]
    node: NodeFlags,

    /// Credentials for the API server
    #[arg(long, value_name = "FILE")]
    kubeconfig: PathBuf,

    /// Who counts as a pod: ClusterCIDR, NodeCIDR, BridgeInterface or InterfaceNamePrefix
    #[arg(long, value_name = "MODE", default_value = "ClusterCIDR")]
    detect_local_mode: String,

    /// The bridge of BridgeInterface
    #[arg(long, value_name = "NAME")]
    pod_bridge_interface: Option<String>,

    /// The prefix of InterfaceNamePrefix
    #[arg(long, value_name = "PREFIX")]
    pod_interface_name_prefix: Option<String>,

    /// Addresses that node ports answer on: primary, all, or CIDRs separated by commas
    #[arg(long, value_name = "LIST", default_value = "primary")]
    nodeport_addresses: NodePortAddresses,

    /// Replace the source of everything that goes to a cluster IP
    #[arg(long)]
    masquerade_all: bool,

    /// Drop what comes to a cluster IP from outside the cluster
    #[arg(long)]
    strict_cluster_ips: bool,

    /// Serve cluster DNS on --cluster-dns as well, on this node. A Service with that address must
    /// have the label service.kubernetes.io/service-proxy-name, or its endpoints answer
    #[arg(long)]
    serve_dns: bool,

    /// Enforce NetworkPolicies too. The credentials must allow to read Pods, Namespaces and
    /// NetworkPolicies
    #[arg(long)]
    network_policy: bool,

    /// Where /healthz and /livez are served
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "0.0.0.0:10256")]
    healthz_bind_address: SocketAddr,

    /// Where /metrics and /proxyMode are served
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:10249")]
    metrics_bind_address: SocketAddr,
}

impl ProxyArgs {
    fn options(&self) -> anyhow::Result<::proxy::Options> {
        Ok(::proxy::Options {
            detect_local: self.detect_local()?,
            node_port_addresses: self.nodeport_addresses.clone(),
            masquerade_all: self.masquerade_all,
            strict_cluster_ips: self.strict_cluster_ips,
            healthz: Some(self.healthz_bind_address),
            metrics: Some(self.metrics_bind_address),
        })
    }

    fn detect_local(&self) -> anyhow::Result<DetectLocal> {
        let link = |name: &Option<String>, flag| {
            let name = name.clone().filter(|name| !name.is_empty());
            let name = name.with_context(|| format!("{} needs {flag}", self.detect_local_mode))?;
            if name.len() > 15 {
                bail!("{flag} {name}: names of links have at most 15 bytes");
            }
            Ok(name)
        };
        Ok(match self.detect_local_mode.as_str() {
            "ClusterCIDR" => DetectLocal::ClusterCidr,
            "NodeCIDR" => DetectLocal::NodeCidr,
            "BridgeInterface" => DetectLocal::BridgeInterface(link(
                &self.pod_bridge_interface,
                "--pod-bridge-interface",
            )?),
            "InterfaceNamePrefix" => DetectLocal::InterfaceNamePrefix(link(
                &self.pod_interface_name_prefix,
                "--pod-interface-name-prefix",
            )?),
            other => bail!(
                "--detect-local-mode {other} is none of ClusterCIDR, NodeCIDR, BridgeInterface and InterfaceNamePrefix"
            ),
        })
    }
}

pub(crate) fn main(args: ProxyArgs) -> anyhow::Result<ExitCode> {
    let options = args.options()?;
    let node = args.node.resolve()?;
    let dns = args.serve_dns.then(|| args.kubeconfig.clone());
    if dns.is_some() && node.cluster_dns.is_empty() {
        bail!("--serve-dns needs the address: give it with --cluster-dns");
    }
    // Pods that podwright's own runtime attaches are known before their status tells.
    let attachments = node.data_dir.join("cri").is_dir();
    let policy = args
        .network_policy
        .then(|| node.policy(args.kubeconfig.clone(), attachments));
    let mut config = node.proxy(args.kubeconfig, args.network_policy)?;
    config.options = options;
    run_node(&node, async {
        let start = async |supervisor: &mut Supervisor| {
            match dns {
                // Which addresses are Services' is not known here; those that nobody has are asked for
                // elsewhere.
                Some(kubeconfig) => cluster_dns::start(supervisor, &node, kubeconfig, "").await?,
                None => cluster_dns::remove(&node)?,
            }
            supervisor
                .start("proxy", move |ready, stop| {
                    ::proxy::run(config.clone(), ready, stop)
                })
                .await?;
            if let Some(policy) = policy {
                supervisor
                    .start("network-policy", move |ready, stop| {
                        ::proxy::policy::run(policy.clone(), ready, stop)
                    })
                    .await?;
            }
            Ok(())
        };
        Supervisor::new()?.run(start).await?;
        Ok(ExitCode::SUCCESS)
    })
}
