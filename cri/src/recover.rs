// SPDX-License-Identifier: Apache-2.0
//! Start-up repair: what the records say, against what shims, files and the kernel show.
//!
//! There is no clean shutdown to rely on. A daemon may have been killed between any two steps; what
//! it left is finished, taken over, or taken apart here, before the first request is served.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::container::{ContainerRecord, Exit, State};
use crate::durable::Durable;
use crate::fault::{Fault, Result};
use crate::lifecycle::{first_process, remove_dir};
use crate::record::{self, RecordError};
use crate::runtime::{Container, Runtime, Sandbox, now};
use crate::sandbox::{Phase, SandboxRecord};
use crate::shim_client::{self, ExitRecord, ProcessId, SANDBOX, Shim, ShimError};
use crate::{blocking, ids, sweep, v1, watcher};

/// A killed process is awaited this long.
const END_DEADLINE: Duration = Duration::from_secs(5);
/// What is starting has executed its program, or failed, within this time.
const LAUNCH_DEADLINE: Duration = Duration::from_secs(35);
/// How often it is looked at meanwhile.
const STARTING_POLL: Duration = Duration::from_millis(5);

/// What to do about a container, given its record and what its shim shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Repair {
    /// The record is right.
    Keep,
    /// The record becomes this.
    Set(State),
    /// It was made but never let run: its waiting process goes, the container stays Created.
    Discard,
}

/// Decides. `seen` is the shim's view; `left` the exit record that a dead shim left.
pub(crate) fn decide(
    recorded: &State,
    seen: Option<&shim_client::ProcessState>,
    left: Option<&ExitRecord>,
    now: i64,
) -> Repair {
    use shim_client::Phase as Seen;
    match (recorded, seen.map(|s| (&s.phase, s.pid))) {
        (State::Exited(_), _) => Repair::Keep,
        (_, Some((Seen::Running { started_at }, pid))) => {
            let state = State::Running {
                pid,
                started_at: *started_at,
            };
            if *recorded == state {
                Repair::Keep
            } else {
                Repair::Set(state)
            }
        }
        (_, Some((Seen::Exited(record), _))) if record.started_at > 0 => {
            Repair::Set(State::Exited(Exit::recorded(record)))
        }
        // It has been starting for longer than a launch may take: the watcher will hear of it.
        (State::Created, Some((Seen::Starting, _))) => Repair::Keep,
        (State::Created, Some(_)) => Repair::Discard,
        (State::Created, None) => match left {
            Some(record) if record.started_at > 0 => {
                Repair::Set(State::Exited(Exit::recorded(record)))
            }
            _ => Repair::Keep,
        },
        (State::Running { started_at, .. }, _) => {
            let exit = left.map_or_else(|| Exit::unknown(*started_at, now), Exit::recorded);
            Repair::Set(State::Exited(exit))
        }
    }
}

/// Repairs everything and fills the runtime's tables.
///
/// # Errors
/// When the directories cannot be read, or a record was written by a newer podwright.
pub(crate) async fn recover(runtime: &Arc<Runtime>) -> Result<()> {
    for id in list(&runtime.paths.sandboxes()).await? {
        tracing::debug!(sandbox.id = %id, "looking at a sandbox");
        sandbox(runtime, &id).await?;
    }
    for id in list(&runtime.paths.containers()).await? {
        tracing::debug!(container.id = %id, "looking at a container");
        container(runtime, &id).await?;
    }
    tracing::debug!("looking for what belongs to nobody");
    sweep::now(runtime).await;
    for sandbox in runtime.sandboxes.all() {
        if let Some(shim) = sandbox.shim() {
            watcher::watch(runtime, &sandbox, shim);
        }
    }
    Ok(())
}

/// Names of directories that can be an object's.
pub(crate) async fn list(dir: &Path) -> Result<Vec<String>> {
    let dir = dir.to_owned();
    blocking::run("listing records", move || {
        let entries = match std::fs::read_dir(&dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => {
                return Err(Fault::internal(format!("reading {}", dir.display()), error));
            }
        };
        let names = entries
            .flatten()
            .filter_map(|e| e.file_name().into_string().ok());
        let mut names: Vec<String> = names.filter(|name| ids::is_prefix(name)).collect();
        names.sort();
        Ok(names)
    })
    .await?
}

/// A record, or `None` when there is none worth keeping. One of a newer version stops everything:
/// guessing at it could destroy what runs.
async fn load<R: serde::de::DeserializeOwned + Send + 'static>(dir: PathBuf) -> Result<Option<R>> {
    let read = blocking::run("reading a record", move || record::read::<R>(&dir)).await?;
    match read {
        Ok(record) => Ok(record),
        Err(error @ (RecordError::Version { .. } | RecordError::Io { .. })) => {
            Err(Fault::internal("reading state", error))
        }
        Err(error @ RecordError::Parse { .. }) => {
            let fault = Fault::internal("reading state", error);
            tracing::error!(error = %fault.chain(), "a damaged record; its object is taken apart");
            Ok(None)
        }
    }
}

