// SPDX-License-Identifier: Apache-2.0
//! `podwright purge`: end every pod of a node and remove all that it made.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;

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

/// Goes through every step whatever fails on the way, and reports all failures at the end.
pub(crate) fn main(args: PurgeArgs) -> anyhow::Result<ExitCode> {
    let node = args.node.resolve()?;
    let lock = DataLock::take(&node.data_dir)?;
    let mut failures: Vec<String> = Vec::new();
    let mut step = |what: &str, outcome: anyhow::Result<()>| {
        if let Err(error) = outcome {
            failures.push(format!("{what}: {error:#}"));
        }
    };
    step("pods", end_pods(&node));
    step("Services", remove_services(&node));
    step("pod network", remove_pod_network(&node));
    step("run directory", remove(&node.run_dir));
    drop(lock);
    if !args.keep_data {
        step("data directory", remove(&node.data_dir));
    }
    if failures.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    for failure in &failures {
        eprintln!("podwright: purging {failure}");
    }
    Ok(ExitCode::FAILURE)
}

fn end_pods(node: &NodeConfig) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("starting the executor")?;
    let report = runtime.block_on(cri::purge(node.cri()))?;
    println!(
        "ended {} pods with {} containers",
        report.sandboxes, report.containers
    );
    anyhow::ensure!(report.problems.is_empty(), "{}", report.problems.join("; "));
    Ok(())
}

fn remove_services(node: &NodeConfig) -> anyhow::Result<()> {
    Ok(proxy::cleanup(&node.proxy("/nonexistent".into())?)?)
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
