// SPDX-License-Identifier: Apache-2.0
//! Running a process in a container, for ExecSync and for exec streams.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use crate::container::ContainerRecord;
use crate::fault::{Fault, Result};
use crate::lifecycle::shim_fault;
use crate::runtime::{Container, Runtime};
use crate::server::{container_create::load_spec, container_start::seccomp};
use crate::shim_client::{ExecStdio, ExitRecord, ProcessId, Shim};
use crate::{blocking, ids, oci};

/// A process that was started by exec. Not ended by dropping: call [`Execution::kill`].
#[derive(Debug)]
pub(crate) struct Execution {
    shim: Shim,
    process: ProcessId,
    /// The master side of its terminal, if it has one.
    pub(crate) terminal: Option<OwnedFd>,
}

/// Starts `command` in a running container, as the container's own process would be: same user,
/// capabilities, environment, filter.
///
/// # Errors
/// Not running; or the process cannot be launched (an executable that is not there, for example).
pub(crate) async fn start(
    runtime: &Arc<Runtime>,
    container: &Container,
    command: Vec<String>,
    stdio: ExecStdio,
) -> Result<Execution> {
    let record = container.record.get();
    record.state.check_running(&record.id)?;
    if command.is_empty() {
        return Err(Fault::invalid("exec needs a command"));
    }
    let shim = runtime.shim_of(container)?;
    let terminal = matches!(stdio, ExecStdio::Terminal);
    let dir = container.record.dir().to_owned();
    let record_ = record.clone();
    let plan = blocking::run("preparing an exec", move || {
        plan(&dir, &record_, command, terminal)
    })
    .await??;
    let handle = shim
        .exec(&record.id, &ids::fresh(), plan, stdio)
        .await
        .map_err(|e| shim_fault(format!("failed to exec in container {:?}", record.id), e))?;
    Ok(Execution {
        shim,
        process: handle.process,
        terminal: handle.terminal,
    })
}

fn plan(
    dir: &std::path::Path,
    record: &ContainerRecord,
    command: Vec<String>,
    terminal: bool,
) -> Result<shim::plan::ProcessPlan> {
    let spec = load_spec(dir)?;
    let mut process = spec.process().clone().unwrap_or_default();
    process.set_args(Some(command)).set_terminal(Some(terminal));
    if terminal {
        let mut env = process.env().clone().unwrap_or_default();
        if !env.iter().any(|e| e.starts_with("TERM=")) {
            env.push("TERM=xterm".to_owned());
        }
        process.set_env(Some(env));
    }
    let mut plan = oci::compile_exec(&spec, &process, None, &record.id, "")
        .map_err(|e| Fault::invalid(e.to_string()))?;
    plan.seccomp = seccomp(record, &spec, plan.capabilities.bounding)?;
    oci::introduce(&spec, &mut plan, &record.id, "");
    plan.session_keyring = Some(oci::session_keyring(&record.id));
    Ok(plan)
}

impl Execution {
    /// Waits for the end; no deadline of its own.
    ///
    /// # Errors
    /// When the shim is gone.
    pub(crate) async fn wait(&self) -> Result<ExitRecord> {
        self.shim
            .wait(&self.process)
            .await
            .map_err(|e| shim_fault("waiting for an exec".to_owned(), e))
    }

    /// Kills the process with all that it started. Idempotent; what it left behind when it ended by
    /// itself runs on.
    pub(crate) async fn kill(&self) {
        if let Err(error) = self.shim.signal(&self.process, libc::SIGKILL, true).await {
            tracing::debug!(%error, "killing an exec");
        }
    }

    /// Kills what may still run, and lets the shim forget it.
    pub(crate) async fn finish(self) {
        self.kill().await;
        let _ = tokio::time::timeout(Duration::from_secs(5), self.wait()).await;
        if let Err(error) = self.shim.remove(&self.process).await {
            tracing::debug!(%error, "the shim did not forget an exec");
        }
    }
}
