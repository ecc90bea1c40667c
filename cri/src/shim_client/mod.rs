// SPDX-License-Identifier: Apache-2.0
//! The daemon's side of the shim protocol: an async handle on one pod's shim.
//!
//! ```text
//! let programs = Programs::install(&run_dir.join("cri/bin"))?;         // once per daemon start
//! let shim = Shim::spawn(&programs, SpawnOptions { dir, cgroup }).await?; // new pod
//! let shim = Shim::connect(&dir).await?;                               // pod of an earlier daemon
//! let sandbox = shim.start_sandbox(plan).await?;                       // pause; plan: oci::sandbox_plan
//! let made = shim.create("id", plan, io).await?;                       // set up, waits
//! shim.start("id").await?;                                             // runs
//! let record = shim.wait(ProcessId { container: "id".into(), exec: None }).await?;
//! shim.remove(...).await?; shim.shutdown().await?;
//! ```
//!
//! Every call has a deadline of its own except `wait`. Dropping any of the futures is safe: the
//! shim finishes what it was asked. All clones share one connection; when it breaks, calls return
//! [`ShimError::Gone`] and `connect` tells whether the shim still lives.

mod connection;
mod error;
mod handle;
mod programs;
mod spawn;

pub use error::ShimError;
pub use handle::{ExecHandle, ExecStdio, Shim, Started};
pub use programs::{Programs, ProgramsError};
pub use shim::protocol::{
    ContainerIo, ExitRecord, FailureKind, Phase, ProcessId, ProcessState, SANDBOX, ShimState,
};
pub use spawn::SpawnOptions;
