// SPDX-License-Identifier: Apache-2.0
//! `podwright version`.

use std::process::ExitCode;

/// The release, and the Kubernetes API version that it serves.
pub(crate) const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), " (Kubernetes v1.37.0)");

pub(crate) fn main() -> anyhow::Result<ExitCode> {
    println!("podwright {VERSION}");
    Ok(ExitCode::SUCCESS)
}
