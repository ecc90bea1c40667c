// SPDX-License-Identifier: Apache-2.0
//! `sha256:<64 hex digits>`: parsing, computing, and hashing while bytes pass through.
//!
//! The OCI image specification also registers sha512. No registry in use hands it out for images,
//! and a store with two algorithms would hold content twice, so it is refused by name.

use std::fmt;
use std::io::{self, Read, Write};
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// A checked `sha256:…` digest. Safe to use as a file name: its hex part has no separators.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest(String);

/// Why a string is not a digest that we take.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DigestError {
    #[error("digest {0:?} is not of the form algorithm:hex")]
    Form(String),
    #[error("digest algorithm {0:?} is not supported, only sha256 is")]
    Algorithm(String),
    #[error("digest {0:?} does not have 64 lower-case hex digits")]
    Hex(String),
}

impl Digest {
    /// The digest of these bytes.
    pub fn of(bytes: &[u8]) -> Digest {
        Digest::from_hash(&Sha256::digest(bytes))
    }

    pub(crate) fn from_hash(hash: &[u8]) -> Digest {
        use fmt::Write as _;
        let mut hex = String::with_capacity(64);
        for byte in hash {
            // Writing to a String cannot fail.
            let _ = write!(hex, "{byte:02x}");
        }
        Digest(hex)
    }

    /// The 64 hex digits, without the algorithm.
    pub fn hex(&self) -> &str {
        &self.0
    }

    /// The first 12 hex digits, for people.
    pub fn short(&self) -> &str {
        &self.0[..12]
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.0)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.0)
    }
}

/// Whether this is the hex part of a sha256 digest.
pub fn is_sha256_hex(hex: &str) -> bool {
    hex.len() == 64 && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Digest, DigestError> {
        let (algorithm, hex) = text
            .split_once(':')
            .ok_or_else(|| DigestError::Form(text.to_owned()))?;
        if algorithm != "sha256" {
            return Err(DigestError::Algorithm(algorithm.to_owned()));
        }
        if !is_sha256_hex(hex) {
            return Err(DigestError::Hex(text.to_owned()));
        }
        Ok(Digest(hex.to_owned()))
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

/// Hashes and counts what passes through, in either direction.
pub(crate) struct Hashing<T> {
    pub(crate) inner: T,
    hasher: Sha256,
    count: u64,
}

impl<T> Hashing<T> {
    pub(crate) fn new(inner: T) -> Self {
        Hashing {
            inner,
            hasher: Sha256::new(),
            count: 0,
        }
    }

    /// Bytes that passed so far.
    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    /// The digest, the count, and the inner value.
    pub(crate) fn finish(self) -> (Digest, u64, T) {
        (
            Digest::from_hash(&self.hasher.finalize()),
            self.count,
            self.inner,
        )
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
        for bad in [
            "",
            "sha256",
            "sha256:",
            "sha256:ABC",
            "sha256:../../../etc/passwd",
            &of_empty.to_uppercase(),
            &of_empty.replace("sha256", "sha512"),
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
    }
}
