// SPDX-License-Identifier: Apache-2.0
//! The API server: one generic engine over a table of kinds.
//!
//! A request goes through `serve` (TLS, HTTP), `authn` and `authz`, is parsed by `request`, finds
//! its row in `registry`, and is answered by a module of `verbs`. What a kind needs of its own is
//! a few functions in `strategy` and `table`. `present` turns stored bytes into responses. The
//! only thing that talks to anything else than the store is `kubelet`.

mod allocate;
mod api;
mod authn;
mod authz;
mod body;
mod bootstrap;
mod bootstrap_dns;
mod cidr;
mod discovery;
mod error;
mod json;
mod kubelet;
mod nonresource;
mod openapi;
mod patch;
mod present;
mod protobuf;
mod registry;
mod request;
mod resource;
mod schema;
mod selector;
mod serve;
mod strategy;
mod table;
mod verbs;

pub use self::serve::ServeError;
pub(crate) use self::{
    allocate::Ranges,
    serve::{Server, ServerParts},
};
