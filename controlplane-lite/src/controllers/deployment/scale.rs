// SPDX-License-Identifier: Apache-2.0
//! Sizes of ReplicaSets: rolling out, recreating, and scaling a Deployment in the middle of either.
//!
//! All functions change `spec.replicas` of the sets in place. In `sets`, `new` is the index of the
//! set of the current template, if there is one.

use std::cmp::Reverse;

use k8s_openapi::api::apps::v1::ReplicaSet;

use super::budget::Budget;
use super::revision;

pub(crate) fn size(set: &ReplicaSet) -> i32 {
    set.spec.replicas.unwrap_or(1)
}

pub(crate) fn available(set: &ReplicaSet) -> i32 {
    let status = set.status.as_ref();
    status.and_then(|s| s.available_replicas).unwrap_or(0)
}

fn resize(set: &mut ReplicaSet, to: i32) {
    set.spec.replicas = Some(to.max(0));
}

fn total(sets: &[ReplicaSet]) -> i32 {
    sets.iter().map(size).sum()
}

/// The size that a new set may have now without too many pods in all.
pub(crate) fn new_size(sets: &[ReplicaSet], new: Option<usize>, budget: Budget) -> i32 {
    let own = new.map_or(0, |index| size(&sets[index]));
    if budget.recreate {
        return budget.replicas;
    }
    let room = budget.max_replicas() - total(sets);
    if room <= 0 {
        return own;
    }
    own + room.min(budget.replicas - own)
}

/// One step of a rolling update: first the new set grows; if it cannot, the old ones shrink.
/// Returns true if a size changed.
pub(crate) fn roll(sets: &mut [ReplicaSet], new: usize, budget: Budget) -> bool {
    let own = size(&sets[new]);
    let wanted = if own > budget.replicas {
        budget.replicas
    } else {
        new_size(sets, Some(new), budget)
    };
    if wanted != own {
        resize(&mut sets[new], wanted);
        return true;
    }
    shrink_old(sets, new, budget)
}

fn shrink_old(sets: &mut [ReplicaSet], new: usize, budget: Budget) -> bool {
    let old: Vec<usize> = (0..sets.len())
        .filter(|i| *i != new && size(&sets[*i]) > 0)
        .collect();
    let new_unavailable = size(&sets[new]) - available(&sets[new]);
    let spare = total(sets) - budget.min_available() - new_unavailable;
    if old.is_empty() || spare <= 0 {
        return false;
    }
    let cleaned = drop_unhealthy(sets, &old, spare);
    let all_available: i32 = sets.iter().map(available).sum();
    let mut surplus = all_available - budget.min_available();
    let mut changed = cleaned;
    for index in old {
        let take = size(&sets[index]).min(surplus);
        if take > 0 {
            let left = size(&sets[index]) - take;
            resize(&mut sets[index], left);
            surplus -= take;
            changed = true;
        }
    }
    changed
}

/// Pods of old sets that are not available serve nobody: they go first, and do not wait.
fn drop_unhealthy(sets: &mut [ReplicaSet], old: &[usize], mut spare: i32) -> bool {
    let mut changed = false;
    for index in old {
        let unhealthy = size(&sets[*index]) - available(&sets[*index]);
        let take = unhealthy.min(spare);
        if take > 0 {
            let left = size(&sets[*index]) - take;
            resize(&mut sets[*index], left);
            spare -= take;
            changed = true;
        }
    }
    changed
}

/// Brings every set but `new` to zero. Returns true if there was one that was not.
pub(crate) fn stop_old(sets: &mut [ReplicaSet], new: Option<usize>) -> bool {
    let mut changed = false;
    for (index, set) in sets.iter_mut().enumerate() {
        if Some(index) != new && size(set) > 0 {
            resize(set, 0);
            changed = true;
        }
    }
    changed
}

