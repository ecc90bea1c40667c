// SPDX-License-Identifier: Apache-2.0
//! Nodes: their address ranges, whether they are alive, and what becomes of the pods of one that is
//! not.

pub(crate) mod eviction;
pub(crate) mod health;
pub(crate) mod ipam;
pub(crate) mod lifecycle;
pub(crate) mod pod_gc;
mod taints;
