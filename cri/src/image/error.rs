// SPDX-License-Identifier: Apache-2.0
//! What can go wrong with an image, and whose fault it is.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::auth::AuthError;
use super::credentials::CredentialError;
use super::digest::Digest;
use super::platform::PlatformError;
use super::reference::ReferenceError;

/// What a caller decides on. The kubelet tells the first four apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// The name is not an image reference: `InvalidImageName`, gRPC InvalidArgument.
    InvalidReference,
    /// No such image here or at the registry: gRPC NotFound.
    NotFound,
    /// The registry wants other credentials: gRPC Unauthenticated.
    Unauthorized,
    /// The registry can't be reached or is failing; trying again may help: `RegistryUnavailable`.
    RegistryUnavailable,
    /// The content is not what its digest, size or format promises, or is hostile.
    BadContent,
    /// We don't do this, by name.
    Unsupported,
    /// Somebody else holds the store or the layer for too long; trying again may help.
    Busy,
    /// This machine's disk or kernel said no.
    Storage,
}

/// Failure of one operation on an image.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    #[error(transparent)]
    Auth(#[from] AuthError),
    #[error(transparent)]
    Credentials(#[from] CredentialError),
    #[error(transparent)]
    Platform(#[from] PlatformError),
    #[error("image {0:?} not found")]
    NotFound(String),
    #[error("image id {0:?} is ambiguous")]
    Ambiguous(String),
    #[error("failed to pull image {reference:?}")]
    Pull {
        reference: String,
        #[source]
        source: Box<ImageError>,
    },
    #[error("{registry}: {url}: {reason}")]
    Registry {
        registry: String,
        url: String,
        kind: ErrorKind,
        reason: String,
        /// How long the registry wants to be left alone.
        retry_after: Option<Duration>,
        #[source]
        source: Option<Box<dyn std::error::Error + Send + Sync>>,
    },
    #[error("{what} {digest}")]
    Content {
        what: &'static str,
        digest: Digest,
        #[source]
        source: ContentError,
    },
    #[error("{what}")]
    Malformed {
        what: String,
        #[source]
        source: Option<Box<dyn std::error::Error + Send + Sync>>,
    },
    #[error("{0}")]
    Unsupported(String),
    #[error("waited {waited:?} for {path} to be unlocked")]
    Busy { path: PathBuf, waited: Duration },
    #[error("{doing} {path}")]
    Storage {
        doing: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// Why content was not taken.
#[derive(Debug, thiserror::Error)]
pub enum ContentError {
    #[error("its digest is {actual}")]
    Digest { actual: Digest },
    #[error("its content has digest {actual}, the image's configuration says {expected}")]
    DiffId { expected: Digest, actual: Digest },
    #[error("it has {actual} bytes instead of {expected}")]
    Size { expected: u64, actual: u64 },
    #[error("it is larger than the limit of {limit} {unit}")]
    TooLarge { limit: u64, unit: &'static str },
    #[error("entry {entry:?}: {reason}")]
    Entry { entry: String, reason: String },
    #[error("writing entry {entry:?}")]
    Write {
        entry: String,
        #[source]
        source: io::Error,
    },
    #[error("reading it")]
    Read(#[source] io::Error),
    #[error("it is not valid")]
    Json(#[source] serde_json::Error),
}

impl ImageError {
    /// What to do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            ImageError::Reference(_) => ErrorKind::InvalidReference,
            ImageError::Auth(_) | ImageError::Credentials(_) => ErrorKind::Unauthorized,
            ImageError::Platform(_) => ErrorKind::Unsupported,
            ImageError::NotFound(_) => ErrorKind::NotFound,
            ImageError::Ambiguous(_) => ErrorKind::InvalidReference,
            ImageError::Pull { source, .. } => source.kind(),
            ImageError::Registry { kind, .. } => *kind,
            ImageError::Content {
                source: ContentError::Write { .. },
                ..
            } => ErrorKind::Storage,
            ImageError::Content { .. } | ImageError::Malformed { .. } => ErrorKind::BadContent,
            ImageError::Unsupported(_) => ErrorKind::Unsupported,
            ImageError::Busy { .. } => ErrorKind::Busy,
            ImageError::Storage { .. } => ErrorKind::Storage,
        }
    }

    /// The whole chain in one line. For an unreachable registry it begins with
    /// `RegistryUnavailable`, by which the kubelet (`pkg/kubelet/images`) knows the reason.
    pub fn message(&self) -> String {
        let chain = chain(self);
        match self.kind() {
            ErrorKind::RegistryUnavailable => format!("RegistryUnavailable: {chain}"),
            _ => chain,
        }
    }

    pub(crate) fn storage(doing: &'static str, path: &Path, source: io::Error) -> ImageError {
        ImageError::Storage {
            doing,
            path: path.to_owned(),
            source,
        }
    }

    pub(crate) fn malformed(what: impl Into<String>) -> ImageError {
        ImageError::Malformed {
            what: what.into(),
            source: None,
        }
    }
}

/// An error and its causes, joined with colons.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
