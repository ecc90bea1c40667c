// SPDX-License-Identifier: Apache-2.0
//! What becomes of a Service's families and addresses, as tables: made and changed, with one range and
//! with two.

use serde_json::{Value, json};

use super::{InUse, Ranges};
use crate::apiserver::{
    json::{list, text},
    strategy::{SERVICE, field::FieldErrors},
};

const V4: &str = "10.43.0.0/24";
const V6: &str = "fd43::/108";
const BOTH: &str = "10.43.0.0/24,fd43::/108";
const BOTH_V6: &str = "fd43::/108,10.43.0.0/24";

/// A Service with these fields, as the server would store it, or what it says.
fn stored(
    ranges: &str,
    others: &[Value],
    old: Option<&Value>,
    spec: Value,
) -> Result<Value, String> {
    let ranges = Ranges::parse(ranges).expect("ranges");
    let mut service = json!({"metadata": {"name": "s"}, "spec": spec});
    if service["spec"].get("ports").is_none() {
        service["spec"]["ports"] = json!([{"port": 80}]);
    }
    let in_use = InUse::of(others.iter().cloned());
    let mut errors = FieldErrors::default();
    let said = |errors: &FieldErrors| {
        let texts: Vec<_> = errors.0.iter().map(ToString::to_string).collect();
        if texts.is_empty() {
            Ok(())
        } else {
            Err(texts.join("; "))
        }
    };
    (SERVICE.default)(&mut service);
    match old {
        None => (SERVICE.prepare_create)(&mut service),
        Some(old) => (SERVICE.prepare_update)(&mut service, old),
    }
    if old.is_none() {
        (SERVICE.validate)(&service, &mut errors);
        said(&errors)?;
    }
    let done = ranges.complete(&mut service, old, in_use, &mut errors);
    done.map_err(|error| error.message)?;
    said(&errors)?;
    (SERVICE.validate)(&service, &mut errors);
    if let Some(old) = old {
        (SERVICE.validate_update)(&service, old, &mut errors);
    }
    said(&errors)?;
    Ok(service)
}

/// Policy, families and addresses in words. An address that was chosen and not asked for is `a4`, `a6`.
fn shape(service: &Value, asked: &Value) -> String {
    let asked = asked.to_string();
    let ips = list(service, "/spec/clusterIPs").iter().map(|ip| {
        let ip = ip.as_str().expect("an address");
        match ip {
            _ if asked.contains(&format!("\"{ip}\"")) => ip,
            _ if ip.contains(':') => "a6",
            _ => "a4",
        }
    });
    let ips: Vec<_> = ips.collect();
    let families = list(service, "/spec/ipFamilies").iter();
    let families: Vec<_> = families.filter_map(Value::as_str).collect();
    let first = list(service, "/spec/clusterIPs").first();
    let single = service.pointer("/spec/clusterIP");
    assert_eq!(single, first, "clusterIP is the first of clusterIPs");
    let policy = text(service, "/spec/ipFamilyPolicy");
    format!("{policy} {} {}", families.join(","), ips.join(","))
}

