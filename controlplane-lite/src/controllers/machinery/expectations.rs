// SPDX-License-Identifier: Apache-2.0
//! Writes that the watch has not shown yet.
//!
//! A controller that has created three pods must not look at a cache that shows none and create
//! three more. It records what it is about to do; hooks on the watch tick it off; until then it
//! leaves the number of objects alone. What is never seen (a lost delete event, say) is given up
//! after [`GIVE_UP`].

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::key::Key;

/// After this long the cache is believed again, as upstream does.
const GIVE_UP: Duration = Duration::from_secs(300);

#[derive(Debug)]
struct Pending {
    creations: usize,
    deletions: HashSet<String>,
    since: Instant,
}

/// Expectations of one controller, by the key of the owning object.
#[derive(Debug, Default)]
pub(crate) struct Expectations {
    pending: Mutex<HashMap<Key, Pending>>,
}

impl Expectations {
    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Pending>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// True when the cache shows all that this controller did to the dependents of `owner`.
    pub(crate) fn satisfied(&self, owner: &Key, now: Instant) -> bool {
        self.lock().get(owner).is_none_or(|pending| {
            (pending.creations == 0 && pending.deletions.is_empty())
                || now.duration_since(pending.since) > GIVE_UP
        })
    }

    /// Call before creating `creations` dependents and deleting those with the uids `deletions`.
    pub(crate) fn expect(
        &self,
        owner: Key,
        creations: usize,
        deletions: impl IntoIterator<Item = String>,
        now: Instant,
    ) {
        let pending = Pending {
            creations,
            deletions: deletions.into_iter().collect(),
            since: now,
        };
        self.lock().insert(owner, pending);
    }

    /// A dependent was seen, or its creation failed so that it never will be.
    pub(crate) fn created(&self, owner: &Key) {
        if let Some(pending) = self.lock().get_mut(owner) {
            pending.creations = pending.creations.saturating_sub(1);
        }
    }

    /// The dependent `uid` was seen to go, or its deletion failed.
    pub(crate) fn deleted(&self, owner: &Key, uid: &str) {
        if let Some(pending) = self.lock().get_mut(owner) {
            pending.deletions.remove(uid);
        }
    }

    /// The owner is gone.
    pub(crate) fn forget(&self, owner: &Key) {
        self.lock().remove(owner);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cache_is_not_believed_until_every_write_was_seen() {
        let expectations = Expectations::default();
        let owner = Key::new("ns", "rs");
        let now = Instant::now();
        assert!(expectations.satisfied(&owner, now));
        expectations.expect(owner.clone(), 2, ["u1".to_owned()], now);
        expectations.created(&owner);
        expectations.deleted(&owner, "u1");
        expectations.deleted(&owner, "u1");
        assert!(!expectations.satisfied(&owner, now));
        expectations.created(&owner);
        assert!(expectations.satisfied(&owner, now));
    }

    #[test]
    fn a_lost_event_does_not_block_for_ever() {
        let expectations = Expectations::default();
        let owner = Key::new("ns", "rs");
        let now = Instant::now();
        expectations.expect(owner.clone(), 1, [], now);
        assert!(!expectations.satisfied(&owner, now + GIVE_UP));
        assert!(expectations.satisfied(&owner, now + GIVE_UP + Duration::from_secs(1)));
    }
}
