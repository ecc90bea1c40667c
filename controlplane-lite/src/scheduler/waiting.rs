// SPDX-License-Identifier: Apache-2.0
//! What the scheduler remembers: pods that it has bound but the watch has not shown yet, and pods
//! that did not fit and wait for the cluster to change.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;

use crate::controllers::machinery::key::Key;
use crate::controllers::machinery::pods;

/// First and longest wait of a pod that did not fit, as upstream's podInitialBackoffSeconds and
/// podMaxBackoffSeconds.
const FIRST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(10);

/// Shared by the hooks and the worker.
#[derive(Debug, Default)]
pub(crate) struct Waiting {
    assumed: Mutex<HashMap<Key, Arc<Pod>>>,
    unschedulable: Mutex<HashMap<Key, u32>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Waiting {
    /// The pod, with its node, counts as bound from now on.
    pub(crate) fn assume(&self, pod: Pod) {
        lock(&self.assumed).insert(Key::of(&pod), Arc::new(pod));
    }

    /// The binding failed, or the watch shows the pod bound, or gone.
    pub(crate) fn forget(&self, key: &Key) {
        lock(&self.assumed).remove(key);
    }

    pub(crate) fn is_assumed(&self, key: &Key) -> bool {
        lock(&self.assumed).contains_key(key)
    }

    /// The pods of the cache, with assumed ones in place of their unbound selves.
    pub(crate) fn overlay(&self, cached: Vec<Arc<Pod>>) -> Vec<Arc<Pod>> {
        let assumed = lock(&self.assumed);
        let is_same = |a: &Pod, b: &Pod| a.metadata.uid == b.metadata.uid;
        let mut all: Vec<_> = cached
            .into_iter()
            .filter(|pod| {
                pods::node_name(pod).is_some()
                    || !assumed
                        .get(&Key::of(pod.as_ref()))
                        .is_some_and(|a| is_same(a, pod))
            })
            .collect();
        let unseen = assumed
            .values()
            .filter(|assumed| !all.iter().any(|pod| is_same(pod, assumed)));
        let unseen: Vec<_> = unseen.cloned().collect();
        all.extend(unseen);
        all
    }

    /// The pod did not fit. It is tried again when something changes.
    pub(crate) fn park(&self, key: &Key) {
        let mut parked = lock(&self.unschedulable);
        let attempts = parked.entry(key.clone()).or_default();
        *attempts = attempts.saturating_add(1);
    }

    pub(crate) fn is_parked(&self, key: &Key) -> bool {
        lock(&self.unschedulable).contains_key(key)
    }

    pub(crate) fn unpark(&self, key: &Key) {
        lock(&self.unschedulable).remove(key);
    }

    /// Every parked pod with the time that it has to wait yet. They stay parked, so that attempts
    /// keep counting.
    pub(crate) fn parked(&self) -> Vec<(Key, Duration)> {
        let parked = lock(&self.unschedulable);
        parked
            .iter()
            .map(|(key, attempts)| (key.clone(), wait(*attempts)))
            .collect()
    }
}

fn wait(attempts: u32) -> Duration {
    let doublings = attempts.saturating_sub(1).min(10);
    FIRST.saturating_mul(1 << doublings).min(LONGEST)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controllers::machinery::testing;

    #[test]
    fn an_assumed_pod_counts_once() {
        let waiting = Waiting::default();
        let bound = testing::pod("a", "Pending", None);
        let mut unbound = bound.clone();
        unbound.spec.get_or_insert_default().node_name = None;
        waiting.assume(bound.clone());
        let seen = waiting.overlay(vec![Arc::new(unbound)]);
        assert_eq!(seen.len(), 1);
        assert_eq!(pods::node_name(&seen[0]), Some("n1"));
        assert_eq!(waiting.overlay(vec![Arc::new(bound)]).len(), 1);
        assert_eq!(waiting.overlay(vec![]).len(), 1);
    }

    #[test]
    fn the_wait_doubles_up_to_a_limit() {
        assert_eq!([1, 2, 4, 9].map(wait).map(|w| w.as_secs()), [1, 2, 8, 10]);
    }
}
