// SPDX-License-Identifier: Apache-2.0
//! Removing everything that a runtime made on a node, whether its daemon lives or not.

use std::sync::Arc;

use crate::fault::{Result, chain};
use crate::lifecycle::remove_dir;
use crate::runtime::{Runtime, cgroup_roots};
use crate::streaming::Tokens;
use crate::{Config, Error, blocking, daemon, recover};

/// What a purge found and removed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Pod sandboxes removed.
    pub sandboxes: usize,
    /// Containers removed.
    pub containers: usize,
    /// What could not be removed, one sentence each. Empty after a complete purge.
    pub problems: Vec<String>,
}

impl Report {
    fn note(&mut self, result: Result<()>) {
        if let Err(fault) = result {
            self.problems.push(fault.chain());
        }
    }
}

/// Removes every pod of this data and run directory: processes, mounts, network, cgroups, files.
///
/// Idempotent. Works when the daemon is dead, and refuses while it lives. Images stay.
///
/// # Errors
/// When a daemon holds the directories, or they cannot be read. What could not be removed is in the report.
pub async fn purge(config: Config) -> std::result::Result<Report, Error> {
    let lock = daemon::lock(&config).await?;
    let runtime = daemon::assemble(config, Tokens::unused()).await?;
    let mut report = Report::default();
    // The repair of a start first: it takes leftovers apart and finds what lives.
    report.note(recover::recover(&runtime).await);
    report.containers = runtime.containers.all().len();
    for sandbox in runtime.sandboxes.all() {
        let _ops = sandbox.ops.write().await;
        let stopped = runtime.stop_sandbox(&sandbox).await;
        let removed = match stopped {
            Ok(()) => runtime.remove_sandbox(&sandbox).await,
            Err(fault) => Err(fault),
        };
        report.sandboxes += usize::from(removed.is_ok());
        report.note(removed);
    }
    runtime.stopping.cancel();
    runtime.tasks.close();
    runtime.tasks.wait().await;
    network(&runtime).await;
    report.note(cgroups(&runtime).await);
    if report.problems.is_empty() {
        report.note(files(&runtime).await);
    }
    drop(lock);
    Ok(report)
}

/// No attachment is valid any more. Every known one was taken down above, so this finds leaks only;
/// it cannot when the administrator has removed the configuration, and that is no reason to complain.
async fn network(runtime: &Runtime) {
    if let Err(error) = runtime.network.gc(&[]).await {
        tracing::warn!(error = %chain(&error), "leaked network attachments cannot be looked for");
    }
}

async fn cgroups(runtime: &Arc<Runtime>) -> Result<()> {
    let roots = cgroup_roots(runtime)?;
    runtime
        .with_cgroups("removing the runtime's cgroups", move |manager| {
            roots.iter().try_for_each(|root| manager.destroy(root))
        })
        .await
}

async fn files(runtime: &Runtime) -> Result<()> {
    let paths = runtime.paths.clone();
    blocking::run("removing the runtime's directories", move || {
        for dir in [
            paths.sandboxes(),
            paths.containers(),
            paths.network(),
            paths.run().clone(),
        ] {
            remove_dir(&dir)?;
        }
        Ok(())
    })
    .await?
}
