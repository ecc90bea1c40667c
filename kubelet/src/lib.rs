// SPDX-License-Identifier: Apache-2.0
//! The node agent: pods to CRI, probes, volumes, status, node API.
//!
//! It speaks the Kubernetes API as a client (optional: without a kubeconfig it runs static pods
//! only) and CRI v1 to a unix socket. It never links the runtime, the store or the API server, and
//! nothing in `pod/` or in the state machine of `probe/` reads a clock, a file or a socket.
//!
//! Tasks: one source per origin (`adapters::apiserver`, `adapters::manifests`) feeds the manager;
//! the manager owns one actor per pod (`pod::actor`); an actor owns its pod's state and its probe
//! workers; `adapters::relist` turns runtime events into "look again" messages;
//! the status writer and the event recorder talk to the API; [`node`] registers the node and
//! [`server`] serves the node API.

pub mod adapters;
pub mod config;
pub mod env;
pub mod manager;
pub mod manifest;
pub mod node;
pub mod pod;
pub mod ports;
pub mod probe;
pub mod quantity;
mod run;
pub mod server;
pub mod userns;
pub mod volumes;

pub use config::Config;
pub use run::{Error, Handle, run, start};

/// The CRI wire contract, generated from `cri/proto/api.proto`.
pub mod cri_v1 {
    #![allow(unreachable_pub, missing_docs, clippy::all)]
    tonic::include_proto!("runtime.v1");
}
