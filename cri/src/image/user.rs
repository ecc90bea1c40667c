// SPDX-License-Identifier: Apache-2.0
//! Who a container runs as, looked up in the image's `/etc/passwd` and `/etc/group`.

use std::path::PathBuf;

/// The answer of [`resolve`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResolvedUser {
    pub uid: u32,
    pub gid: u32,
    /// Groups that list the user as a member in `/etc/group`, sorted, without `gid`.
    pub additional_gids: Vec<u32>,
    /// The user's name, when it is known.
    pub name: Option<String>,
    /// The user's home directory, when it is known.
    pub home: Option<String>,
    /// Whether the user was given as a number. With `runAsNonRoot`, a name is not proof enough.
    pub numeric: bool,
}

/// Why a user could not be found.
#[derive(Debug, thiserror::Error)]
pub enum UserError {
    #[error("{0:?} is not of the form user[:group]")]
    Form(String),
    #[error("unable to find user {0}: no matching entries in passwd file")]
    NoUser(String),
    #[error("unable to find group {0}: no matching entries in group file")]
    NoGroup(String),
    #[error("reading {path} of the image")]
    Read {
        path: &'static str,
        #[source]
        source: std::io::Error,
    },
}

/// Resolves `user`, `uid`, `user:group`, `uid:gid`… or nothing (root) against the image's layers,
/// top first. A number need not be in the files. Reads files: call it on the blocking pool.
pub fn resolve(_lowers: &[PathBuf], spec: &str) -> Result<ResolvedUser, UserError> {
    Err(UserError::NoUser(spec.to_owned()))
}
