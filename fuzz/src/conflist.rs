// SPDX-License-Identifier: Apache-2.0
//! CNI configuration lists: whatever an administrator writes is refused with its field in words, or
//! is the same after it was remembered with a pod and read back.

use cni::conf::{is_name, parse};
use serde_json::Value;

/// The bytes are the list.
pub fn check(data: &[u8]) {
    let Ok(raw) = serde_json::from_slice::<Value>(data) else {
        return;
    };
    match parse(raw) {
        Ok(list) => {
            assert!(is_name(&list.name), "{:?} is a file name", list.name);
            assert!(!list.plugins.is_empty());
            for plugin in &list.plugins {
                assert!(is_name(&plugin.kind), "{:?} leads out", plugin.kind);
            }
            let remembered = serde_json::to_vec(&list.raw).expect("encodes");
            let again = parse(serde_json::from_slice(&remembered).expect("decodes"));
            assert_eq!(again.as_ref(), Ok(&list));
        }
        Err(why) => {
            assert!(!why.path.is_empty() && !why.problem.is_empty(), "{why:?}");
        }
    }
}
