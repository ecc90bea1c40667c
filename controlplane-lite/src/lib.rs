// SPDX-License-Identifier: Apache-2.0
//! A small Kubernetes control plane: store, API server, scheduler and controllers.
//!
//! [`run`] opens the store, makes the certificates, serves the API over HTTPS, and then starts
//! the scheduler and the controllers as ordinary clients of that API. Only the API server uses
//! the store. Read the modules in this order: `config`, `pki`, `store`, `apiserver`, and then
//! `scheduler` and `controllers`, which could as well live in another process.

mod apiserver;
mod config;
pub mod controllers;
mod parts;
mod pki;
mod run;
pub mod scheduler;
mod store;

pub use apiserver::ServeError;
pub use config::{CONTROLLERS, Config, SCHEDULER};
pub use controllers::NodePrefixes;
pub use pki::{AgentFiles, PkiError, agent_credentials};
pub use run::{Error, run};
pub use store::StoreError;
