// SPDX-License-Identifier: Apache-2.0
//! See `podwright_fuzz::policies`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| podwright_fuzz::policies::check(data));
