// SPDX-License-Identifier: Apache-2.0
//! The state in memory: every current object, and the recent events of every resource.
//!
//! Watchers pull from the events of their resource and are only woken up, so a slow watcher
//! costs nothing and a lost wake-up does no harm. An older state is rebuilt from the current one
//! by undoing events, so a paged list sees one moment.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    ops::Bound,
    sync::{Arc, OnceLock},
};

use bytes::Bytes;
use tokio::sync::watch;

use super::{Expect, Expired, Guard, Object, resource_of};

/// Events kept per resource. A watcher that falls further behind lists again.
const WINDOW_EVENTS: usize = 8192;
/// Bytes of objects that the events of one resource may keep alive.
const WINDOW_BYTES: usize = 32 << 20;

/// What happened to a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum EventKind {
    /// It was not there before.
    Created,
    /// It was there before.
    Changed,
    /// It is gone.
    Deleted,
}

/// One change, as watchers see it.
#[derive(Debug)]
pub(crate) struct Event {
    pub(crate) revision: u64,
    pub(crate) kind: EventKind,
    /// The new state; for a deletion, the last state with the revision of the deletion.
    pub(crate) object: Arc<Object>,
    /// The state before.
    pub(crate) previous: Option<Arc<Object>>,
    frame: OnceLock<Bytes>,
}

impl Event {
    pub(super) fn new(kind: EventKind, object: Arc<Object>, previous: Option<Arc<Object>>) -> Self {
        Self {
            revision: object.revision(),
            kind,
            object,
            previous,
            frame: OnceLock::new(),
        }
    }

    /// The event as it goes over the wire, encoded by the first watcher that needs it.
    pub(crate) fn frame(&self, encode: impl FnOnce(&Self) -> Bytes) -> Bytes {
        self.frame.get_or_init(|| encode(self)).clone()
    }
}

/// Objects at one moment.
#[derive(Debug)]
pub(crate) struct Snapshot {
    pub(crate) revision: u64,
    /// In key order.
    pub(crate) objects: Vec<Arc<Object>>,
}

/// Events of a resource, and the revision up to which they are complete.
#[derive(Debug)]
pub(crate) struct Batch {
    pub(crate) events: Vec<Arc<Event>>,
    pub(crate) upto: u64,
}

/// Recent events of one resource.
struct History {
    events: VecDeque<Arc<Event>>,
    bytes: usize,
    /// Events after this revision are all here.
    floor: u64,
    /// Revision of the newest change, kept or not.
    newest: u64,
    wake: watch::Sender<u64>,
}

impl History {
    fn new(floor: u64) -> Self {
        Self {
            events: VecDeque::new(),
            bytes: 0,
            floor,
            newest: 0,
            wake: watch::Sender::new(0),
        }
    }

    fn push(&mut self, event: Arc<Event>) {
        self.newest = event.revision;
        self.bytes += event.object.bytes().len();
        self.events.push_back(event);
        while self.events.len() > WINDOW_EVENTS || self.bytes > WINDOW_BYTES {
            self.drop_oldest();
        }
    }

    fn drop_oldest(&mut self) {
        if let Some(oldest) = self.events.pop_front() {
            self.bytes -= oldest.object.bytes().len();
            self.floor = oldest.revision;
        }
    }
}

/// The state in memory.
pub(super) struct Index {
    revision: u64,
    objects: BTreeMap<Box<str>, Arc<Object>>,
    history: HashMap<Box<str>, History>,
    /// Floor of a resource that has no history yet.
    floor: u64,
}

impl Index {
    /// An empty state whose events are complete after `floor`.
    pub(super) fn new(floor: u64) -> Self {
        Self {
            revision: floor,
            objects: BTreeMap::new(),
            history: HashMap::new(),
            floor,
        }
    }

    pub(super) fn revision(&self) -> u64 {
        self.revision
    }

    pub(super) fn get(&self, key: &str) -> Option<&Arc<Object>> {
        self.objects.get(key)
    }

    /// Revision of the newest change of a resource.
    pub(super) fn newest(&self, resource: &str) -> u64 {
        self.history.get(resource).map_or(0, |h| h.newest)
    }

