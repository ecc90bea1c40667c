// SPDX-License-Identifier: Apache-2.0
//! Services and slices in few words.

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use proxy::compile::compile;
use proxy::parse;
use proxy::rules::{LocalDetect, Settings};
use proxy::service::{Node, ServiceRules};
use serde_json::{Value, json};

pub(crate) const CLUSTER_IP: &str = "10.43.0.10";
pub(crate) const CLUSTER_IP6: &str = "fd43::10";

pub(crate) fn node() -> Node {
    let ips = ["192.0.2.1", "2001:db8::1"].map(|ip| ip.parse().expect("an address"));
    Node {
        zone: "z1".to_owned(),
        ..Node::named("n1", &ips)
    }
}

/// Pods are 10.42.0.0/16 and fd42::/16; node ports answer on the addresses of [`node`].
pub(crate) fn settings() -> Settings {
    let cidrs = |texts: &[&str]| texts.iter().map(|t| t.parse().expect("a CIDR")).collect();
    Settings {
        local: LocalDetect::Cidrs(cidrs(&["10.42.0.0/16", "fd42::/16"])),
        node_ports: cidrs(&["192.0.2.1/32", "2001:db8::1/128"]),
        masquerade_all: false,
        strict: false,
    }
}

/// Service `s`: TCP 80 named "web" (node port 30080), UDP 53 named "dns" (node port 30053).
pub(crate) fn service(extra: Value) -> Service {
    let mut spec = json!({
        "type": "NodePort", "clusterIP": CLUSTER_IP, "clusterIPs": [CLUSTER_IP],
        "ports": [
            {"name": "web", "port": 80, "protocol": "TCP", "nodePort": 30080, "targetPort": "http"},
            {"name": "dns", "port": 53, "protocol": "UDP", "nodePort": 30053, "targetPort": 5353}
        ]
    });
    let mut extra = extra.as_object().expect("an object").clone();
    let status = extra.remove("status").unwrap_or_default();
    spec.as_object_mut().expect("an object").extend(extra);
    let meta = json!({"name": "s", "namespace": "d"});
    serde_json::from_value(json!({"metadata": meta, "spec": spec, "status": status}))
        .expect("a Service")
}

pub(crate) fn endpoint(ip: &str, node: &str, conditions: Value) -> Value {
    json!({"addresses": [ip], "nodeName": node, "conditions": conditions})
}

pub(crate) fn slice(name: &str, endpoints: &[Value]) -> EndpointSlice {
    let first = endpoints.first().and_then(|e| e["addresses"][0].as_str());
    let kind = if first.is_some_and(|ip| ip.contains(':')) {
        "IPv6"
    } else {
        "IPv4"
    };
    serde_json::from_value(json!({
        "metadata": {"name": name, "namespace": "d", "labels": {"kubernetes.io/service-name": "s"}},
        "addressType": kind, "endpoints": endpoints,
        "ports": [
            {"name": "web", "port": 8080, "protocol": "TCP"},
            {"name": "dns", "port": 5353, "protocol": "UDP"},
            {"name": "sig", "port": 2905, "protocol": "SCTP"}
        ]
    }))
    .expect("a slice")
}

/// Compile as the proxy does with what the API server says.
pub(crate) fn rules_of(service: &Service, slices: &[EndpointSlice]) -> ServiceRules {
    rules_at(service, slices, &node())
}

pub(crate) fn rules_at(service: &Service, slices: &[EndpointSlice], node: &Node) -> ServiceRules {
    let Some(service) = parse::service(service) else {
        return ServiceRules::default();
    };
    let slices: Vec<_> = slices
        .iter()
        .filter_map(|slice| parse::slice(slice, &node.name))
        .collect();
    compile(&service, &slices, node)
}

/// The rules of Service `s` with ready endpoints on this node; IPv6 ones are in a slice of their own.
pub(crate) fn ready(extra: Value, ips: &[&str]) -> ServiceRules {
    let of = |v6: bool| -> Vec<Value> {
        ips.iter()
            .filter(|ip| ip.contains(':') == v6)
            .map(|ip| endpoint(ip, "n1", json!({"ready": true})))
            .collect()
    };
    let slices = [slice("s-4", &of(false)), slice("s-6", &of(true))];
    rules_of(&service(extra), &slices)
}

pub(crate) fn key() -> (String, String) {
    ("d".to_owned(), "s".to_owned())
}
