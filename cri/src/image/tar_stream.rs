// SPDX-License-Identifier: Apache-2.0
//! Reads a tar stream entry by entry: ustar, PAX extended headers (POSIX.1-2001), GNU long names and
//! sparse files.
//!
//! The `tar` crate's iterator reads long names and PAX records of any size into memory, and in its
//! raw mode skips bodies by the wrong size when PAX overrides it. A layer is hostile input, so the
//! walk over blocks is done here with bounds, and only the header fields are left to the crate.

use std::ffi::OsString;
use std::io::{self, BufRead, Read, Write};
use std::os::unix::ffi::OsStringExt;

use super::error::ContentError;
use super::sparse::{MapReader, OldMap, PaxSparse, Sparse};

const BLOCK: usize = 512;

/// Bounds on what one layer may ask of us.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Entries, and directories implied by them. The largest public images have some 500,000 files.
    pub(crate) entries: u64,
    /// Bytes of the uncompressed stream, so that a small blob can't fill the disk without end.
    pub(crate) bytes: u64,
    /// Bytes of one PAX header or long name. Linux takes xattr values up to 64 KiB and paths to 4 KiB.
    pub(crate) extension: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            entries: 2_000_000,
            bytes: 64 << 30,
            extension: 1 << 20,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    HardLink,
    Symlink,
    Char,
    Block,
    Directory,
    Fifo,
}

/// One entry. Its body, for files, is read from the stream before the next call of `next`.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) kind: Kind,
    pub(crate) path: Vec<u8>,
    pub(crate) link: Vec<u8>,
    pub(crate) size: u64,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Seconds and nanoseconds.
    pub(crate) mtime: (i64, i64),
    pub(crate) device: (u32, u32),
    pub(crate) xattrs: Vec<(OsString, Vec<u8>)>,
    /// Where the body's bytes belong, for a sparse file.
    pub(crate) sparse: Option<Sparse>,
}

impl Entry {
    pub(crate) fn name(&self) -> String {
        String::from_utf8_lossy(&self.path).into_owned()
    }
}

pub(crate) struct TarStream<R> {
    inner: R,
    limits: Limits,
    taken: u64,
    entries: u64,
    body: u64,
    padding: u64,
    name: String,
}

/// Overrides gathered from extension headers for the entry that follows them.
#[derive(Default)]
struct Overrides {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u64>,
    gid: Option<u64>,
    mtime: Option<(i64, i64)>,
    xattrs: Vec<(OsString, Vec<u8>)>,
    sparse: Option<PaxSparse>,
}

impl<R: BufRead> TarStream<R> {
    pub(crate) fn new(inner: R, limits: Limits) -> Self {
        TarStream {
            inner,
            limits,
            taken: 0,
            entries: 0,
            body: 0,
            padding: 0,
            name: String::new(),
        }
    }

    /// The next entry, or `None` at the end of the archive. Skips what is left of a body.
    pub(crate) fn next(&mut self) -> Result<Option<Entry>, ContentError> {
        let mut overrides = Overrides::default();
        loop {
            self.skip_rest()?;
            let Some(header) = self.header()? else {
                return Ok(None);
            };
            self.name = String::from_utf8_lossy(&header.path_bytes()).into_owned();
            let size = field(&self.name, "size", header.entry_size())?;
            match header.entry_type().as_byte() {
                b'x' => {
                    let data = self.extension(size)?;
                    pax(&self.name, &data, &mut overrides)?;
                }
                b'g' => drop(self.extension(size)?),
                b'L' => overrides.path = Some(c_string(self.extension(size)?)),
                b'K' => overrides.link = Some(c_string(self.extension(size)?)),
                kind => return self.entry(&header, kind, size, overrides).map(Some),
            }
        }
    }

    pub(crate) fn into_inner(self) -> R {
        self.inner
    }

    /// Reads on to the end of the stream, past the end of the archive: the digest covers it all.
    pub(crate) fn drain(&mut self) -> Result<(), ContentError> {
        loop {
            let n = self.fill(usize::MAX)?.len();
            if n == 0 {
                return Ok(());
            }
            self.inner.consume(n);
        }
    }

    /// Copies up to `length` bytes of the body, in the pieces in which they come.
    pub(crate) fn copy_body(&mut self, length: u64, to: &mut impl Write) -> io::Result<()> {
        let mut left = length.min(self.body);
        while left > 0 {
            let chunk = self
                .fill(usize::try_from(left).unwrap_or(usize::MAX))
                .map_err(io::Error::other)?;
            let n = chunk.len();
            if n == 0 {
                return Err(io::Error::other(ended_early()));
            }
            to.write_all(chunk)?;
            self.inner.consume(n);
            self.body -= n as u64;
            left -= n as u64;
        }
        Ok(())
    }

