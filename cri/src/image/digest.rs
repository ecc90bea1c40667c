// SPDX-License-Identifier: Apache-2.0
//! `sha256:<64 hex digits>` and `sha512:<128 hex digits>`, the algorithms that the OCI image
//! specification registers (`descriptor.md`): parsing, computing, and hashing while bytes pass through.
//!
//! aws-lc computes, which is linked for TLS already: it uses the processor's SHA instructions, and
//! is as fast in a debug build.

use std::fmt;
use std::io::{self, BufRead, Read, Write};
use std::str::FromStr;

use aws_lc_rs::digest as hash;
use serde::{Deserialize, Serialize};

/// What a digest is made with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Algorithm {
    Sha256,
    Sha512,
}

impl Algorithm {
    pub(crate) const ALL: [Algorithm; 2] = [Algorithm::Sha256, Algorithm::Sha512];

    /// As it stands before the colon, and as the name of a directory of blobs.
    pub fn name(self) -> &'static str {
        match self {
            Algorithm::Sha256 => "sha256",
            Algorithm::Sha512 => "sha512",
        }
    }

    fn hex_digits(self) -> usize {
        match self {
            Algorithm::Sha256 => 64,
            Algorithm::Sha512 => 128,
        }
    }
}

/// A checked digest. Safe to use as a file name: its hex part has no separators.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest {
    algorithm: Algorithm,
    hex: String,
}

/// Why a string is not a digest that we take.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DigestError {
    #[error("digest {0:?} is not of the form algorithm:hex")]
    Form(String),
    #[error("digest algorithm {0:?} is not supported, only sha256 and sha512 are")]
    Algorithm(String),
    #[error("digest {text:?} does not have {digits} lower-case hex digits")]
    Hex { text: String, digits: usize },
}

impl Digest {
    /// The sha256 digest of these bytes.
    pub fn of(bytes: &[u8]) -> Digest {
        Digest::with(Algorithm::Sha256, bytes)
    }

    /// The digest of these bytes by an algorithm.
    pub fn with(algorithm: Algorithm, bytes: &[u8]) -> Digest {
        let mut hasher = Hasher::new(algorithm);
        hasher.update(bytes);
        hasher.digest()
    }

    /// The digest of these bytes by this digest's algorithm: equal to it if they are what it names.
    pub(crate) fn like(&self, bytes: &[u8]) -> Digest {
        Digest::with(self.algorithm, bytes)
    }

    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The hex digits, without the algorithm.
    pub fn hex(&self) -> &str {
        &self.hex
    }

    /// The first 12 hex digits, for people.
    pub fn short(&self) -> &str {
        &self.hex[..12]
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm.name(), self.hex)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Whether this is the hex part of a sha256 digest.
pub fn is_sha256_hex(hex: &str) -> bool {
    is_hex(hex, Algorithm::Sha256)
}

fn is_hex(hex: &str, algorithm: Algorithm) -> bool {
    hex.len() == algorithm.hex_digits()
        && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Digest, DigestError> {
        let (name, hex) = text
            .split_once(':')
            .ok_or_else(|| DigestError::Form(text.to_owned()))?;
        let algorithm = Algorithm::ALL
            .into_iter()
            .find(|algorithm| algorithm.name() == name)
            .ok_or_else(|| DigestError::Algorithm(name.to_owned()))?;
        if !is_hex(hex, algorithm) {
            return Err(DigestError::Hex {
                text: text.to_owned(),
                digits: algorithm.hex_digits(),
            });
        }
        Ok(Digest {
            algorithm,
            hex: hex.to_owned(),
        })
    }
}

impl TryFrom<String> for Digest {
    type Error = DigestError;
    fn try_from(text: String) -> Result<Digest, DigestError> {
        text.parse()
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> String {
        digest.to_string()
    }
}

/// A hash under way.
#[derive(Clone)]
pub(crate) struct Hasher {
    algorithm: Algorithm,
    context: hash::Context,
}

impl Hasher {
    pub(crate) fn new(algorithm: Algorithm) -> Hasher {
        let of = match algorithm {
            Algorithm::Sha256 => &hash::SHA256,
            Algorithm::Sha512 => &hash::SHA512,
        };
        Hasher {
            algorithm,
            context: hash::Context::new(of),
        }
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        self.context.update(bytes);
    }

