// SPDX-License-Identifier: Apache-2.0
//! The fuzzers' corpora of this crate, through the fuzzers' own functions: an input that once failed
//! is tried in every build.
#![expect(
    unreachable_pub,
    reason = "the same files are modules of the fuzzers' library"
)]

#[path = "../../../fuzz/src/conflist.rs"]
mod conflist;
#[path = "../../../fuzz/src/corpus.rs"]
mod corpus;
#[path = "../../../fuzz/src/plugin_result.rs"]
mod plugin_result;

use corpus::replay;

#[test]
fn lists_are_refused_in_words_or_survive_being_remembered() {
    replay("conflist", conflist::check);
}

#[test]
fn results_survive_conversion() {
    replay("plugin_result", plugin_result::check);
}