    fn entry(
        &mut self,
        header: &tar::Header,
        kind: u8,
        size: u64,
        overrides: Overrides,
    ) -> Result<Entry, ContentError> {
        let mut overrides = overrides;
        let pax_sparse = overrides.sparse.take();
        let sparse_name = pax_sparse.as_ref().and_then(|sparse| sparse.name.clone());
        let path = sparse_name
            .or(overrides.path)
            .unwrap_or_else(|| header.path_bytes().into_owned());
        self.name = String::from_utf8_lossy(&path).into_owned();
        self.entries += 1;
        if self.entries > self.limits.entries {
            return Err(too_large(self.limits.entries, "entries"));
        }
        let old_sparse = kind == b'S';
        let kind = match kind {
            // Version 7 archives mark a directory by the slash alone.
            b'0' | 0 | b'7' if path.ends_with(b"/") => Kind::Directory,
            b'0' | 0 | b'7' => Kind::File,
            b'1' => Kind::HardLink,
            b'2' => Kind::Symlink,
            b'3' => Kind::Char,
            b'4' => Kind::Block,
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            b'S' => Kind::File,
            other => {
                let reason = format!("entry type {:?} is not supported", other as char);
                return Err(bad(&self.name, reason));
            }
        };
        let size = match kind {
            Kind::File => overrides.size.unwrap_or(size),
            // Others carry no body, whatever the field says (as in Go's archive/tar).
            _ => 0,
        };
        if size > self.limits.bytes {
            return Err(too_large(self.limits.bytes, "bytes"));
        }
        self.body = size;
        self.padding = size.next_multiple_of(BLOCK as u64) - size;
        let sparse = match pax_sparse {
            _ if old_sparse => Some(self.old_sparse(header)?),
            Some(sparse) if kind == Kind::File => Some(self.pax_sparse(sparse)?),
            _ => None,
        };
        if sparse.as_ref().is_some_and(|s| s.size > self.limits.bytes) {
            return Err(too_large(self.limits.bytes, "bytes"));
        }
        let size = self.body;
        let name = &self.name;
        let old = header.as_old();
        let device = match kind {
            Kind::Char | Kind::Block => (
                field(name, "device", header.device_major())?.unwrap_or(0),
                field(name, "device", header.device_minor())?.unwrap_or(0),
            ),
            // Others may leave these fields blank.
            _ => (0, 0),
        };
        let mtime = match overrides.mtime {
            Some(mtime) => mtime,
            None => (
                number(name, "mtime", &old.mtime, header.mtime())?.cast_signed(),
                0,
            ),
        };
        let id = |what, over: Option<u64>, raw: &[u8], value: io::Result<u64>| match over {
            Some(id) => narrow(name, what, id),
            None => narrow(name, what, number(name, what, raw, value)?),
        };
        Ok(Entry {
            kind,
            link: overrides
                .link
                .or_else(|| header.link_name_bytes().map(|link| link.into_owned()))
                .unwrap_or_default(),
            size,
            mode: number(name, "mode", &old.mode, header.mode())? & 0o7777,
            uid: id("uid", overrides.uid, &old.uid, header.uid())?,
            gid: id("gid", overrides.gid, &old.gid, header.gid())?,
            mtime,
            device,
            xattrs: overrides.xattrs,
            sparse,
            path,
        })
    }

    /// The old GNU form: more of the map may stand between the header and the body.
    fn old_sparse(&mut self, header: &tar::Header) -> Result<Sparse, ContentError> {
        let mut map = OldMap::default();
        let (size, mut more) = map.header(&self.name, header.as_bytes())?;
        let mut block = [0; BLOCK];
        while more {
            self.whole_block(&mut block)?;
            more = map.more(&self.name, &block)?;
        }
        let segments = map.segments;
        Sparse { segments, size }.checked(&self.name, self.body)
    }

    /// The PAX forms: form 1.0 has its map at the beginning of the body.
    fn pax_sparse(&mut self, pax: PaxSparse) -> Result<Sparse, ContentError> {
        let in_body = pax.map_in_body();
        let mut sparse = pax.finish(&self.name)?;
        if in_body {
            let (mut map, mut block) = (MapReader::default(), [0; BLOCK]);
            sparse.segments = loop {
                if self.body < BLOCK as u64 {
                    return Err(bad(&self.name, "the map of the sparse file has no end"));
                }
                self.whole_block(&mut block)?;
                self.body -= BLOCK as u64;
                if let Some(segments) = map.block(&self.name, &block)? {
                    break segments;
                }
            };
        }
        sparse.checked(&self.name, self.body)
    }

