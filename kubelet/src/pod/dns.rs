// SPDX-License-Identifier: Apache-2.0
//! The resolver configuration of a pod (kubernetes/kubernetes, pkg/kubelet/network/dns). Pure.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Pod, PodDNSConfig};

use super::spec;

/// `nameserver` lines that the C library reads.
const SERVERS_MAX: usize = 3;
/// Names in a `search` line, and the length of the line (pkg/apis/core/validation).
const SEARCHES_MAX: usize = 32;
const SEARCH_LINE_MAX: usize = 2048;
/// A longer name makes some resolvers abort.
const SEARCH_MAX: usize = 253;

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
                "search" => dns.searches = rest.map(without_last_dot).collect(),
                "options" => dns.options = rest.collect(),
                _ => {}
            }
        }
        dns
    }

    /// Leave out what resolvers do not read. The messages of the events that say so.
    fn fit(&mut self) -> Vec<String> {
        let mut messages = Vec::new();
        let before = self.searches.len();
        self.searches.truncate(SEARCHES_MAX);
        self.searches.retain(|search| search.len() <= SEARCH_MAX);
        while self.searches.join(" ").len() > SEARCH_LINE_MAX {
            self.searches.pop();
        }
        if self.searches.len() < before {
            let line = self.searches.join(" ");
            messages.push(format!("Search Line limits were exceeded, some search paths have been omitted, the applied search line is: {line}"));
        }
        if self.servers.len() > SERVERS_MAX {
            self.servers.truncate(SERVERS_MAX);
            let line = self.servers.join(" ");
            messages.push(format!("Nameserver limits were exceeded, some nameservers have been omitted, the applied nameserver line is: {line}"));
        }
        messages
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

/// As kubelet does: musl takes a name with a dot at its end for another one.
fn without_last_dot(search: String) -> String {
    match search.strip_suffix('.') {
        Some(name) if !name.is_empty() => name.to_owned(),
        _ => search,
    }
}

/// A warning event about a pod: reason and message.
pub type Warning = (&'static str, String);

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

/// The pod's resolver configuration, and what is to be reported: the pod asked for cluster DNS and
/// there is none, or for more than resolvers read.
pub fn resolve(pod: &Pod, node: &NodeDns) -> (Dns, Vec<Warning>) {
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
    let mut warnings = Vec::new();
    if missing {
        warnings.push(("MissingClusterDNS", missing_cluster_dns(pod)));
    }
    let cut = dns.fit().into_iter();
    warnings.extend(cut.map(|message| ("DNSConfigForming", message)));
    (dns, warnings)
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
fn missing_cluster_dns(pod: &Pod) -> String {
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
        let (dns, warnings) = resolve(&pod(spec), &node(cluster));
        let missing = warnings
            .iter()
            .any(|(reason, _)| *reason == "MissingClusterDNS");
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

    #[test]
    fn a_pod_on_the_nodes_network_may_ask_for_cluster_dns() {
        let spec = "containers: [{name: a, image: x}]\nhostNetwork: true\ndnsPolicy: ClusterFirstWithHostNet";
        assert!(text(spec, true).starts_with("10.43.0.10 ns.svc.cluster.local,"));
        assert!(text(spec, false).ends_with(" missing"));
    }

    #[test]
    fn a_search_line_keeps_its_names_without_dots_at_their_ends() {
        let dns = Dns::parse("search a.example. . b.example\n");
        assert_eq!(dns.searches, ["a.example", ".", "b.example"]);
    }

    fn with_searches(searches: &[String]) -> (Dns, Vec<Warning>) {
        let spec = format!(
            "containers: [{{name: a, image: x}}]\ndnsPolicy: None\ndnsConfig: {{nameservers: [1.1.1.1], searches: [{}]}}",
            searches.join(", ")
        );
        resolve(&pod(&spec), &node(true))
    }

    #[test]
    fn what_resolvers_do_not_read_is_left_out_and_said() {
        let many: Vec<String> = (0..33).map(|n| format!("d{n}.example")).collect();
        let (dns, warnings) = with_searches(&many[..32]);
        assert_eq!((dns.searches.len(), warnings.len()), (32, 0));
        let (dns, warnings) = with_searches(&many);
        assert_eq!(dns.searches, many[..32]);
        let (reason, message) = &warnings[0];
        assert_eq!(*reason, "DNSConfigForming");
        assert!(message.starts_with("Search Line limits were exceeded, some search paths have been omitted, the applied search line is: d0.example d1.example "));
        let long: Vec<String> = (0..10).map(|n| format!("{}{n}", "x".repeat(239))).collect();
        let (dns, warnings) = with_searches(&long);
        // 8 names of 240 letters and 7 spaces are 1927; a ninth does not fit.
        assert_eq!((dns.searches.len(), warnings.len()), (8, 1));
        let too_long = ["ok.example".to_owned(), "y".repeat(254)];
        let (dns, warnings) = with_searches(&too_long);
        assert_eq!((&dns.searches[..], warnings.len()), (&too_long[..1], 1));
        let servers = "containers: [{name: a, image: x}]\ndnsConfig: {nameservers: [1.1.1.1, 2.2.2.2, 3.3.3.3]}";
        let (dns, warnings) = resolve(&pod(servers), &node(true));
        assert_eq!(dns.servers, ["10.43.0.10", "1.1.1.1", "2.2.2.2"]);
        assert!(
            warnings[0]
                .1
                .ends_with("the applied nameserver line is: 10.43.0.10 1.1.1.1 2.2.2.2")
        );
    }
}
