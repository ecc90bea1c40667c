// SPDX-License-Identifier: Apache-2.0
//! `podwright server`: control plane and, unless told otherwise, a node, in one process.
//!
//! Order of start: the runtime and the control plane side by side; then the node's credentials,
//! which the control plane signs; then network policy, kubelet and service proxy, which are its
//! clients.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;
use controlplane_lite::NodePrefixes;
use tracing::info;

use super::run_node;
use crate::cluster_dns;
use crate::data_lock::DataLock;
use crate::node_config::{NodeConfig, NodeFlags};
use crate::pod_network;
use crate::supervise::Supervisor;

/// In `--disable`: NetworkPolicies are not enforced.
pub(super) const NETWORK_POLICY: &str = "network-policy";

#[derive(Args)]
pub(crate) struct ServerArgs {
    #[command(flatten)]
    node: NodeFlags,

    /// Address the API server listens on [default: 0.0.0.0]
    #[arg(long, value_name = "IP", env = "PODWRIGHT_BIND_ADDRESS")]
    bind_address: Option<IpAddr>,

    /// Port the API server listens on [default: 6443]
    #[arg(long, value_name = "PORT", env = "PODWRIGHT_HTTPS_LISTEN_PORT")]
    https_listen_port: Option<u16>,

    /// Address under which the API server is reached [default: the node's]
    #[arg(long, value_name = "IP", env = "PODWRIGHT_ADVERTISE_ADDRESS")]
    advertise_address: Option<IpAddr>,

    /// Further names and addresses in the API server's certificate
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    tls_san: Vec<String>,

    /// Addresses of Services: one range, or one of each family, separated by a comma, for dual-stack
    /// Services. The first is that of those that do not say what they want [default: 10.43.0.0/16]
    #[arg(long, value_name = "CIDRS", env = "PODWRIGHT_SERVICE_CIDR")]
    service_cidr: Option<String>,

    /// Prefix length of a node's range of pods' IPv4 addresses [default: 24]
    #[arg(
        long,
        value_name = "LENGTH",
        env = "PODWRIGHT_NODE_CIDR_MASK_SIZE_IPV4"
    )]
    node_cidr_mask_size_ipv4: Option<u8>,

    /// The same of IPv6 [default: 64]
    #[arg(
        long,
        value_name = "LENGTH",
        env = "PODWRIGHT_NODE_CIDR_MASK_SIZE_IPV6"
    )]
    node_cidr_mask_size_ipv6: Option<u8>,

    /// Write the admin kubeconfig here too (it is always at <data-dir>/server/kubeconfig.yaml)
    #[arg(long, value_name = "FILE")]
    write_kubeconfig: Option<PathBuf>,

    /// Run no node in this process
    #[arg(long)]
    disable_agent: bool,

    /// Leave out a part: a controller by name, scheduler, network-policy, or dns (its address stays
    /// for another)
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    disable: Vec<String>,
}

pub(crate) fn main(args: ServerArgs) -> anyhow::Result<ExitCode> {
    let flags = args.node.clone();
    let mut node = flags.clone().resolve()?;
    let with_agent = !args.disable_agent;
    if with_agent {
        node.check_backend()?;
    }
    let left_out = |part: &str| args.disable.iter().any(|name| name == part);
    let (policy, with_dns) = (!left_out(NETWORK_POLICY), !left_out(cluster_dns::PART));
    let control_plane = control_plane_config(args, &mut node)?;
    let parts = Parts {
        policy,
        dns: with_dns.then(|| control_plane.service_cidr.clone()),
    };
    let _lock = DataLock::take(&node.data_dir)?;
    run_node(&node, async {
        let start = async |supervisor: &mut Supervisor| {
            let url = format!(
                "https://{}:{}",
                bracketed(control_plane.advertise_address),
                control_plane.https_listen_port
            );
            if with_agent {
                super::cri::start_reloading(supervisor, node.cri(), flags).await?;
            }
            supervisor
                .start("control-plane", move |ready, stop| {
                    controlplane_lite::run(control_plane.clone(), ready, stop)
                })
                .await?;
            if with_agent {
                start_agent(supervisor, &node, &url, parts).await?;
            }
            info!(
                kubeconfig = %node.data_dir.join("server/kubeconfig.yaml").display(),
                "the API is served at {url}"
            );
            Ok(())
        };
        Supervisor::new()?.run(start).await?;
        Ok(ExitCode::SUCCESS)
    })
}