    pub(crate) fn digest(self) -> Digest {
        use fmt::Write as _;
        let mut hex = String::with_capacity(self.algorithm.hex_digits());
        for byte in self.context.finish().as_ref() {
            // Writing to a String cannot fail.
            let _ = write!(hex, "{byte:02x}");
        }
        Digest {
            algorithm: self.algorithm,
            hex,
        }
    }
}

/// Hashes and counts what passes through, in either direction.
pub(crate) struct Hashing<T> {
    pub(crate) inner: T,
    hasher: Hasher,
    count: u64,
}

impl<T> Hashing<T> {
    pub(crate) fn new(inner: T) -> Self {
        Hashing::with(Algorithm::Sha256, inner)
    }

    pub(crate) fn with(algorithm: Algorithm, inner: T) -> Self {
        Hashing {
            inner,
            hasher: Hasher::new(algorithm),
            count: 0,
        }
    }

    /// Bytes that passed so far.
    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    /// The digest, the count, and the inner value.
    pub(crate) fn finish(self) -> (Digest, u64, T) {
        (self.hasher.digest(), self.count, self.inner)
    }

    fn take_in(&mut self, bytes: &[u8]) {
        self.hasher.update(bytes);
        self.count = self.count.saturating_add(bytes.len() as u64);
    }
}

impl<T: Read> Read for Hashing<T> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        self.take_in(&buf[..n]);
        Ok(n)
    }
}

impl<T: BufRead> BufRead for Hashing<T> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.inner.fill_buf()
    }

    fn consume(&mut self, amount: usize) {
        // What was filled is still there: this neither blocks nor fails.
        if let Ok(buffer) = self.inner.fill_buf() {
            let passed = &buffer[..amount.min(buffer.len())];
            self.hasher.update(passed);
            self.count = self.count.saturating_add(passed.len() as u64);
        }
        self.inner.consume(amount);
    }
}

impl<T: Write> Write for Hashing<T> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let n = self.inner.write(buf)?;
        self.take_in(&buf[..n]);
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_round_trips_and_bad_ones_are_refused() {
        let of_empty = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(Digest::of(b"").to_string(), of_empty);
        assert_eq!(of_empty.parse::<Digest>(), Ok(Digest::of(b"")));
        let long = Digest::with(Algorithm::Sha512, b"abc");
        assert!(long.hex().starts_with("ddaf35a193617abacc417349ae204131"));
        assert_eq!(long.to_string().parse::<Digest>(), Ok(long.clone()));
        assert_eq!(long.like(b"abc"), long);
        for bad in [
            "",
            "sha256",
            "sha256:",
            "sha256:ABC",
            "sha256:../../../etc/passwd",
            &of_empty.to_uppercase(),
            &of_empty.replace("sha256", "sha512"),
            &long.to_string().replace("sha512", "sha256"),
            &of_empty.replace("sha256", "blake3"),
            &format!("{of_empty}0"),
        ] {
            assert!(bad.parse::<Digest>().is_err(), "{bad}");
        }
    }

    #[test]
    fn hashing_sees_what_is_read_and_what_is_written() {
        let mut reader = Hashing::new(&b"abc"[..]);
        let mut writer = Hashing::new(Vec::new());
        io::copy(&mut reader, &mut writer).unwrap();
        assert_eq!(reader.finish().0, Digest::of(b"abc"));
        assert_eq!(writer.finish().0, Digest::of(b"abc"));
        let mut buffered = Hashing::new(&b"abc"[..]);
        buffered.consume(2);
        assert_eq!(buffered.fill_buf().unwrap(), b"c");
        buffered.consume(1);
        assert_eq!(buffered.finish().0, Digest::of(b"abc"));
    }
}
