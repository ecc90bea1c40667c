// SPDX-License-Identifier: Apache-2.0
//! The OCI runtime: specs, their compilation to launch plans, and the `podwright oci` commands.
//!
//! For the CRI server: take [`spec::container_spec`] (defaults for one container), change what the
//! CRI config says, then [`compile`] it, and [`limits`] for its cgroup. For the sandbox:
//! [`sandbox_plan`]. For exec: [`compile_process`].

mod bundle;
pub mod capability;
pub mod cli;
mod compile;
mod default_profile;
mod devices;
mod hooks;
pub mod intel_rdt;
mod mounts;
mod namespaces;
pub mod net_devices;
mod process;
mod resources;
mod sandbox;
mod scheduling;
mod seccomp;
pub mod spec;
pub(crate) mod sysctl;
mod users;

pub use bundle::write_bundle;
pub use compile::{CompileContext, CompileError, compile};
pub use mounts::KNOWN as KNOWN_MOUNT_OPTIONS;
pub(crate) use mounts::{is_shared, lowerdir, made_by_us};
pub(crate) use process::keep_possible_ambient;
pub use process::{compile_exec, compile_process, introduce, session_keyring};
pub use resources::{limits, update_limits};
pub(crate) use sandbox::PAUSE_USER;
pub use sandbox::{SandboxInput, sandbox_plan};
