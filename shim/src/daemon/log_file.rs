// SPDX-License-Identifier: Apache-2.0
//! A container's log file: opened anew after a rotation, and never a reason to stop the container.
//!
//! A disk that is full costs lines, as with containerd: the container's output is read on and
//! dropped until there is room again. What is in the file stays whole lines.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;

use super::complain;

#[derive(Debug)]
pub(super) struct LogFile {
    path: String,
    file: File,
    /// Bytes that could not be written since the last ones that could.
    lost: u64,
}

impl LogFile {
    pub(super) fn open(path: &str) -> io::Result<LogFile> {
        Ok(LogFile {
            path: path.to_owned(),
            file: open(path)?,
            lost: 0,
        })
    }

    /// Opens the file anew, by the same name. On failure the old one stays in use.
    pub(super) fn reopen(&mut self) -> io::Result<()> {
        self.file = open(&self.path)?;
        Ok(())
    }

    /// Appends whole lines: all of them, or none.
    pub(super) fn append(&mut self, lines: &[u8]) {
        if lines.is_empty() {
            return;
        }
        let mut rest = lines;
        while !rest.is_empty() {
            match self.file.write(rest) {
                Ok(count) if count > 0 => rest = rest.get(count..).unwrap_or_default(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => return self.lose(lines.len(), lines.len() - rest.len(), other.err()),
            }
        }
        if self.lost > 0 {
            let (path, lost) = (&self.path, self.lost);
            complain(format_args!(
                "{lost} bytes were lost before {path} took more"
            ));
            self.lost = 0;
        }
    }

    /// Takes back what was written of lines that do not fit.
    fn lose(&mut self, all: usize, written: usize, error: Option<io::Error>) {
        if self.lost == 0 {
            let error = error.unwrap_or_else(|| io::ErrorKind::WriteZero.into());
            complain(format_args!("writing {}: {error}", self.path));
        }
        self.lost += all as u64;
        if written > 0
            && let Ok(stat) = self.file.metadata()
        {
            // Nobody else appends. Should it fail, a reader sees one line that is cut short.
            let _ = self.file.set_len(stat.len().saturating_sub(written as u64));
        }
    }
}

/// Appends, never follows a symbolic link (the directory may be a pod's volume), mode 0640.
fn open(path: &str) -> io::Result<File> {
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o640)
        .custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC)
        .open(path)
}
