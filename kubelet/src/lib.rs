// SPDX-License-Identifier: Apache-2.0
//! The node agent: pods to CRI, probes, volumes, status, node API.

pub mod env;
pub mod node;
pub mod quantity;
pub mod server;
pub mod volumes;

/// The CRI wire contract, generated from `cri/proto/api.proto`.
pub mod cri_v1 {
    #![allow(unreachable_pub, missing_docs, clippy::all)]
    tonic::include_proto!("runtime.v1");
}
