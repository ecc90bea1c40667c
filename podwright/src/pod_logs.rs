// SPDX-License-Identifier: Apache-2.0
//! Prints what containers write, from their CRI log files (`<time> stdout|stderr P|F <text>`).

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// One look reads at most this much of a file, so that a chatty container can't fill memory.
const CHUNK: u64 = 1 << 20;

/// Follows every log file below a directory laid out as `<pod>/<container>/<n>.log`.
pub(crate) struct Printer {
    dir: PathBuf,
    /// Bytes printed of each file.
    offsets: BTreeMap<PathBuf, u64>,
}

impl Printer {
    pub(crate) fn new(dir: &Path) -> Self {
        Self {
            dir: dir.to_owned(),
            offsets: BTreeMap::new(),
        }
    }

    /// Prints the whole lines that are new since the last call. Lines carry the name of their
    /// container once there are several.
    pub(crate) fn print_new(&mut self) {
        let files = log_files(&self.dir);
        let several = files.len() > 1;
        let mut out = std::io::stdout().lock();
        for (file, container) in files {
            let prefix = if several {
                format!("[{container}] ")
            } else {
                String::new()
            };
            let offset = self.offsets.entry(file.clone()).or_default();
            while let Some(bytes) = new_lines(&file, *offset) {
                *offset += bytes.len() as u64;
                // Nobody reading any more is no reason to stop the pod.
                let _ = out.write_all(&texts(&bytes, &prefix));
            }
        }
        let _ = out.flush();
    }
}

/// Every log file and the name of its container, in order.
fn log_files(dir: &Path) -> Vec<(PathBuf, String)> {
    let entries = |dir: &Path| -> Vec<PathBuf> {
        let mut paths: Vec<_> = fs::read_dir(dir)
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path())
            .collect();
        paths.sort();
        paths
    };
    let mut files = Vec::new();
    for pod in entries(dir) {
        for container in entries(&pod) {
            let name = container.file_name().unwrap_or_default();
            let name = name.to_string_lossy().into_owned();
            for file in entries(&container) {
                if file.extension().is_some_and(|extension| extension == "log") {
                    files.push((file, name.clone()));
                }
            }
        }
    }
    files
}

/// The bytes from `offset` up to the last line feed; none if there is no whole line.
fn new_lines(file: &Path, offset: u64) -> Option<Vec<u8>> {
    let mut file = File::open(file).ok()?;
    file.seek(SeekFrom::Start(offset)).ok()?;
    let mut bytes = Vec::new();
    file.take(CHUNK).read_to_end(&mut bytes).ok()?;
    let end = bytes.iter().rposition(|byte| *byte == b'\n')? + 1;
    bytes.truncate(end);
    Some(bytes)
}

/// The texts of CRI log lines; a partial line goes on without a line feed.
fn texts(lines: &[u8], prefix: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(lines.len());
    let mut at_start = true;
    for line in lines
        .split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty())
    {
        let mut fields = line.splitn(4, |byte| *byte == b' ');
        let (_time, _stream) = (fields.next(), fields.next());
        let tag = fields.next().unwrap_or_default();
        let text = fields.next().unwrap_or_default();
        if at_start {
            out.extend_from_slice(prefix.as_bytes());
        }
        out.extend_from_slice(text);
        at_start = tag != b"P";
        if at_start {
            out.push(b'\n');
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partial_line_is_joined_with_the_rest_of_it() {
        let lines = b"t stdout F one two\nt stderr P thr\nt stderr F ee\nt stdout F \n";
        assert_eq!(texts(lines, ""), b"one two\nthree\n\n");
        assert_eq!(texts(lines, "[c] "), b"[c] one two\n[c] three\n[c] \n");
    }
}
