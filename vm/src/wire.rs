// SPDX-License-Identifier: Apache-2.0
//! What a guest has towards the outside: a place on the wire to another guest, or a link that leads
//! nowhere.
//!
//! The wire is a pair of connected sockets. Each QEMU gets its end as standard input, so there is no
//! port, no path and no order of start, and the wire is gone when both have ended.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::Command;

use crate::Error;

/// The address of a guest without a wire.
const ALONE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 10);

/// A guest's place on the wire to another guest. Its link is called `uplink0` in the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    number: u8,
}

impl Place {
    /// The places of a pair: 192.0.2.11/24 and 2001:db8::11/64, and the same with 12.
    pub const PAIR: [Self; 2] = [Self { number: 11 }, Self { number: 12 }];

    /// The guest's IPv4 address.
    #[must_use]
    pub fn ipv4(self) -> Ipv4Addr {
        Ipv4Addr::new(192, 0, 2, self.number)
    }

    /// The guest's IPv6 address, which has the same number in decimal.
    #[must_use]
    pub fn ipv6(self) -> Ipv6Addr {
        let digits = u16::from(self.number / 10 * 16 + self.number % 10);
        Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, digits)
    }

    /// The card at the end of the wire, which is standard input. It needs no firmware to boot by.
    pub(crate) fn arguments(self, command: &mut Command) {
        command
            .args(["-netdev", "socket,id=wire,fd=0", "-device"])
            .arg(format!(
                "virtio-net-pci,netdev=wire,romfile=,mac=52:54:00:00:02:{:02x}",
                self.number
            ));
    }
}

/// Two ends, for one guest each.
pub(crate) fn pair() -> Result<[OwnedFd; 2], Error> {
    let (one, other) = UnixStream::pair().map_err(Error::io("making", "a pair of sockets"))?;
    Ok([one.into(), other.into()])
}

/// The guest's IPv4 address, with a wire or without.
pub(crate) fn ipv4(place: Option<Place>) -> Ipv4Addr {
    place.map_or(ALONE, Place::ipv4)
}

/// What the guest does about its link. The default routes are there because a node derives things
/// from them; nobody is at the other end of them.
pub(crate) fn script(place: Option<Place>) -> String {
    let Some(place) = place else {
        return format!(
            "ip link add uplink0 type dummy
ip addr add {ALONE}/24 dev uplink0
ip link set uplink0 up
ip route add default via 192.0.2.1
"
        );
    };
    format!(
        "ip link set eth0 name uplink0
echo 0 >/proc/sys/net/ipv6/conf/uplink0/accept_dad
ip addr add {}/24 dev uplink0
ip addr add {}/64 dev uplink0
ip link set uplink0 up
ip route add default via 192.0.2.1
ip -6 route add default via 2001:db8::1 dev uplink0
",
        place.ipv4(),
        place.ipv6()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_addresses_of_a_place_read_alike() {
        let written = Place::PAIR.map(|place| format!("{} {}", place.ipv4(), place.ipv6()));
        assert_eq!(
            written,
            ["192.0.2.11 2001:db8::11", "192.0.2.12 2001:db8::12"]
        );
    }
}
