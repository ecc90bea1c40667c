// SPDX-License-Identifier: Apache-2.0
//! What plugins print: a result that can be read is the same in its own version however often it is
//! converted, and an error can be told.

use cni::types::{AddResult, PluginError, SUPPORTED_VERSIONS};

/// The bytes are what a plugin printed.
pub fn check(data: &[u8]) {
    if let Ok(result) = serde_json::from_slice::<AddResult>(data) {
        for version in SUPPORTED_VERSIONS {
            let json = result.to_json(version);
            assert_eq!(json["cniVersion"], version);
            let back: AddResult = serde_json::from_value(json.clone()).expect("what we write");
            assert_eq!(back.ips, result.ips, "addresses are in every version");
            assert_eq!(back.to_json(version), json);
        }
        let newest = SUPPORTED_VERSIONS[SUPPORTED_VERSIONS.len() - 1];
        let back: AddResult =
            serde_json::from_value(result.to_json(newest)).expect("what we write");
        assert_eq!(
            back.interfaces, result.interfaces,
            "nothing is lost in the newest"
        );
        assert_eq!(back.routes, result.routes);
    }
    if let Ok(error) = serde_json::from_slice::<PluginError>(data) {
        let _ = error.to_string();
    }
}
