// SPDX-License-Identifier: Apache-2.0
//! A client of the OCI distribution protocol 1.1, as far as pulling goes.
//!
//! One [`Server`] is one endpoint of a registry, with its TLS settings and its token. It knows
//! nothing of the store; `pull` decides what to fetch and verifies it.

mod challenge;
mod dns;
pub(crate) mod hosts;
mod server;

pub(crate) use server::Server;
