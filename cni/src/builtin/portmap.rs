// SPDX-License-Identifier: Apache-2.0
//! `portmap`: host ports of a pod, by destination NAT.
//!
//! A host port is an element of a map, keyed by (address,) protocol and port; the pod that holds it
//! is its data. A second pod that wants the same one is refused by the kernel (`EEXIST`), and DEL
//! of one pod never takes the port of another.

use std::net::IpAddr;

use serde_json::Value;

use super::table::{self, octets, suffix};
use super::{
    DEFAULT_TABLE, EXTENSION, check_table, fields, internal, previous, required_previous,
    unknown_verb, version,
};
use crate::conntrack;
use crate::exec::Call;
use crate::fields::FieldError;
use crate::network::{PortMapping, Protocol};
use crate::nft::{Command, Data, Element};
use crate::sysctl;
use crate::types::{AddResult, PluginError, code};

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Conf {
    table: String,
}

impl Conf {
    pub(super) fn parse(path: &str, conf: Value) -> Result<Conf, FieldError> {
        let mut fields = fields(path, conf)?;
        let mut table = DEFAULT_TABLE.to_owned();
        if let Some(mut own) = fields.object(EXTENSION)? {
            if let Some(name) = own.take::<String>("table")? {
                check_table(own.path_of("table"), &name)?;
                table = name;
            }
            own.finish()?;
        }
        // "backend" of the reference plugin: there is one here.
        match fields.take::<String>("backend")?.as_deref() {
            None | Some("nftables") => {}
            Some(other) => {
                return Err(FieldError::new(
                    fields.path_of("backend"),
                    format!("{other:?} is not nftables"),
                ));
            }
        }
        // Always done: a pod's own host port would not work otherwise.
        if fields.take::<bool>("snat")? == Some(false) {
            return Err(FieldError::new(
                fields.path_of("snat"),
                "false is not supported",
            ));
        }
        fields.finish()?;
        Ok(Conf { table })
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
    let wrong = |text: String| {
        PluginError::new(
            code::INVALID_CONFIG,
            format!("field runtimeConfig.portMappings: {text}"),
        )
    };
    let listed = call
        .conf
        .pointer("/runtimeConfig/portMappings")
        .cloned()
        .unwrap_or(Value::Null);
    let listed: Option<Vec<PortMapping>> =
        serde_json::from_value(listed).map_err(|e| wrong(e.to_string()))?;
    let listed = listed.unwrap_or_default();
    for mapping in &listed {
        if mapping.host_port == 0 || mapping.container_port == 0 {
            return Err(wrong("a port is 0".to_owned()));
        }
        if mapping.protocol == Protocol::Sctp {
            return Err(wrong("protocol sctp is not supported".to_owned()));
        }
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
        _ => Err(unknown_verb(call)),
    }
}

fn pod_addresses(result: &AddResult) -> Vec<IpAddr> {
    result.ips.iter().map(|ip| ip.address.addr).collect()
}

fn loops(addresses: &[IpAddr]) -> Vec<(String, Vec<u8>)> {
    addresses
        .iter()
        .map(|a| (format!("loop{}", suffix(a.is_ipv4())), octets(*a).repeat(2)))
        .collect()
}

/// Addresses of pods whose host ports are used at 127.0.0.1.
fn locals(addresses: &[IpAddr]) -> Vec<(String, Vec<u8>)> {
    let ipv4 = addresses.iter().filter(|a| a.is_ipv4());
    ipv4.map(|a| ("localhost4".to_owned(), octets(*a)))
        .collect()
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

fn add(conf: &Conf, mappings: &[PortMapping], result: &AddResult) -> Result<(), PluginError> {
    if mappings.is_empty() {
        return Ok(());
    }
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
    for (set, key) in loops(&addresses).into_iter().chain(locals(&addresses)) {
        commands.push(Command::AddElements {
            set,
            elements: vec![table::plain(key)],
        });
    }
    table::add(&conf.table, &[], &commands)?;
    open_loopback(result)?;
    forget_flows(mappings)
}

fn delete(conf: &Conf, mappings: &[PortMapping], result: &AddResult) -> Result<(), PluginError> {
    if mappings.is_empty() {
        return Ok(());
    }
    let addresses = pod_addresses(result);
    let mut mine = loops(&addresses);
    mine.extend(locals(&addresses));
    for port in ports(mappings, &addresses) {
        if table::get(&conf.table, &port.map, &port.key)?.as_ref() == Some(&port.target) {
            mine.push((port.map, port.key));
        }
    }
    table::delete(&conf.table, &mine)?;
    forget_flows(mappings)
}

fn check(conf: &Conf, mappings: &[PortMapping], result: &AddResult) -> Result<(), PluginError> {
    for port in ports(mappings, &pod_addresses(result)) {
        if table::get(&conf.table, &port.map, &port.key)?.as_ref() != Some(&port.target) {
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
