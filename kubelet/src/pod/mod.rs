// SPDX-License-Identifier: Apache-2.0
//! One pod: what is wanted, what is seen, what to do next. Everything here but `actor` and the
//! files it drives (`work`, `hooks`, `start`) is core: pure functions over plain data.

pub mod actor;
pub mod admit;
mod adopt;
pub mod backoff;
pub mod credentials;
pub mod cri_config;
pub mod deps;
pub mod dns;
pub mod hooks;
pub mod image;
pub mod jobs;
pub mod labels;
pub mod memory;
pub mod plan;
pub mod runtime_class;
pub mod security;
pub mod spec;
pub mod start;
pub mod state;
pub mod status;
pub mod termination_log;

#[cfg(test)]
pub(crate) mod fake;
#[cfg(test)]
pub(crate) mod testing;
