// SPDX-License-Identifier: Apache-2.0
//! NetworkPolicies of a node: who may talk to its pods, and whom they may talk to.
//!
//! [`run`] is one task. It watches Pods, Namespaces and NetworkPolicies ([`parse`], [`world`]), and
//! the pod network's attachments, so that it knows a new pod before its first packet. Pods and
//! their peers become classes ([`classes`]), classes become elements of a table of its own
//! ([`rules`]), and what differs goes to the kernel in one transaction ([`state`]).
//!
//! At the end the rules stay, so that policies hold while the component restarts. [`cleanup`] takes
//! them away. docs/network-policy.md says what is promised.

pub mod blocks;
pub mod classes;
pub mod explain;
mod metrics;
mod numbers;
pub mod parse;
pub mod ports;
pub mod rules;
mod run;
pub mod selector;
pub mod state;
pub mod world;

pub use metrics::Metrics;
pub use run::{Config, cleanup, run};
