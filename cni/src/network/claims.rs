// SPDX-License-Identifier: Apache-2.0
//! Who works on which attachment: a repair must not bring back what a DEL at the same time takes
//! away.

use std::collections::HashSet;
use std::sync::{Condvar, Mutex, PoisonError};

/// Container id and interface name.
type Key = (String, String);

#[derive(Debug, Default)]
pub(super) struct Claims {
    held: Mutex<HashSet<Key>>,
    given_back: Condvar,
}

/// Nobody else works on this attachment until it is dropped.
#[derive(Debug)]
pub(super) struct Claim<'a> {
    of: &'a Claims,
    key: Key,
}

impl Claims {
    /// Waits until nobody else works on the attachment. Repairs end within milliseconds; other
    /// operations on one attachment are the caller's to order.
    pub(super) fn take(&self, key: Key) -> Claim<'_> {
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let wait = self.given_back.wait_while(held, |held| held.contains(&key));
        let mut held = wait.unwrap_or_else(PoisonError::into_inner);
        held.insert(key.clone());
        Claim { of: self, key }
    }

    /// Takes one that nobody works on; else nothing.
    pub(super) fn try_take(&self, key: Key) -> Option<Claim<'_>> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.insert(key.clone()).then(|| Claim { of: self, key })
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        let mut held = self.of.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.remove(&self.key);
        self.of.given_back.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_at_a_time_for_each_attachment() {
        let claims = Claims::default();
        let key = |id: &str| (id.to_owned(), "eth0".to_owned());
        let a = claims.take(key("a"));
        let b = claims.try_take(key("b")).expect("free");
        assert!(claims.try_take(key("a")).is_none());
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| drop(claims.take(key("a"))));
            drop(a);
            waiting.join().expect("gets it");
        });
        drop(b);
        assert!(claims.held.lock().expect("whole").is_empty());
    }
}
