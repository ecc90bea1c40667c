// SPDX-License-Identifier: Apache-2.0
//! A pod's wishes in CNI's words, and CNI's answer in CRI's.

use std::net::IpAddr;
use std::path::Path;

use cni::types::AddResult;
use cni::{Attachment, Capabilities, PortMapping, Protocol};
use serde_json::{Map, Value, json};

use crate::fault::{Fault, Result};
use crate::sandbox::bandwidth;
use crate::v1;

/// The name of a pod's interface, fixed by kubelet and CNI custom.
pub(crate) const INTERFACE: &str = "eth0";

/// containerd's name for the pod's annotations as a capability.
const ANNOTATIONS: &str = "io.kubernetes.cri.pod-annotations";

/// The attachment of a sandbox to the pod network.
///
/// # Errors
/// When a port mapping is out of range, its host IP cannot be parsed, or an annotation asks for a
/// bandwidth that there is not.
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
            other: capabilities(config)?,
        },
    })
}

/// What containerd offers to plugins besides host ports, by the same names.
fn capabilities(config: &v1::PodSandboxConfig) -> Result<Map<String, Value>> {
    let mut offered = Map::new();
    if let Some(limits) = bandwidth::wanted(&config.annotations)? {
        offered.insert("bandwidth".to_owned(), limits);
    }
    if let Some(dns) = &config.dns_config {
        let dns = json!({"servers": dns.servers, "searches": dns.searches, "options": dns.options});
        offered.insert("dns".to_owned(), dns);
    }
    let cgroup = config.linux.as_ref().map(|linux| &linux.cgroup_parent);
    if let Some(cgroup) = cgroup.filter(|cgroup| !cgroup.is_empty()) {
        offered.insert("cgroupPath".to_owned(), json!(cgroup));
    }
    if !config.annotations.is_empty() {
        offered.insert(ANNOTATIONS.to_owned(), json!(config.annotations));
    }
    Ok(offered)
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
    fn plugins_are_offered_what_containerd_offers() {
        let config = v1::PodSandboxConfig {
            dns_config: Some(v1::DnsConfig {
                servers: vec!["10.0.0.53".to_owned()],
                ..Default::default()
            }),
            annotations: [("kubernetes.io/egress-bandwidth".to_owned(), "1M".to_owned())].into(),
            linux: Some(v1::LinuxPodSandboxConfig {
                cgroup_parent: "/kubepods/pod1".to_owned(),
                ..Default::default()
            }),
            ..Default::default()
        };
        let offered = capabilities(&config).unwrap();
        assert_eq!(offered["bandwidth"]["egressRate"], 1_000_000);
        assert_eq!(offered["dns"]["servers"], json!(["10.0.0.53"]));
        assert_eq!(offered["cgroupPath"], "/kubepods/pod1");
        assert_eq!(offered[ANNOTATIONS], json!(config.annotations));
        assert!(
            capabilities(&v1::PodSandboxConfig::default())
                .unwrap()
                .is_empty()
        );
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