/// True if the Deployment was resized since its sets were: they remember for which size they are.
pub(crate) fn was_resized(sets: &[ReplicaSet], budget: Budget) -> bool {
    sets.iter().filter(|set| size(set) > 0).any(|set| {
        revision::number(&set.metadata, revision::DESIRED)
            .is_some_and(|desired| desired != i64::from(budget.replicas))
    })
}

/// Scales without rolling out: one active set gets it all; several share in proportion.
/// `status_replicas` is the number of pods in the Deployment's last status.
pub(crate) fn scale(
    sets: &mut [ReplicaSet],
    new: Option<usize>,
    budget: Budget,
    status_replicas: i32,
) {
    if let Some(only) = active_or_latest(sets, new) {
        resize(&mut sets[only], budget.replicas);
        return;
    }
    if let Some(index) = new.filter(|index| is_saturated(&sets[*index], budget)) {
        stop_old(sets, Some(index));
        return;
    }
    if !budget.recreate {
        share(sets, budget, status_replicas);
    }
}

/// The only active set; without any, the new one or the latest. `None` if several are active.
fn active_or_latest(sets: &[ReplicaSet], new: Option<usize>) -> Option<usize> {
    let active: Vec<usize> = (0..sets.len()).filter(|i| size(&sets[*i]) > 0).collect();
    match active.as_slice() {
        [] => new.or_else(|| {
            (0..sets.len()).max_by_key(|i| {
                let meta = &sets[*i].metadata;
                (
                    meta.creation_timestamp.as_ref().map(|t| t.0),
                    meta.name.clone(),
                )
            })
        }),
        [only] => Some(*only),
        _ => None,
    }
}

fn is_saturated(set: &ReplicaSet, budget: Budget) -> bool {
    let desired = revision::number(&set.metadata, revision::DESIRED);
    size(set) == budget.replicas
        && desired == Some(i64::from(budget.replicas))
        && available(set) == budget.replicas
}

fn share(sets: &mut [ReplicaSet], budget: Budget, status_replicas: i32) {
    let mut active: Vec<usize> = (0..sets.len()).filter(|i| size(&sets[*i]) > 0).collect();
    let allowed = if budget.replicas > 0 {
        budget.max_replicas()
    } else {
        0
    };
    let to_add = allowed - total(sets);
    let created = |i: &usize| sets[*i].metadata.creation_timestamp.as_ref().map(|t| t.0);
    if to_add > 0 {
        active.sort_by_key(|i| (Reverse(size(&sets[*i])), Reverse(created(i))));
    } else {
        active.sort_by_key(|i| (Reverse(size(&sets[*i])), created(i)));
    }
    let mut added = 0;
    let mut sizes: Vec<i32> = Vec::with_capacity(active.len());
    for index in &active {
        let set = &sets[*index];
        let part = proportion(set, budget, status_replicas, to_add, added);
        sizes.push(size(set) + part);
        added += part;
    }
    // What rounding left over goes to the largest set.
    if let Some(first) = sizes.first_mut() {
        *first += to_add - added;
    }
    for (index, wanted) in active.into_iter().zip(sizes) {
        resize(&mut sets[index], wanted);
    }
}

fn proportion(set: &ReplicaSet, budget: Budget, status: i32, to_add: i32, added: i32) -> i32 {
    if to_add == 0 || to_add == added {
        return 0;
    }
    let part = fraction(set, budget, status);
    let left = to_add - added;
    if to_add > 0 {
        part.min(left)
    } else {
        part.max(left)
    }
}

