// SPDX-License-Identifier: Apache-2.0
//! How large a pod's packets may be.

use super::model::Backend;

/// Outer IPv4 (20) or IPv6 (40) header, UDP (8), VXLAN (8), inner Ethernet (14): RFC 7348, 5.
const VXLAN: [u32; 2] = [50, 70];
/// Outer IPv4 or IPv6 header, UDP (8), WireGuard's header (16) and tag (16).
const WIREGUARD: [u32; 2] = [60, 80];
/// The smallest MTU that IPv6 works with (RFC 8200, 5).
const LEAST: u32 = 1280;

/// The largest packet of pods, when the link between nodes takes `uplink` and the nodes' addresses
/// are of this family. Never less than IPv6 needs: then the kernel fragments outside.
pub(super) fn inner(backend: Backend, uplink: u32, ipv4: bool) -> u32 {
    let overhead = match backend {
        Backend::Vxlan => VXLAN[usize::from(!ipv4)],
        Backend::WireGuard => WIREGUARD[usize::from(!ipv4)],
        Backend::HostGw | Backend::None => 0,
    };
    uplink
        .saturating_sub(overhead)
        .max(LEAST.min(uplink))
        .min(65_535 - overhead)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_overhead_follows_the_back_end_and_the_outer_family() {
        for (backend, uplink, ipv4, expected) in [
            (Backend::Vxlan, 1500, true, 1450),
            (Backend::Vxlan, 1500, false, 1430),
            (Backend::Vxlan, 9000, true, 8950),
            (Backend::Vxlan, 1300, true, 1280),
            (Backend::Vxlan, 65_536, true, 65_485),
            (Backend::WireGuard, 1500, true, 1440),
            (Backend::WireGuard, 1500, false, 1420),
            (Backend::WireGuard, 1300, false, 1280),
            (Backend::HostGw, 1500, true, 1500),
        ] {
            assert_eq!(inner(backend, uplink, ipv4), expected, "{backend} {uplink}");
        }
    }
}
