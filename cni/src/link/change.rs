// SPDX-License-Identifier: Apache-2.0
//! Properties of a link that can be changed while it is there.

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};

use super::{LinkError, Route};

/// What is to change; nothing else does.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Change {
    pub(crate) mac: Option<[u8; 6]>,
    pub(crate) mtu: Option<u32>,
    /// Take frames for others, too.
    pub(crate) promisc: Option<bool>,
    /// Take all multicast frames.
    pub(crate) allmulti: Option<bool>,
    /// Packets that may wait to be sent.
    pub(crate) queue: Option<u32>,
}

impl Route {
    /// Change a link, in one request.
    pub(crate) fn change(&mut self, index: u32, change: &Change) -> Result<(), LinkError> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        for (flag, wanted) in [
            (LinkFlags::Promisc, change.promisc),
            (LinkFlags::Allmulti, change.allmulti),
        ] {
            let Some(on) = wanted else { continue };
            message.header.change_mask |= flag;
            if on {
                message.header.flags |= flag;
            }
        }
        let attributes = &mut message.attributes;
        attributes.extend(change.mac.map(|mac| LinkAttribute::Address(mac.to_vec())));
        attributes.extend(change.mtu.map(LinkAttribute::Mtu));
        attributes.extend(change.queue.map(LinkAttribute::TxQueueLen));
        self.request(
            || format!("changing link {index}: {change:?}"),
            vec![(0, RouteNetlinkMessage::SetLink(message))],
        )
        .map(drop)
    }
}

/// A hardware address out of its six numbers with colons between; `None`: it is none.
pub(crate) fn parse_mac(text: &str) -> Option<[u8; 6]> {
    let mut mac = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut mac {
        let part = parts.next().filter(|p| p.len() == 2)?;
        // from_str_radix takes a sign.
        if !part.bytes().all(|b| b.is_ascii_hexdigit()) {
            return None;
        }
        *byte = u8::from_str_radix(part, 16).ok()?;
    }
    parts.next().is_none().then_some(mac)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hardware_address_has_six_numbers() {
        assert_eq!(
            parse_mac("02:00:5e:10:Ff:01"),
            Some([2, 0, 0x5e, 0x10, 0xff, 1])
        );
        for wrong in [
            "",
            "02:00:5e:10:ff",
            "02:00:5e:10:ff:01:02",
            "2:0:5e:10:ff:1",
            "+2:00:5e:10:ff:01",
        ] {
            assert_eq!(parse_mac(wrong), None, "{wrong}");
        }
    }
}
