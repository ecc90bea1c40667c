// SPDX-License-Identifier: Apache-2.0
//! What a container said at its end: the termination message file, or the tail of its log.

use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::Container;

use super::state::ContainerSeen;

/// Upstream's bounds: the message, and the log tail in bytes and lines.
const MESSAGE_BYTES_MAX: u64 = 4096;
const TAIL_BYTES_MAX: usize = 2048;
const TAIL_LINES_MAX: usize = 80;
/// Bytes of log file that are searched for the tail: CRI lines carry a prefix.
const TAIL_READ_BYTES: u64 = 32 * 1024;

/// Reads the message of an ended container. What cannot be read is an empty message, or says so
/// where upstream does.
pub async fn read(container: &Container, seen: &ContainerSeen, log_file: PathBuf) -> String {
    let policy = container.termination_message_policy.clone();
    let file = seen.termination_log.clone().map(PathBuf::from);
    let failed = seen.exit_code != 0;
    let work = tokio::task::spawn_blocking(move || {
        let message = file.map(|file| head(&file)).unwrap_or_default();
        let fall_back = policy.as_deref() == Some("FallbackToLogsOnError");
        if message.is_empty() && fall_back && failed {
            return tail(&log_file);
        }
        message
    });
    work.await.unwrap_or_default()
}

fn head(path: &Path) -> String {
    let Ok(file) = std::fs::File::open(path) else {
        return String::new();
    };
    // The container could have replaced the file: only plain files are read, so nothing blocks.
    if !file.metadata().is_ok_and(|metadata| metadata.is_file()) {
        return String::new();
    }
    let mut bytes = Vec::new();
    let read = file.take(MESSAGE_BYTES_MAX).read_to_end(&mut bytes);
    if let Err(error) = read {
        return format!(
            "Error on reading termination log {}: {error}",
            path.display()
        );
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn tail(path: &Path) -> String {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = std::fs::File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(TAIL_READ_BYTES)))?;
        let mut bytes = Vec::new();
        file.take(TAIL_READ_BYTES).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    match read() {
        Ok(bytes) => last_lines(&String::from_utf8_lossy(&bytes)),
        Err(error) => format!("Error on reading termination message from logs: {error}"),
    }
}

/// The text of the last CRI log lines (`<time> <stream> <tag> <text>`), within the bounds.
fn last_lines(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    let mut text = String::new();
    for line in &lines[lines.len().saturating_sub(TAIL_LINES_MAX)..] {
        let mut parts = line.splitn(4, ' ').skip(2);
        let partial = parts.next() == Some("P");
        text.push_str(parts.next().unwrap_or_default());
        if !partial {
            text.push('\n');
        }
    }
    let from = text.len().saturating_sub(TAIL_BYTES_MAX);
    let from = (from..=text.len()).find(|at| text.is_char_boundary(*at));
    text.split_off(from.unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_is_the_text_of_the_last_lines() {
        let log = "t stdout F one\nt stderr P tw\nt stderr F o\n";
        assert_eq!(last_lines(log), "one\ntwo\n");
        let long: String = (0..200).map(|n| format!("t stdout F {n:040}\n")).collect();
        let tail = last_lines(&long);
        assert!(tail.len() <= TAIL_BYTES_MAX && tail.ends_with("199\n"));
    }
}
