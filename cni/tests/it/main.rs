// SPDX-License-Identifier: Apache-2.0
//! The kernel rung: real links, rules and packets, in network namespaces of the tests' own.
//! Needs root (CAP_NET_ADMIN and CAP_SYS_ADMIN).

mod bridge;
mod churn;
mod compare;
mod executables;
mod host;
mod keep;
mod nft;
mod overlay;
mod place;
mod plugins;
mod podman;
mod reference;
mod stream;
mod trace;
mod wire;
mod wireguard;
