// SPDX-License-Identifier: Apache-2.0
//! What went wrong with a request, and the one place that turns it into a gRPC status.
//!
//! The kind is what a caller can act on; the text says what was attempted and on what; the lower
//! error stays the source. [`Fault::status`] walks the chain once, so no text repeats its source.

use std::error::Error as StdError;
use std::fmt;

type Source = Box<dyn StdError + Send + Sync + 'static>;

/// Whose fault it is, in the words of the gRPC status codes that kubelet and crictl act on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The named object does not exist.
    NotFound,
    /// The name is taken.
    AlreadyExists,
    /// The request can never work as it stands.
    Invalid,
    /// The object is not in a state that allows it.
    Precondition,
    /// A part of CRI that podwright does not serve.
    Unimplemented,
    /// The time given was not enough.
    Deadline,
    /// A bound was reached.
    Exhausted,
    /// The runtime is stopping.
    Unavailable,
    /// The node refused: kernel, disk, plugin.
    Internal,
}

/// A failed request.
#[derive(Debug)]
pub struct Fault {
    /// What a caller can act on.
    pub(crate) kind: Kind,
    text: String,
    source: Option<Source>,
}

/// The result of everything that serves a request.
pub(crate) type Result<T> = std::result::Result<T, Fault>;

impl Fault {
    pub(crate) fn new(kind: Kind, text: impl Into<String>) -> Self {
        Self {
            kind,
            text: text.into(),
            source: None,
        }
    }

    pub(crate) fn invalid(text: impl Into<String>) -> Self {
        Self::new(Kind::Invalid, text)
    }

    pub(crate) fn precondition(text: impl Into<String>) -> Self {
        Self::new(Kind::Precondition, text)
    }

    /// `what` is "sandbox", "container" or "image".
    pub(crate) fn not_found(what: &str, id: &str) -> Self {
        Self::new(Kind::NotFound, format!("{what} {id:?}: not found"))
    }

    pub(crate) fn deadline(text: impl Into<String>) -> Self {
        Self::new(Kind::Deadline, text)
    }

    /// The node refused `attempt`, and `source` says why.
    pub(crate) fn internal(attempt: impl Into<String>, source: impl Into<Source>) -> Self {
        Self {
            kind: Kind::Internal,
            text: attempt.into(),
            source: Some(source.into()),
        }
    }

    /// The same fault, of another kind.
    pub(crate) fn of_kind(mut self, kind: Kind) -> Self {
        self.kind = kind;
        self
    }

    /// The same fault, seen from further out.
    pub(crate) fn within(self, attempt: impl Into<String>) -> Self {
        Self {
            kind: self.kind,
            text: attempt.into(),
            source: Some(Box::new(self)),
        }
    }

    /// The text and every lower error, joined with colons.
    pub(crate) fn chain(&self) -> String {
        chain(self)
    }

    /// The gRPC status of this fault. The only such mapping in the crate.
    pub(crate) fn status(&self) -> tonic::Status {
        let code = match self.kind {
            Kind::NotFound => tonic::Code::NotFound,
            Kind::AlreadyExists => tonic::Code::AlreadyExists,
            Kind::Invalid => tonic::Code::InvalidArgument,
            Kind::Precondition => tonic::Code::FailedPrecondition,
            Kind::Unimplemented => tonic::Code::Unimplemented,
            Kind::Deadline => tonic::Code::DeadlineExceeded,
            Kind::Exhausted => tonic::Code::ResourceExhausted,
            Kind::Unavailable => tonic::Code::Unavailable,
            Kind::Internal => tonic::Code::Unknown,
        };
        // What a client shows in a terminal may quote an image, a spec or a process.
        tonic::Status::new(code, shim::launch::plain(&self.chain()))
    }
}

/// An error and every source below it, joined with colons.
pub(crate) fn chain(error: &(dyn StdError + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(lower) = next {
        text.push_str(": ");
        text.push_str(&lower.to_string());
        next = lower.source();
    }
    text
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl StdError for Fault {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_deref().map(|s| s as _)
    }
}

impl From<Fault> for tonic::Status {
    fn from(fault: Fault) -> Self {
        fault.status()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_holds_every_cause_once() {
        let io = std::io::Error::other("disk full");
        let fault = Fault::internal("writing record.json", io).within("creating sandbox \"a\"");
        assert_eq!(
            fault.status().message(),
            "creating sandbox \"a\": writing record.json: disk full"
        );
        assert_eq!(fault.status().code(), tonic::Code::Unknown);
    }

    #[test]
    fn an_absent_object_is_named() {
        let status = Fault::not_found("container", "abc").status();
        assert_eq!(status.code(), tonic::Code::NotFound);
        assert_eq!(status.message(), "container \"abc\": not found");
    }
}
