// SPDX-License-Identifier: Apache-2.0
//! The kernel rung: real links, rules and packets, in network namespaces of the tests' own.
//! Needs root (CAP_NET_ADMIN and CAP_SYS_ADMIN).

mod bridge;
mod host;
mod nft;
mod overlay;
mod place;
mod reference;
mod trace;
