// SPDX-License-Identifier: Apache-2.0
//! The encrypted back end: one WireGuard link, a peer for each node.
//!
//! A peer is a node's public key, the address that it announces, and its pods' ranges; the kernel
//! takes a packet from a peer only if its source is in the peer's ranges. The link carries both
//! families of pods, and packets between nodes go between their first addresses, as with VXLAN.
//!
//! `keys` has this node's keys on disk and says when it is time for another; `decide` is pure;
//! `control` speaks generic netlink; `tunnel` joins them for [`super::Kernel`].

mod control;
mod decide;
mod key;
mod keys;
mod model;
mod tunnel;

pub(super) use decide::Paths;
pub use key::PublicKey;
pub(super) use keys::remove as remove_keys;
pub use model::{PeerSpec, PublicKeys, SeenDevice, SeenPeer, WireGuard};
pub(super) use tunnel::{Tunnel, try_out};
