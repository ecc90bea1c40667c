// SPDX-License-Identifier: Apache-2.0
//! `podwright purge`: end every pod of a node and remove all that it made.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, ensure};
use clap::Args;
use cni::overlay::{self, Backend};

use crate::data_lock::DataLock;
use crate::node_config::{NodeConfig, NodeFlags};

#[derive(Args)]
pub(crate) struct PurgeArgs {
    #[command(flatten)]
    node: NodeFlags,

    /// Leave the data directory (images, the control plane's store, certificates)
    #[arg(long)]
    keep_data: bool,
}

pub(crate) fn main(args: PurgeArgs) -> anyhow::Result<ExitCode> {
    let node = args.node.resolve()?;
    let lock = DataLock::take(&node.data_dir)?;
    end_node(&node)?;
    drop(lock);
    if !args.keep_data {
        remove(&node.data_dir)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Ends a node's pods and removes all that it made, its data directory included.
pub(crate) fn remove_node(node: &NodeConfig) -> anyhow::Result<()> {
    end_node(node)?;
    remove(&node.data_dir)
}

/// Everything but the data directory. Goes through every step whatever fails on the way.
///
/// # Errors
/// All failures together.
fn end_node(node: &NodeConfig) -> anyhow::Result<()> {
    let mut failures: Vec<String> = Vec::new();
    let mut step = |what: &str, outcome: anyhow::Result<()>| {
        if let Err(error) = outcome {
            failures.push(format!("{what}: {error:#}"));
        }
    };
    step("ending pods", end_pods(node));
    step("removing Services", remove_services(node));
    step("removing cluster DNS", crate::cluster_dns::remove(node));
    step("removing NetworkPolicies", remove_policies(node));
    step("removing the network between nodes", remove_overlay(node));
    step("removing the pod network", remove_pod_network(node));
    step("removing volumes and logs", remove_volumes(node));
    step("removing the run directory", remove(&node.run_dir));
    ensure!(failures.is_empty(), "{}", failures.join("\n"));
    Ok(())
}

fn end_pods(node: &NodeConfig) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("starting the executor")?;
    let report = runtime.block_on(cri::purge(node.cri()))?;
    if report.sandboxes > 0 {
        eprintln!(
            "ended {} pods with {} containers",
            report.sandboxes, report.containers
        );
    }
    ensure!(report.problems.is_empty(), "{}", report.problems.join("; "));
    Ok(())
}

fn remove_services(node: &NodeConfig) -> anyhow::Result<()> {
    Ok(proxy::cleanup(&node.proxy("/nonexistent".into(), false)?)?)
}

fn remove_policies(node: &NodeConfig) -> anyhow::Result<()> {
    Ok(proxy::policy::cleanup(&node.nft_table)?)
}

/// Links, keys and routes to other nodes. With `none` there is nothing of ours, but perhaps of another node
/// in this network namespace.
fn remove_overlay(node: &NodeConfig) -> anyhow::Result<()> {
    if node.overlay.backend == Backend::None {
        return Ok(());
    }
    Ok(overlay::cleanup(&node.overlay)?)
}

/// The bridge and the rules below it, when podwright made them: a network that the operator
/// configured is left as it is.
fn remove_pod_network(node: &NodeConfig) -> anyhow::Result<()> {
    cni::cleanup(&node.bridge, &node.nft_table)?;
    remove(&node.cni_conf_dir.join(crate::pod_network::OWN_FILE))
}

/// Removes a file or a tree; one that isn't there is removed already.
fn remove(path: &Path) -> anyhow::Result<()> {
    let removed = match path.symlink_metadata() {
        Ok(found) if found.is_dir() => std::fs::remove_dir_all(path),
        Ok(_) => std::fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", path.display()))
        }
        _ => Ok(()),
    }
}

fn remove_volumes(node: &NodeConfig) -> anyhow::Result<()> {
    let kubelet_dir = node.data_dir.join("kubelet");
    Ok(kubelet::volumes::purge(&kubelet_dir, &node.pod_logs_dir)?)
}
