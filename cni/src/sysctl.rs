// SPDX-License-Identifier: Apache-2.0
//! Network sysctls, of the network namespace of the calling thread.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Which setting could not be made.
#[derive(Debug, thiserror::Error)]
#[error("writing {value} to {path}")]
pub(crate) struct SysctlError {
    path: PathBuf,
    value: &'static str,
    #[source]
    source: io::Error,
}

/// Set `net/<name>`, if it has another value. A setting that the kernel does not have (IPv6
/// switched off) is passed over.
pub(crate) fn set(name: &str, value: &'static str) -> Result<(), SysctlError> {
    // /proc/sys/net shows the namespace of the thread that opens it, unlike /proc/net.
    let path = Path::new("/proc/sys/net").join(name);
    let written = match fs::read_to_string(&path) {
        Ok(text) if text.trim() == value => Ok(()),
        Ok(_) => fs::write(&path, value),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    };
    written.map_err(|source| SysctlError {
        path,
        value,
        source,
    })
}
