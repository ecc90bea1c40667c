// SPDX-License-Identifier: Apache-2.0
//! Header blocks: names and values with their lengths in front, all blocks of one direction in one
//! zlib stream (SPDY/3 draft, section 2.6.10).

use bytes::{Buf, BufMut, BytesMut};
use flate2::{Decompress, FlushDecompress, Status};

use super::dictionary;
use super::frame::Violation;

/// A block may have this many bytes, unpacked. kubectl sends about a hundred.
const BLOCK_BYTES_MAX: usize = 64 << 10;
/// A block may have this many headers.
const HEADERS_MAX: usize = 100;
/// The flag of a zlib header that says a dictionary's id follows (RFC 1950, section 2.2).
const FDICT: u8 = 0x20;

/// Headers in the order in which they came. Several values of one name are separated by NUL.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Headers(pub Vec<(String, String)>);

impl Headers {
    /// The value of a header; names are in lower case.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        let found = self.0.iter().find(|(n, _)| n == name);
        found.map(|(_, value)| value.as_str())
    }
}

/// The receiving end of one direction's zlib stream.
#[derive(Debug)]
pub(super) struct Unpacker {
    inflate: Decompress,
    begun: bool,
}

impl Unpacker {
    pub(super) fn new() -> Self {
        Self {
            // Raw: the zlib header is read here, since not every backend of flate2 takes dictionaries.
            inflate: Decompress::new(false),
            begun: false,
        }
    }

    /// Unpacks one block, which must be all of `packed`.
    ///
    /// # Errors
    /// After any, the stream can't be read on.
    pub(super) fn unpack(&mut self, mut packed: &[u8]) -> Result<Headers, Violation> {
        if !self.begun {
            self.begin(&mut packed)?;
            self.begun = true;
        }
        // Blocks are rare and small: the space is not kept.
        let mut space = vec![0; BLOCK_BYTES_MAX + 1];
        let size = self.inflate_all(packed, &mut space)?;
        parse(&space[..size])
    }

    /// Reads the zlib header, and gives the dictionary to the decompressor as what came before.
    fn begin(&mut self, packed: &mut &[u8]) -> Result<(), Violation> {
        if packed.len() < 2 {
            return Err("a header block is too short for zlib's header".into());
        }
        let (method, flags) = (packed.get_u8(), packed.get_u8());
        let sum = u16::from_be_bytes([method, flags]);
        if method & 0x0f != 8 || method >> 4 > 7 || !sum.is_multiple_of(31) {
            return Err("a header block is not of zlib".into());
        }
        if flags & FDICT == 0 {
            return Ok(());
        }
        if packed.len() < 4 || packed.get_u32() != dictionary::ID {
            return Err("a header block wants another dictionary than SPDY/3's".into());
        }
        let known = dictionary::bytes();
        let mut stored = stored_block(&known);
        stored.truncate(known.len() + STORED_OVERHEAD);
        let mut space = vec![0; known.len() + 1];
        let size = self.inflate_all(&stored, &mut space)?;
        debug_assert_eq!(size, known.len());
        Ok(())
    }

    /// How many bytes came out. `space` must not get full.
    fn inflate_all(&mut self, mut packed: &[u8], space: &mut [u8]) -> Result<usize, Violation> {
        let mut size = 0;
        loop {
            let (read, written) = (self.inflate.total_in(), self.inflate.total_out());
            let status = self
                .inflate
                .decompress(packed, &mut space[size..], FlushDecompress::Sync)
                .map_err(|e| Violation(format!("unpacking a header block: {e}")))?;
            let read = usize::try_from(self.inflate.total_in() - read).unwrap_or(0);
            let written = usize::try_from(self.inflate.total_out() - written).unwrap_or(0);
            packed = packed.get(read..).unwrap_or_default();
            size += written;
            if size >= space.len() {
                return Err("a header block is too large, unpacked".into());
            }
            match status {
                Status::StreamEnd if !packed.is_empty() => {
                    return Err("bytes follow the end of the header stream".into());
                }
                Status::StreamEnd => return Ok(size),
                _ if packed.is_empty() => return Ok(size),
                _ if read == 0 && written == 0 => {
                    return Err("a header block can't be unpacked".into());
                }
                _ => {}
            }
        }
    }
}

fn parse(mut block: &[u8]) -> Result<Headers, Violation> {
    let count = number(&mut block)?;
    if count > HEADERS_MAX {
        return Err("a header block has too many headers".into());
    }
    let mut headers = Headers::default();
    for _ in 0..count {
        let name = text(&mut block)?.to_ascii_lowercase();
        if name.is_empty() || headers.get(&name).is_some() {
            return Err("a header has no name, or one that another has".into());
        }
        let value = text(&mut block)?;
        headers.0.push((name, value));
    }
    if !block.is_empty() {
        return Err("bytes follow the headers of a block".into());
    }
    Ok(headers)
}

fn number(block: &mut &[u8]) -> Result<usize, Violation> {
    if block.len() < 4 {
        return Err("a header block ends too early".into());
    }
    usize::try_from(block.get_u32()).map_err(|_| "a header block has too long a text".into())
}