/// The set's share of the change: its size scaled by how the Deployment's limit changed.
fn fraction(set: &ReplicaSet, budget: Budget, status_replicas: i32) -> i32 {
    let own = i64::from(size(set));
    if budget.replicas == 0 {
        return -size(set);
    }
    let before = revision::number(&set.metadata, revision::MAX)
        .unwrap_or_else(|| i64::from(status_replicas));
    if before <= 0 {
        return 0;
    }
    // Rounded to the nearest, halves away from zero; all three are positive.
    let scaled = (2 * own * i64::from(budget.max_replicas()) + before) / (2 * before);
    i32::try_from(scaled - own).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::apps::v1::{ReplicaSetSpec, ReplicaSetStatus};

    use super::super::super::machinery::testing::meta;
    use super::*;

    fn set(size: i32, available: i32) -> ReplicaSet {
        ReplicaSet {
            metadata: meta("ns", &format!("s{size}-{available}")),
            spec: ReplicaSetSpec {
                replicas: Some(size),
                ..ReplicaSetSpec::default()
            },
            status: Some(ReplicaSetStatus {
                available_replicas: Some(available),
                ..ReplicaSetStatus::default()
            }),
        }
    }

    fn budget(replicas: i32, max_surge: i32, max_unavailable: i32) -> Budget {
        Budget {
            replicas,
            max_surge,
            max_unavailable,
            recreate: false,
        }
    }

    /// Sizes after one step; the first set is the new one.
    fn check_roll(sets: &[(i32, i32)], budget: Budget) -> Vec<i32> {
        let mut sets: Vec<_> = sets.iter().map(|(s, a)| set(*s, *a)).collect();
        roll(&mut sets, 0, budget);
        sets.iter().map(size).collect()
    }

    #[test]
    fn the_new_set_grows_by_the_surge_then_old_ones_shrink() {
        assert_eq!(check_roll(&[(0, 0), (10, 10)], budget(10, 3, 2)), [3, 10]);
        assert_eq!(check_roll(&[(3, 0), (10, 10)], budget(10, 3, 2)), [3, 8]);
        assert_eq!(check_roll(&[(3, 0), (8, 8)], budget(10, 3, 2)), [5, 8]);
        assert_eq!(check_roll(&[(5, 5), (8, 8)], budget(10, 3, 2)), [5, 3]);
        assert_eq!(check_roll(&[(10, 10), (3, 3)], budget(10, 3, 2)), [10, 0]);
    }

    #[test]
    fn available_pods_never_fall_below_the_minimum() {
        assert_eq!(check_roll(&[(1, 0), (2, 2)], budget(2, 1, 0)), [1, 2]);
        assert_eq!(check_roll(&[(1, 1), (2, 2)], budget(2, 1, 0)), [1, 1]);
    }

    #[test]
    fn broken_old_pods_go_without_waiting() {
        assert_eq!(check_roll(&[(3, 0), (10, 6)], budget(10, 3, 2)), [3, 8]);
        assert_eq!(check_roll(&[(3, 0), (10, 10)], budget(10, 3, 0)), [3, 10]);
    }

    #[test]
    fn a_new_set_that_is_too_large_shrinks() {
        assert_eq!(check_roll(&[(5, 5), (0, 0)], budget(3, 1, 0)), [3, 0]);
    }

    #[test]
    fn several_active_sets_share_a_resize() {
        // 10 replicas with a surge of 3 had become 13 pods; then somebody scales to 30.
        let mut sets = vec![set(5, 0), set(8, 8)];
        for set in &mut sets {
            revision::annotate_size(set, budget(10, 3, 2));
        }
        let wanted = budget(30, 3, 2);
        assert!(was_resized(&sets, wanted));
        scale(&mut sets, Some(0), wanted, 13);
        assert_eq!(sets.iter().map(size).collect::<Vec<_>>(), [13, 20]);
    }

    #[test]
    fn scaling_to_zero_stops_all() {
        let mut sets = vec![set(5, 0), set(8, 8)];
        scale(&mut sets, Some(0), budget(0, 3, 2), 13);
        assert_eq!(sets.iter().map(size).collect::<Vec<_>>(), [0, 0]);
    }

    #[test]
    fn a_single_active_set_gets_everything() {
        let mut sets = vec![set(0, 0), set(8, 8)];
        scale(&mut sets, Some(0), budget(3, 1, 0), 8);
        assert_eq!(sets.iter().map(size).collect::<Vec<_>>(), [0, 3]);
    }
}
