// SPDX-License-Identifier: Apache-2.0
//! The fuzzers' corpora, through the fuzzers' own functions: an input that once failed is tried in
//! every build. An executable of its own, because a shim's loop reaps every child of its process.
#![expect(
    unreachable_pub,
    reason = "the same files are modules of the fuzzers' library"
)]

#[path = "../../../fuzz/src/cdi.rs"]
mod cdi;
#[path = "../../../fuzz/src/corpus.rs"]
mod corpus;
#[path = "../../../fuzz/src/credentials.rs"]
mod credentials;
#[path = "../../../fuzz/src/hosts.rs"]
mod hosts;
#[path = "../../../fuzz/src/input.rs"]
mod input;
#[path = "../../../fuzz/src/layer.rs"]
mod layer;
#[path = "../../../fuzz/src/manifest.rs"]
mod manifest;
#[path = "../../../fuzz/src/nri.rs"]
mod nri;
#[path = "../../../fuzz/src/protocol.rs"]
mod protocol;
#[path = "../../../fuzz/src/reference.rs"]
mod reference;
#[path = "../../../fuzz/src/seccomp.rs"]
mod seccomp;
#[path = "../../../fuzz/src/spdy.rs"]
mod spdy;
#[path = "../../../fuzz/src/spec.rs"]
mod spec;
#[path = "../../../fuzz/src/splitter.rs"]
mod splitter;
#[path = "../../../fuzz/src/websocket.rs"]
mod websocket;

use corpus::replay;

#[test]
fn specs_compile_or_are_refused_in_one_line() {
    replay("spec", spec::check);
}

#[test]
fn seccomp_programs_decide_as_their_profiles_say() {
    replay("seccomp", seccomp::check);
}

#[test]
fn a_shim_survives_its_clients() {
    replay("protocol", protocol::check);
}

#[test]
fn a_log_holds_what_was_written() {
    replay("splitter", splitter::check);
}

#[test]
fn nothing_that_a_plugin_sends_does_harm() {
    replay("nri", nri::check);
}

#[test]
fn spdy_is_spoken_to_any_client() {
    replay("spdy", spdy::check);
}

#[test]
fn websocket_is_spoken_to_any_client() {
    replay("websocket", websocket::check);
}

#[test]
fn references_are_normal() {
    replay("reference", reference::check);
}

#[test]
fn manifests_are_taken_or_refused() {
    replay("manifest", manifest::check);
}

#[test]
fn layers_stay_in_their_directory() {
    replay("layer", layer::check);
}

#[test]
fn hosts_are_web_addresses() {
    replay("hosts", hosts::check);
}

#[test]
fn credentials_are_not_shown() {
    replay("credentials", credentials::check);
}

#[test]
fn a_vendors_file_is_valid_or_refused() {
    replay("cdi", cdi::check);
}
