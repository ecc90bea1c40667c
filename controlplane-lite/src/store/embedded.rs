// SPDX-License-Identifier: Apache-2.0
//! The back end in this process: one writer thread with group commit, readers in memory.
//!
//! The writer takes every change that waits, decides each against the state plus the changes
//! before it in the group, appends the accepted ones in one transaction, shows them to readers,
//! and then answers. So an answer means durable, and 32 writers share one disk flush.

use std::{
    path::Path,
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
    thread::JoinHandle,
};

use futures::{FutureExt, future::BoxFuture};
use tokio::sync::{mpsc, oneshot, watch};

use super::{
    Batch, Change, CommitError, Expired, Object, Snapshot, Store, StoreError,
    index::{Event, EventKind, Index, Overlay},
    log::Log,
    resource_of,
};

/// Changes that may wait for the writer before callers have to wait to hand theirs over.
const QUEUE: usize = 1024;
/// Changes in one transaction.
const GROUP: usize = 256;

type Answer = oneshot::Sender<Result<Arc<Object>, CommitError>>;

enum Command {
    Commit(Change, Answer),
    Compact(u64, oneshot::Sender<Result<(), CommitError>>),
}

/// The embedded store. Dropping it lets the writer finish what waits and end.
pub(crate) struct Embedded {
    index: Arc<RwLock<Index>>,
    commands: mpsc::Sender<Command>,
    writer: Option<JoinHandle<()>>,
}

impl Embedded {
    /// Opens or makes the store in `dir`. Crash-only: this is also the way back after a crash.
    ///
    /// # Errors
    /// When the folder or database cannot be opened, is in use, or has an unknown format.
    pub(crate) fn open(dir: &Path) -> Result<Self, StoreError> {
        let (log, index) = Log::open(dir)?;
        let index = Arc::new(RwLock::new(index));
        let (commands, queue) = mpsc::channel(QUEUE);
        let writer = Writer {
            log,
            index: index.clone(),
            queue,
        };
        let writer = std::thread::Builder::new()
            .name("store-writer".to_owned())
            .spawn(move || writer.run())
            .map_err(StoreError::Thread)?;
        Ok(Self {
            index,
            commands,
            writer: Some(writer),
        })
    }

    fn index(&self) -> RwLockReadGuard<'_, Index> {
        self.index.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the writer to finish what waits and to end. Blocks.
    pub(crate) fn close(mut self) {
        let (closed, _) = mpsc::channel(1);
        self.commands = closed;
        if let Some(writer) = self.writer.take() {
            let _ = writer.join();
        }
    }
}

impl Store for Embedded {
    fn revision(&self) -> u64 {
        self.index().revision()
    }

    fn get(&self, key: &str) -> Option<Arc<Object>> {
        self.index().get(key).cloned()
    }

    fn range(&self, prefix: &str, at: Option<u64>) -> Result<Snapshot, Expired> {
        self.index().range(prefix, at)
    }

    fn commit(&self, change: Change) -> BoxFuture<'_, Result<Arc<Object>, CommitError>> {
        async move {
            let (answer, done) = oneshot::channel();
            let command = Command::Commit(change, answer);
            let sent = self.commands.send(command).await;
            sent.map_err(|_| CommitError::Closed)?;
            done.await.unwrap_or(Err(CommitError::Closed))
        }
        .boxed()
    }

    fn events(&self, resource: &str, after: u64, limit: usize) -> Result<Batch, Expired> {
        self.index().events(resource, after, limit)
    }

    fn subscribe(&self, resource: &str) -> watch::Receiver<u64> {
        let mut index = self.index.write().unwrap_or_else(PoisonError::into_inner);
        index.subscribe(resource)
    }

    fn compact(&self, upto: u64) -> BoxFuture<'_, Result<(), CommitError>> {
        async move {
            let (answer, done) = oneshot::channel();
            let sent = self.commands.send(Command::Compact(upto, answer)).await;
            sent.map_err(|_| CommitError::Closed)?;
            done.await.unwrap_or(Err(CommitError::Closed))
        }
        .boxed()
    }
}

