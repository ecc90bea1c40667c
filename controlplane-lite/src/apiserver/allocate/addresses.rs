// SPDX-License-Identifier: Apache-2.0
//! Cluster addresses: one of each family that a Service has.

use std::net::IpAddr;

use rand::Rng;
use serde_json::Value;

use super::{super::strategy::service_ips::is_headless, InUse, Ranges};
use crate::apiserver::{
    cidr::Cidr,
    error::ApiError,
    json::{list, text},
    strategy::field::FieldErrors,
};

/// Chooses those that are missing, and checks those that are asked for.
pub(super) fn choose(
    service: &mut Value,
    old: Option<&Value>,
    ranges: &Ranges,
    in_use: &InUse,
    errors: &mut FieldErrors,
) -> Result<(), ApiError> {
    let Some(first) = first_new(service, old) else {
        return Ok(());
    };
    let asked = list(service, "/spec/clusterIPs").to_vec();
    let mut ips = asked.clone();
    let families = list(service, "/spec/ipFamilies").iter().enumerate();
    for (at, family) in families.skip(first) {
        let family = family.as_str().unwrap_or("");
        let range = ranges.of(family).ok_or_else(|| {
            ApiError::internal(format!("there is no range of {family} addresses"))
        })?;
        let wanted = asked.get(at).and_then(Value::as_str).unwrap_or("");
        if wanted.is_empty() {
            ips.truncate(at);
            ips.push(free(range, in_use)?.to_string().into());
        } else if let Some(why) = refusal(wanted, range, in_use) {
            let why = format!("failed to allocate IP {wanted}: {why}");
            errors.invalid("spec.clusterIPs", asked, why);
            return Ok(());
        }
    }
    if let Some(primary) = ips.first() {
        service["spec"]["clusterIP"] = primary.clone();
    }
    service["spec"]["clusterIPs"] = ips.into();
    Ok(())
}

/// From where on the addresses are new. An address never changes, so an update only brings the second
/// one, or all of them when the Service had no use for them.
fn first_new(service: &Value, old: Option<&Value>) -> Option<usize> {
    let external = |service: &Value| text(service, "/spec/type") == "ExternalName";
    if external(service) || is_headless(service) {
        return None;
    }
    let Some(old) = old.filter(|old| !external(old)) else {
        return Some(0);
    };
    let families = |service| list(service, "/spec/ipFamilies").len();
    let grows = !is_headless(old) && families(old) == 1 && families(service) == 2;
    grows.then_some(1)
}

fn refusal(wanted: &str, range: Cidr, in_use: &InUse) -> Option<String> {
    match wanted.parse::<IpAddr>() {
        Ok(ip) if !range.has_usable(ip) => Some(format!(
            "the provided IP ({ip}) is not in the valid range. The range of valid IPs is {range}"
        )),
        Ok(ip) if in_use.addresses.contains(&ip) => {
            Some("provided IP is already allocated".to_owned())
        }
        Ok(_) => None,
        Err(_) => Some("it is not an IP address".to_owned()),
    }
}

/// A free address. The first addresses are left for those who ask for one by number, as
/// upstream does, until the rest is used up.
fn free(range: Cidr, in_use: &InUse) -> Result<IpAddr, ApiError> {
    let all = range.usable();
    let low = if all < 16 {
        0
    } else {
        (all / 16).clamp(16, 256)
    };
    let high = all - low;
    let start = rand::rng().random_range(0..high.max(1));
    let tries = (0..high).map(|n| low + (start + n) % high).chain(0..low);
    let mut free = tries.map(|n| range.nth(n));
    free.find(|ip| !in_use.addresses.contains(ip))
        .ok_or_else(|| ApiError::internal("failed to allocate a serviceIP: range is full"))
}
