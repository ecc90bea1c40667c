// SPDX-License-Identifier: Apache-2.0
//! The content of a pod's managed `/etc/hosts`, byte for byte as upstream writes it.

use std::fmt::Write;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::HostAlias;

/// For pods with a network of their own.
pub(super) fn of_pod(
    ips: &[IpAddr],
    hostname: &str,
    domain: &str,
    aliases: &[HostAlias],
) -> String {
    let mut out = String::from(
        "# Kubernetes-managed hosts file.\n\
         127.0.0.1\tlocalhost\n\
         ::1\tlocalhost ip6-localhost ip6-loopback\n\
         fe00::0\tip6-localnet\n\
         fe00::0\tip6-mcastprefix\n\
         fe00::1\tip6-allnodes\n\
         fe00::2\tip6-allrouters\n",
    );
    for ip in ips {
        // Writing to a String cannot fail.
        let _ = if domain.is_empty() {
            writeln!(out, "{ip}\t{hostname}")
        } else {
            writeln!(out, "{ip}\t{hostname}.{domain}\t{hostname}")
        };
    }
    out + &alias_lines(aliases)
}

/// For pods on the node's network: the node's own file, and the aliases.
pub(super) fn of_node(node_hosts: &str, aliases: &[HostAlias]) -> String {
    format!(
        "# Kubernetes-managed hosts file (host network).\n{node_hosts}{}",
        alias_lines(aliases)
    )
}

fn alias_lines(aliases: &[HostAlias]) -> String {
    if aliases.is_empty() {
        return String::new();
    }
    let mut out = String::from("\n# Entries added by HostAliases.\n");
    for alias in aliases {
        let names = alias.hostnames.as_deref().unwrap_or_default().join("\t");
        // Writing to a String cannot fail.
        let _ = writeln!(out, "{}\t{names}", alias.ip);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIXED: &str = "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n\
        ::1\tlocalhost ip6-localhost ip6-loopback\nfe00::0\tip6-localnet\nfe00::0\tip6-mcastprefix\n\
        fe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n";

    fn alias(ip: &str, names: &[&str]) -> HostAlias {
        HostAlias {
            ip: ip.to_owned(),
            hostnames: Some(names.iter().map(ToString::to_string).collect()),
        }
    }

    #[test]
    fn a_pod_sees_itself_and_its_aliases() {
        let ips = [[10, 42, 0, 3].into()];
        assert_eq!(
            of_pod(&ips, "web-1", "", &[]),
            format!("{FIXED}10.42.0.3\tweb-1\n")
        );
        assert_eq!(
            of_pod(
                &ips,
                "web-1",
                "sub.ns.svc.cluster.local",
                &[alias("1.2.3.4", &["a.example", "b"]), alias("::5", &["c"])]
            ),
            format!(
                "{FIXED}10.42.0.3\tweb-1.sub.ns.svc.cluster.local\tweb-1\n\n\
                 # Entries added by HostAliases.\n1.2.3.4\ta.example\tb\n::5\tc\n"
            )
        );
    }

    #[test]
    fn a_pod_on_the_host_network_sees_the_nodes_file() {
        assert_eq!(
            of_node("127.0.0.1 localhost\n", &[alias("1.2.3.4", &["x"])]),
            "# Kubernetes-managed hosts file (host network).\n127.0.0.1 localhost\n\n\
             # Entries added by HostAliases.\n1.2.3.4\tx\n"
        );
    }
}
