// SPDX-License-Identifier: Apache-2.0
//! `portmap`: host ports of a pod, by destination NAT.
//!
//! A host port is an element of a map, keyed by (address,) protocol and port; the pod that holds it
//! is its data. A second pod that wants the same one is refused by the kernel (`EEXIST`), and DEL
//! of one pod never takes the port of another.

use std::net::IpAddr;

use serde_json::Value;

use super::input::{
    fields, only_nftables, previous, required_previous, table as table_name, version, wish,
};
use super::table::{octets, plain, sets, suffix};
use super::{Owned, REPAIR, internal, unknown_verb};
use crate::attachment::{PortMapping, Protocol};
use crate::conntrack;
use crate::exec::Call;
use crate::fields::FieldError;
use crate::nft::{Command, Data, Element};
use crate::sysctl;
use crate::types::{AddResult, PluginError, code};

/// What the plugin's configuration says.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Conf {
    table: String,
    /// Which connections to host ports come from the node's address.
    sources: Sources,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sources {
    /// None (`snat: false`): a pod does not reach its own host port, and 127.0.0.1 has none.
    Kept,
    /// Those that would not work otherwise.
    Hairpin,
    /// All (`masqAll`).
    Node,
}

impl Conf {
    pub(super) fn parse(path: &str, conf: Value) -> Result<Conf, FieldError> {
        let mut fields = fields(path, conf)?;
        let table = table_name(&mut fields)?;
        only_nftables(&mut fields, "backend")?;
        let snat = fields.take::<bool>("snat")?.unwrap_or(true);
        let all = fields.take::<bool>("masqAll")?.unwrap_or(false);
        let sources = match (snat, all) {
            (false, _) => Sources::Kept,
            (true, false) => Sources::Hairpin,
            (true, true) => Sources::Node,
        };
        fields.finish()?;
        Ok(Conf { table, sources })
    }

    pub(super) fn owned(&self) -> Owned {
        Owned {
            bridge: None,
            table: Some(self.table.clone()),
        }
    }
}

/// One host port of one pod address, as an element of a map.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Port {
    map: String,
    key: Vec<u8>,
    target: Vec<u8>,
}

fn mappings(call: &Call) -> Result<Vec<PortMapping>, PluginError> {
    let listed: Vec<PortMapping> = wish(call, "portMappings")?.unwrap_or_default();
    if listed
        .iter()
        .any(|m| m.host_port == 0 || m.container_port == 0)
    {
        return Err(FieldError::new("runtimeConfig.portMappings", "a port is 0").into());
    }
    Ok(listed)
}

fn protocol_number(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Tcp => 6,
        Protocol::Udp => 17,
        Protocol::Sctp => 132,
    }
}

fn padded(port: u16) -> [u8; 4] {
    let [high, low] = port.to_be_bytes();
    [high, low, 0, 0]
}

/// The elements for a pod: every mapping, to the first address of the family that it asks for.
fn ports(mappings: &[PortMapping], addresses: &[IpAddr]) -> Vec<Port> {
    let mut ports = Vec::new();
    for mapping in mappings {
        for ipv4 in [true, false] {
            let Some(pod) = addresses.iter().find(|a| a.is_ipv4() == ipv4) else {
                continue;
            };
            if mapping.host_ip.is_some_and(|ip| ip.is_ipv4() != ipv4) {
                continue;
            }
            let mut key = Vec::new();
            let only = mapping.host_ip.filter(|ip| !ip.is_unspecified());
            key.extend(only.map(octets).unwrap_or_default());
            key.extend([protocol_number(mapping.protocol), 0, 0, 0]);
            key.extend(padded(mapping.host_port));
            let mut target = octets(*pod);
            target.extend(padded(mapping.container_port));
            let name = if only.is_some() { "hostip" } else { "hostport" };
            ports.push(Port {
                map: format!("{name}{}", suffix(ipv4)),
                key,
                target,
            });
        }
    }
    ports
}

pub(super) fn run(call: &Call) -> Result<Option<Value>, PluginError> {
    let conf = Conf::parse("", call.conf.clone())?;
    match call.verb {
        "ADD" => {
            let result = required_previous(call)?;
            add(&conf, &mappings(call)?, &result)?;
            Ok(Some(result.to_json(version(call))))
        }
        "CHECK" => check(&conf, &mappings(call)?, &required_previous(call)?).map(|()| None),
        "DEL" => match previous(call)? {
            // Without the pod's address nothing can be ours.
            None => Ok(None),
            Some(result) => delete(&conf, &mappings(call)?, &result).map(|()| None),
        },
        // What GC finds lost has been given to DEL, with its ports.
        "GC" | "STATUS" => Ok(None),
        REPAIR => repair(&conf, &mappings(call)?, &required_previous(call)?).map(|()| None),
        _ => Err(unknown_verb(call)),
    }
}

fn pod_addresses(result: &AddResult) -> Vec<IpAddr> {
    result.ips.iter().map(|ip| ip.address.addr).collect()
}

impl Conf {
    /// The elements by which connections to the pod's host ports get another source.
    fn translations(&self, addresses: &[IpAddr]) -> Vec<(String, Vec<u8>)> {
        let mut elements = Vec::new();
        for address in addresses {
            let n = suffix(address.is_ipv4());
            match self.sources {
                Sources::Kept => {}
                Sources::Hairpin => elements.push((format!("loop{n}"), octets(*address).repeat(2))),
                Sources::Node => elements.push((format!("always{n}"), octets(*address))),
            }
            // IPv6 has no way from ::1 to a link.
            if self.sources == Sources::Hairpin && address.is_ipv4() {
                elements.push(("localhost4".to_owned(), octets(*address)));
            }
        }
        elements
    }
}

