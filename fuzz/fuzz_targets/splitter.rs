// SPDX-License-Identifier: Apache-2.0
//! See `podwright_fuzz::splitter`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| podwright_fuzz::splitter::check(data));
