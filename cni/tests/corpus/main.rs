// SPDX-License-Identifier: Apache-2.0
//! The fuzzers' corpora of this crate, through the fuzzers' own functions: an input that once failed
//! is tried in every build.
#![expect(
    unreachable_pub,
    reason = "the same files are modules of the fuzzers' library"
)]

#[path = "../../../fuzz/src/conflist.rs"]
mod conflist;
#[path = "../../../fuzz/src/plugin_result.rs"]
mod plugin_result;

use std::path::Path;

fn replay(target: &str, check: fn(&[u8])) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus");
    let mut count = 0;
    for entry in std::fs::read_dir(dir.join(target)).expect("a corpus") {
        let path = entry.expect("lists").path();
        println!("{}", path.display());
        check(&std::fs::read(path).expect("reads"));
        count += 1;
    }
    assert!(count > 0, "the corpus is empty");
}

#[test]
fn lists_are_refused_in_words_or_survive_being_remembered() {
    replay("conflist", conflist::check);
}

#[test]
fn results_survive_conversion() {
    replay("plugin_result", plugin_result::check);
}