/// Lets the kernel send what comes from 127.0.0.1 out on the pods' link, and take the answers. Only
/// once the table is there: its guard keeps everything else away from loopback.
fn open_loopback(result: &AddResult) -> Result<(), PluginError> {
    let link = result.interfaces.iter().find(|i| i.sandbox.is_empty());
    match link {
        Some(link) => {
            let name = format!("ipv4/conf/{}/route_localnet", link.name);
            sysctl::set(&name, "1").map_err(internal)
        }
        None => Ok(()),
    }
}

fn commands(conf: &Conf, mappings: &[PortMapping], result: &AddResult) -> Vec<Command> {
    let addresses = pod_addresses(result);
    let mut commands = Vec::new();
    for port in ports(mappings, &addresses) {
        let element = Element {
            key: port.key,
            data: Some(Data::Value(port.target)),
        };
        commands.push(Command::AddElements {
            set: port.map,
            elements: vec![element],
        });
    }
    for (set, key) in conf.translations(&addresses) {
        commands.push(Command::AddElements {
            set,
            elements: vec![plain(key)],
        });
    }
    commands
}

fn add(conf: &Conf, mappings: &[PortMapping], result: &AddResult) -> Result<(), PluginError> {
    if mappings.is_empty() {
        return Ok(());
    }
    sets(&conf.table)
        .add(&[], &commands(conf, mappings, result))
        .map_err(|error| taken(error, mappings))?;
    if conf.sources != Sources::Kept {
        open_loopback(result)?;
    }
    forget_flows(mappings)
}

/// The kernel says only that something is there already.
fn taken(mut error: PluginError, mappings: &[PortMapping]) -> PluginError {
    if error.details.contains("File exists") {
        let ports: Vec<_> = mappings.iter().map(PortMapping::to_string).collect();
        error.msg = format!("another pod has one of the host ports {}", ports.join(", "));
    }
    error
}

fn repair(conf: &Conf, mappings: &[PortMapping], result: &AddResult) -> Result<(), PluginError> {
    if mappings.is_empty() {
        return Ok(());
    }
    sets(&conf.table).restore(&[], &commands(conf, mappings, result))?;
    match conf.sources {
        Sources::Kept => Ok(()),
        _ => open_loopback(result),
    }
}

fn delete(conf: &Conf, mappings: &[PortMapping], result: &AddResult) -> Result<(), PluginError> {
    if mappings.is_empty() {
        return Ok(());
    }
    let addresses = pod_addresses(result);
    let mut mine = conf.translations(&addresses);
    for port in ports(mappings, &addresses) {
        if sets(&conf.table).get(&port.map, &port.key)?.as_ref() == Some(&port.target) {
            mine.push((port.map, port.key));
        }
    }
    sets(&conf.table).delete(&mine)?;
    forget_flows(mappings)
}

fn check(conf: &Conf, mappings: &[PortMapping], result: &AddResult) -> Result<(), PluginError> {
    for port in ports(mappings, &pod_addresses(result)) {
        if sets(&conf.table).get(&port.map, &port.key)?.as_ref() != Some(&port.target) {
            return Err(PluginError::new(
                code::INTERNAL,
                format!("a host port is missing in map {}", port.map),
            ));
        }
    }
    Ok(())
}

/// A UDP flow to a host port keeps going where it went before, if it is not forgotten.
fn forget_flows(mappings: &[PortMapping]) -> Result<(), PluginError> {
    let udp: Vec<&PortMapping> = mappings
        .iter()
        .filter(|m| m.protocol == Protocol::Udp)
        .collect();
    if udp.is_empty() {
        return Ok(());
    }
    let wanted = |flow: &conntrack::Flow| {
        flow.original.protocol == conntrack::UDP
            && udp.iter().any(|m| {
                m.host_port == flow.original.dport
                    && m.host_ip
                        .is_none_or(|ip| ip.is_unspecified() || ip == flow.original.dst)
            })
    };
    conntrack::delete(wanted).map(drop).map_err(internal)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapping_goes_to_the_family_it_names() {
        let pod: Vec<IpAddr> = ["10.42.0.5", "fd00::5"]
            .map(|a| a.parse().expect("an address"))
            .to_vec();
        let mapping = |host_ip: Option<&str>| PortMapping {
            host_port: 8080,
            container_port: 80,
            protocol: Protocol::Tcp,
            host_ip: host_ip.map(|a| a.parse().expect("an address")),
        };
        let maps = |host_ip| -> Vec<String> {
            ports(&[mapping(host_ip)], &pod)
                .into_iter()
                .map(|p| p.map)
                .collect()
        };
        assert_eq!(maps(None), ["hostport4", "hostport6"]);
        assert_eq!(maps(Some("0.0.0.0")), ["hostport4"]);
        assert_eq!(maps(Some("::")), ["hostport6"]);
        let one = &ports(&[mapping(Some("192.0.2.1"))], &pod)[0];
        assert_eq!(one.map, "hostip4");
        assert_eq!(one.key, [192, 0, 2, 1, 6, 0, 0, 0, 0x1f, 0x90, 0, 0]);
        assert_eq!(one.target, [10, 42, 0, 5, 0, 80, 0, 0]);
    }
}
