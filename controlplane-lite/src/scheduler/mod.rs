// SPDX-License-Identifier: Apache-2.0
//! The scheduler: binds pods to nodes. A client of the API, like the controllers.
//!
//! `filter` says why a node cannot take a pod, `score` how well it could, `pick` chooses; all three
//! work on plain data. `run` feeds them from watches and binds. A pod that asks for something that
//! is not supported stays Pending, with an event that names the field (`unsupported`).
//!
//! Preferences that cannot be honoured (preferred pod affinity, `ScheduleAnyway` spreading) do not
//! hold a pod back: pods of one node are spread by load instead.

mod affinity;
mod amount;
mod binder;
mod filter;
mod pick;
mod pod_request;
mod score;
mod snapshot;
mod unsupported;
mod waiting;

pub use binder::run;

use crate::controllers::Early;

/// Configuration of the scheduler.
#[derive(Debug, Clone)]
pub struct Config {
    /// Pods with this `spec.schedulerName` are ours.
    pub scheduler_name: String,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            scheduler_name: "default-scheduler".into(),
        }
    }
}

/// Why the scheduler could not run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A task ended though nobody asked it to.
    #[error("a task of the scheduler has ended")]
    Early(#[from] Early),
}
