// SPDX-License-Identifier: Apache-2.0
//! NetworkPolicies (upstream: `pkg/apis/networking/validation`).

use std::net::IpAddr;

use serde_json::{Value, json};

use super::{container::port_number, field::FieldErrors, labels, names};
use crate::apiserver::{
    json::{self, int, list, text},
    resource::Strategy,
};

const CIDR: &str = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";

/// NetworkPolicies.
pub(crate) const NETWORK_POLICY: Strategy = Strategy {
    default,
    validate,
    ..Strategy::NONE
};

fn default(policy: &mut Value) {
    let spec = json::object(policy, "spec");
    if spec.get("podSelector").is_none_or(Value::is_null) {
        spec["podSelector"] = json!({});
    }
    for direction in ["ingress", "egress"] {
        for rule in json::items(spec, direction) {
            for port in json::items(rule, "ports") {
                json::default_text(port, "protocol", "TCP");
            }
        }
    }
    if list(spec, "/policyTypes").is_empty() {
        let mut types = vec!["Ingress"];
        if !list(spec, "/egress").is_empty() {
            types.push("Egress");
        }
        spec["policyTypes"] = json!(types);
    }
}

fn validate(policy: &Value, errors: &mut FieldErrors) {
    labels::check(&policy["spec"]["podSelector"], "spec.podSelector", errors);
    for (direction, peers) in [("ingress", "from"), ("egress", "to")] {
        let rules = list(policy, &format!("/spec/{direction}"));
        for (at, rule) in rules.iter().enumerate() {
            let path = format!("spec.{direction}[{at}]");
            for (at, port) in list(rule, "/ports").iter().enumerate() {
                validate_port(port, &format!("{path}.ports[{at}]"), errors);
            }
            for (at, peer) in list(rule, &format!("/{peers}")).iter().enumerate() {
                validate_peer(peer, &format!("{path}.{peers}[{at}]"), errors);
            }
        }
    }
    let types = list(policy, "/spec/policyTypes");
    if types.len() > 2 {
        errors.invalid(
            "spec.policyTypes",
            types.to_vec(),
            "may not specify more than two policyTypes",
        );
        return;
    }
    for (at, kind) in types.iter().enumerate() {
        let (path, kind) = (format!("spec.policyTypes[{at}]"), kind.as_str());
        if !matches!(kind, Some("Ingress" | "Egress")) {
            errors.unsupported(path, kind.unwrap_or(""), &["Ingress", "Egress"]);
        }
    }
}

fn validate_port(port: &Value, path: &str, errors: &mut FieldErrors) {
    errors.one_of(
        format!("{path}.protocol"),
        text(port, "/protocol"),
        &["TCP", "UDP", "SCTP"],
    );
    let end = int(port, "/endPort");
    let forbid_end = |errors: &mut FieldErrors, when: &str| {
        if let Some(end) = end {
            let why = format!("may not be specified when `port` is {when}");
            errors.invalid(format!("{path}.endPort"), end, why);
        }
    };
    match port.get("port") {
        Some(Value::String(name)) => {
            forbid_end(errors, "non-numeric");
            for why in names::broken_port_name(name) {
                errors.invalid(format!("{path}.port"), name.as_str(), why);
            }
        }
        Some(Value::Number(number)) => {
            let number = number.as_i64().unwrap_or(0);
            port_number(number, &format!("{path}.port"), errors);
            if let Some(end) = end {
                let path = format!("{path}.endPort");
                if end < number {
                    errors.invalid(&path, end, "must be greater than or equal to `port`");
                }
                port_number(end, &path, errors);
            }
        }
        _ => forbid_end(errors, "not specified"),
    }
}

fn validate_peer(peer: &Value, path: &str, errors: &mut FieldErrors) {
    let given = |field: &str| peer.get(field).filter(|value| !value.is_null());
    let mut count = 0;
    for field in ["podSelector", "namespaceSelector"] {
        if let Some(selector) = given(field) {
            count += 1;
            labels::check(selector, &format!("{path}.{field}"), errors);
        }
    }
    if let Some(block) = given("ipBlock") {
        validate_block(block, &format!("{path}.ipBlock"), errors);
        if count > 0 {
            errors.forbidden(path, "may not specify both ipBlock and another peer");
        }
    } else if count == 0 {
        errors.required(path, "must specify a peer");
    }
}

fn validate_block(block: &Value, path: &str, errors: &mut FieldErrors) {
    let cidr = text(block, "/cidr");
    if cidr.is_empty() {
        errors.required(format!("{path}.cidr"), "");
        return;
    }
    let Some((base, prefix)) = parse(cidr) else {
        errors.invalid(format!("{path}.cidr"), cidr, CIDR);
        return;
    };
    for (at, except) in list(block, "/except").iter().enumerate() {
        let path = format!("{path}.except[{at}]");
        let except = except.as_str().unwrap_or("");
        let Some((inner, longer)) = parse(except) else {
            errors.invalid(path, except, CIDR);
            continue;
        };
        let within = base.is_ipv4() == inner.is_ipv4()
            && leading(base, prefix) == leading(inner, prefix)
            && longer > prefix;
        if !within {
            errors.invalid(path, except, "must be a strict subset of `cidr`");
        }
    }
}

