// SPDX-License-Identifier: Apache-2.0
//! Services, Endpoints and EndpointSlices. Addresses and node ports are chosen in `allocate`.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::{
    container::{is_port_name, port_number},
    field::FieldErrors,
    names, service_health, service_ips,
};
use crate::apiserver::{
    json::{self, int, list, text},
    resource::{NameRule, Strategy},
};

const TYPES: &[&str] = &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"];

/// Services.
pub(crate) const SERVICE: Strategy = Strategy {
    default: default_service,
    prepare_create: |service| {
        service["status"] = json!({"loadBalancer": {}});
        service_ips::link(service);
    },
    prepare_update,
    validate: validate_service,
    validate_update: |new, old, errors| {
        service_ips::validate_update(new, old, errors);
        service_health::validate_update(new, old, errors);
    },
};

fn default_service(service: &mut Value) {
    let spec = json::object(service, "spec");
    json::default_text(spec, "type", "ClusterIP");
    json::default_text(spec, "sessionAffinity", "None");
    let kind = text(spec, "/type").to_owned();
    if text(spec, "/sessionAffinity") == "ClientIP" {
        let client = json::object(json::object(spec, "sessionAffinityConfig"), "clientIP");
        json::default(client, "timeoutSeconds", 10_800);
    }
    for port in json::items(spec, "ports") {
        json::default_text(port, "protocol", "TCP");
        let number = port.get("port").cloned().unwrap_or(Value::Null);
        if port
            .get("targetPort")
            .is_none_or(|t| t.is_null() || t == 0 || t == "")
        {
            port["targetPort"] = number;
        }
    }
    if kind != "ExternalName" {
        json::default_text(spec, "internalTrafficPolicy", "Cluster");
    }
    if matches!(kind.as_str(), "NodePort" | "LoadBalancer") {
        json::default_text(spec, "externalTrafficPolicy", "Cluster");
    }
    if kind == "LoadBalancer" {
        json::default(spec, "allocateLoadBalancerNodePorts", true);
    }
}

/// What an update leaves out is kept, so that a client need not know what was allocated; what
/// the new type has no use for is dropped.
fn prepare_update(new: &mut Value, old: &Value) {
    let (is, was) = (
        text(new, "/spec/type").to_owned(),
        text(old, "/spec/type").to_owned(),
    );
    service_ips::keep(new, old);
    service_health::keep(new, old);
    if is == "ExternalName" && was != "ExternalName" {
        let path = "/spec/internalTrafficPolicy";
        if new.pointer(path) == old.pointer(path) {
            json::remove(&mut new["spec"], "internalTrafficPolicy");
        }
    }
    let node_ports = |kind: &str| matches!(kind, "NodePort" | "LoadBalancer");
    if node_ports(&is) && node_ports(&was) {
        keep_node_ports(new, old);
    }
    if !node_ports(&is) && node_ports(&was) {
        json::remove(&mut new["spec"], "externalTrafficPolicy");
        for port in json::items(&mut new["spec"], "ports") {
            json::remove(port, "nodePort");
        }
    }
}

fn keep_node_ports(new: &mut Value, old: &Value) {
    let key = |port: &Value| (int(port, "/port"), text(port, "/protocol").to_owned());
    for port in json::items(&mut new["spec"], "ports") {
        if int(port, "/nodePort").unwrap_or(0) != 0 {
            continue;
        }
        let mut before = list(old, "/spec/ports").iter();
        if let Some(before) = before.find(|p| key(p) == key(port)) {
            json::put(port, "nodePort", before.get("nodePort").cloned());
        }
    }
}

fn validate_service(service: &Value, errors: &mut FieldErrors) {
    let kind = text(service, "/spec/type");
    errors.one_of("spec.type", kind, TYPES);
    errors.one_of(
        "spec.sessionAffinity",
        text(service, "/spec/sessionAffinity"),
        &["ClientIP", "None"],
    );
    errors.one_of(
        "spec.internalTrafficPolicy",
        text(service, "/spec/internalTrafficPolicy"),
        &["Cluster", "Local"],
    );
    errors.one_of(
        "spec.externalTrafficPolicy",
        text(service, "/spec/externalTrafficPolicy"),
        &["Cluster", "Local"],
    );
    service_ips::validate(service, errors);
    service_health::validate(service, errors);
    names::labels(service.pointer("/spec/selector"), "spec.selector", errors);
    let ports = list(service, "/spec/ports");
    let headless = service_ips::is_headless(service);
    if kind == "ExternalName" {
        let name = text(service, "/spec/externalName");
        if name.is_empty() {
            errors.required("spec.externalName", "");
        } else if let Some(why) = names::broken(NameRule::Subdomain, name.trim_end_matches('.')) {
            errors.invalid("spec.externalName", name, why);
        }
    } else if ports.is_empty() && !headless {
        errors.required("spec.ports", "");
    }
    if headless && matches!(kind, "NodePort" | "LoadBalancer") {
        errors.invalid(
            "spec.clusterIPs[0]",
            "None",
            format!("may not be set to 'None' for {kind} services"),
        );
    }
    service_ports(ports, kind, errors);
    for (at, ip) in list(service, "/spec/externalIPs").iter().enumerate() {
        if ip
            .as_str()
            .is_none_or(|ip| ip.parse::<std::net::IpAddr>().is_err())
        {
            errors.invalid(
                format!("spec.externalIPs[{at}]"),
                ip.clone(),
                "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
            );
        }
    }
}

