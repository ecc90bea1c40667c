// SPDX-License-Identifier: Apache-2.0
//! Tells from the kernel's messages whether somebody took something away that pods need.

use super::repair::Owned;
use crate::netlink::{Attributes, Heard};

const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_DELADDR: u16 = 21;
const IFINFO_HEADER: usize = 16;
const IFADDR_HEADER: usize = 8;
const NFGEN_HEADER: usize = 4;
const NFT_MSG_NEWGEN: u8 = 15;
/// The name of a link, of an address's link, and of a table.
const IFLA_IFNAME: u16 = 3;
const IFA_LABEL: u16 = 3;
const NFTA_TABLE_NAME: u16 = 1;

fn text(bytes: &[u8]) -> Option<&str> {
    std::str::from_utf8(bytes.strip_suffix(&[0]).unwrap_or(bytes)).ok()
}

fn named(payload: &[u8], header: usize, attribute: u16) -> Option<&str> {
    let attributes = payload.get(header..)?;
    let found = Attributes(attributes).find(|a| a.0 == attribute)?;
    text(found.1)
}

/// A message of rtnetlink: a bridge is gone or down, or an address of one is gone. `link` names the
/// link with a number, if it is there.
pub(super) fn of_link(heard: &Heard, owned: &Owned, link: impl Fn(u32) -> Option<String>) -> bool {
    let payload = &heard.payload;
    let is_bridge = |name: Option<&str>| name.is_some_and(|name| owned.bridges.contains(name));
    match heard.kind {
        RTM_DELLINK => is_bridge(named(payload, IFINFO_HEADER, IFLA_IFNAME)),
        RTM_NEWLINK => {
            const FLAGS: std::ops::Range<usize> = 8..12;
            let flags = payload.get(FLAGS).and_then(|b| b.try_into().ok());
            let up = u32::from_ne_bytes(flags.unwrap_or_default()) & libc::IFF_UP.cast_unsigned();
            up == 0 && is_bridge(named(payload, IFINFO_HEADER, IFLA_IFNAME))
        }
        RTM_DELADDR => match named(payload, IFADDR_HEADER, IFA_LABEL) {
            Some(label) => is_bridge(Some(label)),
            // IPv6 addresses tell no name. Those of the link alone come and go with every pod; others
            // also go with links that are not ours, as that to other nodes when it is made anew.
            None if payload.get(3) == Some(&libc::RT_SCOPE_UNIVERSE) => {
                let index = payload.get(4..8).and_then(|b| b.try_into().ok());
                is_bridge(index.map(u32::from_ne_bytes).and_then(link).as_deref())
            }
            None => false,
        },
        _ => false,
    }
}

/// A message of nftables: somebody else has changed a table of ours.
pub(super) fn of_rules(heard: &Heard, owned: &Owned, is_own: impl Fn(u32) -> bool) -> bool {
    let [number, _] = heard.kind.to_le_bytes();
    if number == NFT_MSG_NEWGEN || is_own(heard.sender) {
        return false;
    }
    let table = named(&heard.payload, NFGEN_HEADER, NFTA_TABLE_NAME);
    table.is_some_and(|table| owned.tables.contains(table))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owned() -> Owned {
        Owned {
            bridges: ["pw0".to_owned()].into(),
            tables: ["pwt-cni".to_owned()].into(),
        }
    }

    fn heard(kind: u16, header: Vec<u8>, attribute: u16, name: &str) -> Heard {
        let mut payload = header;
        let length = u16::try_from(name.len() + 5).expect("short");
        payload.extend(length.to_ne_bytes());
        payload.extend(attribute.to_ne_bytes());
        payload.extend(name.as_bytes());
        payload.push(0);
        payload.resize(payload.len().next_multiple_of(4), 0);
        Heard {
            kind,
            sender: 7,
            payload,
        }
    }

    #[test]
    fn a_bridge_that_goes_or_is_set_down_is_missed() {
        let link = |kind, up: u8, name| {
            let mut header = vec![0; IFINFO_HEADER];
            header[8] = up;
            of_link(&heard(kind, header, IFLA_IFNAME, name), &owned(), |_| None)
        };
        assert!(link(RTM_DELLINK, 1, "pw0"));
        assert!(link(RTM_NEWLINK, 0, "pw0"));
        assert!(!link(RTM_NEWLINK, 1, "pw0"));
        assert!(!link(RTM_DELLINK, 1, "pw01234567"));
        let address = heard(RTM_DELADDR, vec![2, 24, 0, 0, 1, 0, 0, 0], IFA_LABEL, "pw0");
        assert!(of_link(&address, &owned(), |_| None));
    }

    #[test]
    fn only_bridges_addresses_of_ipv6_are_missed() {
        let number = |index| match index {
            1 => Some("pw0".to_owned()),
            2 => Some("pw-vxlan".to_owned()),
            _ => None,
        };
        let address = |scope, index| {
            let header = vec![10, 64, 0, scope, index, 0, 0, 0];
            // Its first attribute is no name.
            let heard = heard(RTM_DELADDR, header, 1, "0123456789abcde");
            of_link(&heard, &owned(), number)
        };
        assert!(address(libc::RT_SCOPE_UNIVERSE, 1));
        assert!(!address(libc::RT_SCOPE_LINK, 1));
        assert!(!address(libc::RT_SCOPE_UNIVERSE, 2), "somebody else's");
        assert!(!address(libc::RT_SCOPE_UNIVERSE, 3), "went with its link");
    }

    #[test]
    fn only_others_are_missed_in_our_table() {
        let rule = |sender, table| {
            let mut heard = heard(0x0a08, vec![1, 0, 0, 0], NFTA_TABLE_NAME, table);
            heard.sender = sender;
            of_rules(&heard, &owned(), |port| port == 9)
        };
        assert!(rule(7, "pwt-cni"));
        assert!(!rule(9, "pwt-cni"), "our own");
        assert!(!rule(7, "pwt"));
    }

    #[test]
    fn rubbish_is_no_loss() {
        for kind in [RTM_NEWLINK, RTM_DELLINK, RTM_DELADDR, 0x0a08] {
            for payload in [vec![], vec![0xff; 3], vec![0xff; 40]] {
                let heard = Heard {
                    kind,
                    sender: 0,
                    payload,
                };
                assert!(!of_rules(&heard, &owned(), |_| false));
                assert!(!of_link(&heard, &owned(), |_| None));
            }
        }
    }
}
