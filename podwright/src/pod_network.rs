// SPDX-License-Identifier: Apache-2.0
//! Writes the node's CNI configuration once the control plane has given it a range of addresses.
//!
//! A configuration that the operator put there is left alone: podwright writes its own only into a
//! directory that holds none but its own.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use cni::PodNetwork;
use cni::cidr::Cidr;
use cni::overlay::Backend;
use futures::StreamExt;
use k8s_openapi::api::core::v1::Node;
use kube::Api;
use kube::runtime::{WatchStreamExt, watcher};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::node_config::NodeConfig;

/// The file podwright writes.
pub(crate) const OWN_FILE: &str = "10-podwright.conflist";

/// How often the uplink is looked at: another MTU counts for the next pod.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

#[derive(Debug, Clone)]
pub(crate) struct Config {
    node_name: String,
    kubeconfig: PathBuf,
    conf_dir: PathBuf,
    network: PodNetwork,
    backend: Backend,
    node_ip: IpAddr,
}

impl Config {
    pub(crate) fn of(node: &NodeConfig, kubeconfig: PathBuf) -> anyhow::Result<Self> {
        Ok(Self {
            node_name: node.node_name.clone(),
            kubeconfig,
            conf_dir: node.cni_conf_dir.clone(),
            network: node.pod_network(),
            backend: node.overlay.backend,
            node_ip: node.node_ip()?,
        })
    }
}

/// Follows the node object; every range it is given is written. Serves from the start: a node
/// without a range is NotReady by itself, with the runtime's message.
pub(crate) async fn run(
    config: Config,
    ready: oneshot::Sender<()>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    if let Some(foreign) = foreign_configuration(&config.conf_dir)? {
        info!(file = %foreign.display(), "pod networking is configured by the operator");
        // The receiver is gone when the supervisor has given up; then there is nobody to tell.
        let _ = ready.send(());
        stop.cancelled().await;
        return Ok(());
    }
    let kubeconfig = kube::config::Kubeconfig::read_from(&config.kubeconfig)
        .with_context(|| format!("reading {}", config.kubeconfig.display()))?;
    let client = kube::Config::from_custom_kubeconfig(kubeconfig, &Default::default()).await?;
    let nodes: Api<Node> = Api::all(kube::Client::try_from(client)?);
    let only_ours =
        watcher::Config::default().fields(&format!("metadata.name={}", config.node_name));
    let mut seen = watcher(nodes, only_ours)
        .default_backoff()
        .applied_objects()
        .boxed();
    let _ = ready.send(());
    let mut network = config.network.clone();
    let mut look_again = tokio::time::interval(LOOK_AGAIN);
    loop {
        let next = tokio::select! {
            next = seen.next() => next,
            _ = look_again.tick() => {
                write(&config, &mut network)?;
                continue;
            }
            () = stop.cancelled() => return Ok(()),
        };
        match next {
            Some(Ok(node)) => {
                network.pod_cidrs = proxy::parse::pod_cidrs(&node);
                write(&config, &mut network)?;
            }
            Some(Err(error)) => {
                warn!("watching this node's address range: {error}");
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
            None => return Ok(()),
        }
    }
}

fn foreign_configuration(dir: &Path) -> anyhow::Result<Option<PathBuf>> {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("reading {}", dir.display())),
    };
    let mut found: Vec<PathBuf> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| {
            let extension = path.extension().and_then(|e| e.to_str()).unwrap_or("");
            matches!(extension, "conf" | "conflist" | "json")
                && path.file_name().is_some_and(|name| name != OWN_FILE)
        })
        .collect();
    found.sort();
    Ok(found.into_iter().next())
}

/// Writes the configuration list under a temporary name and renames it, unless it is there already.
pub(crate) fn write_conflist(dir: &Path, network: &PodNetwork) -> anyhow::Result<()> {
    let text = cni::default_conflist(network);
    let path = dir.join(OWN_FILE);
    if std::fs::read_to_string(&path).is_ok_and(|there| there == text) {
        return Ok(());
    }
    std::fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))?;
    let temporary = dir.join(format!(".{OWN_FILE}.tmp"));
    std::fs::write(&temporary, text).with_context(|| format!("writing {}", temporary.display()))?;
    std::fs::rename(&temporary, &path).with_context(|| format!("writing {}", path.display()))?;
    let ranges: Vec<_> = network.pod_cidrs.iter().map(Cidr::to_string).collect();
    let ranges = ranges.join(", ");
    info!(ranges, mtu = network.mtu, file = %path.display(), "pod networking is configured");
    Ok(())
}

/// Once the node has ranges. The MTU is what the uplink takes now.
fn write(config: &Config, network: &mut PodNetwork) -> anyhow::Result<()> {
    if network.pod_cidrs.is_empty() {
        return Ok(());
    }
    match cni::overlay::pod_mtu(config.backend, config.node_ip) {
        Ok(mtu) => network.mtu = mtu,
        // As it was; the next look may succeed.
        Err(error) => warn!("finding the MTU of pods: {:#}", anyhow::Error::from(error)),
    }
    write_conflist(&config.conf_dir, network)
}
