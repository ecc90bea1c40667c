// SPDX-License-Identifier: Apache-2.0
//! Layers: entries are read within bounds, and what is written stays in the layer's directory.

use cri::image::doors;

/// Bytes that a layer may unpack to here.
const MOST: u64 = 4 << 20;
const ENTRIES: u64 = 1000;

pub fn check(data: &[u8]) {
    if let Ok((entries, body)) = doors::entries(data, ENTRIES) {
        assert!(entries <= ENTRIES);
        assert!(body <= data.len() as u64, "bodies of {body} bytes");
    }
    // In memory: what a layer makes is thrown away at once.
    let outer = tempfile::tempdir_in("/dev/shm").expect("a directory");
    let victim = outer.path().join("victim");
    std::fs::write(&victim, "untouched").expect("writes");
    let inner = outer.path().join("layer");
    std::fs::create_dir(&inner).expect("a directory");
    drop(doors::unpack(data, &inner, MOST));
    let names = std::fs::read_dir(outer.path()).expect("lists").count();
    assert_eq!(names, 2, "something came to be beside the layer");
    let text = std::fs::read(&victim).expect("is still there");
    assert_eq!(text, b"untouched");
}
