// SPDX-License-Identifier: Apache-2.0
//! From a client's JSON to a checked object.
//!
//! The schema of a kind is its generated Rust type. An object goes through that type and back:
//! wrong types are refused, unknown fields are found and dropped, and what Go would normalise
//! (a quantity given as a number, null for an absent field) is normalised.

mod duplicate;
mod tracked;

pub(crate) use duplicate::parse_json;
pub(crate) use tracked::TypeError;

use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

/// An object that has gone through its type.
#[derive(Debug)]
pub(crate) struct Decoded {
    pub(crate) value: Value,
    /// Paths of fields that the type does not have.
    pub(crate) unknown: Vec<String>,
}

/// How a row decodes its objects.
pub(crate) type Decoder = fn(&Value) -> Result<Decoded, TypeError>;

/// The decoder for a generated type.
pub(crate) fn typed<T: DeserializeOwned + Serialize>(value: &Value) -> Result<Decoded, TypeError> {
    let (typed, unknown) = tracked::decode::<T>(value)?;
    let value = serde_json::to_value(&typed).map_err(|e| TypeError {
        path: String::new(),
        message: e.to_string(),
    })?;
    Ok(Decoded { value, unknown })
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Pod;
    use serde_json::json;

    use super::*;

    #[test]
    fn unknown_fields_are_named_by_path_and_dropped() {
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"},
            "spec": {"foo": 1, "containers": [{"name": "c", "imagee": "x"}]}});
        let decoded = typed::<Pod>(&pod).expect("types are right");
        assert_eq!(decoded.unknown, ["spec.containers[0].imagee", "spec.foo"]);
        assert_eq!(decoded.value.pointer("/spec/foo"), None);
    }

    #[test]
    fn a_wrong_type_is_named_by_path_with_what_was_expected() {
        let pod = json!({"apiVersion": "v1", "kind": "Pod",
            "spec": {"containers": [{"name": "c", "ports": [{"containerPort": "x"}]}]}});
        let error = typed::<Pod>(&pod).expect_err("a port is a number");
        assert_eq!(error.path, "spec.containers[0].ports[0].containerPort");
        assert_eq!(error.message, "expected i32, got string \"x\"");
        let error = typed::<Pod>(&json!({"spec": {"containers": {}}})).expect_err("a list");
        assert_eq!(
            error.to_string(),
            "spec.containers: expected a sequence, got map"
        );
    }

    #[test]
    fn quantities_may_be_numbers() {
        let pod = json!({"spec": {"containers": [{"name": "c",
            "resources": {"limits": {"cpu": 1, "memory": "1Gi"}}}]}});
        let decoded = typed::<Pod>(&pod).expect("numbers are quantities");
        assert_eq!(
            decoded.value["spec"]["containers"][0]["resources"]["limits"]["cpu"],
            "1"
        );
    }
}