#[test]
fn new_services_have_what_they_ask_for_and_the_cluster_has() {
    let selector = json!({"a": "b"});
    for (ranges, spec, wanted) in [
        (V4, json!({}), "SingleStack IPv4 a4"),
        (V6, json!({}), "SingleStack IPv6 a6"),
        (BOTH, json!({}), "SingleStack IPv4 a4"),
        (BOTH_V6, json!({}), "SingleStack IPv6 a6"),
        (
            V4,
            json!({"ipFamilyPolicy": "PreferDualStack"}),
            "PreferDualStack IPv4 a4",
        ),
        (
            BOTH,
            json!({"ipFamilyPolicy": "PreferDualStack"}),
            "PreferDualStack IPv4,IPv6 a4,a6",
        ),
        (
            BOTH_V6,
            json!({"ipFamilyPolicy": "RequireDualStack"}),
            "RequireDualStack IPv6,IPv4 a6,a4",
        ),
        (BOTH, json!({"ipFamilies": ["IPv6"]}), "SingleStack IPv6 a6"),
        (
            BOTH,
            json!({"ipFamilies": ["IPv6"], "ipFamilyPolicy": "PreferDualStack"}),
            "PreferDualStack IPv6,IPv4 a6,a4",
        ),
        (
            BOTH,
            json!({"ipFamilies": ["IPv6", "IPv4"], "ipFamilyPolicy": "RequireDualStack"}),
            "RequireDualStack IPv6,IPv4 a6,a4",
        ),
        (
            BOTH,
            json!({"clusterIP": "fd43::7"}),
            "SingleStack IPv6 fd43::7",
        ),
        (
            BOTH,
            json!({"clusterIP": "fd43::7", "ipFamilyPolicy": "PreferDualStack"}),
            "PreferDualStack IPv6,IPv4 fd43::7,a4",
        ),
        (
            BOTH,
            json!({"clusterIP": "10.43.0.7", "clusterIPs": ["10.43.0.7", "fd43::7"], "ipFamilyPolicy": "RequireDualStack"}),
            "RequireDualStack IPv4,IPv6 10.43.0.7,fd43::7",
        ),
        (
            BOTH,
            json!({"type": "NodePort", "ipFamilyPolicy": "PreferDualStack"}),
            "PreferDualStack IPv4,IPv6 a4,a6",
        ),
        (
            BOTH,
            json!({"clusterIP": "None", "selector": selector}),
            "SingleStack IPv4 None",
        ),
        (
            BOTH,
            json!({"clusterIP": "None", "selector": selector, "ipFamilyPolicy": "PreferDualStack"}),
            "PreferDualStack IPv4,IPv6 None",
        ),
        (
            BOTH,
            json!({"clusterIP": "None"}),
            "RequireDualStack IPv4,IPv6 None",
        ),
        // Its endpoints are somebody else's, so it may have a family that the cluster has not.
        (
            V4,
            json!({"clusterIP": "None"}),
            "RequireDualStack IPv4,IPv6 None",
        ),
        (
            V4,
            json!({"clusterIP": "None", "ipFamilies": ["IPv6"]}),
            "RequireDualStack IPv6,IPv4 None",
        ),
        (
            BOTH,
            json!({"clusterIP": "None", "ipFamilies": ["IPv6"], "ipFamilyPolicy": "SingleStack"}),
            "SingleStack IPv6 None",
        ),
    ] {
        let made = stored(ranges, &[], None, spec.clone());
        let made = made.map(|service| shape(&service, &spec));
        assert_eq!(made.as_deref(), Ok(wanted), "{ranges}: {spec}");
    }
}