    fn whole_block(&mut self, block: &mut [u8; BLOCK]) -> Result<(), ContentError> {
        let mut filled = 0;
        while filled < BLOCK {
            match self.read_some(&mut block[filled..])? {
                0 => return Err(ended_early()),
                n => filled += n,
            }
        }
        Ok(())
    }

    /// A header block, or `None` at the end mark or at a clean end of the stream.
    fn header(&mut self) -> Result<Option<tar::Header>, ContentError> {
        let mut header = tar::Header::new_old();
        let block = header.as_mut_bytes();
        let mut filled = 0;
        while filled < BLOCK {
            match self.read_some(&mut block[filled..])? {
                0 if filled == 0 => return Ok(None),
                0 => return Err(ended_early()),
                n => filled += n,
            }
        }
        if block.iter().all(|b| *b == 0) {
            return Ok(None);
        }
        let sum: u32 = block
            .iter()
            .enumerate()
            .map(|(at, b)| u32::from(if (148..156).contains(&at) { b' ' } else { *b }))
            .sum();
        if header.cksum().ok() != Some(sum) {
            return Err(bad("", "not a tar header (its checksum is wrong)"));
        }
        Ok(Some(header))
    }

    fn extension(&mut self, size: u64) -> Result<Vec<u8>, ContentError> {
        if size > self.limits.extension {
            return Err(too_large(
                self.limits.extension,
                "bytes in an extended header",
            ));
        }
        self.body = size;
        self.padding = size.next_multiple_of(BLOCK as u64) - size;
        let mut data = Vec::new();
        self.read_to_end(&mut data).map_err(content_error)?;
        Ok(data)
    }

    fn skip_rest(&mut self) -> Result<(), ContentError> {
        self.padding += std::mem::take(&mut self.body);
        while self.padding > 0 {
            let want = usize::try_from(self.padding).unwrap_or(usize::MAX);
            let n = self.fill(want)?.len();
            if n == 0 {
                return Err(ended_early());
            }
            self.inner.consume(n);
            self.padding -= n as u64;
        }
        Ok(())
    }

    /// What is there to read, at most `want` bytes of it, counted against the limit. Whoever uses it
    /// consumes all of it.
    fn fill(&mut self, want: usize) -> Result<&[u8], ContentError> {
        let available = loop {
            match self.inner.fill_buf() {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(ContentError::Read(error)),
                Ok(buffer) => break buffer.len(),
            }
        };
        let n = available.min(want);
        self.taken = self.taken.saturating_add(n as u64);
        if self.taken > self.limits.bytes {
            return Err(too_large(self.limits.bytes, "bytes"));
        }
        // Filled already: this does not read.
        Ok(&self.inner.fill_buf().map_err(ContentError::Read)?[..n])
    }

    fn read_some(&mut self, buf: &mut [u8]) -> Result<usize, ContentError> {
        let chunk = self.fill(buf.len())?;
        let n = chunk.len();
        buf[..n].copy_from_slice(chunk);
        self.inner.consume(n);
        Ok(n)
    }
}

impl<R: BufRead> Read for TarStream<R> {
    /// Reads the body of the current entry.
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let want = buf
            .len()
            .min(usize::try_from(self.body).unwrap_or(usize::MAX));
        if want == 0 {
            return Ok(0);
        }
        match self.read_some(&mut buf[..want]) {
            Ok(0) => Err(io::Error::other(ended_early())),
            Ok(n) => {
                self.body -= n as u64;
                Ok(n)
            }
            // Typed, so that whoever copies this into a file can tell reading from writing.
            Err(error) => Err(io::Error::other(error)),
        }
    }
}

/// PAX records: `length key=value\n`, the length counting itself.
fn pax(entry: &str, mut data: &[u8], into: &mut Overrides) -> Result<(), ContentError> {
    while !data.is_empty() {
        let (record, rest) =
            pax_record(data).ok_or_else(|| bad(entry, "malformed extended header"))?;
        data = rest;
        let (key, value) = record;
        let number = |what| {
            std::str::from_utf8(value)
                .ok()
                .and_then(|text| text.parse::<u64>().ok())
                .ok_or_else(|| bad(entry, format!("extended header: {what} is not a number")))
        };
        match key {
            b"path" => into.path = Some(value.to_vec()),
            b"linkpath" => into.link = Some(value.to_vec()),
            b"size" => into.size = Some(number("size")?),
            b"uid" => into.uid = Some(number("uid")?),
            b"gid" => into.gid = Some(number("gid")?),
            b"mtime" => {
                into.mtime = Some(
                    pax_time(value)
                        .ok_or_else(|| bad(entry, "extended header: mtime is not a time"))?,
                );
            }
            _ if key.starts_with(b"GNU.sparse.") => {
                let sparse = into.sparse.get_or_insert_default();
                sparse.record(entry, &key[b"GNU.sparse.".len()..], value)?;
            }
            // Unknown keys are ignored, as POSIX asks.
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    into.xattrs
                        .push((OsString::from_vec(name.to_vec()), value.to_vec()));
                }
            }
        }
    }
    Ok(())
}