fn text(block: &mut &[u8]) -> Result<String, Violation> {
    let length = number(block)?;
    let bytes = block
        .get(..length)
        .ok_or_else(|| Violation::from("a header block ends too early"))?;
    let text = String::from_utf8_lossy(bytes).into_owned();
    block.advance(length);
    Ok(text)
}

/// What a stored block takes beside its content.
const STORED_OVERHEAD: usize = 5;

/// A block that is stored, not packed, and an empty one that makes receivers deliver it (RFC 1951,
/// section 3.2.4). `content` has at most 65535 bytes.
fn stored_block(content: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(content.len() + 2 * STORED_OVERHEAD);
    let length = u16::try_from(content.len()).unwrap_or(u16::MAX);
    out.put_u8(0);
    out.put_u16_le(length);
    out.put_u16_le(!length);
    out.extend_from_slice(&content[..usize::from(length)]);
    out.extend_from_slice(&[0, 0, 0, 0xff, 0xff]);
    out
}

/// The sending end. What a server sends are empty blocks: nothing to pack, so nothing is, and a
/// connection needs no compressor (a quarter of a megabyte each).
#[derive(Debug, Default)]
pub(super) struct Packer {
    begun: bool,
}

impl Packer {
    /// Appends a block. Headers that do not fit are left out; there are never that many.
    pub(super) fn pack(&mut self, headers: &Headers, out: &mut BytesMut) {
        let mut count = 0_u32;
        let mut block = vec![0; 4];
        for (name, value) in &headers.0 {
            let size = block.len() + 8 + name.len() + value.len();
            if size > BLOCK_BYTES_MAX - 1 {
                break;
            }
            for text in [name, value] {
                // Checked above: shorter than a block.
                block.put_u32(text.len() as u32);
                block.extend_from_slice(text.as_bytes());
            }
            count += 1;
        }
        block[..4].copy_from_slice(&count.to_be_bytes());
        if !self.begun {
            // Deflate with a window of 32 KiB, no dictionary.
            out.extend_from_slice(&[0x78, 0x01]);
            self.begun = true;
        }
        out.extend_from_slice(&stored_block(&block));
    }
}

#[cfg(test)]
impl Headers {
    pub(crate) fn of(pairs: &[(&str, &str)]) -> Headers {
        let owned = pairs
            .iter()
            .map(|(n, v)| ((*n).to_owned(), (*v).to_owned()));
        Headers(owned.collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_packed_is_unpacked_block_by_block() {
        let (mut packer, mut unpacker) = (Packer::default(), Unpacker::new());
        for wanted in [
            Headers::of(&[("streamtype", "stdin"), ("port", "80")]),
            Headers::of(&[]),
            Headers::of(&[("requestid", "7")]),
        ] {
            let mut packed = BytesMut::new();
            packer.pack(&wanted, &mut packed);
            assert_eq!(unpacker.unpack(&packed), Ok(wanted));
        }
    }

    /// Two blocks as a client sends them, with the dictionary and references into it.
    #[test]
    fn blocks_with_the_dictionary_are_unpacked() {
        let first = BLOCKS[0];
        let second = BLOCKS[1];
        let mut unpacker = Unpacker::new();
        let one = unpacker.unpack(first).unwrap();
        assert_eq!(
            one,
            Headers::of(&[("streamtype", "error"), ("port", "8080")])
        );
        let two = unpacker.unpack(second).unwrap();
        assert_eq!(
            two,
            Headers::of(&[("streamtype", "data"), ("content-type", "text/plain")])
        );
    }

    #[test]
    fn a_bomb_is_refused_before_it_is_unpacked() {
        use flate2::{Compress, Compression, FlushCompress};
        let mut deflate = Compress::new(Compression::best(), true);
        let mut packed = Vec::with_capacity(1 << 20);
        let zeros = vec![0; 32 << 20];
        deflate
            .compress_vec(&zeros, &mut packed, FlushCompress::Sync)
            .unwrap();
        assert!(packed.len() < 64 << 10, "{}", packed.len());
        let refused = Unpacker::new().unpack(&packed).unwrap_err();
        assert!(refused.to_string().contains("too large"), "{refused}");
    }

    #[test]
    fn broken_blocks_are_refused() {
        for broken in [
            &b""[..],
            b"\x78",
            b"\x78\x02\0\0",
            b"\x78\xbb\x01\x02\x03\x04",
            b"\x78\x01\x07\xff\xff",
            // A count without headers, and one that is too high.
            &[&[0x78, 0x01][..], &stored_block(&[0, 0, 0, 1])].concat(),
            &[&[0x78, 0x01][..], &stored_block(&[0xff, 0, 0, 1])].concat(),
        ] {
            assert!(Unpacker::new().unpack(broken).is_err(), "{broken:?}");
        }
    }

    /// Made by zlib 1.2 with the dictionary.
    const BLOCKS: [&[u8]; 2] = [
        b"\x78\xf9\xe3\xc6\xa7\xc2\x02\xe5\x0e\x70\x3a\x2b\x29\x4a\x4d\xcc\x85\x16\x25\xac\xa9\xa0\x80\x86\x14\xcb\x45\xe0\x1c\x60\x61\x60\x61\x00\x00\x00\x00\xff\xff",
        b"\xc2\xaa\x14\x54\xea\x24\x62\x29\x8d\xb8\x10\xde\x00\x00\x00\x00\xff\xff",
    ];
}