#[test]
fn what_cannot_be_is_refused_in_upstreams_words() {
    let other = json!({"spec": {"clusterIP": "10.43.0.9", "clusterIPs": ["10.43.0.9", "fd43::9"]}});
    let policy = "spec.ipFamilyPolicy: Invalid value: \"SingleStack\": must be 'RequireDualStack' or 'PreferDualStack' when multiple";
    for (ranges, spec, wanted) in [
        (
            V4,
            json!({"ipFamilyPolicy": "RequireDualStack"}),
            "spec.ipFamilyPolicy: Invalid value: \"RequireDualStack\": this cluster is not configured for dual-stack services",
        ),
        (
            V4,
            json!({"ipFamilies": ["IPv6"]}),
            "spec.ipFamilies[0]: Invalid value: \"IPv6\": not configured on this cluster",
        ),
        (
            V4,
            json!({"clusterIP": "None", "selector": {"a": "b"}, "ipFamilies": ["IPv6"]}),
            "spec.ipFamilies[0]: Invalid value: \"IPv6\": not configured on this cluster",
        ),
        (
            V4,
            json!({"clusterIP": "fd43::7"}),
            "spec.clusterIPs[0]: Invalid value: [\"fd43::7\"]: IPv6 is not configured on this cluster",
        ),
        (
            BOTH,
            json!({"ipFamilies": ["IPv4", "IPv6"]}),
            &format!("{policy} IP families are specified"),
        ),
        (
            BOTH,
            json!({"clusterIP": "10.43.0.7", "clusterIPs": ["10.43.0.7", "fd43::7"]}),
            &format!("{policy} cluster IPs are specified"),
        ),
        (
            BOTH,
            json!({"ipFamilies": ["IPv4", "IPv4"]}),
            "spec.ipFamilies[1]: Duplicate value: \"IPv4\"",
        ),
        (
            BOTH,
            json!({"ipFamilies": ["IPv5"]}),
            "spec.ipFamilies[0]: Unsupported value: \"IPv5\": supported values: \"IPv4\", \"IPv6\"",
        ),
        (
            BOTH,
            json!({"ipFamilyPolicy": "Both"}),
            "spec.ipFamilyPolicy: Unsupported value: \"Both\": supported values: \"SingleStack\", \"PreferDualStack\", \"RequireDualStack\"",
        ),
        (
            BOTH,
            json!({"clusterIPs": ["10.43.0.7"]}),
            "spec.clusterIPs: Invalid value: [\"10.43.0.7\"]: must be empty when `clusterIP` is not specified",
        ),
        (
            BOTH,
            json!({"clusterIP": "10.43.0.8", "clusterIPs": ["10.43.0.7"]}),
            "spec.clusterIPs: Invalid value: [\"10.43.0.7\"]: first value must match `clusterIP`",
        ),
        (
            BOTH,
            json!({"clusterIP": "None", "clusterIPs": ["None", "10.43.0.7"]}),
            "spec.clusterIPs: Invalid value: [\"None\",\"10.43.0.7\"]: 'None' must be the first and only value",
        ),
        (
            BOTH,
            json!({"clusterIP": "x"}),
            "spec.clusterIPs[0]: Invalid value: \"x\": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
        ),
        (
            BOTH,
            json!({"clusterIP": "10.43.0.7", "clusterIPs": ["10.43.0.7", "fd43::7", "fd43::8"]}),
            "may only hold up to 2 values",
        ),
        (
            BOTH,
            json!({"clusterIP": "10.43.0.7", "clusterIPs": ["10.43.0.7", "10.43.0.8"]}),
            "may specify no more than one IP for each IP family",
        ),
        (
            BOTH,
            json!({"clusterIP": "10.43.0.7", "ipFamilies": ["IPv6"]}),
            "spec.clusterIPs[0]: Invalid value: \"10.43.0.7\": expected an IPv6 value as indicated by `ipFamilies[0]`",
        ),
        (
            BOTH,
            json!({"clusterIP": "10.44.0.7"}),
            "spec.clusterIPs: Invalid value: [\"10.44.0.7\"]: failed to allocate IP 10.44.0.7: the provided IP (10.44.0.7) is not in the valid range. The range of valid IPs is 10.43.0.0/24",
        ),
        (
            BOTH,
            json!({"clusterIP": "10.43.0.7", "clusterIPs": ["10.43.0.7", "fd43::9"], "ipFamilyPolicy": "PreferDualStack"}),
            "spec.clusterIPs: Invalid value: [\"10.43.0.7\",\"fd43::9\"]: failed to allocate IP fd43::9: provided IP is already allocated",
        ),
        (
            BOTH,
            json!({"clusterIP": "None", "type": "NodePort"}),
            "spec.clusterIPs[0]: Invalid value: \"None\": may not be set to 'None' for NodePort services",
        ),
        (
            BOTH,
            json!({"type": "ExternalName", "externalName": "a.b", "clusterIP": "10.43.0.7"}),
            "spec.clusterIPs: Forbidden: may not be set for ExternalName services",
        ),
        (
            BOTH,
            json!({"type": "ExternalName", "externalName": "a.b", "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack"}),
            "spec.ipFamilies: Forbidden: may not be set for ExternalName services; spec.ipFamilyPolicy: Forbidden: may not be set for ExternalName services",
        ),
    ] {
        let said = stored(ranges, std::slice::from_ref(&other), None, spec.clone());
        let said = said.expect_err(&spec.to_string());
        assert!(said.contains(wanted), "{ranges}: {spec}: {said}");
    }
}

/// Fields set and, where `null`, taken away: a merge patch.
fn patched(old: &Value, patch: &Value) -> Value {
    let mut spec = old["spec"].clone();
    for (field, value) in patch.as_object().expect("an object") {
        if value.is_null() {
            spec.as_object_mut().expect("an object").remove(field);
        } else {
            spec[field] = value.clone();
        }
    }
    spec
}

const SINGLE_IP: &str = "10.43.0.50";

fn single() -> Value {
    json!({"clusterIP": SINGLE_IP, "selector": {"a": "b"}})
}

fn dual() -> Value {
    json!({"clusterIP": SINGLE_IP, "clusterIPs": [SINGLE_IP, "fd43::50"], "ipFamilyPolicy": "RequireDualStack"})
}

fn preferring() -> Value {
    json!({"ipFamilyPolicy": "PreferDualStack", "clusterIP": SINGLE_IP})
}

