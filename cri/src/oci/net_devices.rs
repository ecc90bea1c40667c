// SPDX-License-Identifier: Apache-2.0
//! `linux.netDevices`: devices of our network namespace that become the container's.
//!
//! As in runc 1.4: a device keeps its lasting addresses, and is up afterwards. What becomes of it
//! when the namespace ends is the kernel's doing: hardware comes back, a virtual device ends.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;

use cni::cidr::Cidr;
use cni::link::{AddressSpec, LinkError, Route};
use cni::netns::{self, NetnsError};
use oci_spec::runtime::{Linux, LinuxNamespaceType};

use super::compile::{CompileError, invalid};

/// A device, by its name here and there.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Move {
    pub name: String,
    pub name_there: String,
}

#[derive(Debug, thiserror::Error)]
pub enum MoveError {
    #[error("linux.netDevices: opening {path}")]
    Open {
        path: String,
        #[source]
        source: std::io::Error,
    },
    #[error("linux.netDevices[{name}]: there is no such device")]
    Missing { name: String },
    #[error("linux.netDevices[{name}]")]
    Link {
        name: String,
        #[source]
        source: LinkError,
    },
    #[error("linux.netDevices[{name}].name: the container has a device {name_there} already")]
    Taken { name: String, name_there: String },
    #[error("linux.netDevices: entering the container's network namespace")]
    Enter(#[from] NetnsError),
}

/// What a spec asks for, in an order that is always the same.
///
/// # Errors
/// A name that no device can have, two devices of one name, or no network namespace to move to.
pub fn net_devices(linux: &Linux) -> Result<Vec<Move>, CompileError> {
    let mut moves: Vec<Move> = Vec::new();
    for (name, device) in linux.net_devices().iter().flatten() {
        let there = device.name().as_deref().filter(|name| !name.is_empty());
        let name_there = there.unwrap_or(name).to_owned();
        for (field, name) in [("", name), (".name", &name_there)] {
            if !is_device_name(name) {
                let field = format!("linux.netDevices[{name}]{field}");
                return Err(invalid(field, "no network device can have this name"));
            }
        }
        moves.push(Move {
            name: name.clone(),
            name_there,
        });
    }
    moves.sort();
    let mut names: Vec<&str> = moves.iter().map(|each| &*each.name_there).collect();
    names.sort_unstable();
    if let Some(pair) = names.windows(2).find(|pair| pair[0] == pair[1]) {
        let reason = format!("two devices get the name {}", pair[0]);
        return Err(invalid("linux.netDevices", reason));
    }
    let namespaces = linux.namespaces().as_deref().unwrap_or_default();
    let own =
        |space: &oci_spec::runtime::LinuxNamespace| space.typ() == LinuxNamespaceType::Network;
    match moves.is_empty() || namespaces.iter().any(own) {
        true => Ok(moves),
        false => Err(invalid(
            "linux.netDevices",
            "unable to move network devices without a network namespace",
        )),
    }
}

/// The kernel's rule (dev_valid_name), and no control characters.
fn is_device_name(name: &str) -> bool {
    const IFNAMSIZ: usize = 16;
    let plain = |c: char| !c.is_whitespace() && !c.is_control() && c != '/' && c != ':';
    (1..IFNAMSIZ).contains(&name.len()) && !matches!(name, "." | "..") && name.chars().all(plain)
}

/// Moves devices from this network namespace to the one at `netns`. What has been moved when a
/// later one fails stays with the namespace.
///
/// # Errors
/// Names the device.
pub fn move_all(moves: &[Move], netns: &Path) -> Result<(), MoveError> {
    if moves.is_empty() {
        return Ok(());
    }
    let failed = |source| MoveError::Open {
        path: netns.display().to_string(),
        source,
    };
    let file = File::open(netns).map_err(failed)?;
    let inside = netns::run(netns, Route::open)?;
    let mut here = Route::open().map_err(failed)?;
    let mut there = inside.map_err(failed)?;
    for each in moves {
        each.go(&mut here, &mut there, &file)?;
    }
    Ok(())
}

impl Move {
    fn go(&self, here: &mut Route, there: &mut Route, netns: &File) -> Result<(), MoveError> {
        let Move { name, name_there } = self;
        let failed = |source| MoveError::Link {
            name: name.clone(),
            source,
        };
        let found = here.link(name).map_err(failed)?;
        let link = found.ok_or_else(|| MoveError::Missing { name: name.clone() })?;
        // The kernel asks only once the device is there, and would not send it back.
        if there.link(name_there).map_err(failed)?.is_some() {
            let (name, name_there) = (name.clone(), name_there.clone());
            return Err(MoveError::Taken { name, name_there });
        }
        // The move costs it its addresses.
        let addresses = here.lasting_addresses(link.index).map_err(failed)?;
        let addresses: Vec<AddressSpec> = addresses.into_iter().map(kept).collect();
        here.move_to(&link, name_there, netns.as_fd())
            .map_err(failed)?;
        let moved = there.link(name_there).map_err(failed)?;
        let moved = moved.ok_or_else(|| MoveError::Missing { name: name.clone() })?;
        there
            .configure(moved.index, &addresses, &[])
            .map_err(failed)
    }
}

fn kept(address: Cidr) -> AddressSpec {
    AddressSpec {
        address,
        no_prefix_route: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn moves(devices: Value, namespaces: Value) -> Result<Vec<Move>, String> {
        let linux = json!({"netDevices": devices, "namespaces": namespaces});
        let linux = serde_json::from_value(linux).expect("a linux part");
        net_devices(&linux).map_err(|error| error.to_string())
    }

    #[test]
    fn devices_keep_their_name_or_get_another() {
        let devices = json!({"eth1": {"name": "net0"}, "eth0": {}, "eth2": {"name": ""}});
        let moves = moves(devices, json!([{"type": "network", "path": "/x"}])).expect("fine");
        let names: Vec<_> = moves.iter().map(|m| (&*m.name, &*m.name_there)).collect();
        assert_eq!(
            names,
            [("eth0", "eth0"), ("eth1", "net0"), ("eth2", "eth2")]
        );
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        let own = json!([{"type": "network"}]);
        for (devices, namespaces, expected) in [
            (
                json!({"a/b": {}}),
                own.clone(),
                "linux.netDevices[a/b] is invalid",
            ),
            (
                json!({"eth0": {"name": "sixteen-letters-"}}),
                own.clone(),
                "linux.netDevices[sixteen-letters-].name is invalid",
            ),
            (
                json!({"eth0": {"name": "x"}, "x": {}}),
                own,
                "linux.netDevices is invalid: two devices get the name x",
            ),
            (
                json!({"eth0": {}}),
                json!([]),
                "without a network namespace",
            ),
        ] {
            let said = moves(devices, namespaces).expect_err("refused");
            assert!(said.contains(expected), "{said}");
        }
    }
}
