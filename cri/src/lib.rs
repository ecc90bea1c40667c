// SPDX-License-Identifier: Apache-2.0
//! The container runtime: OCI runtime, images, and the CRI v1 server over them.

/// The wire contract, generated from `proto/api.proto`.
pub mod v1 {
    #![allow(unreachable_pub, missing_docs, clippy::all)]
    tonic::include_proto!("runtime.v1");
}
