// SPDX-License-Identifier: Apache-2.0
//! Liveness, readiness and startup probes: the threshold state machine (pure), the handlers that
//! ask a container how it is, and the task per probe that runs them.

pub mod grpc;
pub mod handler;
pub mod http;
pub mod state;
pub mod worker;

/// What a probe is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ProbeKind {
    /// Failure kills; the other probes wait until it has passed.
    Startup,
    /// Failure kills.
    Liveness,
    /// Gates traffic.
    Readiness,
}

impl ProbeKind {
    /// The word in events.
    pub fn as_str(self) -> &'static str {
        match self {
            ProbeKind::Startup => "Startup",
            ProbeKind::Liveness => "Liveness",
            ProbeKind::Readiness => "Readiness",
        }
    }
}
