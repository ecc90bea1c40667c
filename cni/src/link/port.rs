// SPDX-License-Identifier: Apache-2.0
//! Ports of a bridge: whose they are, how frames pass them, and their VLANs.

use netlink_packet_core::NLM_F_DUMP;
use netlink_packet_route::link::{
    AfSpecBridge, BridgeVlanInfo, BridgeVlanInfoFlags, InfoBridge, InfoBridgePort, InfoData,
    InfoKind, InfoPortData, InfoPortKind, LinkAttribute, LinkExtentMask, LinkInfo, LinkMessage,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::{LinkError, Route};

/// How frames pass a bridge port.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct PortSpec {
    /// Frames may go back where they came from.
    pub(crate) hairpin: bool,
    /// Frames don't go to other isolated ports.
    pub(crate) isolated: bool,
}

impl Route {
    /// Say how frames pass a bridge port.
    pub(crate) fn set_port(&mut self, index: u32, spec: PortSpec) -> Result<(), LinkError> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::PortKind(InfoPortKind::Bridge),
            LinkInfo::PortData(InfoPortData::BridgePort(vec![
                InfoBridgePort::HairpinMode(spec.hairpin),
                InfoBridgePort::Isolated(spec.isolated),
            ])),
        ]));
        self.request(
            || format!("setting up port {index}: {spec:?}"),
            vec![(0, RouteNetlinkMessage::NewLink(message))],
        )
        .map(drop)
    }

    /// Make a link the port of a bridge, and set it up.
    pub(crate) fn set_master(&mut self, index: u32, master: u32) -> Result<(), LinkError> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.attributes.push(LinkAttribute::Controller(master));
        self.request(
            || format!("making link {index} a port of {master}"),
            vec![
                (0, RouteNetlinkMessage::SetLink(message)),
                (0, super::set_up(index)),
            ],
        )
        .map(drop)
    }

    /// Let a bridge keep VLANs apart.
    pub(crate) fn filter_vlans(&mut self, bridge: u32) -> Result<(), LinkError> {
        let mut message = LinkMessage::default();
        message.header.index = bridge;
        message.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Bridge),
            LinkInfo::Data(InfoData::Bridge(vec![InfoBridge::VlanFiltering(true)])),
        ]));
        self.request(
            || format!("letting bridge {bridge} filter VLANs"),
            vec![(0, RouteNetlinkMessage::NewLink(message))],
        )
        .map(drop)
    }

    /// The VLANs of a bridge port.
    pub(crate) fn vlans(&mut self, index: u32) -> Result<Vec<u16>, LinkError> {
        let mut message = LinkMessage::default();
        message.header.interface_family = AddressFamily::Bridge;
        message
            .attributes
            .push(LinkAttribute::ExtMask(vec![LinkExtentMask::Brvlan]));
        let answers = self.request(
            || format!("listing the VLANs of port {index}"),
            vec![(NLM_F_DUMP, RouteNetlinkMessage::GetLink(message))],
        )?;
        let mut vlans = Vec::new();
        for answer in answers {
            let RouteNetlinkMessage::NewLink(link) = answer else {
                continue;
            };
            if link.header.index != index {
                continue;
            }
            for attribute in link.attributes {
                let LinkAttribute::AfSpecBridge(specs) = attribute else {
                    continue;
                };
                vlans.extend(specs.into_iter().filter_map(|spec| match spec {
                    AfSpecBridge::VlanInfo(info) => Some(info.vid),
                    _ => None,
                }));
            }
        }
        Ok(vlans)
    }

    /// Let a bridge port take part in a VLAN. A native one is that of frames without a tag.
    pub(crate) fn add_vlan(&mut self, port: u32, vlan: u16, native: bool) -> Result<(), LinkError> {
        let mut flags = BridgeVlanInfoFlags::empty();
        if native {
            flags |= BridgeVlanInfoFlags::Pvid | BridgeVlanInfoFlags::Untagged;
        }
        let message = RouteNetlinkMessage::SetLink(vlan_message(port, vlan, flags));
        self.request(
            || format!("adding VLAN {vlan} to port {port}"),
            vec![(0, message)],
        )
        .map(drop)
    }

    /// Take a bridge port out of a VLAN.
    pub(crate) fn delete_vlan(&mut self, port: u32, vlan: u16) -> Result<(), LinkError> {
        let flags = BridgeVlanInfoFlags::empty();
        let message = RouteNetlinkMessage::DelLink(vlan_message(port, vlan, flags));
        self.request(
            || format!("taking port {port} out of VLAN {vlan}"),
            vec![(0, message)],
        )
        .map(drop)
    }
}

fn vlan_message(port: u32, vid: u16, flags: BridgeVlanInfoFlags) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.interface_family = AddressFamily::Bridge;
    message.header.index = port;
    let info = BridgeVlanInfo { flags, vid };
    message
        .attributes
        .push(LinkAttribute::AfSpecBridge(vec![AfSpecBridge::VlanInfo(
            info,
        )]));
    message
}
