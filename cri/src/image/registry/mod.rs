// SPDX-License-Identifier: Apache-2.0
//! A client of the OCI distribution protocol 1.1, as far as pulling goes.
//!
//! One [`Server`] is one endpoint of a registry, with its TLS settings and its token. It knows
//! nothing of the store; `pull` decides what to fetch and verifies it.

mod challenge;
mod client;
mod dns;
pub(crate) mod hosts;
mod server;
mod token;

pub(crate) use server::Server;

/// Whether a `WWW-Authenticate` header is one that can be answered.
pub(crate) fn challenges(header: &str) -> bool {
    challenge::parse(std::iter::once(header)).is_some()
}