/// Takes apart what there is of a sandbox that does not exist; returns the record of one that does.
///
/// # Errors
/// When its record cannot be read, or was written by a newer podwright.
pub(crate) async fn discard_unfinished(
    runtime: &Runtime,
    id: &str,
) -> Result<Option<SandboxRecord>> {
    let dir = runtime.paths.sandbox(id);
    let Some(record) = load::<SandboxRecord>(dir.clone()).await? else {
        tracing::info!(
            sandbox.id = id,
            "removing the leftovers of a sandbox without a record"
        );
        note(sweep::shim(runtime, id).await);
        note(
            blocking::run("removing a leftover", move || remove_dir(&dir))
                .await
                .and_then(|r| r),
        );
        return Ok(None);
    };
    if record.phase == Phase::Creating {
        tracing::info!(
            sandbox.id = id,
            "taking apart a sandbox whose creation was cut short"
        );
        note(runtime.destroy_sandbox(&record).await);
        return Ok(None);
    }
    Ok(Some(record))
}

async fn sandbox(runtime: &Arc<Runtime>, id: &str) -> Result<()> {
    let Some(record) = discard_unfinished(runtime, id).await? else {
        return Ok(());
    };
    let dir = runtime.paths.sandbox(id);
    let shim = connect(runtime, &record).await?;
    match &shim {
        Some(shim) => end_execs(shim).await,
        None => runtime.kill_orphans(&record).await,
    }
    let durable = Durable::loaded(dir, record.clone());
    if record.phase == Phase::Ready && !stands(shim.as_ref()).await {
        tracing::info!(sandbox.id = id, "the sandbox ended while nobody watched");
        durable
            .update(|r| {
                r.phase = Phase::Stopped;
                true
            })
            .await?;
    }
    note(runtime.names.reserve(&record.name, id));
    let step = match durable.get().phase {
        Phase::Stopped => v1::ContainerEventType::ContainerStoppedEvent,
        Phase::Creating | Phase::Ready => v1::ContainerEventType::ContainerStartedEvent,
    };
    let sandbox = Sandbox::new(durable, shim, Some(step));
    runtime.sandboxes.insert(id.to_owned(), Arc::new(sandbox));
    Ok(())
}

/// Whether the sandbox's own process still runs.
async fn stands(shim: Option<&Shim>) -> bool {
    let Some(shim) = shim else { return false };
    let pause = ProcessId {
        container: SANDBOX.to_owned(),
        exec: None,
    };
    shim.state().await.is_ok_and(|state| {
        state
            .processes
            .iter()
            .any(|p| p.process == pause && matches!(p.phase, shim_client::Phase::Running { .. }))
    })
}

/// The living shim of a sandbox.
async fn connect(runtime: &Runtime, record: &SandboxRecord) -> Result<Option<Shim>> {
    let shim = match Shim::connect(&runtime.paths.shim(&record.id)).await {
        Ok(shim) => shim,
        Err(ShimError::Gone { .. }) => return Ok(None),
        Err(error) => return Err(Fault::internal("connecting to a shim", error)),
    };
    Ok(Some(shim))
}

/// Ends the execs of the daemon before: the connections of their clients ended with it.
async fn end_execs(shim: &Shim) {
    let Ok(state) = shim.state().await else {
        return;
    };
    for process in state.processes.into_iter().map(|p| p.process) {
        if process.exec.is_some() {
            let _ = shim.signal(&process, libc::SIGKILL, true).await;
            let _ = tokio::time::timeout(END_DEADLINE, shim.wait(&process)).await;
            if let Err(error) = shim.remove(&process).await {
                tracing::warn!(?process, %error, "an exec of the daemon before stays");
            }
        }
    }
}

async fn container(runtime: &Arc<Runtime>, id: &str) -> Result<()> {
    let dir = runtime.paths.container(id);
    let record = load::<ContainerRecord>(dir.clone()).await?;
    let sandbox = record
        .as_ref()
        .and_then(|r| runtime.sandboxes.get(&r.sandbox_id));
    let (Some(record), Some(sandbox)) = (record, sandbox) else {
        tracing::info!(container.id = id, "removing the leftovers of a container");
        note(runtime.remove_container_files(id).await);
        return Ok(());
    };
    let (seen, left) = look(runtime, &sandbox, id).await?;
    let step = record.state.step();
    let durable = Durable::loaded(dir, record.clone());
    let container = Arc::new(Container::new(durable, Some(step)));
    note(runtime.names.reserve(&record.name, id));
    runtime.containers.insert(id.to_owned(), container.clone());
    match decide(&record.state, seen.as_ref(), left.as_ref(), now()) {
        Repair::Keep => {}
        Repair::Set(State::Exited(exit)) => runtime.container_exited(&container, exit).await,
        Repair::Set(state) => {
            container
                .record
                .update(|r| {
                    r.state = state.clone();
                    true
                })
                .await?;
        }
        Repair::Discard => discard(runtime, &sandbox, &record).await,
    }
    Ok(())
}

