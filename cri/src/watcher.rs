// SPDX-License-Identifier: Apache-2.0
//! One task per sandbox that learns what ends in it.
//!
//! Exit events are hints: after a lost one, and when the shim is gone, the shim's whole state or
//! its records on disk are looked at instead.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;

use crate::container::{Exit, State};
use crate::fault::chain;
use crate::runtime::{Runtime, Sandbox};
use crate::shim_client::{ExitRecord, Phase, ProcessId, SANDBOX, Shim};

/// Between two connections to the same shim, should it drop us again at once.
const RECONNECT_PAUSE: Duration = Duration::from_millis(200);

/// Starts the watcher of a sandbox. It ends with the shim, with `sandbox.unwatch`, or with the daemon.
pub(crate) fn watch(runtime: &Arc<Runtime>, sandbox: &Arc<Sandbox>, shim: Shim) {
    let (runtime_, sandbox_) = (runtime.clone(), sandbox.clone());
    // Subscribed before anything can be started through this shim.
    let exits = shim.exits();
    runtime.tasks.spawn(async move {
        let unwatch = sandbox_.unwatch.clone();
        let stopping = runtime_.stopping.clone();
        tokio::select! {
            () = follow(&runtime_, &sandbox_, shim, exits) => {}
            () = unwatch.cancelled() => {}
            () = stopping.cancelled() => {}
        }
    });
}

async fn follow(
    runtime: &Arc<Runtime>,
    sandbox: &Arc<Sandbox>,
    mut shim: Shim,
    mut exits: broadcast::Receiver<(ProcessId, ExitRecord)>,
) {
    loop {
        // Whatever ended before we subscribed.
        look(runtime, sandbox, &shim).await;
        listen(runtime, sandbox, &shim, &mut exits).await;
        // The connection broke. Perhaps only that: then a fresh one goes on.
        let id = sandbox.record.get().id.clone();
        match Shim::connect(shim.dir()).await {
            Ok(fresh) => {
                tracing::warn!(sandbox.id = %id, "connected to the shim again");
                exits = fresh.exits();
                sandbox.set_shim(fresh.clone());
                shim = fresh;
                tokio::time::sleep(RECONNECT_PAUSE).await;
            }
            Err(error) => {
                tracing::warn!(sandbox.id = %id, error = %chain(&error), "the shim is gone");
                lost(runtime, sandbox).await;
                return;
            }
        }
    }
}

async fn listen(
    runtime: &Arc<Runtime>,
    sandbox: &Arc<Sandbox>,
    shim: &Shim,
    exits: &mut broadcast::Receiver<(ProcessId, ExitRecord)>,
) {
    loop {
        match exits.recv().await {
            Ok((process, record)) => ended(runtime, sandbox, &process, &record).await,
            Err(RecvError::Lagged(_)) => look(runtime, sandbox, shim).await,
            Err(RecvError::Closed) => return,
        }
    }
}

/// Compares the shim's whole state with the records.
async fn look(runtime: &Arc<Runtime>, sandbox: &Arc<Sandbox>, shim: &Shim) {
    let Ok(state) = shim.state().await else {
        return;
    };
    for seen in state.processes {
        if let Phase::Exited(record) = seen.phase {
            ended(runtime, sandbox, &seen.process, &record).await;
        }
    }
}

async fn ended(
    runtime: &Arc<Runtime>,
    sandbox: &Arc<Sandbox>,
    process: &ProcessId,
    record: &ExitRecord,
) {
    if process.exec.is_some() {
        return;
    }
    if process.container == SANDBOX {
        runtime.sandbox_stopped(sandbox).await;
        return;
    }
    // A launch that failed was never started; whoever launched it knows why.
    if record.started_at == 0 {
        return;
    }
    if let Some(container) = runtime.containers.get(&process.container) {
        runtime
            .container_exited(&container, Exit::recorded(record))
            .await;
    }
}

/// The shim died: nothing in the sandbox has an owner any more. What still runs is killed, and the
/// records that the shim left say how the others ended.
pub(crate) async fn lost(runtime: &Arc<Runtime>, sandbox: &Arc<Sandbox>) {
    let record = sandbox.record.get();
    sandbox.forget_shim();
    runtime.kill_orphans(&record).await;
    let left = Shim::read_records(&runtime.paths.shim(&record.id)).unwrap_or_default();
    for container in runtime.containers_of(&record.id) {
        let container_record = container.record.get();
        if !matches!(container_record.state, State::Running { .. }) {
            continue;
        }
        let exit = left
            .iter()
            .find(|(process, _)| process.exec.is_none() && process.container == container_record.id)
            .map(|(_, exit)| Exit::recorded(exit));
        runtime.container_lost(&container, exit).await;
    }
    runtime.sandbox_stopped(sandbox).await;
}
