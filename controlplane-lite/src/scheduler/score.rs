// SPDX-License-Identifier: Apache-2.0
//! How well a node could take a pod: the emptier, the more evenly used, the more preferred, the
//! better. Each part is 0..=100; the weights are those of upstream's default profile.

use k8s_openapi::api::core::v1::Pod;

use super::affinity;
use super::filter;
use super::pod_request::{self, Amounts};
use super::snapshot::Place;
use crate::controllers::machinery::taints::tolerates;

const FULL: i64 = 100;
const AFFINITY_WEIGHT: i64 = 2;
const TAINT_WEIGHT: i64 = 3;

/// A pod without requests is taken to use this much, so that such pods spread, too.
const DEFAULT_CPU_MILLIS: i128 = 100;
const DEFAULT_MEMORY_MILLIS: i128 = 200 * 1024 * 1024 * 1000;

/// One score per place, comparable among the places of one call.
pub(crate) fn scores(pod: &Pod, places: &[&Place]) -> Vec<i64> {
    let preferences: Vec<_> = places
        .iter()
        .map(|p| affinity::preference(pod, &p.node))
        .collect();
    let dislikes: Vec<_> = places
        .iter()
        .map(|place| disliked_taints(pod, place))
        .collect();
    let preference_max = preferences.iter().copied().max().unwrap_or(0).max(1);
    let dislike_max = dislikes.iter().copied().max().unwrap_or(0).max(1);
    places
        .iter()
        .zip(preferences.iter().zip(&dislikes))
        .map(|(place, (preference, dislike))| {
            load(pod, place)
                + AFFINITY_WEIGHT * (FULL * preference / preference_max)
                + TAINT_WEIGHT * (FULL - FULL * dislike / dislike_max)
        })
        .collect()
}

fn disliked_taints(pod: &Pod, place: &Place) -> i64 {
    let tolerations = filter::tolerations(pod);
    let disliked = filter::taints(place).iter().filter(|taint| {
        taint.effect == "PreferNoSchedule" && !tolerations.iter().any(|t| tolerates(t, taint))
    });
    i64::try_from(disliked.count()).unwrap_or(i64::MAX / 1000)
}

/// Least allocated plus balanced.
fn load(pod: &Pod, place: &Place) -> i64 {
    let mut wanted = pod_request::of(pod);
    wanted.entry("cpu".into()).or_insert(DEFAULT_CPU_MILLIS);
    wanted
        .entry("memory".into())
        .or_insert(DEFAULT_MEMORY_MILLIS);
    let cpu = used(place, &wanted, "cpu");
    let memory = used(place, &wanted, "memory");
    let least = (FULL - cpu + FULL - memory) / 2;
    let balanced = FULL - (cpu - memory).abs() / 2;
    least + balanced
}

/// The share of a resource that is used once the pod is there, in percent.
fn used(place: &Place, wanted: &Amounts, resource: &str) -> i64 {
    let amount = |amounts: &Amounts| amounts.get(resource).copied().unwrap_or(0);
    let has = amount(&place.allocatable);
    if has <= 0 {
        return FULL;
    }
    let percent = (amount(&place.taken) + amount(wanted)) * 100 / has;
    i64::try_from(percent).unwrap_or(FULL).clamp(0, FULL)
}