    /// Takes a change in. Events at or below the floor change the state and are not kept.
    pub(super) fn apply(&mut self, event: Arc<Event>) {
        self.revision = event.revision;
        let key = event.object.key();
        if event.kind == EventKind::Deleted {
            self.objects.remove(key);
        } else {
            self.objects.insert(key.into(), event.object.clone());
        }
        let floor = self.floor;
        let history = self
            .history
            .entry(resource_of(key).into())
            .or_insert_with(|| History::new(floor));
        if event.revision > floor {
            history.push(event);
        } else {
            history.newest = event.revision;
        }
    }

    /// Wakes the watchers of a resource.
    pub(super) fn wake(&mut self, resource: &str) {
        let revision = self.revision;
        if let Some(history) = self.history.get(resource) {
            history.wake.send_replace(revision);
        }
    }

    pub(super) fn subscribe(&mut self, resource: &str) -> watch::Receiver<u64> {
        let floor = self.floor;
        self.history
            .entry(resource.into())
            .or_insert_with(|| History::new(floor))
            .wake
            .subscribe()
    }

    pub(super) fn events(
        &self,
        resource: &str,
        after: u64,
        limit: usize,
    ) -> Result<Batch, Expired> {
        let Some(history) = self.history.get(resource) else {
            return self.expired_before(self.floor, after).map(|()| Batch {
                events: Vec::new(),
                upto: self.revision,
            });
        };
        self.expired_before(history.floor, after)?;
        let from = history.events.partition_point(|e| e.revision <= after);
        let events: Vec<_> = history.events.range(from..).take(limit).cloned().collect();
        let complete = from + events.len() == history.events.len();
        let upto = match events.last() {
            Some(last) if !complete => last.revision,
            _ => self.revision,
        };
        Ok(Batch { events, upto })
    }

    fn expired_before(&self, oldest: u64, asked: u64) -> Result<(), Expired> {
        if asked < oldest {
            return Err(Expired { asked, oldest });
        }
        Ok(())
    }

    pub(super) fn range(&self, prefix: &str, at: Option<u64>) -> Result<Snapshot, Expired> {
        let current = self
            .objects
            .range::<str, _>((Bound::Included(prefix), Bound::Unbounded))
            .take_while(|(key, _)| key.starts_with(prefix));
        let Some(at) = at.filter(|at| *at < self.revision) else {
            return Ok(Snapshot {
                revision: self.revision,
                objects: current.map(|(_, object)| object.clone()).collect(),
            });
        };
        let history = self.history.get(resource_of(prefix));
        self.expired_before(history.map_or(self.floor, |h| h.floor), at)?;
        let mut then: BTreeMap<&str, &Arc<Object>> =
            current.map(|(key, object)| (&**key, object)).collect();
        let later = history.into_iter().flat_map(|h| h.events.iter().rev());
        for event in later.take_while(|e| e.revision > at) {
            let key = event.object.key();
            if !key.starts_with(prefix) {
                continue;
            }
            match &event.previous {
                Some(previous) => then.insert(previous.key(), previous),
                None => then.remove(key),
            };
        }
        Ok(Snapshot {
            revision: at,
            objects: then.into_values().cloned().collect(),
        })
    }
}

/// Changes of one group on top of the index, before they are durable.
pub(super) struct Overlay<'a> {
    index: &'a Index,
    events: Vec<Arc<Event>>,
    objects: HashMap<Box<str>, Option<Arc<Object>>>,
    newest: HashMap<Box<str>, u64>,
}

impl<'a> Overlay<'a> {
    pub(super) fn new(index: &'a Index) -> Self {
        Self {
            index,
            events: Vec::new(),
            objects: HashMap::new(),
            newest: HashMap::new(),
        }
    }

    /// The object under a key, with the changes of this group.
    pub(super) fn get(&self, key: &str) -> Option<Arc<Object>> {
        match self.objects.get(key) {
            Some(changed) => changed.clone(),
            None => self.index.get(key).cloned(),
        }
    }

    /// Revision for the next change.
    pub(super) fn next_revision(&self) -> u64 {
        self.events
            .last()
            .map_or(self.index.revision(), |e| e.revision)
            + 1
    }

