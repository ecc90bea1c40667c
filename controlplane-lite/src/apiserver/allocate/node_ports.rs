// SPDX-License-Identifier: Apache-2.0
//! Node ports: one number for all families of a Service, and one for questions after its health.

use std::collections::BTreeSet;

use rand::Rng;
use serde_json::Value;

use super::InUse;
use crate::apiserver::{
    error::ApiError,
    json::{self, int, list, text},
    strategy::{
        field::FieldErrors,
        service_health::{HEALTH_CHECK, needs_health_check},
    },
};

/// Upstream: `--service-node-port-range`.
const NODE_PORTS: std::ops::RangeInclusive<i64> = 30_000..=32_767;

/// Chooses those that are missing, and checks those that are asked for.
pub(super) fn choose(
    service: &mut Value,
    in_use: &mut InUse,
    errors: &mut FieldErrors,
) -> Result<(), ApiError> {
    let wants = match text(service, "/spec/type") {
        "NodePort" => true,
        "LoadBalancer" => json::truth(service, "/spec/allocateLoadBalancerNodePorts"),
        _ => false,
    };
    let mut own: BTreeSet<(i64, String)> = BTreeSet::new();
    for (n, port) in list(service, "/spec/ports").iter().enumerate() {
        let Some(number) = int(port, "/nodePort").filter(|n| *n != 0) else {
            continue;
        };
        let key = (number, text(port, "/protocol").to_owned());
        let taken = in_use.ports.contains(&key) || !own.insert(key);
        asked(number, taken, format!("spec.ports[{n}].nodePort"), errors);
    }
    in_use.ports.extend(own);
    if wants {
        for port in json::items(&mut service["spec"], "ports") {
            if int(port, "/nodePort").unwrap_or(0) == 0 {
                let protocol = text(port, "/protocol").to_owned();
                port["nodePort"] = free_port(in_use, protocol)?.into();
            }
        }
    }
    health_check(service, in_use, errors)
}

/// Where nodes say whether they have an endpoint of the Service, for those that need to ask.
fn health_check(
    service: &mut Value,
    in_use: &mut InUse,
    errors: &mut FieldErrors,
) -> Result<(), ApiError> {
    if !needs_health_check(service) {
        return Ok(());
    }
    match int(service, HEALTH_CHECK).unwrap_or(0) {
        0 => service["spec"]["healthCheckNodePort"] = free_port(in_use, "TCP".to_owned())?.into(),
        number => {
            let taken = !in_use.ports.insert((number, "TCP".to_owned()));
            asked(number, taken, "spec.healthCheckNodePort".to_owned(), errors);
        }
    }
    Ok(())
}

fn asked(number: i64, taken: bool, path: String, errors: &mut FieldErrors) {
    if !NODE_PORTS.contains(&number) {
        errors.invalid(
            path,
            number,
            "provided port is not in the valid range. The range of valid ports is 30000-32767",
        );
    } else if taken {
        errors.invalid(path, number, "provided port is already allocated");
    }
}

/// A port that no protocol uses, so that a service with two protocols can be added to it. It is in use
/// from now on.
fn free_port(in_use: &mut InUse, protocol: String) -> Result<i64, ApiError> {
    let count = NODE_PORTS.end() - NODE_PORTS.start() + 1;
    let start = rand::rng().random_range(0..count);
    let mut tries = (0..count).map(|n| NODE_PORTS.start() + (start + n) % count);
    let free = tries.find(|n| {
        let mut same = in_use
            .ports
            .range((*n, String::new())..(*n + 1, String::new()));
        same.next().is_none()
    });
    let full = || ApiError::internal("failed to allocate a nodePort: range is full");
    let free = free.ok_or_else(full)?;
    in_use.ports.insert((free, protocol));
    Ok(free)
}
