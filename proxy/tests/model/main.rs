// SPDX-License-Identifier: Apache-2.0
//! Services without a kernel: what they compile to, packets traced through the rules, and the
//! fuzzer's model held against random Services.
#![expect(
    unreachable_pub,
    dead_code,
    reason = "the same files are modules of the fuzzers' library, and of other tests"
)]

mod compile;
#[path = "../../../fuzz/src/input.rs"]
mod input;
#[path = "../it/objects.rs"]
mod objects;
#[path = "../../../fuzz/src/services/mod.rs"]
mod services;
mod trace;

use std::path::Path;

#[test]
fn the_corpus_fares_as_the_api_promises() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus/services");
    let mut count = 0;
    for entry in std::fs::read_dir(dir).expect("a corpus") {
        let path = entry.expect("lists").path();
        println!("{}", path.display());
        services::check(&std::fs::read(path).expect("reads"));
        count += 1;
    }
    assert!(count > 0, "the corpus is empty");
}

#[test]
fn random_services_fare_as_the_api_promises() {
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    for round in 0..400 {
        let mut bytes = Vec::with_capacity(1500);
        for _ in 0..1500 {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            bytes.push(seed.to_le_bytes()[3]);
        }
        println!("round {round}");
        services::check(&bytes);
    }
}
