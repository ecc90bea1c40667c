// SPDX-License-Identifier: Apache-2.0
//! Cluster DNS as it runs: real sockets, a real address, resolvers that lie.

mod client;
mod lying;
mod place;
mod serving;
