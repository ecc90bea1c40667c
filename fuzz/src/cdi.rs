// SPDX-License-Identifier: Apache-2.0
//! CDI specifications: whatever a vendor writes is refused in words, or names devices that are names.

use cri::cdi::name;
use cri::cdi::spec::{Form, parse};

/// The first byte says in which form the rest is.
pub fn check(data: &[u8]) {
    let Some((form, text)) = data.split_first() else {
        return;
    };
    let Ok(text) = std::str::from_utf8(text) else {
        return;
    };
    let form = match form % 2 {
        0 => Form::Json,
        _ => Form::Yaml,
    };
    match parse(text, form) {
        Ok(spec) => {
            for device in &spec.devices {
                let qualified = format!("{}={}", spec.kind, device.name);
                let parsed = name::parse(&qualified);
                assert_eq!(parsed, Ok((spec.kind.as_str(), device.name.as_str())));
            }
        }
        Err(why) => assert!(!why.is_empty()),
    }
    let _ = name::parse(text);
}