/// The leading bits of an address.
fn leading(address: IpAddr, count: u32) -> u128 {
    let (bits, width) = match address {
        IpAddr::V4(v4) => (u128::from(v4.to_bits()), 32),
        IpAddr::V6(v6) => (v6.to_bits(), 128),
    };
    bits.checked_shr(width - count).unwrap_or(0)
}

fn parse(cidr: &str) -> Option<(IpAddr, u32)> {
    let (address, prefix) = cidr.split_once('/')?;
    let address: IpAddr = address.parse().ok()?;
    if prefix.is_empty() || !prefix.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let prefix: u32 = prefix.parse().ok()?;
    let width = if address.is_ipv4() { 32 } else { 128 };
    (prefix <= width).then_some((address, prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn messages(spec: Value) -> Vec<String> {
        let mut policy = json!({"spec": spec});
        default(&mut policy);
        let mut errors = FieldErrors::default();
        validate(&policy, &mut errors);
        errors.0.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn types_and_protocols_are_filled_in() {
        let mut policy = json!({"spec": {"egress": [{"ports": [{"port": 53}]}]}});
        default(&mut policy);
        assert_eq!(policy["spec"]["policyTypes"], json!(["Ingress", "Egress"]));
        assert_eq!(policy["spec"]["egress"][0]["ports"][0]["protocol"], "TCP");
        let mut policy = json!({"spec": {"podSelector": {}, "egress": []}});
        default(&mut policy);
        assert_eq!(policy["spec"]["policyTypes"], json!(["Ingress"]));
    }

    #[test]
    fn mistakes_are_told_in_upstreams_words() {
        let ports = |port: Value| messages(json!({"ingress": [{"ports": [port]}]}));
        let path = "spec.ingress[0].ports[0]";
        for (port, expected) in [
            (
                json!({"protocol": "ICMP"}),
                "protocol: Unsupported value: \"ICMP\": supported values: \"TCP\", \"UDP\", \"SCTP\"",
            ),
            (
                json!({"port": 0}),
                "port: Invalid value: 0: must be between 1 and 65535, inclusive",
            ),
            (
                json!({"port": 80, "endPort": 79}),
                "endPort: Invalid value: 79: must be greater than or equal to `port`",
            ),
            (
                json!({"port": "web", "endPort": 90}),
                "endPort: Invalid value: 90: may not be specified when `port` is non-numeric",
            ),
            (
                json!({"endPort": 90}),
                "endPort: Invalid value: 90: may not be specified when `port` is not specified",
            ),
            (
                json!({"port": "-1"}),
                "port: Invalid value: \"-1\": must contain at least one letter (a-z)",
            ),
        ] {
            let found = ports(port);
            assert_eq!(found[0], format!("{path}.{expected}"), "{found:?}");
        }
        let peers = |peer: Value| messages(json!({"egress": [{"to": [peer]}]}));
        let path = "spec.egress[0].to[0]";
        for (peer, expected) in [
            (json!({}), ": Required value: must specify a peer"),
            (
                json!({"ipBlock": {"cidr": "10.0.0.0/8"}, "podSelector": {}}),
                ": Forbidden: may not specify both ipBlock and another peer",
            ),
            (
                json!({"ipBlock": {"cidr": "10.0.0.0"}}),
                ".ipBlock.cidr: Invalid value: \"10.0.0.0\": must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)",
            ),
            (
                json!({"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.0.0.0/8"]}}),
                ".ipBlock.except[0]: Invalid value: \"10.0.0.0/8\": must be a strict subset of `cidr`",
            ),
            (
                json!({"podSelector": {"matchExpressions": [{"key": "a", "operator": "In"}]}}),
                ".podSelector.matchExpressions[0].values: Required value: must be specified when `operator` is 'In' or 'NotIn'",
            ),
        ] {
            assert_eq!(peers(peer), [format!("{path}{expected}")]);
        }
        let good =
            json!({"ipBlock": {"cidr": "0.0.0.0/0", "except": ["10.0.0.0/8", "192.0.2.1/32"]}});
        assert_eq!(peers(good), [""; 0]);
        let types = messages(json!({"policyTypes": ["Both"]}));
        assert_eq!(
            types,
            [
                "spec.policyTypes[0]: Unsupported value: \"Both\": supported values: \"Ingress\", \"Egress\""
            ]
        );
        let three = messages(json!({"policyTypes": ["Ingress", "Egress", "Ingress"]}));
        assert!(three[0].ends_with("may not specify more than two policyTypes"));
    }
}
