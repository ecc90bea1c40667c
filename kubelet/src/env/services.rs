// SPDX-License-Identifier: Apache-2.0
//! Service links: `<SVC>_SERVICE_HOST`, `_SERVICE_PORT` and docker's link variables.
//!
//! Names and order follow kubernetes/kubernetes, `pkg/kubelet/envvars`.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Service, ServicePort};

/// The namespace and name of the API server's own Service, which every pod is told about.
pub(super) const API_NAMESPACE: &str = "default";
pub(super) const API_SERVICE: &str = "kubernetes";

/// Variables of every service, sorted by service name. Headless services have none.
pub(super) fn variables<'a>(
    services: impl IntoIterator<Item = &'a Service>,
) -> Vec<(String, String)> {
    let by_name: BTreeMap<&str, &Service> = services
        .into_iter()
        .filter_map(|service| Some((service.metadata.name.as_deref()?, service)))
        .collect();
    by_name
        .into_iter()
        .flat_map(|(name, service)| of_service(name, service))
        .collect()
}

/// Picks the services a pod learns of: its namespace's (when links are enabled), and always the
/// API server's. A service `kubernetes` of the pod's own namespace wins.
pub(super) fn select<'a>(
    own: &'a [Service],
    default_namespace: &'a [Service],
    links: bool,
) -> Vec<&'a Service> {
    let own: Vec<&Service> = own.iter().filter(|_| links).collect();
    let mut chosen: Vec<&Service> = default_namespace
        .iter()
        .filter(|service| service.metadata.name.as_deref() == Some(API_SERVICE))
        .collect();
    chosen.extend(own);
    chosen
}

fn of_service(name: &str, service: &Service) -> Vec<(String, String)> {
    let Some(spec) = &service.spec else {
        return Vec::new();
    };
    let ip = spec.cluster_ip.as_deref().unwrap_or_default();
    let ports = spec.ports.as_deref().unwrap_or_default();
    if ip.is_empty() || ip == "None" || ports.is_empty() {
        return Vec::new();
    }
    let prefix = variable_name(name);
    let mut out = vec![
        (format!("{prefix}_SERVICE_HOST"), ip.to_owned()),
        (format!("{prefix}_SERVICE_PORT"), ports[0].port.to_string()),
    ];
    for port in ports {
        if let Some(port_name) = port.name.as_deref().filter(|name| !name.is_empty()) {
            let key = format!("{prefix}_SERVICE_PORT_{}", variable_name(port_name));
            out.push((key, port.port.to_string()));
        }
    }
    let first = &ports[0];
    out.push((format!("{prefix}_PORT"), url(ip, first)));
    for port in ports {
        let key = format!("{prefix}_PORT_{}_{}", port.port, protocol(port));
        out.push((key.clone(), url(ip, port)));
        out.push((format!("{key}_PROTO"), protocol(port).to_lowercase()));
        out.push((format!("{key}_PORT"), port.port.to_string()));
        out.push((format!("{key}_ADDR"), ip.to_owned()));
    }
    out
}

fn protocol(port: &ServicePort) -> String {
    match port.protocol.as_deref() {
        None | Some("") => "TCP".to_owned(),
        Some(protocol) => protocol.to_uppercase(),
    }
}

fn url(ip: &str, port: &ServicePort) -> String {
    let scheme = protocol(port).to_lowercase();
    if ip.contains(':') {
        format!("{scheme}://[{ip}]:{}", port.port)
    } else {
        format!("{scheme}://{ip}:{}", port.port)
    }
}

fn variable_name(name: &str) -> String {
    name.replace('-', "_").to_uppercase()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn service(value: serde_json::Value) -> Service {
        serde_json::from_value(value).expect("a service")
    }

    fn redis() -> Service {
        service(
            json!({"metadata": {"name": "redis-main"}, "spec": {"clusterIP": "10.0.0.11",
            "ports": [{"port": 6379, "name": "p-1"}, {"port": 53, "protocol": "UDP", "name": "dns"}]}}),
        )
    }

    #[test]
    fn names_are_those_of_docker_links() {
        let got: Vec<String> = variables([&redis()])
            .into_iter()
            .map(|(k, v)| format!("{k}={v}"))
            .collect();
        assert_eq!(
            got,
            [
                "REDIS_MAIN_SERVICE_HOST=10.0.0.11",
                "REDIS_MAIN_SERVICE_PORT=6379",
                "REDIS_MAIN_SERVICE_PORT_P_1=6379",
                "REDIS_MAIN_SERVICE_PORT_DNS=53",
                "REDIS_MAIN_PORT=tcp://10.0.0.11:6379",
                "REDIS_MAIN_PORT_6379_TCP=tcp://10.0.0.11:6379",
                "REDIS_MAIN_PORT_6379_TCP_PROTO=tcp",
                "REDIS_MAIN_PORT_6379_TCP_PORT=6379",
                "REDIS_MAIN_PORT_6379_TCP_ADDR=10.0.0.11",
                "REDIS_MAIN_PORT_53_UDP=udp://10.0.0.11:53",
                "REDIS_MAIN_PORT_53_UDP_PROTO=udp",
                "REDIS_MAIN_PORT_53_UDP_PORT=53",
                "REDIS_MAIN_PORT_53_UDP_ADDR=10.0.0.11",
            ]
        );
    }

    #[test]
    fn headless_services_have_no_variables() {
        for ip in ["None", ""] {
            let headless = service(json!({"metadata": {"name": "x"},
                "spec": {"clusterIP": ip, "ports": [{"port": 1}]}}));
            assert!(variables([&headless]).is_empty());
        }
    }

    #[test]
    fn addresses_of_version_six_are_bracketed_in_urls() {
        let six = service(json!({"metadata": {"name": "x"},
            "spec": {"clusterIP": "fd00::1", "ports": [{"port": 80}]}}));
        assert!(variables([&six]).contains(&("X_PORT".into(), "tcp://[fd00::1]:80".into())));
    }

    #[test]
    fn without_links_only_the_api_server_remains() {
        let api = service(json!({"metadata": {"name": "kubernetes"},
            "spec": {"clusterIP": "10.43.0.1", "ports": [{"port": 443}]}}));
        let (own, default) = (vec![redis()], vec![api, redis()]);
        let names = |links| -> Vec<String> {
            select(&own, &default, links)
                .iter()
                .filter_map(|s| s.metadata.name.clone())
                .collect()
        };
        assert_eq!(names(false), ["kubernetes"]);
        assert_eq!(names(true), ["kubernetes", "redis-main"]);
    }
}