fn service_ports(ports: &[Value], kind: &str, errors: &mut FieldErrors) {
    let mut used_names = BTreeSet::new();
    let mut used_ports = BTreeSet::new();
    for (at, port) in ports.iter().enumerate() {
        let path = format!("spec.ports[{at}]");
        let name = text(port, "/name");
        if name.is_empty() && ports.len() > 1 {
            errors.required(format!("{path}.name"), "");
        } else if !name.is_empty() {
            if let Some(why) = names::broken(NameRule::Label, name) {
                errors.invalid(format!("{path}.name"), name, why);
            } else if !used_names.insert(name) {
                errors.duplicate(format!("{path}.name"), name);
            }
        }
        let number = int(port, "/port").unwrap_or(0);
        port_number(number, &format!("{path}.port"), errors);
        let protocol = text(port, "/protocol");
        errors.one_of(
            format!("{path}.protocol"),
            protocol,
            &["SCTP", "TCP", "UDP"],
        );
        if !used_ports.insert((number, protocol)) {
            errors.duplicate(&path, json!({"port": number, "protocol": protocol}));
        }
        match port.get("targetPort") {
            Some(Value::Number(target)) => port_number(
                target.as_i64().unwrap_or(0),
                &format!("{path}.targetPort"),
                errors,
            ),
            Some(Value::String(target)) if !is_port_name(target) => {
                errors.invalid(format!("{path}.targetPort"), target.as_str(), "must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-), at least one letter, at most 15 characters");
            }
            _ => {}
        }
        let node_port = int(port, "/nodePort").unwrap_or(0);
        if node_port != 0 && !matches!(kind, "NodePort" | "LoadBalancer") {
            errors.forbidden(
                format!("{path}.nodePort"),
                format!("may not be used when `type` is '{kind}'"),
            );
        }
    }
}

/// Endpoints.
pub(crate) const ENDPOINTS: Strategy = Strategy {
    default: |endpoints| {
        for subset in json::items(endpoints, "subsets") {
            for port in json::items(subset, "ports") {
                json::default_text(port, "protocol", "TCP");
            }
        }
    },
    validate: |endpoints, errors| {
        for (at, subset) in list(endpoints, "/subsets").iter().enumerate() {
            for field in ["addresses", "notReadyAddresses"] {
                for (n, address) in list(subset, &format!("/{field}")).iter().enumerate() {
                    let ip = text(address, "/ip");
                    if ip.parse::<std::net::IpAddr>().is_err() {
                        let path = format!("subsets[{at}].{field}[{n}].ip");
                        errors.invalid(
                            path,
                            ip,
                            "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
                        );
                    }
                }
            }
        }
    },
    ..Strategy::NONE
};

/// EndpointSlices.
pub(crate) const ENDPOINT_SLICE: Strategy = Strategy {
    default: |slice| {
        for port in json::items(slice, "ports") {
            json::default_text(port, "protocol", "TCP");
            json::default(port, "name", "");
        }
    },
    validate: |slice, errors| {
        let kind = text(slice, "/addressType");
        if kind.is_empty() {
            errors.required("addressType", "");
        }
        errors.one_of("addressType", kind, &["FQDN", "IPv4", "IPv6"]);
        let endpoints = list(slice, "/endpoints");
        if endpoints.len() > 1000 {
            errors.invalid("endpoints", endpoints.len(), "must have at most 1000 items");
        }
        for (at, endpoint) in endpoints.iter().enumerate() {
            let path = format!("endpoints[{at}].addresses");
            if list(endpoint, "/addresses").is_empty() {
                errors.required(&path, "must contain at least 1 address");
            }
            for (n, address) in list(endpoint, "/addresses").iter().enumerate() {
                let address = address.as_str().unwrap_or("");
                let fits = match kind {
                    "IPv4" => address.parse::<std::net::Ipv4Addr>().is_ok(),
                    "IPv6" => address.parse::<std::net::Ipv6Addr>().is_ok(),
                    _ => names::is_subdomain(address),
                };
                if !fits {
                    errors.invalid(
                        format!("{path}[{n}]"),
                        address,
                        format!("must be a valid {kind} address"),
                    );
                }
            }
        }
    },
    validate_update: |new, old, errors| {
        errors.immutable(
            "addressType",
            new.get("addressType"),
            old.get("addressType"),
        );
    },
    ..Strategy::NONE
};
