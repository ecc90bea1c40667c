// SPDX-License-Identifier: Apache-2.0
//! NRI, the Node Resource Interface: plugins that see pods and containers come and go, and may
//! change a container before it is made.
//!
//! Read in this order: [`wire`] (the bytes), `connection` (one socket), `plugin` (one plugin),
//! [`merge`] (what several want of one container: the core), `view` (what they are told), `apply`
//! (what they want, put into an OCI spec), `service` (all plugins, in order), `listener` (how they
//! come and go), `lifecycle` (where requests and plugins meet).
//!
//! One task per plugin, owned by the runtime's tracker, reads its socket, serves what it asks and
//! takes it off the list when it goes. Events are told one at a time, to one plugin after the other
//! by index, as upstream does: plugins keep state and count on it. Without a plugin an event costs
//! one look at a counter.

mod apply;
mod chunks;
mod connection;
mod launched;
mod lifecycle;
mod listener;
pub mod merge;
mod plugin;
mod service;
mod view;
pub mod wire;

pub(crate) use apply::limits_in_spec;
pub(crate) use lifecycle::{Told, Update, told_of};
pub(crate) use listener::start;
pub(crate) use service::{Hold, Nri};

/// The messages, generated from `proto/nri.proto`.
pub mod api {
    #![allow(unreachable_pub, missing_docs, clippy::all)]
    tonic::include_proto!("nri.pkg.api.v1alpha1");
}
