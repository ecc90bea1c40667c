// SPDX-License-Identifier: Apache-2.0
//! Lines of a CRI log file, and how they become what a reader sees. Pure.
//!
//! A line is `<RFC 3339 time> stdout|stderr P|F[:tags] <text>`. The runtime splits long lines: `P`
//! says that the rest follows in another one.

use jiff::Timestamp;

use super::options::{LogOptions, StreamFilter};

/// A file line longer than this isn't one of the runtime's; it is skipped.
const MAX_LINE: usize = 1 << 20;

/// One parsed line.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Line<'a> {
    pub(super) time: &'a str,
    pub(super) stdout: bool,
    pub(super) partial: bool,
    pub(super) text: &'a [u8],
}

/// Parses a line without its newline; `None` for anything else than the format.
pub(super) fn parse(line: &[u8]) -> Option<Line<'_>> {
    let mut parts = line.splitn(4, |byte| *byte == b' ');
    let time = std::str::from_utf8(parts.next()?).ok()?;
    let stdout = match parts.next()? {
        b"stdout" => true,
        b"stderr" => false,
        _ => return None,
    };
    let tags = parts.next()?;
    let partial = match tags.split(|byte| *byte == b':').next()? {
        b"P" => true,
        b"F" => false,
        _ => return None,
    };
    Some(Line {
        time,
        stdout,
        partial,
        text: parts.next().unwrap_or_default(),
    })
}

/// Cuts a stream of bytes into lines. A line may arrive in any number of pieces.
#[derive(Debug, Default)]
pub(super) struct Splitter {
    pending: Vec<u8>,
    skipping: bool,
}

impl Splitter {
    /// Calls `line` for every line that `bytes` completes; stops early when it returns false.
    pub(super) fn push(&mut self, mut bytes: &[u8], mut line: impl FnMut(&[u8]) -> bool) -> bool {
        while let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
            let (head, tail) = (&bytes[..end], &bytes[end + 1..]);
            bytes = tail;
            if std::mem::take(&mut self.skipping) {
                continue;
            }
            let go_on = if self.pending.is_empty() {
                line(head)
            } else {
                self.pending.extend_from_slice(head);
                let whole = std::mem::take(&mut self.pending);
                line(&whole)
            };
            if !go_on {
                return false;
            }
        }
        if !self.skipping {
            self.pending.extend_from_slice(bytes);
        }
        if self.pending.len() > MAX_LINE {
            self.pending = Vec::new();
            self.skipping = true;
        }
        true
    }

    /// What came after the last newline, at the end of a file that nobody writes any more.
    pub(super) fn finish(&mut self, line: impl FnOnce(&[u8]) -> bool) {
        let rest = std::mem::take(&mut self.pending);
        if !rest.is_empty() {
            line(&rest);
        }
    }
}

/// Turns lines into output: joins partial ones, filters, stamps, and stops at the limit.
#[derive(Debug)]
pub(super) struct Formatter {
    since: Option<Timestamp>,
    timestamps: bool,
    stream: StreamFilter,
    remaining: Option<u64>,
    at_line_start: bool,
}

impl Formatter {
    pub(super) fn new(options: &LogOptions) -> Self {
        Self {
            since: options.since,
            timestamps: options.timestamps,
            stream: options.stream,
            remaining: options.limit_bytes,
            at_line_start: true,
        }
    }

    /// Appends what a reader sees of `line`; false when the limit is reached. Lines that don't
    /// parse are skipped: a half-written one after a crash must not end the log.
    pub(super) fn push(&mut self, line: &[u8], out: &mut Vec<u8>) -> bool {
        let Some(line) = parse(line) else {
            return true;
        };
        let wrong_stream = match self.stream {
            StreamFilter::All => false,
            StreamFilter::Stdout => !line.stdout,
            StreamFilter::Stderr => line.stdout,
        };
        if wrong_stream || self.is_too_old(&line) {
            return true;
        }
        let start = out.len();
        if self.timestamps && self.at_line_start {
            out.extend_from_slice(nine_digits(line.time).as_bytes());
            out.push(b' ');
        }
        out.extend_from_slice(line.text);
        if !line.partial {
            out.push(b'\n');
        }
        self.at_line_start = !line.partial;
        let Some(remaining) = &mut self.remaining else {
            return true;
        };
        let written = (out.len() - start) as u64;
        if written < *remaining {
            *remaining -= written;
            return true;
        }
        let keep = usize::try_from(*remaining).unwrap_or(usize::MAX);
        out.truncate(start.saturating_add(keep));
        *remaining = 0;
        false
    }

