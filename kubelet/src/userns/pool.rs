// SPDX-License-Identifier: Apache-2.0
//! Which pod has which range of ids. Pure: what is taken is told, never read.

use std::collections::{BTreeMap, BTreeSet};

/// No range is smaller, and every range begins at a multiple of this: what upstream has.
pub(super) const UNIT: u32 = 65536;

/// Ids of the node: `length` of them, from `first` on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) first: u32,
    pub(super) length: u32,
}

impl Range {
    /// The slots of `size` ids that this range touches.
    fn slots(self, size: u32) -> std::ops::RangeInclusive<u32> {
        let last = u64::from(self.first) + u64::from(self.length.max(1)) - 1;
        let last = u32::try_from(last).unwrap_or(u32::MAX);
        self.first / size..=last / size
    }
}

/// Everything above the ids that a node itself uses. The last id of all means "none" to the kernel,
/// so the range that would hold it is left out.
pub(super) fn default_space(ids_per_pod: u32) -> Range {
    let first = ids_per_pod.max(UNIT);
    let length = u32::MAX - first;
    Range {
        first,
        length: length - length % ids_per_pod.max(1),
    }
}

/// The ranges of a node's pods.
#[derive(Debug)]
pub(super) struct Pool {
    space: Range,
    ids_per_pod: u32,
    taken: BTreeMap<String, Range>,
    /// The slot to try first: the one after the last that was given, so that a range rests as long
    /// as possible before another pod gets it.
    next: u32,
}

impl Pool {
    /// Checks what the operator says. The texts are upstream's.
    pub(super) fn new(space: Range, ids_per_pod: u32, max_pods: u32) -> Result<Self, String> {
        let Range { first, length } = space;
        if ids_per_pod == 0 || !ids_per_pod.is_multiple_of(UNIT) {
            return Err(format!(
                "kubelet user namespace length {ids_per_pod} is not a multiple of {UNIT}"
            ));
        }
        if first < ids_per_pod {
            return Err(format!(
                "kubelet user assigned ID {first} must be greater or equal to {ids_per_pod}"
            ));
        }
        if !first.is_multiple_of(ids_per_pod) {
            return Err(format!(
                "kubelet user assigned ID {first} is not a multiple of {ids_per_pod}"
            ));
        }
        if !length.is_multiple_of(ids_per_pod) {
            return Err(format!(
                "kubelet user assigned IDs length {length} is not a multiple of {ids_per_pod}"
            ));
        }
        if u64::from(first) + u64::from(length) > u64::from(u32::MAX) {
            return Err(format!(
                "kubelet user assigned IDs {first} and {length} more reach beyond {}",
                u32::MAX - 1
            ));
        }
        if length / ids_per_pod < max_pods {
            return Err(format!(
                "kubelet user assigned IDs are not enough to support {max_pods} pods"
            ));
        }
        Ok(Self {
            space,
            ids_per_pod,
            taken: BTreeMap::new(),
            next: 0,
        })
    }

    /// What a pod has.
    pub(super) fn of(&self, uid: &str) -> Option<Range> {
        self.taken.get(uid).copied()
    }

    /// A range that a record on disk names. Its size may be that of an older configuration: then
    /// all that it touches counts as taken.
    pub(super) fn record(&mut self, uid: &str, range: Range) -> Result<(), String> {
        let holder = self.taken.iter().find(|(other, held)| {
            let apart = held.first >= range.first.saturating_add(range.length)
                || range.first >= held.first.saturating_add(held.length);
            other.as_str() != uid && !apart
        });
        match holder {
            Some((other, _)) => Err(format!(
                "range picked for pod {uid:?} already taken by pod {other:?}"
            )),
            None => {
                self.taken.insert(uid.to_owned(), range);
                Ok(())
            }
        }
    }

