// SPDX-License-Identifier: Apache-2.0
//! Services without a kernel: what they compile to, packets traced through the rules, and the
//! fuzzer's models held against random Services and NetworkPolicies.
#![expect(
    unreachable_pub,
    dead_code,
    reason = "the same files are modules of the fuzzers' library, and of other tests"
)]

mod compile;
#[path = "../../../fuzz/src/dns.rs"]
mod dns;
#[path = "../../../fuzz/src/input.rs"]
mod input;
#[path = "../it/objects.rs"]
mod objects;
#[path = "../../../fuzz/src/policies/mod.rs"]
mod policies;
#[path = "../../../fuzz/src/services/mod.rs"]
mod services;
mod trace;

use std::path::Path;

/// Try every input of a corpus.
fn corpus(name: &str, check: fn(&[u8])) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../fuzz/corpus")
        .join(name);
    let mut count = 0;
    for entry in std::fs::read_dir(dir).expect("a corpus") {
        let path = entry.expect("lists").path();
        println!("{}", path.display());
        check(&std::fs::read(path).expect("reads"));
        count += 1;
    }
    assert!(count > 0, "the corpus is empty");
}

fn random(rounds: usize, check: fn(&[u8])) {
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    for round in 0..rounds {
        let mut bytes = Vec::with_capacity(1500);
        for _ in 0..1500 {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            bytes.push(seed.to_le_bytes()[3]);
        }
        println!("round {round}");
        check(&bytes);
    }
}

#[test]
fn the_corpus_fares_as_the_api_promises() {
    corpus("services", services::check);
    corpus("policies", policies::check);
}

#[test]
fn the_corpus_of_packets_gets_answers() {
    corpus("dns", dns::check);
}

/// Packets that are nearly right reach further than noise.
#[test]
fn damaged_packets_get_answers() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus/dns");
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    for entry in std::fs::read_dir(dir).expect("a corpus") {
        let packet = std::fs::read(entry.expect("lists").path()).expect("reads");
        for _ in 0..60 {
            let mut damaged = packet.clone();
            for _ in 0..3 {
                seed ^= seed << 13;
                seed ^= seed >> 7;
                seed ^= seed << 17;
                let place = seed as usize % damaged.len();
                damaged[place] = seed.to_le_bytes()[5];
            }
            dns::check(&damaged);
        }
    }
}

#[test]
fn random_services_fare_as_the_api_promises() {
    random(400, services::check);
}

#[test]
fn random_policies_fare_as_the_api_promises() {
    random(2000, policies::check);
}
