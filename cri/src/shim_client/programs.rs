// SPDX-License-Identifier: Apache-2.0
//! The embedded executables, written once per run directory under a name with their digest.

use std::path::{Path, PathBuf};

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
        source: std::io::Error,
    },
}

impl Programs {
    /// Writes both executables into `dir` unless they are there. Idempotent; safe for several
    /// daemons at once (temporary name, then rename).
    ///
    /// # Errors
    /// When the directory or a file cannot be written.
    pub fn install(dir: &Path) -> Result<Programs, ProgramsError> {
        Err(ProgramsError::Write {
            path: dir.to_path_buf(),
            source: std::io::Error::other("not implemented yet"),
        })
    }
}
