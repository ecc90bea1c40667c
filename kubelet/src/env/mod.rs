// SPDX-License-Identifier: Apache-2.0
//! The environment of a container: literals, references, service links and `$(VAR)` expansion.
//!
//! Reading objects (async, through [`Objects`]) and deciding (pure, in the submodules) are kept
//! apart: [`build`] fetches what the container names, then resolves without further I/O.

mod objects;

use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Container, Pod};

pub use objects::{NoObjects, ObjectError, ObjectFuture, Objects};

use crate::node::NodeFacts;

/// Why a container's environment could not be made. The text is upstream's and goes into
/// `CreateContainerConfigError`.
#[derive(Debug, thiserror::Error)]
pub enum EnvError {
    /// A referenced object is missing or cannot be read.
    #[error(transparent)]
    Object(#[from] ObjectError),
    /// A field that is not supported, or not done yet, by name.
    #[error("{0}")]
    Unsupported(String),
}

/// The whole environment of `container`, in order, each name once.
///
/// # Errors
/// A missing object or key without `optional`, an unreadable object, an unsupported reference.
pub async fn build(
    _pod: &Pod,
    _container: &Container,
    _objects: &dyn Objects,
    _node: &NodeFacts,
    _pod_ips: &[IpAddr],
) -> Result<Vec<(String, String)>, EnvError> {
    Err(EnvError::Unsupported(
        "the environment is not implemented yet".to_owned(),
    ))
}

/// Expands `$(VAR)` in one word of a command, an argument or a path; `$$` is a literal `$`;
/// an unknown name stays as it is written.
#[must_use]
pub fn expand(text: &str, _env: &[(String, String)]) -> String {
    text.to_owned()
}
