// SPDX-License-Identifier: Apache-2.0
//! Endpoints and EndpointSlices: which pods answer for a Service.
//!
//! `candidates` turns pods into addresses with conditions and ports, once for both kinds; `slices`
//! and `legacy` turn those into objects; `controller` writes them. Services without a selector are
//! left to their owners, and are not mirrored between the two kinds.

mod candidates;
mod controller;
mod legacy;
mod slices;

pub(crate) use controller::{Controller, Kind};
pub(crate) use slices::SERVICE_NAME;
