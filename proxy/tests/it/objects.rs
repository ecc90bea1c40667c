// SPDX-License-Identifier: Apache-2.0
//! Services and slices in few words.

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use proxy::service::{Node, ServiceRules, compile};
use serde_json::{Value, json};

pub(crate) const CLUSTER_IP: &str = "10.43.0.10";

pub(crate) fn node() -> Node {
    let ips = ["192.0.2.1", "127.0.0.1"]
        .map(|ip| ip.parse().expect("an address"))
        .to_vec();
    Node {
        name: "n1".to_owned(),
        ips,
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
    spec.as_object_mut()
        .expect("an object")
        .extend(extra.as_object().expect("an object").clone());
    serde_json::from_value(json!({"metadata": {"name": "s", "namespace": "d"}, "spec": spec}))
        .expect("a Service")
}

pub(crate) fn endpoint(ip: &str, node: &str, conditions: Value) -> Value {
    json!({"addresses": [ip], "nodeName": node, "conditions": conditions})
}

pub(crate) fn slice(name: &str, endpoints: &[Value]) -> EndpointSlice {
    serde_json::from_value(json!({
        "metadata": {"name": name, "namespace": "d", "labels": {"kubernetes.io/service-name": "s"}},
        "addressType": "IPv4", "endpoints": endpoints,
        "ports": [{"name": "web", "port": 8080, "protocol": "TCP"}, {"name": "dns", "port": 5353, "protocol": "UDP"}]
    })).expect("a slice")
}

/// The rules of Service `s` with ready endpoints.
pub(crate) fn ready(extra: Value, ips: &[&str]) -> ServiceRules {
    let endpoints: Vec<Value> = ips
        .iter()
        .map(|ip| endpoint(ip, "n1", json!({"ready": true})))
        .collect();
    compile(&service(extra), &[slice("s-1", &endpoints)], &node())
}

pub(crate) fn key() -> (String, String) {
    ("d".to_owned(), "s".to_owned())
}