type Record<'a> = ((&'a [u8], &'a [u8]), &'a [u8]);

fn pax_record(data: &[u8]) -> Option<Record<'_>> {
    let space = data.iter().take(20).position(|b| *b == b' ')?;
    let length: usize = std::str::from_utf8(&data[..space]).ok()?.parse().ok()?;
    let record = data.get(space + 1..length)?.strip_suffix(b"\n")?;
    let equals = record.iter().position(|b| *b == b'=')?;
    Some(((&record[..equals], &record[equals + 1..]), &data[length..]))
}

/// `seconds[.fraction]`, as nanoseconds below the second.
fn pax_time(value: &[u8]) -> Option<(i64, i64)> {
    let text = std::str::from_utf8(value).ok()?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let secs: i64 = whole.parse().ok()?;
    if !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let digits: String = fraction
        .chars()
        .chain("000000000".chars())
        .take(9)
        .collect();
    let nanos: i64 = digits.parse().ok()?;
    Some(match (whole.starts_with('-'), nanos) {
        (true, 1..) => (secs.checked_sub(1)?, 1_000_000_000 - nanos),
        _ => (secs, nanos),
    })
}

fn c_string(mut bytes: Vec<u8>) -> Vec<u8> {
    if let Some(end) = bytes.iter().position(|b| *b == 0) {
        bytes.truncate(end);
    }
    bytes
}

fn field<T>(entry: &str, what: &str, value: io::Result<T>) -> Result<T, ContentError> {
    value.map_err(|_| bad(entry, format!("the header's {what} is not a number")))
}

/// A field that writers may leave blank, which means zero.
fn number<T: Default>(
    entry: &str,
    what: &str,
    raw: &[u8],
    value: io::Result<T>,
) -> Result<T, ContentError> {
    if raw.iter().all(|b| matches!(b, 0 | b' ')) {
        return Ok(T::default());
    }
    field(entry, what, value)
}

fn narrow(entry: &str, what: &str, id: u64) -> Result<u32, ContentError> {
    u32::try_from(id).map_err(|_| bad(entry, format!("{what} {id} is out of range")))
}

pub(crate) fn bad(entry: &str, reason: impl Into<String>) -> ContentError {
    ContentError::Entry {
        entry: entry.to_owned(),
        reason: reason.into(),
    }
}

fn too_large(limit: u64, unit: &'static str) -> ContentError {
    ContentError::TooLarge { limit, unit }
}

/// Takes a typed error out of the I/O error that carried it.
fn content_error(error: io::Error) -> ContentError {
    error
        .downcast::<ContentError>()
        .unwrap_or_else(ContentError::Read)
}

fn ended_early() -> ContentError {
    ContentError::Read(io::ErrorKind::UnexpectedEof.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pax_times_have_fractions_and_signs() {
        assert_eq!(pax_time(b"12"), Some((12, 0)));
        assert_eq!(pax_time(b"12.5"), Some((12, 500_000_000)));
        assert_eq!(pax_time(b"12.1234567891"), Some((12, 123_456_789)));
        assert_eq!(pax_time(b"-1.25"), Some((-2, 750_000_000)));
        for bad in [&b""[..], b"x", b"1.x", b"1.-5", b"\xff"] {
            assert_eq!(pax_time(bad), None);
        }
    }

    #[test]
    fn malformed_pax_records_are_refused_without_panic() {
        for data in [
            &b"5"[..],
            b"0 a=b\n",
            b"3 a=b\n",
            b"99999999999999999999 a=b\n",
            b"7 abcd\n",
            b"999 a=b\n",
            b"10 size=x\n",
            b"-6 a=b\n",
        ] {
            let result = pax("e", data, &mut Overrides::default());
            assert!(result.is_err(), "{}", String::from_utf8_lossy(data));
        }
    }

    #[test]
    fn random_bytes_end_in_an_error_or_the_end() {
        use rand::{Rng, SeedableRng};
        let seed = 7;
        let mut random = rand::rngs::StdRng::seed_from_u64(seed);
        for _ in 0..200 {
            let mut data = vec![0u8; random.random_range(0..4096)];
            random.fill(&mut data[..]);
            let mut stream = TarStream::new(&data[..], Limits::default());
            while let Ok(Some(_)) = stream.next() {}
        }
    }
}
