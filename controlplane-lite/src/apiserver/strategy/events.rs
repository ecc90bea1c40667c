// SPDX-License-Identifier: Apache-2.0
//! Events exist in two groups with one storage: the core version is stored, and
//! `events.k8s.io/v1` is the same object with other field names.

use serde_json::Value;

use crate::apiserver::{json, resource::View};

/// Core name, and the name in `events.k8s.io/v1`.
const NAMES: &[(&str, &str)] = &[
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("reportingComponent", "reportingController"),
    ("source", "deprecatedSource"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("count", "deprecatedCount"),
];

/// The view of `events.k8s.io/v1`.
pub(crate) const EVENTS_VIEW: View = View {
    to_stored: |event| rename(event, "v1", |(core, other)| (other, core)),
    from_stored: |event| rename(event, "events.k8s.io/v1", |(core, other)| (core, other)),
};

fn rename(
    mut event: Value,
    version: &str,
    direction: impl Fn((&'static str, &'static str)) -> (&'static str, &'static str),
) -> Value {
    for pair in NAMES {
        let (from, to) = direction(*pair);
        if let Some(value) = json::remove(&mut event, from) {
            event[to] = value;
        }
    }
    event["apiVersion"] = version.into();
    event
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_view_goes_both_ways() {
        let stored = json!({"apiVersion": "v1", "kind": "Event", "message": "x",
            "involvedObject": {"name": "a"}, "count": 2});
        let seen = (EVENTS_VIEW.from_stored)(stored.clone());
        assert_eq!(seen["note"], "x");
        assert_eq!(seen["regarding"]["name"], "a");
        assert_eq!((EVENTS_VIEW.to_stored)(seen), stored);
    }
}
