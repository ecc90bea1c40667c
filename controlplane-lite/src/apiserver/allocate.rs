// SPDX-License-Identifier: Apache-2.0
//! Cluster addresses and node ports of Services.
//!
//! There is no record of what is in use besides the stored Services, so nothing can leak and
//! nothing has to be repaired. A choice is made from a snapshot of them, and the change is only
//! committed if no Service changed since: two changes cannot take the same address or port.

use std::{collections::BTreeSet, net::IpAddr};

use rand::Rng;
use serde_json::{Value, json};

use super::{
    cidr::Cidr,
    error::ApiError,
    json::{self as at, int, list, text},
    resource::Resource,
    strategy::field::FieldErrors,
};
use crate::store::{Guard, Store};

/// Node ports (upstream: `--service-node-port-range`).
const NODE_PORTS: std::ops::RangeInclusive<i64> = 30_000..=32_767;

/// The range that addresses are taken from.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ranges {
    pub(crate) services: Cidr,
}

struct InUse {
    addresses: BTreeSet<IpAddr>,
    ports: BTreeSet<(i64, String)>,
}

impl Ranges {
    /// Chooses what a Service needs and does not have, and says what must hold at the commit.
    /// Other kinds need nothing. `old` is the stored Service on update.
    pub(crate) fn allocate(
        &self,
        store: &dyn Store,
        row: &Resource,
        service: &mut Value,
        old: Option<&Value>,
    ) -> Result<Vec<Guard>, ApiError> {
        if row.stored != "services" || old.is_some_and(|old| old["spec"] == service["spec"]) {
            return Ok(Vec::new());
        }
        let name = text(service, "/metadata/name").to_owned();
        let key = row.key(text(service, "/metadata/namespace"), &name);
        let snapshot = store.range(&row.prefix(""), None);
        let snapshot = snapshot.map_err(|e| ApiError::internal(&e))?;
        let others = snapshot.objects.iter().filter(|o| o.key() != key);
        let mut in_use = InUse::of(others.map(|o| o.value()));
        let mut errors = FieldErrors::default();
        self.address(service, &mut in_use, &mut errors)?;
        node_ports(service, &mut in_use, &mut errors)?;
        if !errors.0.is_empty() {
            return Err(ApiError::invalid(row, &name, &errors.0));
        }
        Ok(vec![Guard::Resource {
            resource: row.stored.to_owned(),
            revision: snapshot.revision,
        }])
    }

    fn address(
        &self,
        service: &mut Value,
        in_use: &mut InUse,
        errors: &mut FieldErrors,
    ) -> Result<(), ApiError> {
        if text(service, "/spec/type") == "ExternalName" {
            return Ok(());
        }
        let listed = list(service, "/spec/clusterIPs").to_vec();
        if text(service, "/spec/clusterIP").is_empty()
            && let Some(first) = listed.first()
        {
            service["spec"]["clusterIP"] = first.clone();
        }
        let wanted = text(service, "/spec/clusterIP").to_owned();
        if let Some(first) = listed.first().filter(|first| **first != *wanted) {
            errors.invalid(
                "spec.clusterIPs[0]",
                first.clone(),
                "must match spec.clusterIP",
            );
        }
        if listed.len() > 1 {
            errors.invalid(
                "spec.clusterIPs",
                listed,
                "may only hold one address: this cluster is single-stack",
            );
        }
        let chosen = match wanted.as_str() {
            "None" => "None".to_owned(),
            "" => self.free(in_use)?.to_string(),
            text => match text.parse::<IpAddr>() {
                Ok(ip) if !self.services.has_usable(ip) => {
                    errors.invalid(
                        "spec.clusterIPs",
                        vec![text],
                        "failed to allocate IP: the provided IP is not in the valid range",
                    );
                    return Ok(());
                }
                Ok(ip) if in_use.addresses.contains(&ip) => {
                    errors.invalid(
                        "spec.clusterIPs",
                        vec![text],
                        format!("failed to allocate IP {text}: provided IP is already allocated"),
                    );
                    return Ok(());
                }
                Ok(ip) => ip.to_string(),
                Err(_) => {
                    errors.invalid(
                        "spec.clusterIP",
                        text,
                        "must be empty, 'None', or a valid IP address",
                    );
                    return Ok(());
                }
            },
        };
        let spec = &mut service["spec"];
        spec["clusterIP"] = chosen.clone().into();
        spec["clusterIPs"] = json!([chosen]);
        let families = list(spec, "/ipFamilies");
        if families.iter().any(|f| *f != self.services.family()) || families.len() > 1 {
            let families = families.to_vec();
            errors.invalid(
                "spec.ipFamilies",
                families,
                format!("this cluster only has {}", self.services.family()),
            );
            return Ok(());
        }
        spec["ipFamilies"] = json!([self.services.family()]);
        // A policy that prefers two stacks is satisfied with the one that there is.
        at::default_text(spec, "ipFamilyPolicy", "SingleStack");
        Ok(())
    }

