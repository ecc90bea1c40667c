// SPDX-License-Identifier: Apache-2.0
//! `hosts.toml`: every server is a web address, the registry itself is the last one.

use cri::image::doors;

pub fn check(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let Ok(servers) = doors::hosts(text, "registry.example:5000", "team/app") else {
        return;
    };
    assert!(!servers.is_empty());
    for (address, _) in &servers {
        let web = address.starts_with("https://") || address.starts_with("http://");
        assert!(web, "{address}");
    }
}
