// SPDX-License-Identifier: Apache-2.0
//! Exit records on disk: what is left to read should the shim itself die.
//!
//! One small text file for each first process, `exits/<container>`, written under another name and
//! renamed. Not synced: the directory lives no longer than the processes do.

use std::io;
use std::path::{Path, PathBuf};

use crate::protocol::ExitRecord;

const FOLDER: &str = "exits";
const VERSION: &str = "1";

fn path(dir: &Path, container: &str) -> PathBuf {
    dir.join(FOLDER).join(container)
}

/// Writes a record. Replaces an older one. A directory that is gone is not made again.
///
/// # Errors
/// When the file cannot be written.
pub(super) fn write(dir: &Path, container: &str, record: &ExitRecord) -> io::Result<()> {
    let target = path(dir, container);
    let temporary = dir.join(FOLDER).join(format!(".{container}.new"));
    match std::fs::create_dir(dir.join(FOLDER)) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    std::fs::write(&temporary, text(record))?;
    std::fs::rename(temporary, target)
}

/// Removes a record; it need not exist.
pub(super) fn remove(dir: &Path, container: &str) {
    // What cannot be removed now goes with the pod's directory.
    let _ = std::fs::remove_file(path(dir, container));
}

/// All records of a pod's directory, by container. Unreadable files are left out.
///
/// # Errors
/// When the folder cannot be listed; one that does not exist has no records.
pub fn read_all(dir: &Path) -> io::Result<Vec<(String, ExitRecord)>> {
    let entries = match std::fs::read_dir(dir.join(FOLDER)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let mut records = Vec::new();
    for entry in entries {
        let entry = entry?;
        let Ok(name) = entry.file_name().into_string() else {
            continue;
        };
        let record = std::fs::read_to_string(entry.path()).ok();
        if let (false, Some(record)) = (name.starts_with('.'), record.as_deref().and_then(parse)) {
            records.push((name, record));
        }
    }
    Ok(records)
}

fn text(record: &ExitRecord) -> String {
    let ExitRecord {
        pid,
        code,
        signal,
        oom_killed,
        started_at,
        finished_at,
    } = record;
    let oom = u8::from(*oom_killed);
    format!("{VERSION} {pid} {code} {signal} {oom} {started_at} {finished_at}\n")
}

fn parse(text: &str) -> Option<ExitRecord> {
    let mut words = text.split_ascii_whitespace();
    if words.next()? != VERSION {
        return None;
    }
    Some(ExitRecord {
        pid: words.next()?.parse().ok()?,
        code: words.next()?.parse().ok()?,
        signal: words.next()?.parse().ok()?,
        oom_killed: words.next()? == "1",
        started_at: words.next()?.parse().ok()?,
        finished_at: words.next()?.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_survive_the_disk() {
        let record = ExitRecord {
            pid: 12,
            code: 137,
            signal: 9,
            oom_killed: true,
            started_at: 5,
            finished_at: 7,
        };
        assert_eq!(parse(&text(&record)), Some(record));
        assert_eq!(parse("2 1 2"), None);
        assert_eq!(parse(""), None);
    }
}
