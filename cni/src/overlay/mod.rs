// SPDX-License-Identifier: Apache-2.0
//! Packets between pods of different nodes.
//!
//! Each node has ranges of pod addresses and addresses of its own. For every other node there is a
//! route to its ranges: through a VXLAN link, through a WireGuard link, or straight to its address
//! ([`Backend`]). [`decide()`] is pure: what is wanted and what the kernel has give the [`Step`]s
//! between them. [`Kernel`] looks and acts, over netlink. Calling [`Kernel::sync`] again and again
//! keeps it so, whatever somebody else does.
//!
//! What is ours is known without a memory: the link by its name, neighbours, forwarding entries and
//! WireGuard's peers by the link, rules by their table, routes by their protocol ([`ROUTE_PROTOCOL`]). Nothing else is touched. Who the
//! other nodes are is not known here; `proxy` learns it from the API.

mod act;
mod announce;
mod decide;
mod kernel;
mod look;
mod messages;
mod model;
mod mtu;
mod untracked;
mod wireguard;

pub use announce::{Announcement, mac_of};
pub use decide::decide;
pub use kernel::{Kernel, OverlayError, Report, cleanup, pod_mtu, supported};
pub use model::{
    Backend, Decision, ForwardEntry, Mac, Neighbour, Own, PathRoute, Peer, Problem, Seen, SeenLink,
    SeenVxlan, Settings, Step, VxlanSpec,
};
pub use wireguard::{PeerSpec, PublicKey, PublicKeys, SeenDevice, SeenPeer, WireGuard};

/// Number of our routes among routing protocols (`proto` of ip(8)): none that rtnetlink(7) or
/// iproute2's `rt_protos` names.
pub const ROUTE_PROTOCOL: u8 = 112;