    pub(super) fn expectation_holds(&self, key: &str, expect: Expect) -> bool {
        match (expect, self.get(key)) {
            (Expect::Absent, None) => true,
            (Expect::Revision(wanted), Some(found)) => found.revision() == wanted,
            _ => false,
        }
    }

    pub(super) fn guard_holds(&self, guard: &Guard) -> bool {
        match guard {
            Guard::Key { key, revision } => self
                .get(key)
                .is_some_and(|found| found.revision() == *revision),
            Guard::Resource { resource, revision } => {
                let pending = self.newest.get(resource.as_str()).copied();
                pending.unwrap_or_else(|| self.index.newest(resource)) <= *revision
            }
        }
    }

    pub(super) fn add(&mut self, event: Arc<Event>) {
        let key = event.object.key();
        let now = (event.kind != EventKind::Deleted).then(|| event.object.clone());
        self.objects.insert(key.into(), now);
        self.newest.insert(resource_of(key).into(), event.revision);
        self.events.push(event);
    }

    pub(super) fn into_events(self) -> Vec<Arc<Event>> {
        self.events
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{super::Draft, *};

    fn put(index: &mut Index, key: &str) {
        let revision = index.revision() + 1;
        let name = key.rsplit('/').next();
        let value = json!({"metadata": {"name": name}, "at": revision});
        let object = Arc::new(Draft::encode(&value).preview(key, revision));
        let previous = index.get(key).cloned();
        let kind = if previous.is_some() {
            EventKind::Changed
        } else {
            EventKind::Created
        };
        index.apply(Arc::new(Event::new(kind, object, previous)));
    }

    fn delete(index: &mut Index, key: &str) {
        let previous = index.get(key).cloned().expect("there");
        let last = Arc::new(previous.at_revision(index.revision() + 1));
        index.apply(Arc::new(Event::new(
            EventKind::Deleted,
            last,
            Some(previous),
        )));
    }

    fn keys(snapshot: &Snapshot) -> Vec<(&str, u64)> {
        snapshot
            .objects
            .iter()
            .map(|o| (o.key(), o.revision()))
            .collect()
    }

    #[test]
    fn an_older_state_is_rebuilt_from_events() {
        let mut index = Index::new(0);
        put(&mut index, "pods/a/1");
        put(&mut index, "pods/b/2");
        put(&mut index, "pods/a/1");
        delete(&mut index, "pods/b/2");
        put(&mut index, "pods/b/3");
        let now = index.range("pods/", None).expect("now");
        assert_eq!(keys(&now), [("pods/a/1", 3), ("pods/b/3", 5)]);
        let then = index.range("pods/", Some(2)).expect("kept");
        assert_eq!(keys(&then), [("pods/a/1", 1), ("pods/b/2", 2)]);
        let part = index.range("pods/b/", Some(3)).expect("kept");
        assert_eq!(keys(&part), [("pods/b/2", 2)]);
    }

    #[test]
    fn a_prefix_does_not_reach_into_a_longer_name() {
        let mut index = Index::new(0);
        put(&mut index, "pods/a/1");
        put(&mut index, "pods/ab/1");
        assert_eq!(index.range("pods/a/", None).expect("now").objects.len(), 1);
    }

    #[test]
    fn events_come_in_order_and_end_at_the_newest_revision() {
        let mut index = Index::new(0);
        for n in 0..5 {
            put(&mut index, &format!("pods/a/{n}"));
        }
        put(&mut index, "nodes//n");
        let first = index.events("pods", 1, 2).expect("kept");
        assert_eq!(
            first.events.iter().map(|e| e.revision).collect::<Vec<_>>(),
            [2, 3]
        );
        assert_eq!(first.upto, 3);
        let rest = index.events("pods", first.upto, 100).expect("kept");
        assert_eq!((rest.events.len(), rest.upto), (2, 6));
    }

    #[test]
    fn what_fell_out_of_the_window_is_expired() {
        let mut index = Index::new(0);
        for _ in 0..=WINDOW_EVENTS {
            put(&mut index, "pods/a/1");
        }
        assert!(index.events("pods", 0, 1).is_err());
        assert!(index.events("pods", 1, 1).is_ok());
        assert!(index.range("pods/", Some(0)).is_err());
        assert!(index.events("nodes", 0, 1).is_ok());
    }
}
