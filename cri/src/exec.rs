// SPDX-License-Identifier: Apache-2.0
//! Running a process in a container, for ExecSync and for exec streams.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use oci_spec::runtime::{Process, Spec};

use crate::container::ContainerRecord;
use crate::external::{self, Handler};
use crate::fault::{Fault, Kind, Result};
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
    /// The files of an exec by an external runtime: its process, and that runtime's errors.
    files: Option<[PathBuf; 2]>,
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
    let id = ids::fresh();
    let sandbox = runtime.sandbox(&record.sandbox_id)?.record.get();
    let handler = runtime.handler_of(&sandbox)?;
    let files = handler.as_ref().map(|handler| handler.exec_files(&id));
    let files_ = files.clone();
    let plan = blocking::run("preparing an exec", move || match (handler, files_) {
        (Some(handler), Some(files)) => {
            let process = process(&load_spec(&dir)?, command, terminal);
            external_plan(&handler, &record_.id, &process, &files)
        }
        _ => plan(&dir, &record_, command, terminal),
    })
    .await??;
    let handle = shim.exec(&record.id, &id, plan, stdio).await;
    let handle = handle
        .map_err(|e| shim_fault(format!("failed to exec in container {:?}", record.id), e))?;
    Ok(Execution {
        shim,
        process: handle.process,
        files,
        terminal: handle.terminal,
    })
}

/// The command of an external runtime that does it. The process is described in a file.
fn external_plan(
    handler: &Handler,
    id: &str,
    process: &Process,
    files: &[PathBuf; 2],
) -> Result<shim::plan::ProcessPlan> {
    let [file, log] = files;
    let text = serde_json::to_vec(process).map_err(|e| Fault::internal("encoding a process", e))?;
    std::fs::write(file, text)
        .map_err(|e| Fault::internal(format!("writing {}", file.display()), e))?;
    Ok(shim::plan::ProcessPlan {
        external: Some(handler.exec(id, file, log)),
        ..Default::default()
    })
}

/// The container's own process, with another command.
fn process(spec: &Spec, command: Vec<String>, terminal: bool) -> Process {
    let mut process = spec.process().clone().unwrap_or_default();
    process.set_args(Some(command)).set_terminal(Some(terminal));
    if terminal {
        let mut env = process.env().clone().unwrap_or_default();
        if !env.iter().any(|e| e.starts_with("TERM=")) {
            env.push("TERM=xterm".to_owned());
        }
        process.set_env(Some(env));
    }
    process
}

fn plan(
    dir: &std::path::Path,
    record: &ContainerRecord,
    command: Vec<String>,
    terminal: bool,
) -> Result<shim::plan::ProcessPlan> {
    let spec = load_spec(dir)?;
    let process = process(&spec, command, terminal);
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
        let record = self.shim.wait(&self.process).await;
        let record = record.map_err(|e| shim_fault("waiting for an exec".to_owned(), e))?;
        match self.files.as_ref().filter(|_| record.code != 0) {
            Some([_, log]) => match external::last_error(log) {
                // Not the command's end, but the runtime's.
                Some(said) => Err(Fault::new(
                    Kind::Internal,
                    format!(
                        "failed to exec in container {:?}: {said}",
                        self.process.container
                    ),
                )),
                None => Ok(record),
            },
            None => Ok(record),
        }
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
        for file in self.files.iter().flatten() {
            // The log is there only if something was said. What stays goes with the pod.
            let _ = std::fs::remove_file(file);
        }
    }
}
