// SPDX-License-Identifier: Apache-2.0
//! A pod's wishes in CNI's words, and CNI's answer in CRI's.

use std::net::IpAddr;
use std::path::Path;

use cni::types::AddResult;
use cni::{Attachment, Capabilities, PortMapping, Protocol};

use crate::fault::{Fault, Result};
use crate::v1;

/// The name of a pod's interface, fixed by kubelet and CNI custom.
pub(crate) const INTERFACE: &str = "eth0";

/// The attachment of a sandbox to the pod network.
///
/// # Errors
/// When a port mapping is out of range or its host IP cannot be parsed.
pub(crate) fn attachment(
    id: &str,
    netns: &Path,
    config: &v1::PodSandboxConfig,
) -> Result<Attachment> {
    let metadata = config.metadata.clone().unwrap_or_default();
    Ok(Attachment {
        container_id: id.to_owned(),
        netns: netns.to_owned(),
        ifname: INTERFACE.to_owned(),
        pod_name: metadata.name,
        pod_namespace: metadata.namespace,
        pod_uid: metadata.uid,
        capabilities: Capabilities {
            port_mappings: port_mappings(&config.port_mappings)?,
            ..Default::default()
        },
    })
}

/// Mappings without a host port say only what the container listens on, and are left out.
fn port_mappings(wanted: &[v1::PortMapping]) -> Result<Vec<PortMapping>> {
    let mapped = wanted.iter().filter(|m| m.host_port > 0);
    mapped
        .map(|m| {
            let port = |number: i32, what: &str| {
                u16::try_from(number)
                    .ok()
                    .filter(|p| *p > 0)
                    .ok_or_else(|| {
                        Fault::invalid(format!(
                            "port mapping: {what} {number} is outside 1..=65535"
                        ))
                    })
            };
            let host_ip = if m.host_ip.is_empty() {
                None
            } else {
                Some(m.host_ip.parse::<IpAddr>().map_err(|_| {
                    Fault::invalid(format!(
                        "port mapping: host_ip {:?} is not an IP address",
                        m.host_ip
                    ))
                })?)
            };
            Ok(PortMapping {
                host_port: port(m.host_port, "host_port")?,
                container_port: port(m.container_port, "container_port")?,
                protocol: match m.protocol() {
                    v1::Protocol::Tcp => Protocol::Tcp,
                    v1::Protocol::Udp => Protocol::Udp,
                    v1::Protocol::Sctp => Protocol::Sctp,
                },
                host_ip,
            })
        })
        .collect()
}

/// The addresses on the pod's interface, in the order that CNI reports them.
pub(crate) fn addresses(result: &AddResult) -> Vec<String> {
    let in_pod = |index: Option<usize>| match index.and_then(|i| result.interfaces.get(i)) {
        Some(interface) => interface.name == INTERFACE && !interface.sandbox.is_empty(),
        // A result may leave the interface out; the address then is the pod's.
        None => true,
    };
    result
        .ips
        .iter()
        .filter(|ip| in_pod(ip.interface))
        .map(|ip| ip.address.addr.to_string())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(host: i32, container: i32, ip: &str) -> Result<Vec<PortMapping>> {
        port_mappings(&[v1::PortMapping {
            protocol: v1::Protocol::Udp as i32,
            container_port: container,
            host_port: host,
            host_ip: ip.to_owned(),
        }])
    }

    #[test]
    fn only_host_ports_are_mapped_and_ranges_are_checked() {
        assert!(check(0, 80, "").unwrap().is_empty());
        let mapped = check(8080, 80, "10.0.0.1").unwrap();
        assert_eq!((mapped[0].host_port, mapped[0].container_port), (8080, 80));
        assert_eq!(mapped[0].protocol, Protocol::Udp);
        assert!(check(70000, 80, "").is_err());
        assert!(check(80, 0, "").is_err());
        assert!(check(80, 80, "localhost").is_err());
    }
}
