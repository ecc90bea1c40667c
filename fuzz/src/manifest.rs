// SPDX-License-Identifier: Apache-2.0
//! Manifests and indexes, and the challenges that stand before them: taken or refused, and never
//! without end.

use cri::image::{Digest, doors};

pub fn check(data: &[u8]) {
    match doors::manifest(data) {
        Ok(Some(digest)) => drop(digest.parse::<Digest>().expect("a checked digest")),
        Ok(None) => {}
        Err(text) => assert!(text.len() < 100_000, "an error of {} bytes", text.len()),
    }
    if let Ok(header) = std::str::from_utf8(data) {
        doors::challenge(header);
    }
}