    fn is_too_old(&self, line: &Line<'_>) -> bool {
        let Some(since) = self.since else {
            return false;
        };
        line.time
            .parse::<Timestamp>()
            .is_ok_and(|time| time < since)
    }
}

/// Upstream prints nine digits of fraction whatever the runtime wrote.
fn nine_digits(time: &str) -> String {
    match time.parse::<Timestamp>() {
        Ok(time) => time.strftime("%Y-%m-%dT%H:%M:%S.%9fZ").to_string(),
        Err(_) => time.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "\
        2026-01-01T00:00:01.5Z stdout F one\n\
        2026-01-01T00:00:02Z stdout P tw\n\
        2026-01-01T00:00:03Z stdout F o\n\
        garbage\n\
        2026-01-01T00:00:04.123456789Z stderr F\n\
        2026-01-01T00:00:05+01:00 stdout F:x three words here\n";

    fn read(options: &LogOptions, log: &[u8], step: usize) -> String {
        let (mut splitter, mut formatter) = (Splitter::default(), Formatter::new(options));
        let mut out = Vec::new();
        for piece in log.chunks(step) {
            if !splitter.push(piece, |line| formatter.push(line, &mut out)) {
                break;
            }
        }
        String::from_utf8(out).expect("text")
    }

    fn check(options: LogOptions, want: &str) {
        for step in [1, 7, 1000] {
            assert_eq!(
                read(&options, LOG.as_bytes(), step),
                want,
                "in steps of {step}"
            );
        }
    }

    #[test]
    fn partial_lines_are_joined_and_garbage_is_skipped() {
        check(LogOptions::default(), "one\ntwo\n\nthree words here\n");
    }

    #[test]
    fn timestamps_stand_once_per_line() {
        let options = LogOptions {
            timestamps: true,
            ..LogOptions::default()
        };
        check(
            options,
            "2026-01-01T00:00:01.500000000Z one\n2026-01-01T00:00:02.000000000Z two\n\
             2026-01-01T00:00:04.123456789Z \n2025-12-31T23:00:05.000000000Z three words here\n",
        );
    }

    #[test]
    fn old_lines_and_the_other_stream_are_left_out() {
        let since = "2026-01-01T00:00:03Z".parse().ok();
        check(
            LogOptions {
                since,
                ..LogOptions::default()
            },
            "o\n\n",
        );
        let stream = StreamFilter::Stderr;
        check(
            LogOptions {
                stream,
                ..LogOptions::default()
            },
            "\n",
        );
    }

    #[test]
    fn the_limit_cuts_within_a_line() {
        for (limit, want) in [(1, "o"), (4, "one\n"), (6, "one\ntw"), (8, "one\ntwo\n")] {
            check(
                LogOptions {
                    limit_bytes: Some(limit),
                    ..LogOptions::default()
                },
                want,
            );
        }
    }

    #[test]
    fn lines_that_are_none_are_refused() {
        for line in [
            "",
            "t",
            "t stdout",
            "t stdlog F x",
            "t stdout X x",
            "t  stdout F x",
        ] {
            assert_eq!(parse(line.as_bytes()), None, "{line:?}");
        }
        let line = parse(b"t stderr P a b ").expect("a line");
        assert_eq!(
            (line.text, line.partial, line.stdout),
            (&b"a b "[..], true, false)
        );
    }

    #[test]
    fn an_endless_line_is_skipped_without_filling_memory() {
        let mut log = vec![b'x'; MAX_LINE + 10];
        log.extend_from_slice(b"\n2026-01-01T00:00:01Z stdout F after\n");
        assert_eq!(read(&LogOptions::default(), &log, 4096), "after\n");
    }

    #[test]
    fn a_last_line_without_a_newline_is_read_at_the_end() {
        let mut splitter = Splitter::default();
        assert!(splitter.push(b"a\nb", |line| line == b"a"));
        let mut seen = Vec::new();
        splitter.finish(|line| {
            seen.extend_from_slice(line);
            true
        });
        assert_eq!(seen, b"b");
    }
}
