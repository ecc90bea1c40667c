// SPDX-License-Identifier: Apache-2.0
//! What is fuzzed, as one function per target that takes bytes and panics on a finding.
//!
//! The functions are plain Rust. cargo-fuzz calls them from `fuzz_targets`, and the tests of `cni`,
//! `cri` and `proxy` call the same files with the corpus, so that an input that once failed is tried in
//! every build.

pub mod cdi;
pub mod conflist;
pub mod credentials;
pub mod dns;
pub mod hosts;
pub mod input;
pub mod layer;
pub mod manifest;
pub mod nri;
pub mod plugin_result;
pub mod policies;
pub mod protocol;
pub mod reference;
pub mod seccomp;
pub mod services;
pub mod spdy;
pub mod spec;
pub mod splitter;
pub mod websocket;
