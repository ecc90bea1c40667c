// SPDX-License-Identifier: Apache-2.0
//! The outside: CRI socket, API server, manifest files, events.

pub mod apiserver;
pub mod cri_client;
pub mod event_recorder;
pub mod manifests;
pub mod mirror;
pub mod relist;
pub mod status_patch;
pub mod status_writer;
