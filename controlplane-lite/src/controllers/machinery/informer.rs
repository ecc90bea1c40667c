// SPDX-License-Identifier: Apache-2.0
//! One watch per kind, kept as a map of the newest objects, with hooks that are told of each change
//! together with what was there before.
//!
//! A hook sees every object once as `added` after the first list. When a broken watch is resumed by
//! a new list, objects that went missing meanwhile are reported as deleted in their last known
//! state; changes in between are seen as one change. So hooks must be level-triggered.

use std::collections::HashMap;
use std::fmt::Debug;
use std::sync::{Arc, PoisonError, RwLock};

use futures::{Stream, StreamExt};
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event};
use kube::{Api, Resource};
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::key::Key;

/// What happened to one object.
#[derive(Debug)]
pub(crate) struct Change<'a, K> {
    pub(crate) old: Option<&'a Arc<K>>,
    pub(crate) new: Option<&'a Arc<K>>,
}

impl<K> Change<'_, K> {
    /// The object as it is now or, if it is gone, as it was.
    pub(crate) fn latest(&self) -> Option<&K> {
        self.new.or(self.old).map(Arc::as_ref)
    }

    /// Both versions that exist, the old one first.
    pub(crate) fn versions(&self) -> impl Iterator<Item = &K> {
        self.old.into_iter().chain(self.new).map(Arc::as_ref)
    }
}