/// Cluster DNS gets its address here: it follows from the Services' range.
fn control_plane_config(
    args: ServerArgs,
    node: &mut NodeConfig,
) -> anyhow::Result<controlplane_lite::Config> {
    let default = cluster_dns::DEFAULT_SERVICE_CIDR;
    let service_cidr = args.service_cidr.unwrap_or_else(|| default.into());
    cluster_dns::complete(node, &service_cidr)?;
    let disable: BTreeSet<String> = args.disable.into_iter().collect();
    let advertise_address = match args.advertise_address {
        Some(address) => address,
        None => node.node_ip()?,
    };
    let default = NodePrefixes::default();
    let node_prefixes = NodePrefixes {
        ipv4: args.node_cidr_mask_size_ipv4.unwrap_or(default.ipv4),
        ipv6: args.node_cidr_mask_size_ipv6.unwrap_or(default.ipv6),
    };
    Ok(controlplane_lite::Config {
        data_dir: node.data_dir.clone(),
        bind_address: args.bind_address.unwrap_or(Ipv4Addr::UNSPECIFIED.into()),
        https_listen_port: args.https_listen_port.unwrap_or(6443),
        advertise_address,
        cluster_cidr: node.cluster_cidr.clone(),
        node_prefixes,
        service_cidr,
        cluster_dns: match disable.contains(cluster_dns::PART) {
            true => Vec::new(),
            false => node.cluster_dns.clone(),
        },
        cluster_domain: node.cluster_domain.clone(),
        tls_san: args.tls_san,
        write_kubeconfig: args.write_kubeconfig,
        disable,
        server_version: env!("CARGO_PKG_VERSION").into(),
    })
}

async fn start_agent(
    supervisor: &mut Supervisor,
    node: &NodeConfig,
    url: &str,
    parts: Parts,
) -> anyhow::Result<()> {
    let addresses = node.node_ips()?;
    let files =
        controlplane_lite::agent_credentials(&node.data_dir, &node.node_name, &addresses, url)
            .context("making the node's credentials")?;
    let credentials = Credentials {
        kubelet_kubeconfig: files.kubelet_kubeconfig,
        proxy_kubeconfig: files.proxy_kubeconfig,
        client_ca: files.client_ca,
        serving: Some((files.kubelet_cert, files.kubelet_key)),
    };
    start_node(supervisor, node, credentials, parts).await
}

/// What a node shows to the API server, and what it knows it by.
pub(super) struct Credentials {
    pub(super) kubelet_kubeconfig: PathBuf,
    pub(super) proxy_kubeconfig: PathBuf,
    pub(super) client_ca: PathBuf,
    /// Certificate and key of the node API.
    pub(super) serving: Option<(PathBuf, PathBuf)>,
}

/// What of a node may be left out.
pub(super) struct Parts {
    /// NetworkPolicies are enforced.
    pub(super) policy: bool,
    /// This node serves cluster DNS, in this range of Services.
    pub(super) dns: Option<String>,
}

/// Starts what a node runs beside its runtime: the clients of the API server.
pub(super) async fn start_node(
    supervisor: &mut Supervisor,
    node: &NodeConfig,
    credentials: Credentials,
    parts: Parts,
) -> anyhow::Result<()> {
    std::fs::create_dir_all(&node.pod_manifest_path)
        .with_context(|| format!("creating {}", node.pod_manifest_path.display()))?;
    // Both before the kubelet: pods find DNS, and none starts before policies hold.
    start_policy(supervisor, node, &credentials, parts.policy).await?;
    match &parts.dns {
        Some(services) => {
            let kubeconfig = credentials.proxy_kubeconfig.clone();
            cluster_dns::start(supervisor, node, kubeconfig, services).await?;
        }
        None => cluster_dns::remove(node)?,
    }
    let kubelet = kubelet_config(node, &credentials)?;
    supervisor
        .start("kubelet", move |ready, stop| {
            kubelet::run(kubelet.clone(), ready, stop)
        })
        .await?;
    let network = pod_network::Config::of(node, credentials.kubelet_kubeconfig.clone())?;
    supervisor
        .start("pod-network", move |ready, stop| {
            pod_network::run(network.clone(), ready, stop)
        })
        .await?;
    // It writes to its own Node, which the proxy's user may not.
    let overlay = node.overlay(credentials.kubelet_kubeconfig)?;
    supervisor
        .start("overlay", move |ready, stop| {
            proxy::overlay::run(overlay.clone(), ready, stop)
        })
        .await?;
    let proxy = node.proxy(credentials.proxy_kubeconfig, parts.policy)?;
    supervisor
        .start("proxy", move |ready, stop| {
            proxy::run(proxy.clone(), ready, stop)
        })
        .await
}

async fn start_policy(
    supervisor: &mut Supervisor,
    node: &NodeConfig,
    credentials: &Credentials,
    wanted: bool,
) -> anyhow::Result<()> {
    if !wanted {
        // An earlier run may have left its rules.
        return Ok(proxy::policy::cleanup(&node.nft_table)?);
    }
    let policy = node.policy(credentials.proxy_kubeconfig.clone(), true);
    supervisor
        .start(NETWORK_POLICY, move |ready, stop| {
            proxy::policy::run(policy.clone(), ready, stop)
        })
        .await
}

fn kubelet_config(node: &NodeConfig, credentials: &Credentials) -> anyhow::Result<kubelet::Config> {
    let mut config = node.kubelet(Some(credentials.kubelet_kubeconfig.clone()))?;
    config.client_ca_file = Some(credentials.client_ca.clone());
    if let Some((cert, key)) = credentials.serving.clone() {
        config.tls_cert_file = Some(cert);
        config.tls_private_key_file = Some(key);
    }
    Ok(config)
}

/// An address as it stands in a URL.
fn bracketed(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => format!("[{address}]"),
    }
}
