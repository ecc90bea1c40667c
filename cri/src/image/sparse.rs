// SPDX-License-Identifier: Apache-2.0
//! Sparse files in tar archives: the old GNU form, and PAX forms 0.0, 0.1 and 1.0 (GNU tar's manual,
//! "Storing Sparse Files"). Go's `archive/tar` reads the same four. No I/O.

use super::error::ContentError;
use super::tar_stream::bad;

/// Pieces of one file: a map of more is a bomb. 1 MiB of map, as for other extensions, has fewer.
pub(crate) const MAX_SEGMENTS: usize = 50_000;
const BLOCK: usize = 512;

/// Where the data of a file lies; what lies between is a hole.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Sparse {
    /// Offset and length, ascending, without overlap.
    pub(crate) segments: Vec<(u64, u64)>,
    /// Apparent size.
    pub(crate) size: u64,
}

impl Sparse {
    /// Checks that the pieces fit the file, and the body.
    pub(crate) fn checked(self, entry: &str, body: u64) -> Result<Sparse, ContentError> {
        if self.segments.len() > MAX_SEGMENTS {
            return Err(bad(entry, "the sparse file has too many pieces"));
        }
        let (mut end, mut data) = (0u64, 0u64);
        for (offset, length) in &self.segments {
            let next = offset.checked_add(*length).filter(|n| *n <= self.size);
            match next {
                Some(next) if *offset >= end => end = next,
                _ => return Err(bad(entry, "the pieces of the sparse file do not fit it")),
            }
            data = data.saturating_add(*length);
        }
        if data != body {
            let reason = format!("the sparse file's pieces have {data} bytes, its body {body}");
            return Err(bad(entry, reason));
        }
        Ok(self)
    }
}

/// What PAX records say of a sparse file (forms 0.0, 0.1 and 1.0).
#[derive(Debug, Default)]
pub(crate) struct PaxSparse {
    major: u64,
    minor: u64,
    size: Option<u64>,
    pub(crate) name: Option<Vec<u8>>,
    segments: Vec<(u64, u64)>,
    /// Form 0.0: an offset that waits for its length.
    offset: Option<u64>,
}

impl PaxSparse {
    /// Takes a record whose key began with `GNU.sparse.`.
    pub(crate) fn record(
        &mut self,
        entry: &str,
        key: &[u8],
        value: &[u8],
    ) -> Result<(), ContentError> {
        let number = || {
            decimal(value).ok_or_else(|| {
                let key = String::from_utf8_lossy(key);
                bad(
                    entry,
                    format!("extended header: GNU.sparse.{key} is not a number"),
                )
            })
        };
        match key {
            b"major" => self.major = number()?,
            b"minor" => self.minor = number()?,
            b"size" | b"realsize" => self.size = Some(number()?),
            b"name" => self.name = Some(value.to_vec()),
            b"offset" => self.offset = Some(number()?),
            b"numbytes" => {
                let offset = self
                    .offset
                    .take()
                    .ok_or_else(|| bad(entry, "a sparse piece without an offset"))?;
                self.push(entry, offset, number()?)?;
            }
            b"map" => {
                let mut numbers = value.split(|b| *b == b',').map(decimal);
                while let Some(offset) = numbers.next() {
                    match (offset, numbers.next().flatten()) {
                        (Some(offset), Some(length)) => self.push(entry, offset, length)?,
                        _ => return Err(bad(entry, "malformed map of a sparse file")),
                    }
                }
            }
            // `numblocks` says what counting says.
            _ => {}
        }
        Ok(())
    }

    fn push(&mut self, entry: &str, offset: u64, length: u64) -> Result<(), ContentError> {
        if self.segments.len() >= MAX_SEGMENTS {
            return Err(bad(entry, "the sparse file has too many pieces"));
        }
        self.segments.push((offset, length));
        Ok(())
    }

    /// Form 1.0: the map is the beginning of the body.
    pub(crate) fn map_in_body(&self) -> bool {
        (self.major, self.minor) == (1, 0)
    }

    /// The file; its pieces are still to be read if the map is in the body.
    pub(crate) fn finish(self, entry: &str) -> Result<Sparse, ContentError> {
        if !matches!((self.major, self.minor), (0, 0 | 1) | (1, 0)) {
            let reason = format!("sparse format {}.{} is unknown", self.major, self.minor);
            return Err(bad(entry, reason));
        }
        Ok(Sparse {
            segments: self.segments,
            size: self
                .size
                .ok_or_else(|| bad(entry, "a sparse file without its size"))?,
        })
    }
}

fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// The map of form 1.0 while its blocks come in: lines of decimal numbers, the first one the count
/// of pieces; the last block is filled up.
#[derive(Debug, Default)]
pub(crate) struct MapReader {
    line: Vec<u8>,
    numbers: Vec<u64>,
    expected: Option<usize>,
}