    /// A free address. The first addresses are left for those who ask for one by number, as
    /// upstream does, until the rest is used up.
    fn free(&self, in_use: &InUse) -> Result<IpAddr, ApiError> {
        let all = self.services.usable();
        let low = if all < 16 {
            0
        } else {
            (all / 16).clamp(16, 256)
        };
        let high = all - low;
        let start = rand::rng().random_range(0..high.max(1));
        let tries = (0..high).map(|n| low + (start + n) % high).chain(0..low);
        let mut free = tries.map(|n| self.services.nth(n));
        free.find(|ip| !in_use.addresses.contains(ip))
            .ok_or_else(|| ApiError::internal("failed to allocate a serviceIP: range is full"))
    }
}

impl InUse {
    fn of(services: impl Iterator<Item = Value>) -> Self {
        let mut found = Self {
            addresses: BTreeSet::new(),
            ports: BTreeSet::new(),
        };
        for service in services {
            if let Ok(ip) = text(&service, "/spec/clusterIP").parse() {
                found.addresses.insert(ip);
            }
            for port in list(&service, "/spec/ports") {
                if let Some(number) = int(port, "/nodePort").filter(|n| *n != 0) {
                    found
                        .ports
                        .insert((number, text(port, "/protocol").to_owned()));
                }
            }
        }
        found
    }
}

fn node_ports(
    service: &mut Value,
    in_use: &mut InUse,
    errors: &mut FieldErrors,
) -> Result<(), ApiError> {
    let kind = text(service, "/spec/type");
    let wants = match kind {
        "NodePort" => true,
        "LoadBalancer" => at::truth(service, "/spec/allocateLoadBalancerNodePorts"),
        _ => false,
    };
    let mut own: BTreeSet<(i64, String)> = BTreeSet::new();
    for (n, port) in list(service, "/spec/ports").iter().enumerate() {
        let Some(number) = int(port, "/nodePort").filter(|n| *n != 0) else {
            continue;
        };
        let path = format!("spec.ports[{n}].nodePort");
        let key = (number, text(port, "/protocol").to_owned());
        if !NODE_PORTS.contains(&number) {
            errors.invalid(
                path,
                number,
                "provided port is not in the valid range. The range of valid ports is 30000-32767",
            );
        } else if in_use.ports.contains(&key) || !own.insert(key) {
            errors.invalid(path, number, "provided port is already allocated");
        }
    }
    if !wants {
        return Ok(());
    }
    in_use.ports.extend(own);
    for port in at::items(&mut service["spec"], "ports") {
        if int(port, "/nodePort").unwrap_or(0) != 0 {
            continue;
        }
        let protocol = text(port, "/protocol").to_owned();
        let number = free_port(in_use)?;
        in_use.ports.insert((number, protocol));
        port["nodePort"] = number.into();
    }
    Ok(())
}

/// A port that no protocol uses, so that a service with two protocols can be added to it.
fn free_port(in_use: &InUse) -> Result<i64, ApiError> {
    let count = NODE_PORTS.end() - NODE_PORTS.start() + 1;
    let start = rand::rng().random_range(0..count);
    let mut tries = (0..count).map(|n| NODE_PORTS.start() + (start + n) % count);
    let free = tries.find(|n| {
        let mut same = in_use
            .ports
            .range((*n, String::new())..(*n + 1, String::new()));
        same.next().is_none()
    });
    free.ok_or_else(|| ApiError::internal("failed to allocate a nodePort: range is full"))
}
