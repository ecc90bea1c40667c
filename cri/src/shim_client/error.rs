// SPDX-License-Identifier: Apache-2.0
//! What can go wrong with a shim.

use std::path::PathBuf;

use shim::protocol::FailureKind;

#[derive(Debug, thiserror::Error)]
pub enum ShimError {
    /// Nobody answers at this directory's socket: the shim is dead (or never was).
    #[error("no shim answers in {dir}")]
    Gone {
        dir: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("starting the shim in {dir}")]
    Spawn {
        dir: PathBuf,
        #[source]
        source: std::io::Error,
    },
    /// The shim refused; `message` is fit for a container status (runc's wording where it has one).
    #[error("{message}")]
    Refused { kind: FailureKind, message: String },
    #[error("the shim in {dir} did not answer {request} within {waited:?}")]
    Timeout {
        dir: PathBuf,
        request: &'static str,
        waited: std::time::Duration,
    },
    #[error("the shim in {dir} answered {request} with something else")]
    Protocol { dir: PathBuf, request: &'static str },
}
