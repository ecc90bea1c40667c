// SPDX-License-Identifier: Apache-2.0
//! Image references and platforms: what is taken is normal, and means the same when it is read again.

use cri::image::platform::Platform;
use cri::image::reference::Reference;

pub fn check(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    match text.parse::<Reference>() {
        Err(error) => assert!(!error.to_string().contains('\n'), "an error of two lines"),
        Ok(reference) => {
            let normal = reference.to_string();
            let again: Reference = normal.parse().expect("the normal form is a reference");
            assert_eq!(again, reference, "{normal}");
            assert_eq!(again.to_string(), normal);
            assert!(reference.name().len() <= 255, "{normal}");
            let safe = |c: char| c.is_ascii_graphic() && !"\\\"'<>`${}".contains(c);
            assert!(normal.chars().all(safe), "{normal}");
            let parts = reference.path().split('/');
            assert!(parts.clone().all(|part| !part.is_empty() && part != ".."));
            assert!(reference.tag().is_some() != reference.digest().is_some());
        }
    }
    if let Ok(platform) = text.parse::<Platform>() {
        let again: Platform = platform.to_string().parse().expect("a platform");
        assert_eq!(again, platform);
    }
}