type Hook<K> = Box<dyn Fn(&Change<'_, K>) + Send + Sync>;
type Objects<K> = HashMap<String, HashMap<String, Arc<K>>>;

/// The newest known objects of one kind.
pub(crate) struct Informer<K> {
    objects: RwLock<Objects<K>>,
    hooks: RwLock<Vec<Hook<K>>>,
    synced: watch::Sender<bool>,
}

impl<K> Default for Informer<K> {
    fn default() -> Self {
        Self {
            objects: RwLock::default(),
            hooks: RwLock::default(),
            synced: watch::Sender::new(false),
        }
    }
}

impl<K> Informer<K> {
    /// Adds a hook. Call it before the watch runs; a later hook misses what came before.
    pub(crate) fn on_change(&self, hook: impl Fn(&Change<'_, K>) + Send + Sync + 'static) {
        self.hooks
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .push(Box::new(hook));
    }

    /// Returns when the first list is complete.
    pub(crate) async fn synced(&self) {
        // The sender lives as long as `self`, so waiting cannot fail.
        let _ = self.synced.subscribe().wait_for(|done| *done).await;
    }

    /// True when the first list is complete.
    #[cfg(test)]
    fn is_synced(&self) -> bool {
        *self.synced.borrow()
    }

    pub(crate) fn get(&self, key: &Key) -> Option<Arc<K>> {
        self.read(|objects| objects.get(&key.namespace)?.get(&key.name).cloned())
    }

    /// All objects of one namespace, in no particular order.
    pub(crate) fn in_namespace(&self, namespace: &str) -> Vec<Arc<K>> {
        self.read(|objects| {
            objects
                .get(namespace)
                .map(|named| named.values().cloned().collect())
                .unwrap_or_default()
        })
    }

    /// All objects, in no particular order.
    pub(crate) fn all(&self) -> Vec<Arc<K>> {
        self.read(|objects| {
            objects
                .values()
                .flat_map(HashMap::values)
                .cloned()
                .collect()
        })
    }

    fn read<T>(&self, look: impl FnOnce(&Objects<K>) -> T) -> T {
        look(&self.objects.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn set(&self, key: Key, new: Option<Arc<K>>) {
        let old = {
            let mut objects = self.objects.write().unwrap_or_else(PoisonError::into_inner);
            let named = objects.entry(key.namespace).or_default();
            match &new {
                Some(object) => named.insert(key.name, Arc::clone(object)),
                None => named.remove(&key.name),
            }
        };
        self.tell(old.as_ref(), new.as_ref());
    }

    fn tell(&self, old: Option<&Arc<K>>, new: Option<&Arc<K>>) {
        if old.is_none() && new.is_none() {
            return;
        }
        let change = Change { old, new };
        for hook in self
            .hooks
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
        {
            hook(&change);
        }
    }
}

impl<K: Resource> Informer<K> {
    /// Applies one event of a watch. `listed` gathers the keys of a list in progress.
    pub(crate) fn apply(&self, event: Event<K>, listed: &mut Option<Vec<Key>>) {
        match event {
            Event::Init => *listed = Some(Vec::new()),
            Event::InitApply(object) => {
                let key = Key::of(&object);
                if let Some(keys) = listed {
                    keys.push(key.clone());
                }
                self.set(key, Some(Arc::new(object)));
            }
            Event::InitDone => {
                if let Some(keys) = listed.take() {
                    self.drop_unlisted(keys);
                }
                self.synced.send_replace(true);
            }
            Event::Apply(object) => self.set(Key::of(&object), Some(Arc::new(object))),
            Event::Delete(object) => {
                let key = Key::of(&object);
                self.set(key, None);
            }
        }
    }

    fn drop_unlisted(&self, listed: Vec<Key>) {
        let listed: std::collections::HashSet<Key> = listed.into_iter().collect();
        let gone: Vec<Key> = self
            .all()
            .iter()
            .map(|object| Key::of(object.as_ref()))
            .filter(|key| !listed.contains(key))
            .collect();
        for key in gone {
            self.set(key, None);
        }
    }

    /// Follows a watch stream until `stop`. The stream restarts by itself after an error.
    pub(crate) async fn follow(
        &self,
        kind: &str,
        events: impl Stream<Item = Result<Event<K>, watcher::Error>>,
        stop: &CancellationToken,
    ) {
        let mut events = std::pin::pin!(events);
        let mut listed = None;
        loop {
            let event = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                event = events.next() => event,
            };
            match event {
                Some(Ok(event)) => self.apply(event, &mut listed),
                Some(Err(error)) => {
                    tracing::debug!(kind, %error, "watch broke and will be resumed")
                }
                None => return,
            }
        }
    }
}

impl<K> Informer<K>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
{
    /// Watches `api` until `stop`.
    pub(crate) async fn run(&self, api: Api<K>, stop: CancellationToken) {
        let events = watcher::watcher(api, watcher::Config::default()).default_backoff();
        self.follow(&K::kind(&()), events, &stop).await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use k8s_openapi::api::core::v1::ConfigMap;

    use super::*;

    fn object(name: &str) -> ConfigMap {
        let mut object = ConfigMap::default();
        object.metadata.namespace = Some("ns".into());
        object.metadata.name = Some(name.into());
        object
    }

    #[test]
    fn a_new_list_reports_what_went_missing() {
        let informer = Informer::default();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&seen);
        informer.on_change(move |change: &Change<'_, ConfigMap>| {
            let name = change.latest().and_then(|o| o.metadata.name.clone());
            log.lock()
                .expect("no test panics while it holds the lock")
                .push((name.unwrap_or_default(), change.new.is_some()));
        });
        let mut listed = None;
        informer.apply(Event::Init, &mut listed);
        informer.apply(Event::InitApply(object("a")), &mut listed);
        informer.apply(Event::InitApply(object("b")), &mut listed);
        assert!(!informer.is_synced());
        informer.apply(Event::InitDone, &mut listed);
        assert!(informer.is_synced());
        informer.apply(Event::Init, &mut listed);
        informer.apply(Event::InitApply(object("b")), &mut listed);
        informer.apply(Event::InitDone, &mut listed);
        let seen = seen.lock().expect("no test panics while it holds the lock");
        assert_eq!(seen.last(), Some(&("a".to_owned(), false)));
        assert_eq!(informer.all().len(), 1);
        assert!(informer.get(&Key::new("ns", "a")).is_none());
    }
}
