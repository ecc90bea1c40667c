// SPDX-License-Identifier: Apache-2.0
//! Chooses a node, or says why none will do.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Pod;

use super::filter;
use super::score;
use super::snapshot::Place;

/// No node fits.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct NoFit {
    pub(crate) message: String,
}

/// The name of the best node. Of equally good ones the one with the fewest pods is taken, then the
/// first by name, so that the choice can be foretold.
pub(crate) fn pick(pod: &Pod, places: &[Place]) -> Result<String, NoFit> {
    let mut reasons: BTreeMap<String, usize> = BTreeMap::new();
    let mut fitting = Vec::new();
    for place in places {
        let objections = filter::objections(pod, place);
        if objections.is_empty() {
            fitting.push(place);
        }
        for reason in objections {
            *reasons.entry(reason).or_default() += 1;
        }
    }
    let scores = score::scores(pod, &fitting);
    let best = fitting
        .iter()
        .zip(scores)
        .max_by(|(a, a_score), (b, b_score)| {
            let tie = || b.pods.cmp(&a.pods).then_with(|| b.name().cmp(a.name()));
            a_score.cmp(b_score).then_with(tie)
        });
    match best {
        Some((place, _)) => Ok(place.name().to_owned()),
        None => Err(NoFit {
            message: message(places.len(), &reasons),
        }),
    }
}

fn message(nodes: usize, reasons: &BTreeMap<String, usize>) -> String {
    if nodes == 0 {
        return "no nodes available to schedule pods".into();
    }
    let mut parts: Vec<_> = reasons
        .iter()
        .map(|(why, count)| format!("{count} {why}"))
        .collect();
    parts.sort();
    format!("0/{nodes} nodes are available: {}.", parts.join(", "))
}

#[cfg(test)]
#[path = "pick_tests.rs"]
mod tests;