impl MapReader {
    /// Takes a block; the pieces when they are complete.
    pub(crate) fn block(
        &mut self,
        entry: &str,
        block: &[u8; BLOCK],
    ) -> Result<Option<Vec<(u64, u64)>>, ContentError> {
        let malformed = || bad(entry, "malformed map of a sparse file");
        for byte in block {
            if *byte != b'\n' {
                self.line.push(*byte);
                if self.line.len() > 20 {
                    return Err(malformed());
                }
                continue;
            }
            let number = decimal(&self.line).ok_or_else(malformed)?;
            self.line.clear();
            match self.expected {
                None => {
                    let count = usize::try_from(number).unwrap_or(usize::MAX);
                    if count > MAX_SEGMENTS {
                        return Err(bad(entry, "the sparse file has too many pieces"));
                    }
                    self.expected = Some(count * 2);
                }
                Some(_) => self.numbers.push(number),
            }
            if self.expected == Some(self.numbers.len()) {
                let pairs = self.numbers.chunks_exact(2).map(|p| (p[0], p[1]));
                return Ok(Some(pairs.collect()));
            }
        }
        Ok(None)
    }
}

/// The map of the old GNU form: pairs of 12 byte numbers in the header, more in blocks of their own.
#[derive(Debug, Default)]
pub(crate) struct OldMap {
    pub(crate) segments: Vec<(u64, u64)>,
}

impl OldMap {
    /// The header's four pairs; the apparent size, and whether blocks with more follow.
    pub(crate) fn header(
        &mut self,
        entry: &str,
        header: &[u8; BLOCK],
    ) -> Result<(u64, bool), ContentError> {
        self.pairs(entry, &header[386..482])?;
        let size = field(&header[483..495])
            .ok_or_else(|| bad(entry, "the sparse file's size is not a number"))?;
        Ok((size, header[482] != 0))
    }

    /// A block of 21 pairs; whether one more follows.
    pub(crate) fn more(&mut self, entry: &str, block: &[u8; BLOCK]) -> Result<bool, ContentError> {
        if self.segments.len() >= MAX_SEGMENTS {
            return Err(bad(entry, "the sparse file has too many pieces"));
        }
        self.pairs(entry, &block[..504])?;
        Ok(block[504] != 0)
    }

    fn pairs(&mut self, entry: &str, bytes: &[u8]) -> Result<(), ContentError> {
        for pair in bytes.chunks_exact(24) {
            // A blank offset ends the map.
            if pair[0] == 0 {
                break;
            }
            match (field(&pair[..12]), field(&pair[12..])) {
                (Some(offset), Some(length)) => self.segments.push((offset, length)),
                _ => return Err(bad(entry, "malformed map of a sparse file")),
            }
        }
        Ok(())
    }
}

/// A numeric field: octal digits, or binary with the top bit set.
fn field(bytes: &[u8]) -> Option<u64> {
    if bytes[0] & 0x80 != 0 {
        let mut value = u64::from(bytes[0] & 0x7f);
        for byte in &bytes[1..] {
            value = value.checked_mul(256)?.checked_add(u64::from(*byte))?;
        }
        return Some(value);
    }
    let text = std::str::from_utf8(bytes).ok()?;
    let text = text.trim_matches(['\0', ' ']);
    u64::from_str_radix(text, 8).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_must_fit_the_file_and_the_body() {
        let sparse = |segments: &[(u64, u64)], size| Sparse {
            segments: segments.to_vec(),
            size,
        };
        assert!(
            sparse(&[(0, 3), (10, 2), (20, 0)], 20)
                .checked("e", 5)
                .is_ok()
        );
        for (segments, size, body) in [
            (&[(0, 3)][..], 2, 3),
            (&[(5, 1), (4, 1)], 9, 2),
            (&[(0, 5), (4, 1)], 9, 6),
            (&[(u64::MAX, 2)], u64::MAX, 2),
            (&[(0, 3)], 9, 4),
        ] {
            assert!(
                sparse(segments, size).checked("e", body).is_err(),
                "{segments:?}"
            );
        }
    }

    #[test]
    fn a_map_in_the_body_is_read_across_blocks() {
        let mut text = String::from("60\n");
        for n in 0..60 {
            text += &format!("{}\n10\n", n * 100_000);
        }
        let mut bytes = text.into_bytes();
        bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
        let mut reader = MapReader::default();
        let mut blocks = bytes.chunks_exact(BLOCK);
        let found = blocks.find_map(|b| reader.block("e", b.try_into().unwrap()).unwrap());
        assert_eq!(found.unwrap()[59], (5_900_000, 10));
        assert!(blocks.next().is_none());
        for bad in [
            "x\n",
            "1\n-1\n2\n",
            "99999999\n",
            "1 \n0\n0\n",
            "000000000000000000000",
        ] {
            let mut block = [0u8; BLOCK];
            block[..bad.len()].copy_from_slice(bad.as_bytes());
            assert!(MapReader::default().block("e", &block).is_err(), "{bad}");
        }
    }
}