#[test]
fn the_second_family_comes_and_goes() {
    let headless = json!({"clusterIP": "None", "selector": {"a": "b"}});
    let both_headless =
        json!({"clusterIP": "None", "selector": {"a": "b"}, "ipFamilyPolicy": "RequireDualStack"});
    let name = json!({"type": "ExternalName", "externalName": "a.b"});
    for (before, old, patch, wanted) in [
        (
            BOTH,
            single(),
            json!({"ipFamilyPolicy": "PreferDualStack"}),
            "PreferDualStack IPv4,IPv6 10.43.0.50,a6",
        ),
        (
            BOTH,
            single(),
            json!({"ipFamilyPolicy": "RequireDualStack"}),
            "RequireDualStack IPv4,IPv6 10.43.0.50,a6",
        ),
        (
            BOTH,
            single(),
            json!({"ipFamilyPolicy": "RequireDualStack", "clusterIPs": [SINGLE_IP, "fd43::7"]}),
            "RequireDualStack IPv4,IPv6 10.43.0.50,fd43::7",
        ),
        (
            BOTH,
            single(),
            json!({"ipFamilyPolicy": "PreferDualStack", "ipFamilies": ["IPv4", "IPv6"]}),
            "PreferDualStack IPv4,IPv6 10.43.0.50,a6",
        ),
        (
            BOTH,
            dual(),
            json!({"ipFamilyPolicy": "SingleStack"}),
            "SingleStack IPv4 10.43.0.50",
        ),
        (
            BOTH,
            dual(),
            json!({"ipFamilyPolicy": "SingleStack", "ipFamilies": ["IPv4"], "clusterIPs": [SINGLE_IP]}),
            "SingleStack IPv4 10.43.0.50",
        ),
        (
            BOTH,
            dual(),
            json!({"ipFamilyPolicy": "PreferDualStack"}),
            "PreferDualStack IPv4,IPv6 10.43.0.50,a6",
        ),
        // Who leaves out, or empties, what was chosen keeps it.
        (
            BOTH,
            dual(),
            json!({"ipFamilyPolicy": null, "ipFamilies": null, "clusterIPs": null}),
            "RequireDualStack IPv4,IPv6 10.43.0.50,a6",
        ),
        (
            BOTH,
            dual(),
            json!({"ipFamilyPolicy": null, "ipFamilies": null, "clusterIPs": null, "clusterIP": null}),
            "RequireDualStack IPv4,IPv6 10.43.0.50,a6",
        ),
        (
            BOTH,
            dual(),
            json!({"clusterIP": ""}),
            "RequireDualStack IPv4,IPv6 10.43.0.50,a6",
        ),
        // Ranges that came later change nothing by themselves.
        (
            V4,
            preferring(),
            json!({"sessionAffinity": "ClientIP"}),
            "PreferDualStack IPv4 10.43.0.50",
        ),
        (
            V4,
            preferring(),
            json!({"ipFamilyPolicy": "RequireDualStack"}),
            "RequireDualStack IPv4,IPv6 10.43.0.50,a6",
        ),
        (
            BOTH,
            headless.clone(),
            json!({"ipFamilyPolicy": "RequireDualStack"}),
            "RequireDualStack IPv4,IPv6 None",
        ),
        (
            BOTH,
            both_headless.clone(),
            json!({"ipFamilyPolicy": "SingleStack"}),
            "SingleStack IPv4 None",
        ),
        (
            BOTH,
            both_headless,
            json!({"ipFamilies": ["IPv6", "IPv4"]}),
            "RequireDualStack IPv6,IPv4 None",
        ),
        (
            BOTH,
            dual(),
            json!({"type": "ExternalName", "externalName": "a.b"}),
            "  ",
        ),
        (
            BOTH,
            name,
            json!({"type": "ClusterIP", "externalName": null, "ipFamilyPolicy": "PreferDualStack"}),
            "PreferDualStack IPv4,IPv6 a4,a6",
        ),
    ] {
        let old = stored(before, &[], None, old).expect("it can be made");
        let spec = patched(&old, &patch);
        let new = stored(BOTH, &[], Some(&old), spec).map(|new| {
            if let (Some(is), Some(was)) =
                (new["spec"].get("clusterIP"), old["spec"].get("clusterIP"))
            {
                assert_eq!(is, was, "the first address stays");
            }
            shape(&new, &json!([patch, old["spec"]["clusterIP"]]))
        });
        assert_eq!(new.as_deref(), Ok(wanted), "{patch}");
    }
}

