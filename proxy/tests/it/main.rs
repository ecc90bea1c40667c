// SPDX-License-Identifier: Apache-2.0
//! Services and NetworkPolicies on the kernel: compiled, applied, and asked by real clients, in namespaces of the tests'
//! own (needs root).

mod api;
mod dns;
mod features;
#[path = "../../../cni/tests/it/host.rs"]
mod host;
mod kernel;
mod objects;
#[path = "../../../cni/tests/it/place.rs"]
mod place;
mod policy;
mod policy_whole;
mod scene;
mod whole;