struct Writer {
    log: Log,
    index: Arc<RwLock<Index>>,
    queue: mpsc::Receiver<Command>,
}

impl Writer {
    fn run(mut self) {
        let mut compacting: Option<(u64, oneshot::Sender<Result<(), CommitError>>)> = None;
        loop {
            let mut group = Vec::new();
            // While a compaction is under way its steps fill the gaps between groups.
            let first = match &compacting {
                Some(_) => match self.queue.try_recv() {
                    Ok(command) => Some(command),
                    Err(mpsc::error::TryRecvError::Empty) => None,
                    Err(mpsc::error::TryRecvError::Disconnected) => return,
                },
                None => match self.queue.blocking_recv() {
                    Some(command) => Some(command),
                    None => return,
                },
            };
            let mut next = first;
            while let Some(command) = next {
                match command {
                    Command::Commit(change, answer) => group.push((change, answer)),
                    Command::Compact(upto, answer) => compacting = Some((upto, answer)),
                }
                next = (group.len() < GROUP)
                    .then(|| self.queue.try_recv().ok())
                    .flatten();
            }
            if !group.is_empty() {
                self.commit(group);
            }
            if let Some((upto, answer)) = compacting.take() {
                match self.log.compact_step(upto) {
                    Ok(true) => compacting = Some((upto, answer)),
                    Ok(false) => drop(answer.send(Ok(()))),
                    Err(error) => drop(answer.send(Err(failed(&error)))),
                }
            }
        }
    }

    fn read(&self) -> RwLockReadGuard<'_, Index> {
        self.index.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Index> {
        self.index.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn commit(&mut self, group: Vec<(Change, Answer)>) {
        let mut accepted = Vec::new();
        let events = {
            let index = self.read();
            let mut overlay = Overlay::new(&index);
            for (change, answer) in group {
                match decide(&overlay, change) {
                    Ok(event) => {
                        accepted.push((event.object.clone(), answer));
                        overlay.add(event);
                    }
                    Err(refused) => drop(answer.send(Err(refused))),
                }
            }
            overlay.into_events()
        };
        if events.is_empty() {
            return;
        }
        if let Err(error) = self.log.append(events.iter().map(|e| &**e)) {
            tracing::error!(%error, "the store cannot write");
            for (_, answer) in accepted {
                let _ = answer.send(Err(failed(&error)));
            }
            return;
        }
        self.publish(events);
        for (object, answer) in accepted {
            let _ = answer.send(Ok(object));
        }
    }

    fn publish(&self, events: Vec<Arc<Event>>) {
        let mut index = self.write();
        let mut resources: Vec<String> = events
            .iter()
            .map(|e| resource_of(e.object.key()).to_owned())
            .collect();
        for event in events {
            index.apply(event);
        }
        resources.sort_unstable();
        resources.dedup();
        for resource in resources {
            index.wake(&resource);
        }
    }
}

/// Whether a change may be made, and the event that it makes.
fn decide(state: &Overlay<'_>, change: Change) -> Result<Arc<Event>, CommitError> {
    let previous = state.get(&change.key);
    if !state.expectation_holds(&change.key, change.expect) {
        return Err(CommitError::Conflict(previous));
    }
    if !change.guards.iter().all(|guard| state.guard_holds(guard)) {
        return Err(CommitError::Guard);
    }
    let revision = state.next_revision();
    let event = match (change.put, previous) {
        (Some(draft), previous) => {
            let kind = if previous.is_some() {
                EventKind::Changed
            } else {
                EventKind::Created
            };
            Event::new(kind, draft.seal(&change.key, revision).into(), previous)
        }
        (None, Some(previous)) => {
            let last = previous.at_revision(revision).into();
            Event::new(EventKind::Deleted, last, Some(previous))
        }
        (None, None) => return Err(CommitError::Conflict(None)),
    };
    Ok(event.into())
}

fn failed(error: &rusqlite::Error) -> CommitError {
    CommitError::Failed(error.to_string())
}
