// SPDX-License-Identifier: Apache-2.0
//! What the kernel remembers of addresses whose pods are gone: tracked connections and neighbours.
//! The next pod with the address would inherit them. A TCP connection whose ends both died without
//! a word is tracked for five days, a neighbour as long as there are few.

use std::io;
use std::net::IpAddr;

use crate::conntrack::{self, ConntrackError, Flow};
use crate::link::{LinkError, Route};

/// Why the kernel did not forget.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ForgetError {
    #[error(transparent)]
    Flows(#[from] ConntrackError),
    #[error("opening a netlink socket")]
    Open(#[source] io::Error),
    #[error(transparent)]
    Neighbours(#[from] LinkError),
}

/// Forget every tracked connection that names a `stale` address, at either end and before or after
/// translation, and every neighbour that has one; in the namespace of the calling thread. Blocks for
/// as long as it takes to look through the host's connections: milliseconds, a second for a million.
pub(crate) fn addresses(stale: impl Fn(IpAddr) -> bool) -> Result<(), ForgetError> {
    conntrack::delete(|flow| names(flow).into_iter().any(&stale))?;
    let mut route = Route::open().map_err(ForgetError::Open)?;
    Ok(route.forget_neighbours(stale)?)
}

/// The pods' addresses in a connection. Where its answers go to is one of the node's, or its source.
fn names(flow: &Flow) -> [IpAddr; 3] {
    [flow.original.src, flow.original.dst, flow.reply.src]
}
