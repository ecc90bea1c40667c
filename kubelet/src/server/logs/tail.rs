// SPDX-License-Identifier: Apache-2.0
//! Where the last lines of a log begin, found from the end: a tail costs what it shows, not what
//! the file holds.

use std::io::{self, Read, Seek, SeekFrom};

use super::line;

const BLOCK: usize = 64 << 10;
/// Enough of a line to see its tag: time, stream and tag take some 45 bytes.
const HEAD: usize = 128;

/// The offset at which the last `lines` lines begin. A line that the runtime split counts once,
/// and so does one at the end whose rest is still to come.
pub(super) fn start(file: &mut (impl Read + Seek), lines: u64) -> io::Result<u64> {
    let end = file.seek(SeekFrom::End(0))?;
    if lines == 0 {
        return Ok(end);
    }
    let mut count = Counter {
        wanted: lines,
        full: 0,
        first: None,
    };
    let mut block_start = end;
    // The block, followed by the beginning of the one after it.
    let mut window: Vec<u8> = Vec::new();
    while block_start > 0 {
        let size = usize::try_from(block_start).unwrap_or(BLOCK).min(BLOCK);
        block_start -= size as u64;
        window.truncate(HEAD);
        let mut block = vec![0; size];
        file.seek(SeekFrom::Start(block_start))?;
        file.read_exact(&mut block)?;
        block.extend_from_slice(&window);
        window = block;
        for at in (0..size).rev().filter(|at| window[*at] == b'\n') {
            let line_start = block_start + at as u64 + 1;
            if line_start < end
                && let Some(start) = count.line(line_start, &window[at + 1..])
            {
                return Ok(start);
            }
        }
    }
    if end > 0
        && let Some(start) = count.line(0, &window)
    {
        return Ok(start);
    }
    Ok(0)
}

/// Sees lines from the last to the first.
struct Counter {
    wanted: u64,
    /// Logical lines whose end was seen.
    full: u64,
    /// Where the line that was seen before this one begins.
    first: Option<u64>,
}

impl Counter {
    fn line(&mut self, start: u64, bytes: &[u8]) -> Option<u64> {
        let head = &bytes[..bytes.len().min(HEAD)];
        let head = head.split(|byte| *byte == b'\n').next().unwrap_or_default();
        let partial = line::parse(head).is_some_and(|line| line.partial);
        // The end of a logical line; the last line of the file ends one in any case.
        if !partial || self.first.is_none() {
            if self.full == self.wanted {
                return self.first;
            }
            self.full += 1;
        }
        self.first = Some(start);
        None
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write;
    use std::io::Cursor;

    use super::*;

    fn check(log: &str, lines: u64, want: &str) {
        let start = start(&mut Cursor::new(log.as_bytes()), lines).expect("reads");
        let start = usize::try_from(start).expect("small");
        assert_eq!(&log[start..], want, "last {lines} of {log:?}");
    }

    #[test]
    fn whole_lines_are_counted() {
        let (a, b, c) = ("t stdout F a\n", "t stdout F b\n", "t stdout F c\n");
        let log = [a, b, c].concat();
        check(&log, 0, "");
        check(&log, 1, c);
        check(&log, 2, &[b, c].concat());
        check(&log, 3, &log);
        check(&log, 9, &log);
        check("", 3, "");
    }

    #[test]
    fn a_split_line_counts_once() {
        let log = "t stdout F a\nt stdout P b1\nt stdout P b2\nt stdout F b3\nt stdout F c\n";
        check(log, 1, "t stdout F c\n");
        check(log, 2, &log[13..]);
        check(log, 3, log);
    }

    #[test]
    fn an_unfinished_line_counts() {
        let log = "t stdout F a\nt stdout F b\nt stdout P c1\n";
        check(log, 1, "t stdout P c1\n");
        check(log, 2, &log[13..]);
        let log = "t stdout F a\nt stdout F b\nt stdout F c";
        check(log, 1, "t stdout F c");
        check(log, 2, &log[13..]);
    }

    #[test]
    fn lines_across_blocks_are_found() {
        let mut log = String::new();
        for number in 0..9000 {
            writeln!(log, "2026-01-01T00:00:00.000000000Z stdout F line {number}").expect("fits");
        }
        assert!(log.len() > 5 * BLOCK);
        for lines in [1, 2, 100, 1500, 8999] {
            let start = start(&mut Cursor::new(log.as_bytes()), lines).expect("reads");
            let tail = &log[usize::try_from(start).expect("small")..];
            assert_eq!(tail.lines().count() as u64, lines);
            assert!(tail.starts_with("2026"));
        }
    }
}
