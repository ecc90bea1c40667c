// SPDX-License-Identifier: Apache-2.0
//! Network sysctls, of the network namespace of the calling thread.

use std::fs;
use std::io::{self, Write};
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
    match fs::read_to_string(path(name)) {
        Ok(text) if text.trim() == value => Ok(()),
        _ => put(name, value),
    }
}

/// As [`set`], where a look at what it is now would be in vain: in a new namespace.
pub(crate) fn put(name: &str, value: &'static str) -> Result<(), SysctlError> {
    let path = path(name);
    let file = fs::OpenOptions::new().write(true).open(&path);
    match file.and_then(|mut file| file.write_all(value.as_bytes())) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(SysctlError {
            path,
            value,
            source,
        }),
        _ => Ok(()),
    }
}

/// /proc/sys/net shows the namespace of the thread that opens it, unlike /proc/net.
fn path(name: &str) -> PathBuf {
    Path::new("/proc/sys/net").join(name)
}
