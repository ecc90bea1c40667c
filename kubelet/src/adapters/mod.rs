// SPDX-License-Identifier: Apache-2.0
//! The outside: CRI socket, API server, manifest files, events.

pub mod cri_client;
