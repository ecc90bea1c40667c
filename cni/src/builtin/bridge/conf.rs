// SPDX-License-Identifier: Apache-2.0
//! The configuration of `bridge`.

use serde_json::Value;

use super::super::input::{extension, fields, only_nftables};
use super::super::ipam::Ipam;
use super::super::{Owned, veth};
use super::vlan::Vlans;
use crate::cidr::Cidr;
use crate::fields::{FieldError, Fields};
use crate::link::Duplicates;
use crate::types::Dns;

/// What the plugin's configuration says.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::builtin) struct Conf {
    pub(super) bridge: String,
    pub(super) is_gateway: bool,
    pub(super) is_default_gateway: bool,
    pub(super) force_address: bool,
    pub(super) ip_masq: bool,
    pub(super) hairpin: bool,
    pub(super) promisc: bool,
    pub(super) isolated: bool,
    pub(super) spoof_check: bool,
    /// The pod's end is made, and nothing more.
    pub(super) bare: bool,
    pub(super) duplicates: Duplicates,
    pub(super) vlans: Vlans,
    pub(super) mtu: Option<u32>,
    pub(super) dns: Option<Dns>,
    pub(super) ipam: Ipam,
    pub(super) table: String,
    pub(super) routed: bool,
    pub(super) cluster: Vec<Cidr>,
}

const DEFAULT_BRIDGE: &str = "cni0";
/// IFNAMSIZ without the zero at the end.
const LONGEST_LINK_NAME: usize = 15;

impl Conf {
    pub(in crate::builtin) fn parse(path: &str, conf: Value) -> Result<Conf, FieldError> {
        let mut f = fields(path, conf.clone())?;
        let ipam = Ipam::take(&mut f, &conf)?;
        let on =
            |f: &mut Fields, name: &str| Ok::<bool, FieldError>(f.take(name)?.unwrap_or(false));
        let is_default_gateway = on(&mut f, "isDefaultGateway")?;
        let bridge: Option<String> = f.take("bridge")?.filter(|name: &String| !name.is_empty());
        let (table, own) = extension(&mut f)?;
        let mut conf = Conf {
            bridge: bridge.unwrap_or_else(|| DEFAULT_BRIDGE.to_owned()),
            is_gateway: on(&mut f, "isGateway")? || is_default_gateway,
            is_default_gateway,
            force_address: on(&mut f, "forceAddress")?,
            ip_masq: on(&mut f, "ipMasq")?,
            hairpin: on(&mut f, "hairpinMode")?,
            promisc: on(&mut f, "promiscMode")?,
            isolated: on(&mut f, "portIsolation")?,
            spoof_check: on(&mut f, "macspoofchk")?,
            bare: on(&mut f, "disableContainerInterface")?,
            duplicates: if on(&mut f, "enabledad")? {
                Duplicates::Detected
            } else {
                Duplicates::Trusted
            },
            vlans: Vlans::take(&mut f)?,
            mtu: f.take("mtu")?.filter(|mtu| *mtu != 0),
            dns: f.take("dns")?.filter(|dns: &Dns| !dns.is_empty()),
            ipam,
            table,
            routed: false,
            cluster: Vec::new(),
        };
        only_nftables(&mut f, "ipMasqBackend")?;
        if let Some(mut own) = own {
            conf.routed = own.take("routed")?.unwrap_or(false);
            conf.cluster = own.take("clusterCIDRs")?.unwrap_or_default();
            own.finish()?;
        }
        conf.check(&f)?;
        f.finish()?;
        Ok(conf)
    }

    /// What doesn't go together.
    fn check(&self, f: &Fields) -> Result<(), FieldError> {
        let wrong = |name: &str, problem: &str| Err(FieldError::new(f.path_of(name), problem));
        let is_name = crate::conf::is_name(&self.bridge);
        if !is_name || self.bridge.len() > LONGEST_LINK_NAME || veth::is_host_name(&self.bridge) {
            let text = format!("{:?} is not a name for a bridge", self.bridge);
            return wrong("bridge", &text);
        }
        if self.hairpin && self.promisc {
            return wrong("promiscMode", "cannot be used with hairpinMode");
        }
        if self.bare && !self.ipam.is_none() {
            return wrong("disableContainerInterface", "cannot be used with ipam");
        }
        if self.ipam.is_none() && (self.is_gateway || self.ip_masq) {
            return wrong("ipam", "is missing, and a gateway needs addresses");
        }
        if self.routed && !self.is_gateway {
            return wrong("podwright.routed", "needs isGateway");
        }
        if self.routed && self.isolated {
            let text =
                "has no effect on pods that are routed through their gateway: use network policy";
            return wrong("portIsolation", text);
        }
        if self
            .vlans
            .native()
            .is_some_and(|id| vlan_name(&self.bridge, id).len() > LONGEST_LINK_NAME)
        {
            let text = format!(
                "{:?} leaves no room for the name of a VLAN's link",
                self.bridge
            );
            return wrong("bridge", &text);
        }
        Ok(())
    }

    pub(in crate::builtin) fn owned(&self) -> Owned {
        Owned {
            bridge: Some(self.bridge.clone()),
            table: self.ip_masq.then(|| self.table.clone()),
        }
    }
}

/// The link by which the host takes part in a VLAN of a bridge.
pub(super) fn vlan_name(bridge: &str, id: u16) -> String {
    format!("{bridge}.{id}")
}
