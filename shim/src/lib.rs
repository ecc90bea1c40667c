// SPDX-License-Identifier: Apache-2.0
//! Launch plans and their execution, and the protocol of the shim that runs one per pod.
//!
//! A library without async and without threads. Its callers are `podwright-shim` (this crate's
//! executable), `cri` (which compiles plans and talks to shims) and `podwright oci`.
//!
//! - [`plan`]: what to start, as plain data.
//! - [`launch`]: starts it. Needs Linux 5.12 and root.
//! - [`protocol`]: what a daemon and a shim say to each other.
//! - [`format`](mod@format): how messages become bytes that other builds understand.
//! - [`wire`]: how bytes become packets.
//! - [`daemon`]: the shim's own loop.
//! - [`sys`]: the system calls underneath, and the only unsafe code.

pub mod daemon;
pub mod format;
pub mod launch;
pub mod plan;
pub mod protocol;
pub mod sys;
pub mod wire;