#[test]
fn the_first_family_stays_and_the_second_goes_only_when_told() {
    let release = "must be 'SingleStack' to release the secondary";
    for (ranges, old, patch, wanted) in [
        (
            BOTH,
            single(),
            json!({"clusterIP": "10.43.0.51", "clusterIPs": ["10.43.0.51"]}),
            "spec.clusterIPs[0]: Invalid value: [\"10.43.0.51\"]: may not change once set",
        ),
        (
            BOTH,
            single(),
            json!({"clusterIP": "10.43.0.51"}),
            "may not change once set",
        ),
        (
            BOTH,
            single(),
            json!({"clusterIP": "None"}),
            "spec.clusterIPs[0]: Invalid value: [\"None\"]: may not change once set",
        ),
        (
            BOTH,
            single(),
            json!({"ipFamilies": ["IPv6"]}),
            "expected an IPv6 value as indicated by `ipFamilies[0]`",
        ),
        (
            BOTH,
            dual(),
            json!({"clusterIPs": [SINGLE_IP, "fd43::51"]}),
            "spec.clusterIPs[1]: Invalid value: [\"10.43.0.50\",\"fd43::51\"]: may not change once set",
        ),
        (
            BOTH,
            dual(),
            json!({"clusterIPs": [SINGLE_IP]}),
            &format!(
                "spec.ipFamilyPolicy: Invalid value: \"RequireDualStack\": {release} cluster IP"
            ),
        ),
        (
            BOTH,
            dual(),
            json!({"ipFamilies": ["IPv4"], "ipFamilyPolicy": "PreferDualStack"}),
            &format!(
                "spec.ipFamilyPolicy: Invalid value: \"PreferDualStack\": {release} IP family"
            ),
        ),
        (
            V4,
            dual(),
            json!({"sessionAffinity": "ClientIP"}),
            "spec.ipFamilies[1]: Invalid value: \"IPv6\": not configured on this cluster",
        ),
        (
            V4,
            single(),
            json!({"ipFamilyPolicy": "RequireDualStack"}),
            "not configured for dual-stack services",
        ),
        (
            BOTH,
            single(),
            json!({"ipFamilyPolicy": "PreferDualStack", "clusterIPs": [SINGLE_IP, "fd43::9"]}),
            "failed to allocate IP fd43::9: provided IP is already allocated",
        ),
        (
            BOTH,
            dual(),
            json!({"type": "ExternalName", "externalName": "a.b", "ipFamilies": ["IPv6"]}),
            "spec.ipFamilies: Forbidden: may not be set for ExternalName services",
        ),
    ] {
        let other =
            json!({"spec": {"clusterIP": "10.43.0.9", "clusterIPs": ["10.43.0.9", "fd43::9"]}});
        let before = stored(BOTH, std::slice::from_ref(&other), None, old).expect("it can be made");
        let said = stored(ranges, &[other], Some(&before), patched(&before, &patch));
        let said = said.expect_err(&patch.to_string());
        assert!(said.contains(wanted), "{patch}: {said}");
    }
}

#[test]
fn a_balancer_for_local_endpoints_has_a_port_for_health_checks() {
    let port = |service: &Value| service["spec"]["healthCheckNodePort"].as_i64();
    let local = json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local"});
    let first = stored(V4, &[], None, local.clone()).expect("it can be made");
    let number = port(&first).expect("a port");
    assert!((30_000..=32_767).contains(&number));
    let left_out = stored(V4, &[], Some(&first), local.clone()).expect("it can be changed");
    assert_eq!(port(&left_out), Some(number));
    let unneeded = patched(&first, &json!({"externalTrafficPolicy": "Cluster"}));
    let unneeded = stored(V4, &[], Some(&first), unneeded).expect("it can be changed");
    assert_eq!(port(&unneeded), None);
    let other = if number == 30_000 { 30_001 } else { 30_000 };
    let refused = |old: Option<&Value>, spec: Value, why: &str| {
        let said = stored(V4, std::slice::from_ref(&first), old, spec).expect_err(why);
        let wanted = format!("spec.healthCheckNodePort: Invalid value: {why}");
        assert!(said.starts_with(&wanted), "{said}");
    };
    let asks = |number: i64| {
        patched(
            &json!({"spec": local}),
            &json!({"healthCheckNodePort": number}),
        )
    };
    refused(
        None,
        asks(number),
        &format!("{number}: provided port is already allocated"),
    );
    refused(
        None,
        asks(80),
        "80: provided port is not in the valid range",
    );
    refused(
        None,
        json!({"healthCheckNodePort": other}),
        &format!("{other}: may only be set when"),
    );
    let second = stored(V4, std::slice::from_ref(&first), None, local.clone());
    let second = second.expect("it can be made");
    assert_ne!(port(&second), Some(number));
    let another = if port(&second) == Some(other) {
        30_002
    } else {
        other
    };
    refused(
        Some(&second),
        asks(another),
        &format!("{another}: field is immutable"),
    );
}
