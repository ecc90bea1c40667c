// SPDX-License-Identifier: Apache-2.0
//! The cluster's own certificate authority, the certificates of every part, and the kubeconfigs
//! that carry them.
//!
//! Everything is kept in files and reused on restart. A certificate is made anew when it is near
//! its end, was signed by another authority, or lacks a name that it should carry. Keys are only
//! readable by their owner. Files are written under a temporary name and renamed, so a crash
//! leaves the old file or the new one.

mod agent;
mod authority;
mod files;
mod kubeconfig;
mod server;

pub use agent::{AgentFiles, agent_credentials};
pub(crate) use authority::{Authority, Identity, KeyFiles};
pub(crate) use server::{ComponentFiles, ServerFiles};

use std::path::PathBuf;

/// Why certificates or kubeconfigs could not be read or made.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// A file could not be read.
    #[error("reading {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
    /// A file or folder could not be written.
    #[error("writing {path}")]
    Write {
        /// The file or folder.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
    /// A certificate or key could not be made.
    #[error("making the certificate of {name}")]
    Make {
        /// Whose certificate.
        name: String,
        /// The library's error.
        #[source]
        source: rcgen::Error,
    },
    /// A file holds something else than a certificate or key.
    #[error("{path} holds no usable {what}: {reason}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What was expected in it.
        what: &'static str,
        /// What the parser said.
        reason: String,
    },
}
