// SPDX-License-Identifier: Apache-2.0
//! Patches: JSON Patch (RFC 6902), JSON Merge Patch (RFC 7386), strategic merge patch.

mod rules;
mod strategic;

pub(crate) use strategic::strategic;

use serde_json::Value;

/// Operations in one JSON patch (upstream: `maxJSONPatchOperations`).
const OPERATIONS_MAX: usize = 10_000;

/// Applies a JSON patch. On failure the object must be thrown away.
pub(crate) fn json(object: &mut Value, patch: &Value) -> Result<(), String> {
    let patch: json_patch::Patch = serde_json::from_value(patch.clone())
        .map_err(|error| format!("error decoding patch: {error}"))?;
    if patch.0.len() > OPERATIONS_MAX {
        return Err(format!(
            "The allowed maximum operations in a JSON patch is {OPERATIONS_MAX}, got {}",
            patch.0.len()
        ));
    }
    json_patch::patch(object, &patch).map_err(|error| {
        format!("the server rejected our request due to an error in our request: {error}")
    })
}

/// Applies a merge patch.
pub(crate) fn merge(object: &mut Value, patch: &Value) {
    json_patch::merge(object, patch);
}
