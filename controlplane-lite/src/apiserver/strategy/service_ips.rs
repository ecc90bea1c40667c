// SPDX-License-Identifier: Apache-2.0
//! The linked fields of a Service's addresses: `clusterIP` and `clusterIPs`, `ipFamilies` and
//! `ipFamilyPolicy`. Rules and words are upstream's (kubernetes/kubernetes,
//! `pkg/apis/core/validation` and `pkg/registry/core/service`). What the cluster must have for them
//! is looked at where addresses are chosen, in `allocate`.

use std::net::IpAddr;

use serde_json::{Value, json};

use super::field::FieldErrors;
use crate::apiserver::json::{self, list, text};

const FAMILIES: &[&str] = &["IPv4", "IPv6"];
const POLICIES: &[&str] = &["SingleStack", "PreferDualStack", "RequireDualStack"];

fn is_external(service: &Value) -> bool {
    text(service, "/spec/type") == "ExternalName"
}

/// Clients find the endpoints by themselves.
pub(crate) fn is_headless(service: &Value) -> bool {
    matches!(ips(service), [one] if one == "None")
}

fn ips(service: &Value) -> &[Value] {
    list(service, "/spec/clusterIPs")
}

fn families(service: &Value) -> &[Value] {
    list(service, "/spec/ipFamilies")
}

/// A client that only knows `clusterIP` means both.
pub(super) fn link(new: &mut Value) {
    let ip = text(new, "/spec/clusterIP").to_owned();
    if !ip.is_empty() && ips(new).is_empty() {
        new["spec"]["clusterIPs"] = json!([ip]);
    }
}

/// What an update leaves out is kept, so that a client need not know what was allocated; and who
/// changes only one of the two fields means both.
pub(super) fn keep(new: &mut Value, old: &Value) {
    if !is_external(new) && !is_external(old) {
        if text(new, "/spec/clusterIP").is_empty() {
            json::put(
                &mut new["spec"],
                "clusterIP",
                old.pointer("/spec/clusterIP").cloned(),
            );
        }
        if ips(new).is_empty() {
            json::put(
                &mut new["spec"],
                "clusterIPs",
                old.pointer("/spec/clusterIPs").cloned(),
            );
        }
    }
    let (is, was) = (
        text(new, "/spec/clusterIP").to_owned(),
        text(old, "/spec/clusterIP"),
    );
    if is == was && ips(new).is_empty() {
        json::put(
            &mut new["spec"],
            "clusterIPs",
            old.pointer("/spec/clusterIPs").cloned(),
        );
    } else if is != was && ips(new) == ips(old) {
        let follows = (!is.is_empty()).then(|| json!([is]));
        json::put(&mut new["spec"], "clusterIPs", follows);
    }
    if is_external(new) && !is_external(old) {
        drop_unchanged(new, old);
    }
}

/// A Service that becomes a name loses its addresses, unless the client has something to say on them,
/// which is then an error.
fn drop_unchanged(new: &mut Value, old: &Value) {
    if ips(new) == ips(old) {
        json::remove(&mut new["spec"], "clusterIP");
        json::remove(&mut new["spec"], "clusterIPs");
    }
    for field in ["ipFamilies", "ipFamilyPolicy"] {
        let path = format!("/spec/{field}");
        if new.pointer(&path) == old.pointer(&path) {
            json::remove(&mut new["spec"], field);
        }
    }
}

/// What is wrong with the fields by themselves.
pub(crate) fn validate(service: &Value, errors: &mut FieldErrors) {
    if is_external(service) {
        nothing_for_a_name(service, errors);
        return;
    }
    let (ip, ips) = (text(service, "/spec/clusterIP"), ips(service));
    match ips.first() {
        None if !ip.is_empty() => errors.required("spec.clusterIPs", ""),
        Some(_) if ip.is_empty() => errors.invalid(
            "spec.clusterIPs",
            ips,
            "must be empty when `clusterIP` is not specified",
        ),
        Some(first) if *first != ip => {
            errors.invalid("spec.clusterIPs", ips, "first value must match `clusterIP`");
        }
        _ => {}
    }
    for (at, family) in families(service).iter().enumerate() {
        let path = format!("spec.ipFamilies[{at}]");
        if families(service)[..at].contains(family) {
            errors.duplicate(&path, family.clone());
        }
        errors.one_of(path, family.as_str().unwrap_or("null"), FAMILIES);
    }
    let policy = text(service, "/spec/ipFamilyPolicy");
    errors.one_of("spec.ipFamilyPolicy", policy, POLICIES);
    addresses(service, ips, errors);
}

