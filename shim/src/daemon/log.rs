// SPDX-License-Identifier: Apache-2.0
//! The CRI log format (kubernetes/design-proposals-archive, kubelet-cri-logging): one line per
//! line of output, `<RFC3339Nano> stdout|stderr F|P <text>`; P when the line goes on.

use std::io::Write;

/// Longest text of one log line, as in containerd and CRI-O.
pub const LINE_MAX: usize = 16 * 1024;

/// Cuts one stream's bytes into log lines. Holds memory only for a line that is not complete yet.
#[derive(Debug)]
pub struct Splitter {
    stream: &'static str,
    partial: Vec<u8>,
}

impl Splitter {
    /// `stream`: the name that its lines carry.
    pub fn new(stream: &'static str) -> Splitter {
        Splitter {
            stream,
            partial: Vec::new(),
        }
    }

    /// Appends log lines for `bytes` to `out`.
    pub fn push(&mut self, time: &str, mut bytes: &[u8], out: &mut Vec<u8>) {
        while let Some(newline) = bytes.iter().position(|byte| *byte == b'\n') {
            let (line, rest) = bytes.split_at(newline);
            self.extend(time, line, out);
            let text = std::mem::take(&mut self.partial);
            self.line(time, 'F', &text, out);
            bytes = rest.get(1..).unwrap_or_default();
        }
        self.extend(time, bytes, out);
    }

    /// The stream has ended: an unfinished line is written as partial, as containerd does.
    pub fn finish(&mut self, time: &str, out: &mut Vec<u8>) {
        if !self.partial.is_empty() {
            let text = std::mem::take(&mut self.partial);
            self.line(time, 'P', &text, out);
        }
    }

    fn extend(&mut self, time: &str, mut bytes: &[u8], out: &mut Vec<u8>) {
        while self.partial.len() + bytes.len() > LINE_MAX {
            let (head, rest) = bytes.split_at(LINE_MAX - self.partial.len());
            self.partial.extend_from_slice(head);
            let text = std::mem::take(&mut self.partial);
            self.line(time, 'P', &text, out);
            bytes = rest;
        }
        self.partial.extend_from_slice(bytes);
    }

    fn line(&self, time: &str, tag: char, text: &[u8], out: &mut Vec<u8>) {
        // Writing to a vector cannot fail.
        let _ = write!(out, "{time} {} {tag} ", self.stream);
        out.extend_from_slice(text);
        out.push(b'\n');
    }
}

/// RFC3339Nano in UTC, nine digits.
pub fn timestamp(nanos: i64) -> String {
    let (seconds, fraction) = (
        nanos.div_euclid(1_000_000_000),
        nanos.rem_euclid(1_000_000_000),
    );
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{fraction:09}Z")
}

/// Days since 1970-01-01 to a date of the Gregorian calendar, by counting years from March 1st of
/// year 0, where the leap day comes last.
fn civil(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 {
        shifted_month + 3
    } else {
        shifted_month - 9
    };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn logged(pieces: &[&[u8]]) -> Vec<(String, usize)> {
        let (mut splitter, mut out) = (Splitter::new("stdout"), Vec::new());
        for piece in pieces {
            splitter.push("T", piece, &mut out);
        }
        splitter.finish("T", &mut out);
        String::from_utf8(out)
            .expect("ascii")
            .lines()
            .map(|line| {
                let text = line.strip_prefix("T stdout ").expect("prefix");
                (text[..1].to_owned(), text.len() - 2)
            })
            .collect()
    }

    fn expect(pairs: &[(&str, usize)]) -> Vec<(String, usize)> {
        pairs
            .iter()
            .map(|(tag, n)| ((*tag).to_owned(), *n))
            .collect()
    }

    #[test]
    fn whole_lines_are_full_however_they_arrive() {
        assert_eq!(
            logged(&[b"a\nbb\n\n"]),
            expect(&[("F", 1), ("F", 2), ("F", 0)])
        );
        assert_eq!(logged(&[b"a", b"b", b"c\n"]), expect(&[("F", 3)]));
    }

    #[test]
    fn long_lines_are_cut_at_16_kib() {
        let mut line = vec![b'x'; LINE_MAX];
        line.push(b'\n');
        assert_eq!(logged(&[&line]), expect(&[("F", LINE_MAX)]));
        line.insert(0, b'x');
        assert_eq!(logged(&[&line]), expect(&[("P", LINE_MAX), ("F", 1)]));
        let long = vec![b'x'; 40_000];
        assert_eq!(
            logged(&[&long, b"\n"]),
            expect(&[
                ("P", LINE_MAX),
                ("P", LINE_MAX),
                ("F", 40_000 - 2 * LINE_MAX)
            ])
        );
    }

    #[test]
    fn an_unfinished_line_is_partial() {
        assert_eq!(logged(&[b"a\nrest"]), expect(&[("F", 1), ("P", 4)]));
    }

    #[test]
    fn timestamps_are_rfc3339_in_utc() {
        assert_eq!(timestamp(0), "1970-01-01T00:00:00.000000000Z");
        assert_eq!(
            timestamp(1_709_210_096_000_000_007),
            "2024-02-29T12:34:56.000000007Z"
        );
    }
}
