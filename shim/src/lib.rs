// SPDX-License-Identifier: Apache-2.0
//! Launch plans and their execution, and the protocol of the shim that runs one per pod.
//!
//! A library without async and without threads. Its callers are `podwright-shim` (this crate's
//! executable), `cri` (which compiles plans and talks to shims) and `podwright oci`.

pub mod plan;
pub mod protocol;