type Seen = (Option<shim_client::ProcessState>, Option<ExitRecord>);

async fn look(runtime: &Runtime, sandbox: &Sandbox, id: &str) -> Result<Seen> {
    let first = first_process(id);
    let Some(shim) = sandbox.shim() else {
        let dir = runtime.paths.shim(&sandbox.record.get().id);
        let left = blocking::run("reading exit records", move || Shim::read_records(&dir))
            .await?
            .unwrap_or_default();
        let found = left.into_iter().find(|(process, _)| *process == first);
        return Ok((None, found.map(|(_, exit)| exit)));
    };
    let patience = tokio::time::Instant::now() + LAUNCH_DEADLINE;
    loop {
        let state = shim
            .state()
            .await
            .map_err(|e| Fault::internal("asking a shim for its state", e))?;
        let seen = state.processes.into_iter().find(|p| p.process == first);
        let starting = |p: &shim_client::ProcessState| p.phase == shim_client::Phase::Starting;
        if !seen.as_ref().is_some_and(starting) || tokio::time::Instant::now() > patience {
            return Ok((seen, None));
        }
        tokio::time::sleep(STARTING_POLL).await;
    }
}

async fn discard(runtime: &Runtime, sandbox: &Sandbox, record: &ContainerRecord) {
    if let Some(shim) = sandbox.shim() {
        let process = first_process(&record.id);
        let _ = shim.signal(&process, libc::SIGKILL, true).await;
        let _ = tokio::time::timeout(END_DEADLINE, shim.wait(&process)).await;
        let _ = shim.remove(&process).await;
    }
    note(runtime.remove_cgroup(&record.cgroup).await);
}

/// A repair that failed is not a reason not to start.
pub(crate) fn note(result: Result<()>) {
    if let Err(fault) = result {
        tracing::warn!(error = %fault.chain(), "repair");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(phase: shim_client::Phase) -> shim_client::ProcessState {
        shim_client::ProcessState {
            process: first_process("c"),
            pid: 7,
            phase,
        }
    }

    fn ended(started_at: i64) -> ExitRecord {
        ExitRecord {
            code: 3,
            started_at,
            finished_at: 9,
            ..Default::default()
        }
    }

    const RUNNING: State = State::Running {
        pid: 7,
        started_at: 5,
    };

    fn check(
        recorded: &State,
        seen: Option<shim_client::Phase>,
        left: Option<ExitRecord>,
    ) -> Repair {
        let seen = seen.map(self::seen);
        decide(recorded, seen.as_ref(), left.as_ref(), 100)
    }

    #[test]
    fn what_runs_keeps_running() {
        let phase = shim_client::Phase::Running { started_at: 5 };
        assert_eq!(check(&RUNNING, Some(phase.clone()), None), Repair::Keep);
        assert_eq!(
            check(&State::Created, Some(phase), None),
            Repair::Set(RUNNING)
        );
    }

    #[test]
    fn an_exit_that_happened_meanwhile_is_learned() {
        let exited = Repair::Set(State::Exited(Exit::recorded(&ended(5))));
        let phase = shim_client::Phase::Exited(ended(5));
        assert_eq!(check(&RUNNING, Some(phase.clone()), None), exited);
        assert_eq!(check(&State::Created, Some(phase), None), exited);
        assert_eq!(check(&RUNNING, None, Some(ended(5))), exited);
    }

    #[test]
    fn an_end_without_a_record_is_unknown() {
        let unknown = Repair::Set(State::Exited(Exit::unknown(5, 100)));
        assert_eq!(check(&RUNNING, None, None), unknown);
        assert_eq!(check(&State::Created, None, None), Repair::Keep);
    }

    #[test]
    fn a_launch_that_was_cut_short_is_discarded() {
        assert_eq!(
            check(&State::Created, Some(shim_client::Phase::Created), None),
            Repair::Discard
        );
        let never_ran = shim_client::Phase::Exited(ended(0));
        assert_eq!(
            check(&State::Created, Some(never_ran), None),
            Repair::Discard
        );
    }

    #[test]
    fn a_recorded_exit_is_final() {
        let exited = State::Exited(Exit::unknown(1, 2));
        let phase = shim_client::Phase::Running { started_at: 5 };
        assert_eq!(check(&exited, Some(phase), None), Repair::Keep);
    }
}
