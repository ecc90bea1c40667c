// SPDX-License-Identifier: Apache-2.0
//! The OCI runtime: specs, their compilation to launch plans, and the `podwright oci` commands.
//!
//! For the CRI server: take [`spec::container_spec`] (defaults for one container), change what the
//! CRI config says, then [`compile`] it. For the sandbox: [`sandbox_plan`]. For exec:
//! [`compile_process`].

pub mod cli;
mod compile;
mod sandbox;
pub mod spec;

pub use compile::{CompileContext, CompileError, compile, compile_process};
pub use sandbox::{SandboxInput, sandbox_plan};
