// SPDX-License-Identifier: Apache-2.0
//! The runtime as engines want it: one path.

use std::os::unix::fs::symlink;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tests::host::{binary, output_of};
use tests::{TestHost, wait_until};

/// An engine's command has ended by then, or hangs.
const DEADLINE: Duration = Duration::from_secs(60);

/// A link by whose name the executable is an OCI runtime.
pub(crate) fn link(host: &TestHost) -> Result<String> {
    let link = host.path().join("podwright-oci");
    symlink(binary().canonicalize()?, &link).context("linking the runtime")?;
    Ok(link.to_string_lossy().into_owned())
}

/// What a command printed, and its exit code.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

pub(crate) fn run(command: &mut Command) -> Result<Ended> {
    let output = output_of(command)?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end().to_owned();
    Ok(Ended {
        code: output.status.code().unwrap_or(-1),
        stdout: text(&output.stdout),
        stderr: text(&output.stderr),
    })
}

impl Ended {
    /// Standard output, if it succeeded.
    pub(crate) fn ok(self) -> Result<String> {
        ensure!(self.code == 0, "{self:?}");
        Ok(self.stdout)
    }
}

pub(crate) fn eventually(what: &str, condition: impl FnMut() -> bool) -> Result<()> {
    wait_until(what, DEADLINE, condition)
}
