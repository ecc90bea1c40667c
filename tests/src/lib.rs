// SPDX-License-Identifier: Apache-2.0
//! Test hosts: a network namespace, a mount namespace and directories of their own, in which the
//! real `podwright` runs at native speed, several side by side on one kernel.
//!
//! A [`TestHost`] owns everything that it starts. [`TestHost::down`] ends it and then proves that
//! nothing is left: no process, mount, cgroup or file. Dropping a host does the same without the
//! proof, so that a failed test doesn't disturb the next one.

pub mod containerd;
pub mod guest;
pub mod host;
pub mod image;
pub mod leftovers;
pub mod net;
pub mod pods;
pub mod sys;
pub mod wait;

pub use host::{Server, TestHost};
pub use net::TestNet;
pub use wait::{wait_for, wait_until};