fn nothing_for_a_name(service: &Value, errors: &mut FieldErrors) {
    let has_policy = !text(service, "/spec/ipFamilyPolicy").is_empty();
    for (field, is_set) in [
        ("clusterIPs", !ips(service).is_empty()),
        ("ipFamilies", !families(service).is_empty()),
        ("ipFamilyPolicy", has_policy),
    ] {
        if is_set {
            let path = format!("spec.{field}");
            errors.forbidden(path, "may not be set for ExternalName services");
        }
    }
}

fn addresses(service: &Value, ips: &[Value], errors: &mut FieldErrors) {
    let begun = errors.0.len();
    if ips.len() > 1 && ips[0] == "None" {
        errors.invalid(
            "spec.clusterIPs",
            ips,
            "'None' must be the first and only value",
        );
    }
    let mut parsed: Vec<IpAddr> = Vec::new();
    for (at, ip) in ips.iter().enumerate() {
        match ip.as_str().and_then(|ip| ip.parse().ok()) {
            Some(ip) => parsed.push(ip),
            None if at == 0 && ip == "None" => {}
            None => errors.invalid(
                format!("spec.clusterIPs[{at}]"),
                ip.clone(),
                "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
            ),
        }
    }
    let understood = errors.0.len() == begun;
    if ips.len() > 2 {
        errors.invalid("spec.clusterIPs", ips, "may only hold up to 2 values");
    }
    if !understood {
        return;
    }
    let v6 = parsed.iter().filter(|ip| ip.is_ipv6()).count();
    if parsed.len() > 1 && (v6 == 0 || v6 == parsed.len()) {
        let why = "may specify no more than one IP for each IP family";
        errors.invalid("spec.clusterIPs", ips, why);
    }
    for (at, (ip, family)) in parsed.iter().zip(families(service)).enumerate() {
        let wrong = match family.as_str() {
            Some("IPv4") => ip.is_ipv6(),
            Some("IPv6") => ip.is_ipv4(),
            _ => false,
        };
        if wrong {
            let family = family.as_str().unwrap_or("");
            errors.invalid(
                format!("spec.clusterIPs[{at}]"),
                ips[at].clone(),
                format!("expected an {family} value as indicated by `ipFamilies[{at}]`"),
            );
        }
    }
}

/// The first address and family stay for as long as the Service has addresses; the second come and go.
pub(super) fn validate_update(new: &Value, old: &Value, errors: &mut FieldErrors) {
    if is_external(new) || is_external(old) {
        return;
    }
    let headless = (is_headless(new), is_headless(old));
    if headless == (true, true) {
        return;
    }
    let single = text(new, "/spec/ipFamilyPolicy") == "SingleStack";
    let mut one = |field: &str, what: &str, is: &[Value], was: &[Value]| {
        let path = format!("spec.{field}[0]");
        let shrunk = is.len() < was.len();
        if shrunk && is.is_empty() {
            errors.invalid(&path, is, format!("primary {what} can not be unset"));
        }
        // Of lists that are as long as before every value stays, of others the first.
        let count = if is.len() == was.len() { is.len() } else { 1 };
        for (at, (is_one, was_one)) in is.iter().zip(was).take(count).enumerate() {
            if is_one != was_one {
                errors.invalid(format!("spec.{field}[{at}]"), is, "may not change once set");
            }
        }
        if shrunk && is.len() == 1 && !single {
            let why = format!("must be set to 'SingleStack' when releasing the secondary {what}");
            errors.invalid(
                "spec.ipFamilyPolicy",
                text(new, "/spec/ipFamilyPolicy"),
                why,
            );
        }
    };
    one("clusterIPs", "clusterIP", ips(new), ips(old));
    if headless == (false, false) {
        one("ipFamilies", "ipFamily", families(new), families(old));
    }
}
