// SPDX-License-Identifier: Apache-2.0
//! Small numbers for things that come and go.

use std::collections::{BTreeMap, BTreeSet};

/// Numbers from a first one on. One that nobody uses any more is given to the next thing.
#[derive(Debug, Clone)]
pub(super) struct Numbers<K> {
    given: BTreeMap<K, (u32, usize)>,
    free: BTreeSet<u32>,
    next: u32,
    /// Has a thing come or gone?
    pub(super) changed: bool,
}

impl<K: Ord + Clone> Numbers<K> {
    pub(super) fn from(first: u32) -> Numbers<K> {
        Numbers {
            given: BTreeMap::new(),
            free: BTreeSet::new(),
            next: first,
            changed: false,
        }
    }

    /// The number of a thing that has one more user.
    pub(super) fn take(&mut self, thing: &K) -> u32 {
        if let Some((number, users)) = self.given.get_mut(thing) {
            *users += 1;
            return *number;
        }
        self.changed = true;
        let number = self.free.pop_first().unwrap_or_else(|| {
            self.next += 1;
            self.next - 1
        });
        self.given.insert(thing.clone(), (number, 1));
        number
    }

    /// A thing has one user less.
    pub(super) fn leave(&mut self, thing: &K) {
        let Some((number, users)) = self.given.get_mut(thing) else {
            return;
        };
        *users -= 1;
        if *users == 0 {
            self.free.insert(*number);
            self.given.remove(thing);
            self.changed = true;
        }
    }

    /// The number of a thing in use.
    pub(super) fn of(&self, thing: &K) -> Option<u32> {
        self.given.get(thing).map(|(number, _)| *number)
    }

    /// All things in use.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&K, u32)> {
        self.given
            .iter()
            .map(|(thing, (number, _))| (thing, *number))
    }
}

/// The things that were in use last, all looked at again at once.
#[derive(Debug, Clone)]
pub(super) struct Sweep<K> {
    numbers: Numbers<K>,
    held: BTreeSet<K>,
}

impl<K: Ord + Clone> Sweep<K> {
    pub(super) fn from(first: u32) -> Sweep<K> {
        Sweep {
            numbers: Numbers::from(first),
            held: BTreeSet::new(),
        }
    }

    /// These are in use now.
    pub(super) fn hold(&mut self, used: BTreeSet<K>) {
        for thing in used.difference(&self.held) {
            self.numbers.take(thing);
        }
        for thing in self.held.difference(&used) {
            self.numbers.leave(thing);
        }
        self.held = used;
    }

    pub(super) fn of(&self, thing: &K) -> Option<u32> {
        self.numbers.of(thing)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&K, u32)> {
        self.numbers.iter()
    }
}