    /// A range for a pod: its own if it has one, else one that is free.
    pub(super) fn take(&mut self, uid: &str) -> Result<Range, String> {
        if let Some(range) = self.of(uid) {
            return Ok(range);
        }
        let used: BTreeSet<u32> = self
            .taken
            .values()
            .flat_map(|range| range.slots(self.ids_per_pod))
            .collect();
        let (offset, count) = (
            self.space.first / self.ids_per_pod,
            self.space.length / self.ids_per_pod,
        );
        let free = (self.next..count)
            .chain(0..self.next.min(count))
            .find(|slot| !used.contains(&(offset + slot)))
            .ok_or("could not find an empty slot to allocate a user namespace")?;
        self.next = (free + 1) % count.max(1);
        let range = Range {
            first: (offset + free) * self.ids_per_pod,
            length: self.ids_per_pod,
        };
        self.taken.insert(uid.to_owned(), range);
        Ok(range)
    }

    /// The pod is gone. Nothing happens when it has no range.
    pub(super) fn release(&mut self, uid: &str) {
        self.taken.remove(uid);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(slots: u32) -> Pool {
        let space = Range {
            first: UNIT,
            length: slots * UNIT,
        };
        Pool::new(space, UNIT, slots).expect("a good space")
    }

    #[test]
    fn no_two_pods_share_ids_until_there_are_none() {
        let mut pool = pool(2);
        let a = pool.take("a").expect("free");
        assert_eq!(pool.take("a"), Ok(a));
        let b = pool.take("b").expect("free");
        assert_eq!((a.first, b.first), (UNIT, 2 * UNIT));
        let full = pool.take("c").expect_err("full");
        assert_eq!(
            full,
            "could not find an empty slot to allocate a user namespace"
        );
        pool.release("a");
        assert_eq!(pool.take("c").map(|range| range.first), Ok(UNIT));
    }

    #[test]
    fn a_range_rests_before_it_is_given_again() {
        let mut pool = pool(3);
        let first = pool.take("a").expect("free");
        pool.release("a");
        assert_ne!(pool.take("b"), Ok(first));
    }

    #[test]
    fn records_of_another_size_keep_all_that_they_touch() {
        let mut pool = pool(3);
        let old = Range {
            first: UNIT,
            length: 2 * UNIT,
        };
        pool.record("old", old).expect("free");
        assert_eq!(pool.take("new").map(|range| range.first), Ok(3 * UNIT));
        assert!(pool.take("more").is_err());
        let inside = Range {
            first: 2 * UNIT,
            length: UNIT,
        };
        assert!(pool.record("thief", inside).is_err());
        assert!(pool.record("old", old).is_ok());
    }

    #[test]
    fn bad_spaces_are_refused_in_upstreams_words() {
        let check = |first, length, ids, pods| {
            Pool::new(Range { first, length }, ids, pods)
                .map(drop)
                .expect_err("refused")
        };
        assert_eq!(
            check(0, UNIT, UNIT, 1),
            "kubelet user assigned ID 0 must be greater or equal to 65536"
        );
        assert!(check(UNIT + 1, UNIT, UNIT, 1).contains("is not a multiple of 65536"));
        assert!(check(UNIT, UNIT + 1, UNIT, 1).contains("length 65537 is not a multiple"));
        assert!(check(UNIT, UNIT, 1000, 1).contains("namespace length 1000"));
        assert!(check(UNIT, UNIT, UNIT, 2).contains("not enough to support 2 pods"));
        assert!(check(u32::MAX - UNIT + 1, UNIT, UNIT, 1).contains("reach beyond"));
    }

    #[test]
    fn the_default_leaves_out_the_nodes_ids_and_the_id_that_is_none() {
        for ids in [UNIT, 2 * UNIT, 1 << 20] {
            let space = default_space(ids);
            let pool = Pool::new(space, ids, 110);
            assert!(pool.is_ok(), "{ids}: {pool:?}");
            assert!(space.first >= UNIT);
        }
    }
}
