// SPDX-License-Identifier: Apache-2.0
//! The CRI server on a real kernel: namespaces, cgroups, overlay and network of each test's own.
//!
//! These tests need root. Each runs on a thread with a network and a mount namespace of its own, in
//! a temporary directory, under a cgroup `/podwright-test-<random>`, and checks at its end that
//! nothing of it is left.

mod attack;
mod calls;
mod cdi;
mod crash;
mod every_call;
mod exec;
mod fields;
mod handlers;
mod lifecycle;
mod memory;
mod node;
mod nri;
mod pulls;
mod refusals;
mod registry;
mod restart;
mod security;
mod spdy;
mod storm;
mod streams;
mod systemd;
mod torrent;
#[path = "../runtime/systemd.rs"]
mod under_systemd;
mod userns;
mod volumes;
