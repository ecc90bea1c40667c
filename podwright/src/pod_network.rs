// SPDX-License-Identifier: Apache-2.0
//! Writes the node's CNI configuration once the control plane has given it a range of addresses.
//!
//! A configuration that the operator put there is left alone: podwright writes its own only into a
//! directory that holds none but its own.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
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

#[derive(Debug, Clone)]
pub(crate) struct Config {
    node_name: String,
    kubeconfig: PathBuf,
    conf_dir: PathBuf,
    bridge: String,
    cluster_cidr: String,
    nft_table: String,
}

impl Config {
    pub(crate) fn of(node: &NodeConfig, files: &controlplane_lite::AgentFiles) -> Self {
        Self {
            node_name: node.node_name.clone(),
            kubeconfig: files.kubelet_kubeconfig.clone(),
            conf_dir: node.cni_conf_dir.clone(),
            bridge: node.bridge.clone(),
            cluster_cidr: node.cluster_cidr.clone(),
            nft_table: node.nft_table.clone(),
        }
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
    loop {
        let next = tokio::select! {
            next = seen.next() => next,
            () = stop.cancelled() => return Ok(()),
        };
        match next {
            Some(Ok(node)) => {
                if let Some(range) = node.spec.and_then(|spec| spec.pod_cidr) {
                    write(&config, &range)?;
                }
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

/// Writes the configuration list for `range` under a temporary name and renames it, unless it is
/// there already.
pub(crate) fn write_conflist(
    dir: &Path,
    bridge: &str,
    range: &str,
    cluster_cidr: &str,
    nft_table: &str,
) -> anyhow::Result<()> {
    let text = cni::default_conflist(bridge, range, cluster_cidr, nft_table);
    let path = dir.join(OWN_FILE);
    if std::fs::read_to_string(&path).is_ok_and(|there| there == text) {
        return Ok(());
    }
    std::fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))?;
    let temporary = dir.join(format!(".{OWN_FILE}.tmp"));
    std::fs::write(&temporary, text).with_context(|| format!("writing {}", temporary.display()))?;
    std::fs::rename(&temporary, &path).with_context(|| format!("writing {}", path.display()))?;
    info!(range, file = %path.display(), "pod networking is configured");
    Ok(())
}

fn write(config: &Config, range: &str) -> anyhow::Result<()> {
    write_conflist(
        &config.conf_dir,
        &config.bridge,
        range,
        &config.cluster_cidr,
        &config.nft_table,
    )
}
