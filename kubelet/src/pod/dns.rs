// SPDX-License-Identifier: Apache-2.0
//! The resolver configuration of a pod (kubernetes/kubernetes, pkg/kubelet/network/dns). Pure.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Pod, PodDNSConfig};

use super::spec;

/// What goes into a resolv.conf.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Dns {
    /// `nameserver` lines.
    pub servers: Vec<String>,
    /// The `search` line.
    pub searches: Vec<String>,
    /// The `options` line.
    pub options: Vec<String>,
}

impl Dns {
    /// Reads a resolv.conf. Unknown lines are ignored, as the C library does; a later `search` line
    /// replaces an earlier one.
    pub fn parse(text: &str) -> Dns {
        let mut dns = Dns::default();
        for line in text.lines() {
            let mut words = line.split_whitespace();
            let Some(keyword) = words.next() else {
                continue;
            };
            let rest = words.map(str::to_owned);
            match keyword {
                "nameserver" => dns.servers.extend(rest.take(1)),
                "search" => dns.searches = rest.collect(),
                "options" => dns.options = rest.collect(),
                _ => {}
            }
        }
        dns
    }

    fn merge(&mut self, config: &PodDNSConfig) {
        let add = |list: &mut Vec<String>, more: &[String]| {
            for item in more {
                if !list.contains(item) {
                    list.push(item.clone());
                }
            }
        };
        add(
            &mut self.servers,
            config.nameservers.as_deref().unwrap_or_default(),
        );
        add(
            &mut self.searches,
            config.searches.as_deref().unwrap_or_default(),
        );
        for option in config.options.iter().flatten() {
            let name = option.name.as_deref().unwrap_or_default();
            let text = match option.value.as_deref() {
                Some(value) if !value.is_empty() => format!("{name}:{value}"),
                _ => name.to_owned(),
            };
            // The pod's value replaces one that is already there.
            let same = |known: &String| known.split(':').next() == Some(name);
            self.options.retain(|known| !same(known));
            self.options.push(text);
        }
    }
}

/// What the node offers.
#[derive(Debug, Clone, Default)]
pub struct NodeDns {
    /// Cluster DNS servers.
    pub cluster: Vec<IpAddr>,
    /// Cluster domain; may be empty.
    pub domain: String,
    /// The node's own resolv.conf.
    pub host: Dns,
}

/// The pod's resolver configuration, and whether MissingClusterDNS is to be reported: the pod asked
/// for cluster DNS and there is none.
pub fn resolve(pod: &Pod, node: &NodeDns) -> (Dns, bool) {
    let spec_of = spec::spec(pod);
    let policy = spec_of.dns_policy.as_deref().unwrap_or("ClusterFirst");
    let wants_cluster = match policy {
        "ClusterFirstWithHostNet" => true,
        "ClusterFirst" => !spec::host_network(pod),
        _ => false,
    };
    let missing = wants_cluster && node.cluster.is_empty();
    let mut dns = match policy {
        "None" => Dns::default(),
        _ if wants_cluster && !missing => cluster_first(pod, node),
        _ => node.host.clone(),
    };
    if let Some(config) = &spec_of.dns_config {
        dns.merge(config);
    }
    (dns, missing)
}

fn cluster_first(pod: &Pod, node: &NodeDns) -> Dns {
    let mut searches = Vec::new();
    if !node.domain.is_empty() {
        let domain = &node.domain;
        searches.push(format!("{}.svc.{domain}", spec::namespace(pod)));
        searches.push(format!("svc.{domain}"));
        searches.push(domain.clone());
    }
    for search in &node.host.searches {
        if !searches.contains(search) {
            searches.push(search.clone());
        }
    }
    Dns {
        servers: node.cluster.iter().map(ToString::to_string).collect(),
        searches,
        options: vec!["ndots:5".to_owned()],
    }
}

/// The event's text when cluster DNS is missing.
pub fn missing_cluster_dns(pod: &Pod) -> String {
    let policy = spec::spec(pod)
        .dns_policy
        .as_deref()
        .unwrap_or("ClusterFirst");
    format!(
        "pod: \"{}\". kubelet does not have ClusterDNS IP configured and cannot create Pod using \"{policy}\" policy. Falling back to \"Default\" policy.",
        spec::display(pod)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::testing::pod;

    fn node(cluster: bool) -> NodeDns {
        NodeDns {
            cluster: if cluster {
                vec![IpAddr::from([10, 43, 0, 10])]
            } else {
                Vec::new()
            },
            domain: "cluster.local".to_owned(),
            host: Dns::parse("# c\nnameserver 9.9.9.9\nsearch example.org\noptions rotate\n"),
        }
    }

    fn text(spec: &str, cluster: bool) -> String {
        let (dns, missing) = resolve(&pod(spec), &node(cluster));
        let words = [
            dns.servers.join(","),
            dns.searches.join(","),
            dns.options.join(","),
        ];
        format!(
            "{}{}",
            words.join(" "),
            if missing { " missing" } else { "" }
        )
    }

    #[test]
    fn policies_choose_the_servers() {
        let own = "dnsConfig: {nameservers: [1.1.1.1], searches: [x.y], options: [{name: ndots, value: '2'}]}";
        let cases = [
            (
                "dnsPolicy: Default".to_owned(),
                true,
                "9.9.9.9 example.org rotate",
            ),
            (
                String::new(),
                true,
                "10.43.0.10 ns.svc.cluster.local,svc.cluster.local,cluster.local,example.org ndots:5",
            ),
            (String::new(), false, "9.9.9.9 example.org rotate missing"),
            (
                "hostNetwork: true".to_owned(),
                true,
                "9.9.9.9 example.org rotate",
            ),
            (
                format!("dnsPolicy: None\n{own}"),
                true,
                "1.1.1.1 x.y ndots:2",
            ),
            (
                own.to_owned(),
                true,
                "10.43.0.10,1.1.1.1 ns.svc.cluster.local,svc.cluster.local,cluster.local,example.org,x.y ndots:2",
            ),
        ];
        for (spec, cluster, expected) in cases {
            let spec = format!("containers: [{{name: a, image: x}}]\n{spec}");
            assert_eq!(text(&spec, cluster), expected, "{spec}");
        }
    }
}
