// SPDX-License-Identifier: Apache-2.0
//! What reads bytes from outside, for fuzzers. Each function is a whole parser with its checks; the
//! answer says what a fuzzer can hold against it.

use std::io;
use std::path::Path;

use super::digest::Algorithm;
use super::error::chain;
use super::layer;
use super::manifest::{Choice, Step};
use super::platform::Platform;
use super::registry::{challenges, hosts};
use super::sparse::MAX_SEGMENTS;
use super::tar_stream::{Limits, TarStream};

/// A manifest or index, and what it makes a client read next. The error is what a user would see.
pub fn manifest(bytes: &[u8]) -> Result<Option<String>, String> {
    let mut choice = Choice::new(&Platform::host());
    let mut next = None;
    // An index may lead to itself: that must end.
    for _ in 0..100 {
        match choice.document(bytes).map_err(|error| chain(&error))? {
            Step::Found(_) => return Ok(next),
            Step::Read(wanted) => next = Some(wanted.digest.to_string()),
        }
    }
    panic!("the way through the index has no end");
}

/// A `hosts.toml`: for each server its address, and what the repository is called there.
pub fn hosts(text: &str, domain: &str, repository: &str) -> Result<Vec<(String, String)>, String> {
    let endpoints = hosts::parse(Path::new("/etc/hosts.toml"), text, domain);
    let named =
        |endpoint: &hosts::Endpoint| (endpoint.base.to_string(), endpoint.repository(repository));
    endpoints
        .map(|all| all.iter().map(named).collect())
        .map_err(|error| chain(&error))
}

/// A `WWW-Authenticate` header.
pub fn challenge(header: &str) -> bool {
    challenges(header)
}

/// A layer's entries, read and not written: how many, and the bytes of their bodies.
pub fn entries(bytes: &[u8], most: u64) -> Result<(u64, u64), String> {
    let limits = Limits {
        entries: most,
        ..Limits::default()
    };
    let mut stream = TarStream::new(bytes, limits);
    let (mut count, mut body) = (0, 0);
    while let Some(entry) = stream.next().map_err(|error| chain(&error))? {
        count += 1;
        body += entry.size;
        if let Some(sparse) = &entry.sparse {
            assert!(sparse.segments.len() <= MAX_SEGMENTS);
            let data: u64 = sparse.segments.iter().map(|(_, length)| length).sum();
            assert_eq!(data, entry.size, "pieces and body differ");
        }
        stream
            .copy_body(entry.size, &mut io::sink())
            .map_err(|error| error.to_string())?;
    }
    Ok((count, body))
}

/// A layer, compressed or not, unpacked into an empty directory; the error is what a user would see.
/// Needs root.
pub fn unpack(bytes: &[u8], into: &Path, most: u64) -> Result<(), String> {
    let limits = Limits {
        entries: 1000,
        bytes: most,
        extension: 64 << 10,
    };
    match layer::unpack(bytes, into, limits, Algorithm::Sha256) {
        Ok(_) => Ok(()),
        Err(error) => Err(chain(&error)),
    }
}
