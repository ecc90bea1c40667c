// SPDX-License-Identifier: Apache-2.0
//! ReplicaSets: the right number of pods that match a selector.
//!
//! `plan` decides how many pods to make or which to delete, `rank` orders victims, `status` counts.
//! `controller` reads the caches, asks them, and writes.

mod controller;
mod plan;
mod rank;
mod status;

pub(crate) use controller::Controller;
