// SPDX-License-Identifier: Apache-2.0
//! VLANs of a bridge: which a pod's port takes part in, and the host's own link into one.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::AsFd;

use super::super::{internal, wrong};
use super::conf::{Conf, vlan_name};
use crate::fields::{FieldError, Fields};
use crate::hash;
use crate::link::{Link, Route, VethSpec};
use crate::types::PluginError;

/// The last number that a VLAN can have (IEEE 802.1Q).
const LAST_VLAN: u16 = 4094;
/// The VLAN that the kernel puts every port in.
const DEFAULT_VLAN: u16 = 1;

/// The VLANs of a pod's port.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Vlans {
    /// That of frames without a tag; 0: the kernel's default.
    id: u16,
    /// Those of frames with one; none: there is no trunk.
    trunk: Option<Vec<u16>>,
    /// Stay in the kernel's default VLAN too.
    keep_default: bool,
}

impl Vlans {
    pub(super) fn take(f: &mut Fields) -> Result<Vlans, FieldError> {
        let id: i64 = f.take("vlan")?.unwrap_or(0);
        let id = u16::try_from(id)
            .ok()
            .filter(|id| *id <= LAST_VLAN)
            .ok_or_else(|| {
                FieldError::new(
                    f.path_of("vlan"),
                    format!("{id} is not between 0 and {LAST_VLAN}"),
                )
            })?;
        let items = f.objects("vlanTrunk")?;
        let mut trunk = BTreeSet::new();
        let has_trunk = !items.is_empty();
        for mut item in items {
            let (first, last) = (number(&mut item, "minID")?, number(&mut item, "maxID")?);
            match (first, last) {
                (Some(first), Some(last)) if first <= last => trunk.extend(first..=last),
                (Some(_), Some(_)) => {
                    return Err(FieldError::new(
                        item.path_of("minID"),
                        "is greater than maxID",
                    ));
                }
                (None, None) => {}
                (Some(_), None) => {
                    return Err(FieldError::new(item.path_of("maxID"), "is missing"));
                }
                (None, Some(_)) => {
                    return Err(FieldError::new(item.path_of("minID"), "is missing"));
                }
            }
            trunk.extend(number(&mut item, "id")?);
            item.finish()?;
        }
        Ok(Vlans {
            id,
            trunk: has_trunk.then(|| trunk.into_iter().collect()),
            keep_default: f.take("preserveDefaultVlan")?.unwrap_or(false),
        })
    }

    /// Must the bridge keep VLANs apart?
    pub(super) fn any(&self) -> bool {
        self.id != 0 || self.trunk.is_some()
    }

    /// The VLAN that the pod's addresses are in, if it is not the bridge's own.
    pub(super) fn native(&self) -> Option<u16> {
        (self.id != 0).then_some(self.id)
    }

    /// Let a port take part in these VLANs and no others. Idempotent.
    pub(super) fn apply(&self, route: &mut Route, port: u32) -> Result<(), PluginError> {
        if !self.any() {
            return Ok(());
        }
        let trunk = self.trunk.as_deref().unwrap_or_default();
        if !self.keep_default {
            for vlan in route.vlans(port).map_err(internal)? {
                route.delete_vlan(port, vlan).map_err(internal)?;
            }
        }
        for vlan in trunk.iter().filter(|vlan| **vlan != self.id) {
            route.add_vlan(port, *vlan, false).map_err(internal)?;
        }
        // A trunk without a native VLAN has the kernel's default for one, as in the reference plugin.
        let native = match (self.id, trunk) {
            (0, []) => return Ok(()),
            (0, _) => DEFAULT_VLAN,
            (id, _) => id,
        };
        route.add_vlan(port, native, true).map_err(internal)
    }
}

fn number(item: &mut Fields, name: &str) -> Result<Option<u16>, FieldError> {
    let Some(number) = item.take::<i64>(name)? else {
        return Ok(None);
    };
    let valid = u16::try_from(number)
        .ok()
        .filter(|n| (1..=LAST_VLAN).contains(n));
    let path = item.path_of(name);
    let wrong = || FieldError::new(path, format!("{number} is not between 1 and {LAST_VLAN}"));
    valid.map(Some).ok_or_else(wrong)
}

/// The link by which the host takes part in a VLAN of the bridge, and has its gateway there: one end
/// of a veth pair, whose other end is a port.
pub(super) fn ensure_link(
    route: &mut Route,
    conf: &Conf,
    bridge: &Link,
    id: u16,
) -> Result<Link, PluginError> {
    let name = vlan_name(&conf.bridge, id);
    let port_name = format!("pv{:08x}", hash::fnv32(name.as_bytes()));
    if route.link(&name).map_err(internal)?.is_none() {
        let here = File::open("/proc/thread-self/ns/net").map_err(internal)?;
        let spec = VethSpec {
            host_name: &port_name,
            master: bridge.index,
            pod_name: &name,
            pod_mac: None,
            mtu: Some(bridge.mtu),
        };
        match route.add_veth(&spec, here.as_fd()) {
            // By another ADD at the same time.
            Err(error) if error.errno() == Some(libc::EEXIST) => {}
            other => other.map_err(internal)?,
        }
    }
    let mut find = |name: &str| {
        let link = route.link(name).map_err(internal)?;
        link.ok_or_else(|| wrong(format!("link {name} vanished")))
    };
    let (link, port) = (find(&name)?, find(&port_name)?);
    if port.master != Some(bridge.index) {
        route
            .set_master(port.index, bridge.index)
            .map_err(internal)?;
    }
    let only = Vlans {
        id,
        trunk: None,
        keep_default: conf.vlans.keep_default,
    };
    only.apply(route, port.index)?;
    if !link.up {
        route.set_up(link.index).map_err(internal)?;
    }
    Ok(link)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn take(value: serde_json::Value) -> Result<Vlans, String> {
        let mut fields = Fields::new("", value).expect("an object");
        Vlans::take(&mut fields).map_err(|e| e.to_string())
    }

    #[test]
    fn trunks_are_sets() {
        let vlans =
            take(json!({"vlan": 7, "vlanTrunk": [{"minID": 3, "maxID": 5}, {"id": 4}, {"id": 9}]}));
        let vlans = vlans.expect("valid");
        assert_eq!((vlans.id, vlans.trunk), (7, Some(vec![3, 4, 5, 9])));
        for (wrong, problem) in [
            (
                json!({"vlan": -1}),
                "field vlan: -1 is not between 0 and 4094",
            ),
            (
                json!({"vlanTrunk": [{"id": 0}]}),
                "field vlanTrunk[0].id: 0 is not between 1 and 4094",
            ),
            (
                json!({"vlanTrunk": [{"minID": 3}]}),
                "field vlanTrunk[0].maxID: is missing",
            ),
            (
                json!({"vlanTrunk": [{"minID": 3, "maxID": 2}]}),
                "field vlanTrunk[0].minID: is greater than maxID",
            ),
        ] {
            assert_eq!(take(wrong).expect_err("wrong"), problem);
        }
    }
}
