// SPDX-License-Identifier: Apache-2.0
//! The embedded executables, written once per run directory under a name with their digest.

use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

static SHIM: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/podwright-shim"));
static PAUSE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/pause"));

/// Where the shim and pause executables are.
#[derive(Debug, Clone)]
pub struct Programs {
    pub shim: PathBuf,
    pub pause: PathBuf,
}

#[derive(Debug, thiserror::Error)]
pub enum ProgramsError {
    #[error("writing the embedded executable {path}")]
    Write {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

impl Programs {
    /// Writes both executables into `dir` unless they are there. Idempotent; safe for several
    /// daemons at once (temporary name, then rename). A shim of an older build keeps its file.
    ///
    /// # Errors
    /// When the directory or a file cannot be written.
    pub fn install(dir: &Path) -> Result<Programs, ProgramsError> {
        let failed = |path: &Path| {
            let path = path.to_path_buf();
            move |source| ProgramsError::Write { path, source }
        };
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(failed(dir))?;
        let write = |name, content| {
            let path = dir.join(file_name(name, content));
            install(&path, content).map_err(failed(&path))?;
            Ok(path)
        };
        Ok(Programs {
            shim: write("podwright-shim", SHIM)?,
            pause: write("pause", PAUSE)?,
        })
    }
}

fn file_name(name: &str, content: &[u8]) -> String {
    use std::fmt::Write as _;
    let digest = Sha256::digest(content);
    let mut file = format!("{name}-");
    for byte in digest.iter().take(8) {
        // Writing to a string cannot fail.
        let _ = write!(file, "{byte:02x}");
    }
    file
}

/// A file of the right length under this name was renamed there by one of us, complete.
fn install(path: &Path, content: &[u8]) -> io::Result<()> {
    if std::fs::metadata(path).is_ok_and(|there| there.len() == content.len() as u64) {
        return Ok(());
    }
    let temporary = path.with_extension(format!("{}.new", std::process::id()));
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o555)
        .open(&temporary)?;
    file.write_all(content)?;
    drop(file);
    std::fs::rename(temporary, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn installing_twice_writes_once() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let first = Programs::install(&dir.path().join("bin")).expect("installs");
        let before = std::fs::metadata(&first.shim).expect("exists");
        let second = Programs::install(&dir.path().join("bin")).expect("installs");
        let after = std::fs::metadata(&second.shim).expect("exists");
        assert_eq!(first.shim, second.shim);
        assert_eq!(before.modified().ok(), after.modified().ok());
    }

    #[test]
    fn pause_is_at_most_16_kib() {
        assert!(PAUSE.len() <= 16 * 1024, "{} bytes", PAUSE.len());
    }
}
