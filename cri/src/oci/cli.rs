// SPDX-License-Identifier: Apache-2.0
//! The `podwright oci` commands.

use std::ffi::OsString;
use std::process::ExitCode;

/// Runs one command of the OCI runtime. `args` starts with the program's name (`podwright oci`).
/// Errors go to stderr and, as runc does, to the file of `--log`.
pub fn main(args: impl Iterator<Item = OsString>) -> ExitCode {
    let _ = args.count();
    eprintln!("podwright oci: not implemented yet");
    ExitCode::FAILURE
}
