// SPDX-License-Identifier: Apache-2.0
//! Pre-installed plugins: programs that are started with the runtime and end with it.
//!
//! Such a program finds its connection in a descriptor that it inherits, named by
//! `NRI_PLUGIN_SOCKET`. Here it is its standard input, which needs no call between fork and exec.

use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream as StdStream;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use tokio::net::UnixStream;
use tokio::process::{Child, Command};

use super::plugin::Identity;
use crate::fault::{Fault, Result};
use crate::settings;

/// Configuration that a plugin gets, at most: it travels in one message.
const CONFIG_MAX: u64 = 1 << 20;
/// Plugins in the directory, at most.
const PLUGINS_MAX: usize = 100;

/// A program that is to be started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Program {
    pub(super) identity: Identity,
    path: PathBuf,
    /// The content of its configuration file.
    pub(super) config: String,
}

/// The programs of the plugin directory, in order. What cannot be one is left out, and logged. Blocks.
pub(super) fn find(config: &settings::Nri) -> Vec<Program> {
    let entries = match std::fs::read_dir(&config.plugin_path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Vec::new(),
        Err(error) => {
            tracing::warn!(dir = %config.plugin_path.display(), %error, "nri: pre-installed plugins cannot be read");
            return Vec::new();
        }
    };
    let mut found = Vec::new();
    for entry in entries.flatten().take(PLUGINS_MAX) {
        match program(&entry.path(), config) {
            Ok(program) => found.extend(program),
            Err(fault) => {
                tracing::warn!(error = %fault.chain(), "nri: a pre-installed plugin is left out");
            }
        }
    }
    found.sort_by_key(|program| program.identity.name());
    found
}

fn program(path: &Path, config: &settings::Nri) -> Result<Option<Program>> {
    let look = |e| Fault::internal(format!("looking at {}", path.display()), e);
    let metadata = std::fs::metadata(path).map_err(look)?;
    if !metadata.is_file() || metadata.permissions().mode() & 0o111 == 0 {
        return Ok(None);
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let identity = Identity::of_file(&name).map_err(|e| Fault::invalid(e.to_string()))?;
    let config = read_config(&config.plugin_config_path, &identity)?;
    Ok(Some(Program {
        identity,
        path: path.to_owned(),
        config,
    }))
}

/// That of this very plugin, else that of all with its name, else none.
fn read_config(dir: &Path, identity: &Identity) -> Result<String> {
    for name in [identity.name(), identity.base.clone()] {
        let path = dir.join(format!("{name}.conf"));
        let read = std::fs::metadata(&path).and_then(|metadata| {
            if metadata.len() > CONFIG_MAX {
                return Err(io::Error::other(format!("larger than {CONFIG_MAX} bytes")));
            }
            std::fs::read_to_string(&path)
        });
        match read {
            Ok(text) => return Ok(text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                return Err(Fault::internal(
                    format!("reading {}", path.display()),
                    error,
                ));
            }
        }
    }
    Ok(String::new())
}

impl Program {
    /// Starts it. It is killed when the handle is dropped.
    ///
    /// # Errors
    /// When it cannot be executed.
    pub(super) fn start(&self) -> Result<(Child, UnixStream)> {
        let failed = |e| Fault::internal(format!("starting {}", self.path.display()), e);
        let (ours, theirs) = StdStream::pair().map_err(failed)?;
        ours.set_nonblocking(true).map_err(failed)?;
        let child = Command::new(&self.path)
            .env_clear()
            .env("NRI_PLUGIN_NAME", &self.identity.base)
            .env("NRI_PLUGIN_IDX", &self.identity.index)
            .env("NRI_PLUGIN_SOCKET", "0")
            .stdin(Stdio::from(std::os::fd::OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .map_err(failed)?;
        Ok((child, UnixStream::from_std(ours).map_err(failed)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_found_in_order_with_their_configuration() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, mode: u32| {
            let path = dir.path().join(name);
            std::fs::write(&path, name).unwrap();
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
        };
        for (name, mode) in [
            ("20-b", 0o755),
            ("10-a", 0o755),
            ("nonsense", 0o755),
            ("30-c", 0o644),
            ("a.conf", 0o644),
            ("20-b.conf", 0o644),
            ("b.conf", 0o644),
        ] {
            file(name, mode);
        }
        let found = find(&settings::Nri {
            plugin_path: dir.path().to_owned(),
            plugin_config_path: dir.path().to_owned(),
            ..settings::Nri::default()
        });
        let seen: Vec<_> = found
            .iter()
            .map(|p| (p.identity.name(), p.config.clone()))
            .collect();
        let named = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        assert_eq!(seen, [named("10-a", "a.conf"), named("20-b", "20-b.conf")]);
    }
}
