// SPDX-License-Identifier: Apache-2.0
//! A keyed work queue: a key is worked on by one worker at a time, duplicates merge, the earliest
//! deadline wins, and a key that failed comes back after an exponential delay with jitter.
//!
//! [`State`] decides and takes the time as an argument; [`Queue`] adds a lock and a wake-up.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::Hash;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

/// How long a key waits after its n-th failure in a row.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Backoff {
    pub(crate) base: Duration,
    pub(crate) max: Duration,
}

impl Backoff {
    /// The default for controllers: quick first retries, because most failures are write conflicts
    /// that the next watch event resolves; a minute at most, so that recovery is seen soon.
    pub(crate) const CONTROLLER: Self = Self {
        base: Duration::from_millis(10),
        max: Duration::from_secs(60),
    };

    /// The delay before attempt `failures + 1`. `jitter` in 0..1 spreads the delay over its upper
    /// half, so that keys that failed together do not come back together.
    pub(crate) fn delay(self, failures: u32, jitter: f64) -> Duration {
        let doublings = failures.saturating_sub(1).min(30);
        let full = self
            .base
            .saturating_mul(1_u32 << doublings)
            .min(self.max)
            .as_secs_f64();
        Duration::from_secs_f64(full * (0.5 + jitter.clamp(0.0, 1.0) / 2.0))
    }
}

/// What a worker finds when it asks for work.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Take<K> {
    /// This key is yours until [`State::done`].
    Key(K),
    /// Nothing is due; look again at this time, or when something is added.
    Wait(Option<Instant>),
}

/// The queue without a lock or a clock.
#[derive(Debug)]
pub(crate) struct State<K> {
    due: BTreeMap<(Instant, u64), K>,
    scheduled: HashMap<K, (Instant, u64)>,
    running: HashSet<K>,
    failures: HashMap<K, u32>,
    sequence: u64,
}

impl<K: Clone + Eq + Hash> State<K> {
    pub(crate) fn new() -> Self {
        Self {
            due: BTreeMap::new(),
            scheduled: HashMap::new(),
            running: HashSet::new(),
            failures: HashMap::new(),
            sequence: 0,
        }
    }

    /// Asks for the key to be worked on at `at`. A key that is scheduled keeps the earlier time.
    pub(crate) fn add(&mut self, key: K, at: Instant) {
        if let Some(existing) = self.scheduled.get(&key) {
            if existing.0 <= at {
                return;
            }
            self.due.remove(existing);
        }
        self.sequence += 1;
        let slot = (at, self.sequence);
        self.due.insert(slot, key.clone());
        self.scheduled.insert(key, slot);
    }

    /// The first key that is due and that nobody works on.
    pub(crate) fn take(&mut self, now: Instant) -> Take<K> {
        let free = self
            .due
            .iter()
            .find(|(_, key)| !self.running.contains(*key))
            .map(|(slot, key)| (*slot, key.clone()));
        match free {
            Some((slot, key)) if slot.0 <= now => {
                self.due.remove(&slot);
                self.scheduled.remove(&key);
                self.running.insert(key.clone());
                Take::Key(key)
            }
            Some((slot, _)) => Take::Wait(Some(slot.0)),
            None => Take::Wait(None),
        }
    }

    /// Ends the work on a key. If it was added meanwhile it is due again.
    pub(crate) fn done(&mut self, key: &K) {
        self.running.remove(key);
    }

    /// The key succeeded: its next failure is a first one.
    pub(crate) fn forget(&mut self, key: &K) {
        self.failures.remove(key);
    }

    /// Counts a failure and schedules the key again.
    pub(crate) fn retry(
        &mut self,
        key: K,
        now: Instant,
        backoff: Backoff,
        jitter: f64,
    ) -> Duration {
        let failures = self.failures.entry(key.clone()).or_default();
        *failures = failures.saturating_add(1);
        let delay = backoff.delay(*failures, jitter);
        self.add(key, now + delay);
        delay
    }
}

/// The shared queue. All methods may be called from any task.
#[derive(Debug)]
pub(crate) struct Queue<K> {
    state: Mutex<State<K>>,
    wake: Notify,
    backoff: Backoff,
}

impl<K: Clone + Eq + Hash> Queue<K> {
    pub(crate) fn new(backoff: Backoff) -> Self {
        Self {
            state: Mutex::new(State::new()),
            wake: Notify::new(),
            backoff,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State<K>> {
        // The state holds no half-made change across a panic: every method is a few map calls.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Work on `key` as soon as a worker is free.
    pub(crate) fn add(&self, key: K) {
        self.lock().add(key, Instant::now());
        self.wake.notify_one();
    }

    /// Work on `key` after `delay`, or earlier if something else asks for it.
    pub(crate) fn add_after(&self, key: K, delay: Duration) {
        self.lock().add(key, Instant::now() + delay);
        self.wake.notify_one();
    }

    /// Counts a failure and schedules a retry; returns the delay for the log.
    pub(crate) fn retry(&self, key: K) -> Duration {
        let jitter = rand::random::<f64>();
        let delay = self.lock().retry(key, Instant::now(), self.backoff, jitter);
        self.wake.notify_one();
        delay
    }

    /// Forgets earlier failures of `key`.
    pub(crate) fn forget(&self, key: &K) {
        self.lock().forget(key);
    }

    /// Gives `key` back.
    pub(crate) fn done(&self, key: &K) {
        self.lock().done(key);
        self.wake.notify_one();
    }

    /// Waits for the next key. Cancel-safe: a key is handed out only when this returns.
    pub(crate) async fn next(&self) -> K {
        loop {
            let woken = self.wake.notified();
            let taken = self.lock().take(Instant::now());
            match taken {
                Take::Key(key) => {
                    // There may be more: wake the next worker, which looks for itself.
                    self.wake.notify_one();
                    return key;
                }
                Take::Wait(None) => woken.await,
                Take::Wait(Some(at)) => {
                    tokio::select! {
                        () = woken => {}
                        () = tokio::time::sleep_until(at) => {}
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn duplicates_merge_and_the_earliest_time_wins() {
        let start = Instant::now();
        let mut state = State::new();
        state.add("a", start + SECOND * 5);
        state.add("a", start + SECOND);
        state.add("a", start + SECOND * 9);
        assert_eq!(state.take(start), Take::Wait(Some(start + SECOND)));
        assert_eq!(state.take(start + SECOND), Take::Key("a"));
        assert_eq!(state.take(start + SECOND * 20), Take::Wait(None));
    }

    #[test]
    fn a_key_is_worked_on_by_one_worker_and_comes_back_if_added_meanwhile() {
        let start = Instant::now();
        let mut state = State::new();
        state.add("a", start);
        assert_eq!(state.take(start), Take::Key("a"));
        state.add("a", start);
        state.add("b", start);
        assert_eq!(state.take(start), Take::Key("b"));
        assert_eq!(state.take(start), Take::Wait(None));
        state.done(&"a");
        assert_eq!(state.take(start), Take::Key("a"));
    }

    #[test]
    fn failures_double_the_delay_up_to_the_limit_and_success_resets_it() {
        let backoff = Backoff {
            base: SECOND,
            max: SECOND * 5,
        };
        let start = Instant::now();
        let mut state = State::new();
        let delays: Vec<_> = (0..4)
            .map(|_| state.retry("a", start, backoff, 1.0))
            .collect();
        assert_eq!(delays, [SECOND, SECOND * 2, SECOND * 4, SECOND * 5]);
        state.forget(&"a");
        assert_eq!(state.retry("a", start, backoff, 0.0), SECOND / 2);
    }
}
