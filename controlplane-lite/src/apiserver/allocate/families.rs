// SPDX-License-Identifier: Apache-2.0
//! Which families a Service has: `ipFamilyPolicy` and `ipFamilies`, out of what the client says, what
//! the Service was, and what the cluster has. Rules and words are upstream's (kubernetes/kubernetes,
//! `pkg/registry/core/service/storage/alloc.go`; KEP-563).

use std::net::IpAddr;

use serde_json::{Value, json};

use super::{super::strategy::service_ips, Ranges, family};
use crate::apiserver::{
    json::{self, list, text},
    strategy::field::FieldErrors,
};

const IPS: &str = "/spec/clusterIPs";
const FAMILIES: &str = "/spec/ipFamilies";
const POLICY: &str = "/spec/ipFamilyPolicy";
const SINGLE: &str = "SingleStack";

/// Fills in policy and families. An update to one family drops the second one's address here too.
pub(super) fn complete(
    service: &mut Value,
    old: Option<&Value>,
    ranges: &Ranges,
    errors: &mut FieldErrors,
) {
    let stays = old.is_some_and(|old| prefers_as_before(service, old));
    if text(service, "/spec/type") == "ExternalName" || stays {
        return;
    }
    default_policy(service, old);
    service_ips::validate(service, errors);
    if !errors.0.is_empty() {
        return;
    }
    if let Some(old) = old {
        let_go(service, old, errors);
    }
    policy_fits(service, errors);
    infer(service, ranges, errors);
    if !errors.0.is_empty() {
        return;
    }
    // Endpoints that somebody else writes may have any family, whatever Services have here.
    let free = service_ips::is_headless(service) && is_without_selector(service);
    if !free {
        cluster_has_them(service, ranges, errors);
    }
    if errors.0.is_empty() {
        add_missing(service, ranges, free || ranges.are_two());
    }
}

/// A Service that takes what it gets does not change because the cluster's ranges did.
fn prefers_as_before(new: &Value, old: &Value) -> bool {
    let prefers = |policy: &str| policy == "PreferDualStack";
    let same = |path: &str| list(new, path) == list(old, path);
    prefers(text(new, POLICY))
        && (text(old, POLICY).is_empty() || prefers(text(old, POLICY)))
        && text(new, "/spec/type") == text(old, "/spec/type")
        && same(IPS)
        && same(FAMILIES)
}

fn is_without_selector(service: &Value) -> bool {
    let selector = service.pointer("/spec/selector").and_then(Value::as_object);
    selector.is_none_or(serde_json::Map::is_empty)
}

fn default_policy(service: &mut Value, old: Option<&Value>) {
    let before = old.map_or("", |old| text(old, POLICY));
    let policy = if !before.is_empty() {
        before
    } else if text(service, "/spec/clusterIP") == "None" && is_without_selector(service) {
        "RequireDualStack"
    } else {
        SINGLE
    };
    json::default_text(&mut service["spec"], "ipFamilyPolicy", policy);
}

/// `SingleStack` is enough to say that the second family goes; nothing else is.
fn let_go(service: &mut Value, old: &Value, errors: &mut FieldErrors) {
    let policy = text(service, POLICY).to_owned();
    for (path, field, what) in [
        (IPS, "clusterIPs", "cluster IP"),
        (FAMILIES, "ipFamilies", "IP family"),
    ] {
        let (now, before) = (list(service, path), list(old, path));
        if policy == SINGLE {
            if now == before && now.len() > 1 {
                service["spec"][field] = json!([now[0].clone()]);
            }
        } else if !now.is_empty() && now.len() < before.len() {
            let why = format!("must be 'SingleStack' to release the secondary {what}");
            errors.invalid("spec.ipFamilyPolicy", policy.as_str(), why);
        }
    }
}

fn policy_fits(service: &Value, errors: &mut FieldErrors) {
    if text(service, POLICY) != SINGLE {
        return;
    }
    for (path, what) in [(IPS, "cluster IPs"), (FAMILIES, "IP families")] {
        if list(service, path).len() == 2 {
            let why = format!(
                "must be 'RequireDualStack' or 'PreferDualStack' when multiple {what} are specified"
            );
            errors.invalid("spec.ipFamilyPolicy", SINGLE, why);
        }
    }
}

/// An address without a family says which one it is of.
fn infer(service: &mut Value, ranges: &Ranges, errors: &mut FieldErrors) {
    let ips = list(service, IPS).to_vec();
    let mut families = list(service, FAMILIES).to_vec();
    for (at, ip) in ips.iter().enumerate().skip(families.len()) {
        let Some(ip) = ip.as_str().and_then(|ip| ip.parse::<IpAddr>().ok()) else {
            break;
        };
        let family = family(ip);
        if ranges.of(family).is_some() {
            families.push(family.into());
        } else {
            let why = format!("{family} is not configured on this cluster");
            errors.invalid(format!("spec.clusterIPs[{at}]"), ips.clone(), why);
        }
    }
    service["spec"]["ipFamilies"] = families.into();
}

fn cluster_has_them(service: &Value, ranges: &Ranges, errors: &mut FieldErrors) {
    let policy = text(service, POLICY);
    if policy == "RequireDualStack" && !ranges.are_two() {
        let why = "this cluster is not configured for dual-stack services";
        errors.invalid("spec.ipFamilyPolicy", policy, why);
    }
    for (at, family) in list(service, FAMILIES).iter().enumerate() {
        if ranges.of(family.as_str().unwrap_or("")).is_none() {
            let path = format!("spec.ipFamilies[{at}]");
            errors.invalid(path, family.clone(), "not configured on this cluster");
        }
    }
}

fn add_missing(service: &mut Value, ranges: &Ranges, can_have_two: bool) {
    let two = can_have_two && text(service, POLICY) != SINGLE;
    let mut families = list(service, FAMILIES).to_vec();
    if families.is_empty() {
        families.push(ranges.primary.family().into());
    }
    if two && families.len() == 1 {
        let other = if families[0] == "IPv4" {
            "IPv6"
        } else {
            "IPv4"
        };
        families.push(other.into());
    }
    service["spec"]["ipFamilies"] = families.into();
}
